"""The measure itself: what an ulp is, at the edges of a dtype."""

import numpy as np
import pytest

from softxp_conformance.double_double import DD
from softxp_conformance.ulp import FORMATS, distance, unit

INF, NAN = float("inf"), float("nan")


def one(got, hi, dtype, lo=0.0, **more):
    return float(distance(np.asarray([got]), DD(np.asarray([hi]), np.asarray([lo])), dtype, **more)[0])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_unit_is_the_spacing(dtype):
    for x in (1.0, 1.5, 3.7e-5, 1000.0, FORMATS[dtype][2] / 2):
        assert unit(x, dtype) == float(np.spacing(np.asarray(x, dtype)))
    assert unit(0.0, dtype) == float(np.finfo(dtype).smallest_subnormal)


def test_an_infinity_is_right_where_the_truth_would_round_to_one():
    assert one(INF, 65519.9, "float16") == INF and one(INF, 65520.0, "float16") == 0
    assert one(-INF, 65520.0, "float16") == INF and one(-INF, -65520.0, "float16") == 0
    largest = FORMATS["float64"][2]
    assert one(INF, largest, "float64", lo=2.8) == INF and one(INF, INF, "float64") == 0
    assert one(65504.0, 65520.0, "float16") == 0.5  # and the largest number is half an ulp off


def test_nan_is_met_by_nan_alone():
    assert one(NAN, NAN, "float32") == 0 and one(NAN, 1.0, "float32") == INF and one(1.0, NAN, "float32") == INF


def test_float64_is_judged_beyond_its_own_digits():
    assert one(1.0, 1.0, "float64", lo=2.0**-54) == 0.25


def test_flushing_costs_as_many_smallest_normals_as_are_said_to_be_lost():
    smallest = float(np.finfo(np.float32).tiny)
    assert one(0.0, smallest / 2, "float32") > 4e6
    assert one(0.0, smallest / 2, "float32", lost=1) == 0.5
    assert one(0.0, 1500 * smallest, "float32", lost=1) == 1500
    assert one(0.0, 16 * smallest, "float32", lost=32) == 0.5
