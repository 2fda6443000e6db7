"""Values, against the truth: all named rows at once, every axis, and rows as long as vocabularies."""

from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from . import inputs
from .cases import CASES, Case
from .compare import judge
from .targets import Target

QUESTIONS = [(case, variant) for case in CASES.values() for variant in case.variants]


def ask(target: Target, dtype: str, case: Case, x: Any, options: dict[str, Any]) -> Any:
    """The case's answer on rows along the last axis, as the library gives it."""
    options = dict(options)
    arrays = [x] if "labels" not in options else [x, options.pop("labels")]
    options.setdefault("axis", -1)
    return target.call(case.fn, [target.give(a, dtype) for a in arrays], target.options(options, dtype))


@pytest.mark.parametrize("case,variant", QUESTIONS, ids=[f"{c.name}-{v}" for c, v in QUESTIONS])
def test_rows(target: Target, dtype: str, case: Case, variant: str, record: Any) -> None:
    names, x = inputs.rows(dtype)
    options = case.options(variant, x, dtype)
    got = ask(target, dtype, case, x, options)
    truth = case.truth(x, **options)
    if isinstance(got, tuple):
        got, sign = got
        np.testing.assert_array_equal(target.take(sign), truth.sign[:, 0])
    judge(record, target, dtype, case, case.kind, variant, target.take(got), truth, names)


# distinct primes, so that no axis passes for another
SHAPE = (3, 5, 7)


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (-1, 1), None], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_axis(target: Target, dtype: str, case: Case, axis: Any, record: Any) -> None:
    x = inputs.block(SHAPE, dtype, seed=1)
    axes = (
        tuple(range(3))
        if axis is None
        else tuple(sorted(a % 3 for a in (axis if isinstance(axis, tuple) else (axis,))))
    )
    others = tuple(a for a in range(3) if a not in axes)
    rows = np.transpose(x, (*others, *axes)).reshape(int(np.prod([SHAPE[a] for a in others])), -1)
    options: dict[str, Any] = {"axis": axis}
    labels = {}
    if case.name == "cross_entropy":
        flat = (7 * np.arange(len(rows)) + 2) % rows.shape[1]
        labels = {"labels": flat, "reduction": "none"}
        options |= {"labels": flat.reshape(tuple(SHAPE[a] for a in others)), "reduction": "none"}
    got = target.take(ask(target, dtype, case, x, options))
    truth = case.truth(rows, **labels)
    if case.reduces:
        assert got.shape == tuple(SHAPE[a] for a in others)
        got = got.reshape(-1, 1)
    else:
        assert got.shape == SHAPE
        got = np.transpose(got, (*others, *axes)).reshape(rows.shape)
    judge(record, target, dtype, case, case.kind, f"axis={axis}", got, truth, None)


# a vocabulary that is no multiple of anything, and the longest in use; the oracle is asked once for all axes and targets
LENGTHS = [(50257, "normal"), (50257, "dominant"), (262144, "normal"), (262144, "equal")]


@lru_cache(maxsize=64)
def _long_truth(name: str, dtype: str, n: int, kind: str) -> tuple[Any, dict[str, Any], Any]:
    x = inputs.long_row(n, dtype, kind)[None]
    labels = {"labels": np.asarray([2 * n // 3]), "reduction": "none"} if name == "cross_entropy" else {}
    return x, labels, CASES[name].truth(x, **labels)


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("n,kind", LENGTHS)
@pytest.mark.parametrize("case", [c for c in CASES.values() if c.name != "logcumsumexp"], ids=str)
def test_long(target: Target, dtype: str, case: Case, n: int, kind: str, axis: int, record: Any) -> None:
    x, labels, truth = _long_truth(case.name, dtype, n, kind)
    got = target.take(ask(target, dtype, case, x if axis == -1 else x.T, {"axis": axis, **labels}))
    judge(
        record, target, dtype, case, case.kind, f"{kind}, {n}", got.reshape(truth.value.shape), truth, None, long=True
    )


def test_long_scan(target: Target, dtype: str, record: Any) -> None:
    case, x = CASES["logcumsumexp"], inputs.long_row(50257, dtype, "normal")[None]
    got = target.take(ask(target, dtype, case, x, {}))
    judge(record, target, dtype, case, case.kind, "normal, 50257", got, case.truth(x), None, long=True)
