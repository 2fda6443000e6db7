"""What holds beside the values: dtypes, devices, shapes, inputs left alone, the edges of shape, errors, sameness of bits,
threads, laziness, tracing, export."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from . import inputs
from .budgets import NARROW
from .cases import Case
from .compare import judge
from .subject import Subject


def _block(subject: Subject, case: Case, shape: tuple[int, int], seed: int) -> tuple[Any, dict[str, Any]]:
    x = inputs.block(shape, subject.dtype, seed)
    return x, case.labels(x)


def _thorough(value: Any) -> Any:
    """Left out by --quick."""
    return pytest.param(value, marks=pytest.mark.thorough)


# --- what comes back, and what is left alone --------------------------------------------------------------------------


def test_contract_dtype_device_and_inputs(subject: Subject, case: Case) -> None:
    """The answer has the input's dtype and device; the inputs keep every bit. (So it is with every other question.)"""
    y = subject.value(case.name, *_block(subject, case, (5, 7), seed=2))
    assert tuple(y.shape) == ((5,) if case.reduces else (5, 7))


def test_contract_default_axis(subject: Subject, case: Case) -> None:
    """Over the last axis, where the answer has it; over all, where a reduction may take all."""
    x, labels = _block(subject, case, (3, 4), seed=11)
    axis = None if case.name in ("logsumexp", "logmeanexp") else -1
    arrays, options = subject.given(x, labels)
    del options["axis"]
    y = subject.target.call(subject.function(case.name), arrays, options)
    assert subject.bits(y) == subject.bits(subject.value(case.name, x, {**labels, "axis": axis}))


@pytest.mark.parametrize("name", ["logsumexp", "logmeanexp"])
@pytest.mark.parametrize("axis", [1, _thorough(0), _thorough(None)])
def test_contract_keepdims(subject: Subject, name: str, axis: int | None) -> None:
    """The reduced axes stay, with size 1, and the bits are the same."""
    subject.needs(name, keepdims=True, axis=axis)
    x = inputs.block((3, 4), subject.dtype, seed=12)
    kept = subject.value(name, x, {"axis": axis, "keepdims": True})
    assert tuple(kept.shape) == {0: (1, 4), 1: (3, 1), None: (1, 1)}[axis]
    assert subject.bits(kept) == subject.bits(subject.value(name, x, {"axis": axis}))


@pytest.mark.family("normal")
@pytest.mark.parametrize("name", ["strided", "broadcast", *map(_thorough, ("transposed", "reversed", "read-only"))])
def test_contract_views(subject: Subject, case: Case, name: str, record: Any) -> None:
    """A strided, a transposed and a reversed view, one row repeated, and an array that forbids to be written, answer as
    their copies do."""
    if name == "reversed" and not subject.target.steps_back:
        pytest.skip(f"{subject.target.name} has no slices with a negative step")
    x = inputs.block((7, 10), subject.dtype, seed=3)
    whole = subject.give(x)
    if name == "read-only":
        if not isinstance(whole, np.ndarray):
            pytest.skip(f"{subject.target.name} has no read-only arrays that we know of")
        whole.flags.writeable = False
    view = {
        "strided": lambda a: a[:, ::2],
        "transposed": lambda a: a.T,
        "reversed": lambda a: a[:, ::-1],
        "broadcast": lambda a: a[:1, :],
        "read-only": lambda a: a[:, :],
    }[name]
    copy, seen = np.ascontiguousarray(view(x)), view(whole)
    if name == "broadcast":
        copy = np.repeat(copy, 4, 0)
        seen = _broadcast(seen, copy.shape)
        if seen is None:
            pytest.skip(f"{subject.target.name} has no broadcast_to that we know of")
    labels = case.labels(copy)
    arrays, options = subject.given(copy, labels)
    got = subject.take(subject.target.call(subject.function(case.name), [seen, *arrays[1:]], options))
    judge(record, subject, case, "value", "normal", name, got, case.truth(copy, **labels))


def _broadcast(a: Any, shape: tuple[int, ...]) -> Any:
    if hasattr(a, "__array_namespace__"):
        xp = a.__array_namespace__()
        return xp.broadcast_to(a, shape) if hasattr(xp, "broadcast_to") else None
    return a.expand(*shape) if hasattr(a, "expand") else None


@pytest.mark.family("normal")
def test_contract_wider_answer(subject: Subject, case: Case, record: Any) -> None:
    """dtype= widens before rounding: what comes back is in float32, and is no float16 number in disguise."""
    if subject.dtype not in NARROW:
        pytest.skip("a wider answer is asked of 16 bits")
    subject.needs(case.name, dtype=None)
    x, labels = _block(subject, case, (5, 7), seed=4)
    wider = subject.give(np.zeros(1), "float32").dtype
    wide = Subject(subject.target, subject.implementation, "float32")
    got = subject.take(subject.value(case.name, x, {**labels, "dtype": wider}))
    judge(record, wide, case, "value", "normal", f"dtype=float32 of {subject.dtype}", got, case.truth(x, **labels))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "cross_entropy"])
@pytest.mark.parametrize("kind", ["uint8", "int8", "int32"])
def test_contract_integers(library: Subject, kind: str, name: str) -> None:
    """Integers become floats before anything is subtracted: 0 - 255 does not wrap, nor does -100 - 100."""
    library.needs(name)
    x = np.asarray({"uint8": [[0, 255, 3]], "int8": [[-100, 100, 3]], "int32": [[0, 2**31 - 1, 3]]}[kind], dtype=kind)
    labels = {"labels": np.asarray([0]), "reduction": "none"} if name == "cross_entropy" else {}
    arrays, options = library.given(x, labels)
    got = library.take(library.target.call(library.function(name), arrays, options))
    want = {
        "softmax": [[0, 1, 0]],
        "log_softmax": x.astype(float) - x.max(),
        "logsumexp": [x.max()],
        "cross_entropy": [float(x.max()) - float(x[0, 0])],
    }[name]
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


# --- the edges of shape ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_contract_empty(subject: Subject, case: Case, shape: tuple[int, int]) -> None:
    x = np.zeros(shape)
    options = {"labels": np.full(shape[0], -100), "reduction": "none"} if case.labels(x) else {}
    subject.needs(case.name, **({"ignore_index": -100} if options else {}))
    got = subject.take(subject.value(case.name, x, options))
    assert got.shape == ((shape[0],) if case.reduces else shape)
    if case.reduces:
        np.testing.assert_array_equal(got, 0.0 if options else -np.inf)


@pytest.mark.parametrize("axis", [-1, None, *map(_thorough, (0, ()))], ids=str)
def test_contract_one_number(subject: Subject, case: Case, axis: Any) -> None:
    """A single number is a row of one, and an array without rows under axis=()."""
    if case.reduces and case.labels(np.zeros((1, 1))):
        pytest.skip("a loss has classes")
    subject.needs(case.name, axis=axis)
    want = {"softmax": 1.0, "log_softmax": 0.0, "sparsemax": 1.0, "entmax": 1.0}.get(case.name, 3.0)
    got = subject.take(subject.value(case.name, np.asarray(3.0), {"axis": axis}))
    assert got.shape == () and float(got) == want


def test_contract_zero_rows_have_derivatives(subject: Subject, case: Case) -> None:
    if not subject.can("vjp"):
        pytest.skip(f"{subject.library} has no vjp")
    x = np.zeros((0, 5))
    options = {"labels": np.zeros(0, dtype=int), "reduction": "none"} if case.labels(x) else {}
    ct = np.zeros(0) if case.reduces else x
    assert subject.take(subject.derivative("vjp", case.name, x, options, ct)).shape == (0, 5)


def _refused(library: Subject, error: type[Exception], words: str) -> Any:
    """By softxp with this error and these words, by another with any error."""
    return pytest.raises(error, match=words) if library.implementation.words else pytest.raises(Exception)  # noqa: PT011


# --- labels and errors -----------------------------------------------------------------------------------------------


@pytest.mark.about("cross_entropy")
def test_contract_label_out_of_range(library: Subject) -> None:
    """An IndexError where labels can be read, NaN on that row alone where they cannot: never a wrap, never a clamp."""
    x = inputs.block((4, 3), library.dtype, seed=5)
    options = {"labels": np.asarray([0, 3, -1, 2]), "reduction": "none"}
    if library.target.raises and library.implementation.words:
        with pytest.raises(IndexError, match=r"labels must lie within \[0, 3\)"):
            library.value("cross_entropy", x, options)
        return
    try:
        answer = library.value("cross_entropy", x, options)
    except IndexError:
        return
    got = library.take(answer)
    np.testing.assert_array_equal(np.isnan(got), [False, True, True, False])


@pytest.mark.about("cross_entropy")
def test_contract_unsigned_label(library: Subject) -> None:
    """The uint8 label 156 is class 156, not ignore_index -100."""
    x, labels = np.zeros((1, 200)), np.asarray([156], dtype="uint8")
    got = library.take(library.value("cross_entropy", x, {"labels": labels, "reduction": "none"}))
    np.testing.assert_allclose(got, np.log(200), rtol=1e-2)


@pytest.mark.about("softmax")
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
    ids=["axis=2", "axis=(0, 0)", "axis=0.5", "temperature=-1", "temperature=nan", "where (3, 4)", "where of floats"],
)
def test_contract_errors(
    library: Subject, options: dict[str, Any], error: type[Exception], words: str
) -> None:  # fmt: skip
    library.needs("softmax", **options)
    with _refused(library, error, words):
        library.value("softmax", np.zeros((2, 3)), options)


@pytest.mark.about("cross_entropy")
@pytest.mark.parametrize(
    "options,error,words",
    [
        ({"labels": np.zeros(3, int)}, ValueError, "integer labels need"),
        ({"reduction": "average"}, ValueError, "reduction must be"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be"),
        ({"class_weight": np.ones(4)}, ValueError, "one weight for each class"),
        ({"sample_weight": np.ones(4)}, ValueError, "sample_weight must broadcast"),
    ],
    ids=["labels (3,)", "reduction=average", "label_smoothing=1.5", "class_weight (4,)", "sample_weight (4,)"],
)
def test_contract_loss_errors(library: Subject, options: dict[str, Any], error: type[Exception], words: str) -> None:
    options = {"labels": np.zeros(2, int), "reduction": "none", **options}
    library.needs("cross_entropy", **{k: v for k, v in options.items() if k != "labels"})
    with _refused(library, error, words):
        library.value("cross_entropy", np.zeros((2, 3)), options)


@pytest.mark.about("softmax")
def test_contract_bool_is_refused(library: Subject) -> None:
    with pytest.raises(TypeError, match="real numbers" if library.implementation.words else None):
        library.target.call(library.function("softmax"), [library.target.asarray(np.asarray([True, False]))], {})


# --- the same bits ---------------------------------------------------------------------------------------------------


def test_contract_same_bits(subject: Subject, case: Case) -> None:
    """Asked twice, the same bits."""
    x, labels = _block(subject, case, (37, 101), seed=6)
    first, again = (subject.bits(subject.value(case.name, x, labels)) for _ in range(2))
    assert first == again


@pytest.mark.thorough
@pytest.mark.parametrize("rows", ["ordinary", "all", "long"])
def test_contract_same_bits_in_a_batch(subject: Subject, case: Case, rows: str) -> None:
    """A row's answer does not depend on its neighbours, nor on how many there are; nor does its gradient."""
    names, _, x = inputs.rows(subject.dtype)
    if rows == "ordinary":
        ordinary = np.isfinite(x).all(-1)
        names, x = [n for n, ok in zip(names, ordinary, strict=True) if ok], x[ordinary]
    if rows == "long":
        names = ["long", "long again", "long once more"]
        x = np.stack([inputs.long_row(5003, subject.dtype, "normal", seed) for seed in range(3)])
    labels = case.labels(x)

    def ask(kind: str, part: slice) -> Any:
        options = {k: v[part] if k == "labels" else v for k, v in labels.items()}
        if kind == "value":
            return subject.take(subject.value(case.name, x[part], options))
        v = np.ones(len(x[part])) if case.reduces else x[part]
        return subject.take(subject.derivative("vjp", case.name, x[part], options, v))

    for kind in ("value", "vjp") if rows == "long" and subject.can("vjp") else ("value",):
        whole = ask(kind, slice(None))
        for i in range(0, len(x), 1 if rows == "long" else 4):
            alone = ask(kind, slice(i, i + 1))[0]
            np.testing.assert_array_equal(alone, whole[i], err_msg=f"{kind} of row {names[i]!r}")


def test_contract_threads(subject: Subject, case: Case) -> None:
    """Eight threads that ask at once have the bits of one that asks alone."""
    x, labels = _block(subject, case, (37, 101), seed=7)
    arrays, options = subject.given(x, labels)
    fn, at_once = subject.function(case.name), Barrier(8)

    def ask(_: int) -> bytes:
        with subject.target.context(subject.dtype):
            at_once.wait(60)
            return subject.bits(subject.target.call(fn, arrays, options))

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(ask, range(8)))
    assert answers == {subject.bits(subject.target.call(fn, arrays, options))}


# --- lazy, traced, exported ------------------------------------------------------------------------------------------


@pytest.mark.about("softmax")
def test_contract_lazy(library: Subject) -> None:
    """Where calls are forbidden to compute, ours do not: and the ban is real."""
    if not library.target.lazy:
        pytest.skip(f"{library.target.name} computes at once")
    x = library.give(np.zeros((3, 4)))
    library.target.call(library.function("softmax"), [x], {})
    with pytest.raises(AssertionError, match="computed"):
        library.target.call(lambda a: np.asarray(a), [x], {})


def test_contract_traced_once(library: Subject, case: Case) -> None:
    """Arrays of one shape and dtype are traced once, whatever they hold."""
    if library.target.traces is None:
        pytest.skip(f"{library.target.name} does not trace")
    calls, options = [], {}
    for seed in (8, 9):
        arrays, options = library.given(*_block(library, case, (4, 6), seed))
        calls.append(arrays)
    assert library.target.traces(library.function(case.name), calls, options) == 1


@pytest.mark.family("normal")
def test_contract_export(subject: Subject, case: Case, record: Any) -> None:
    """The exported graph gives the answer too, tails included."""
    if subject.target.export is None:
        pytest.skip(f"{subject.target.name} has no export that we know of")
    x, labels = _block(subject, case, (4, 6), seed=10)
    x[1] = [17, 0, 0, 0, 0, 0]
    labels = {k: np.zeros(4, int) if k == "labels" else v for k, v in labels.items()}
    arrays, options = subject.given(x, labels)
    got = subject.take(subject.target.export(subject.function(case.name), arrays, options))
    judge(record, subject, case, "value", "normal", "exported", got, case.truth(x, **labels))
