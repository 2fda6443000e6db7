"""What holds beside the values: dtypes, shapes, inputs left alone, the edges of shape, errors."""

from typing import Any

import numpy as np
import pytest

import softxp

from . import inputs
from .cases import CASES, Case
from .compare import judge
from .targets import Target, numpy_dtype
from .test_values import ask

cases = pytest.mark.parametrize("case", CASES.values(), ids=str)


def _labels(case: Case, x: Any) -> dict[str, Any]:
    return (
        {"labels": np.arange(len(x)) % max(x.shape[-1], 1), "reduction": "none"} if case.name == "cross_entropy" else {}
    )


def _numpy(target: Target, value: Any) -> Any:
    return np.asarray(target.asnumpy(value))


@cases
def test_contract_dtype_and_inputs(target: Target, dtype: str, case: Case) -> None:
    """The answer has the input's dtype; the inputs keep every bit."""
    x = inputs.block((5, 7), dtype, seed=2)
    given = [target.give(x, dtype)]
    options: dict[str, Any] = {"axis": -1}
    if case.name == "cross_entropy":
        given.append(target.give(np.arange(5), dtype))
        options["reduction"] = "none"
    before = [_numpy(target, a).copy() for a in given]
    y = target.call(case.fn, given, options)
    assert y.dtype == given[0].dtype
    assert tuple(y.shape) == ((5,) if case.reduces else (5, 7))
    for was, now in zip(before, given, strict=True):
        np.testing.assert_array_equal(was, _numpy(target, now))


@cases
def test_contract_views(target: Target, dtype: str, case: Case, record: Any) -> None:
    """A strided, a reversed and a transposed view answer as their copies do."""
    x = inputs.block((7, 10), dtype, seed=3)
    whole = target.give(x, dtype)
    views = {"strided": whole[:, ::2], "transposed": whole.T}
    if not target.module.startswith("torch"):  # torch has no negative strides
        views["reversed"] = whole[:, ::-1]
    for name, view in views.items():
        copy = np.ascontiguousarray({"strided": x[:, ::2], "transposed": x.T, "reversed": x[:, ::-1]}[name])
        labels = _labels(case, copy)
        more = {"reduction": "none"} if labels else {}
        arrays = [view, target.give(labels["labels"], dtype)] if labels else [view]
        got = target.take(target.call(case.fn, arrays, {"axis": -1, **more}))
        judge(record, target, dtype, case, case.kind, name, got, case.truth(copy, **labels), None)


@cases
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_contract_empty(target: Target, dtype: str, case: Case, shape: tuple[int, int]) -> None:
    x = np.zeros(shape)
    options: dict[str, Any] = {}
    if case.name == "cross_entropy":
        options = {"labels": np.full(shape[0], -100), "reduction": "none"}
    got = target.take(ask(target, dtype, case, x, options))
    assert got.shape == ((shape[0],) if case.reduces else shape)
    if case.reduces and case.name != "cross_entropy":
        assert (got == -np.inf).all()
    if case.name == "cross_entropy":
        assert (got == 0).all()


@pytest.mark.parametrize("axis", [-1, 0, None, ()], ids=str)
def test_contract_one_number(target: Target, dtype: str, axis: Any) -> None:
    """A single number is a row of one."""
    x = target.give(np.asarray(3.0), dtype)
    options = {"axis": axis}
    assert float(target.take(target.call(softxp.softmax, [x], options))) == 1.0
    assert float(target.take(target.call(softxp.log_softmax, [x], options))) == 0.0
    assert float(target.take(target.call(softxp.logsumexp, [x], options))) == 3.0
    assert float(target.take(target.call(softxp.logcumsumexp, [x], options))) == 3.0


@pytest.mark.parametrize("kind", ["uint8", "int8", "int32"])
def test_contract_integers(target: Target, kind: str) -> None:
    """Integers become floats before anything is subtracted: 0 - 255 does not wrap."""
    x = np.asarray([[0, 127, 3]], dtype=kind) if kind != "uint8" else np.asarray([[0, 255, 3]], dtype=kind)
    got = target.take(target.call(softxp.softmax, [target.asarray(x)], {}))
    np.testing.assert_array_equal(got.round(6), [[0, 1, 0]])


def test_contract_half_sums(target: Target, dtype: str) -> None:
    """Sums are never taken in 16 bits: 200,000 equal logits."""
    x = target.give(np.zeros((1, 200_000)), dtype)
    lse = target.take(target.call(softxp.logsumexp, [x], {"axis": -1}))
    p = target.take(target.call(softxp.softmax, [x], {}))
    want = np.asarray([np.log(200_000), 1 / 200_000]).astype(numpy_dtype(dtype)).astype(float)
    np.testing.assert_allclose([lse[0], p.min(), p.max()], [want[0], want[1], want[1]], rtol=1e-6)


def test_contract_wider_answer(target: Target) -> None:
    """dtype= widens before rounding."""
    if "float16" not in target.dtypes:
        pytest.skip(f"{target.name} has no float16")
    x = target.give(np.asarray([[1.0, 2.0, 3.5]]), "float16")
    xp_dtype = target.give(np.zeros(1), "float32").dtype
    got = target.take(target.call(softxp.softmax, [x], {"dtype": xp_dtype}))
    np.testing.assert_allclose(got, [[0.0628900, 0.1709528, 0.7661572]], rtol=1e-6)


def test_contract_label_out_of_range(target: Target) -> None:
    """An IndexError where labels can be read, NaN on that row alone where they cannot: never a wrap, never a clamp."""
    dtype = target.dtypes[0]
    x = target.give(inputs.block((4, 3), dtype, seed=5), dtype)
    labels = target.asarray(np.asarray([0, 3, -1, 2]))
    if target.raises:
        with pytest.raises(IndexError, match=r"labels must lie within \[0, 3\)"):
            target.call(softxp.cross_entropy, [x, labels], {"reduction": "none"})
        return
    got = target.take(target.call(softxp.cross_entropy, [x, labels], {"reduction": "none"}))
    np.testing.assert_array_equal(np.isnan(got), [False, True, True, False])


def test_contract_unsigned_label(target: Target) -> None:
    """The uint8 label 156 is class 156, not ignore_index -100."""
    dtype = target.dtypes[-1]
    x = target.give(np.zeros((1, 200)), dtype)
    got = target.take(target.call(softxp.cross_entropy, [x, target.asarray(np.asarray([156], dtype="uint8"))], {}))
    np.testing.assert_allclose(got, np.log(200), rtol=1e-2)


@pytest.mark.parametrize(
    "options,error,words",
    [
        ({"axis": 2}, ValueError, "axis must lie within"),
        ({"axis": (0, 0)}, ValueError, "each axis once"),
        ({"axis": 0.5}, TypeError, "axis must be an int"),
        ({"temperature": -1.0}, ValueError, "temperature must be at least 0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be at least 0"),
        ({"where": np.ones((3, 4), bool)}, ValueError, "where must broadcast"),
        ({"where": np.ones((2, 3))}, TypeError, "where must be a bool"),
    ],
)
def test_contract_errors(target: Target, options: dict[str, Any], error: type[Exception], words: str) -> None:
    dtype = target.dtypes[0]
    x = target.give(np.zeros((2, 3)), dtype)
    with pytest.raises(error, match=words):
        softxp.softmax(x, **target.options(options, dtype))


def test_contract_bool_is_refused(target: Target) -> None:
    with pytest.raises(TypeError, match="real numbers"):
        softxp.softmax(target.asarray(np.asarray([True, False])))


def test_contract_same_bits(target: Target, dtype: str) -> None:
    """Asked twice, the same bits; and no row's answer depends on its neighbours'."""
    names, x = inputs.rows(dtype)
    a = target.take(ask(target, dtype, CASES["softmax"], x, {}))
    b = target.take(ask(target, dtype, CASES["softmax"], x, {}))
    np.testing.assert_array_equal(a, b)
    ordinary = [i for i, name in enumerate(names) if np.isfinite(x[i]).all()]
    c = target.take(ask(target, dtype, CASES["softmax"], x[ordinary], {}))
    if target.second("softmax", dtype, False):
        np.testing.assert_array_equal(a[ordinary], c)
    else:  # the plain road may serve the ordinary rows alone; both keep the bound
        np.testing.assert_allclose(a[ordinary], c, rtol=1e-4 if dtype == "float32" else 1e-2, atol=1e-37)
