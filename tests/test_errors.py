"""Bad input: the invariant, what arrived, the remedy; and numpy's own state left alone."""

import warnings

import numpy as np
import pytest

import softxp
from softxp.streaming import LogSumExp

X = np.zeros((2, 3))
LABELS = np.asarray([0, 1])


class Box:
    """No array."""


@pytest.mark.parametrize(
    "call,error,words",
    [
        (lambda: softxp.softmax([1.0, 2.0]), TypeError, "array API standard, got list; convert it"),
        (lambda: softxp.softmax(np.ma.masked_array(X)), TypeError, "masked array.*where=~x.mask"),
        (lambda: softxp.softmax(X.astype(complex)), TypeError, "real numbers, got dtype complex128"),
        (lambda: softxp.softmax(X.astype(object)), TypeError, "real numbers, got dtype object"),
        (lambda: softxp.softmax(X > 0), TypeError, "a mask goes in as `where=`"),
        (lambda: softxp.softmax(X, dtype=np.int32), TypeError, "dtype must be float16"),
        (lambda: softxp.softmax(X, temperature=np.zeros(3)), ValueError, "one number for each row"),
        (lambda: softxp.softmax(X, temperature=np.zeros(2)), ValueError, r"one for each row has shape \(2, 1\)"),
        (lambda: softxp.softmax(X, temperature="hot"), TypeError, "must be a number, or an array .*, got str"),
        (lambda: softxp.softmax(X, temperature=np.asarray([[1.0], [-1.0]])), ValueError, "negative or NaN entry"),
        (lambda: softxp.logsumexp(X, b=np.ones(4)), ValueError, "b must broadcast"),
        (lambda: softxp.cross_entropy(X, np.asarray([0, 3])), IndexError, r"within \[0, 3\)"),
        (lambda: softxp.cross_entropy(X[0], 3), IndexError, r"within \[0, 3\)"),
        (lambda: softxp.cross_entropy(X, np.asarray([0])), ValueError, r"without axis, \(2,\), got \(1,\)"),
        (lambda: softxp.cross_entropy(X, np.zeros((2, 4))), ValueError, "distributions and need the logits' shape"),
        (lambda: softxp.cross_entropy(X, LABELS > 0), TypeError, "labels must be integers"),
        (lambda: softxp.cross_entropy(X, LABELS, label_smoothing=1.5), ValueError, r"within \[0, 1\], got 1.5"),
        (lambda: softxp.cross_entropy(X, LABELS, label_smoothing=np.ones(2)), TypeError, "a Python number"),
        (lambda: softxp.cross_entropy(X, LABELS, z_loss=-1.0), ValueError, "z_loss must be"),
        (lambda: softxp.cross_entropy(X, LABELS, z_loss=1.0, temperature=0), ValueError, "z_loss needs a temperature"),
        (lambda: softxp.cross_entropy(X, LABELS, softcap=0.0), ValueError, "softcap must be above 0"),
        (lambda: softxp.cross_entropy(X, LABELS, reduction="avg"), ValueError, "reduction must be"),
        (lambda: softxp.cross_entropy(X, LABELS, normalizer=2.0, reduction="sum"), ValueError, "normalizer replaces"),
        (lambda: softxp.cross_entropy(X, LABELS, normalizer=np.asarray(-2.0)), ValueError, "normalizer must be"),
        (lambda: softxp.cross_entropy(X, LABELS, class_weight=np.ones(2)), ValueError, r"shape \(3,\), got \(2,\)"),
        (lambda: softxp.cross_entropy(X, LABELS, sample_weight=np.ones(3)), ValueError, "the rows' shape"),
        (lambda: softxp.cross_entropy(X, LABELS, ignore_index=0.5), TypeError, "ignore_index must be an int"),
        (lambda: softxp.register("array", namespace=np), TypeError, "type of the arrays"),
        (lambda: softxp.register(Box, namespace="numpy"), TypeError, "a module, got 'numpy'"),
        (lambda: softxp.register(Box, namespace=np, kernels={"softmx": None}), ValueError, r"got \['softmx'\]"),
        (lambda: softxp.use_kernels("no"), TypeError, "True or False, got 'no'"),
        (lambda: softxp.jvp(softxp.softmax, X, X), TypeError, "a tuple of arrays and a tuple of tangents"),
        (lambda: softxp.sample(X, 0), TypeError, r"numpy\.random\.default_rng\(0\)"),
        (lambda: LogSumExp.from_array(X).merge(3), TypeError, "another LogSumExp, got int"),
    ],
)
def test_sentences(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_two_libraries_are_named():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="where is from numpy, the first from torch"):
        softxp.softmax(torch.zeros(3), where=np.ones(3, bool))
    # labels read from a file may stay in numpy
    assert softxp.cross_entropy(torch.zeros(2, 3), LABELS).shape == ()
    with pytest.raises(IndexError):
        softxp.cross_entropy(torch.zeros(2, 3), np.asarray([0, 7]))


def test_sparse_tensors():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"dense tensors, got one of layout torch.sparse_coo; pass x.to_dense\(\)"):
        softxp.softmax(torch.eye(3).to_sparse())


def test_two_devices_are_named():
    xp = pytest.importorskip("array_api_strict")
    x = xp.zeros((2, 3))
    with pytest.raises(ValueError, match="one device"):
        softxp.softmax(x, where=xp.ones((2, 3), dtype=xp.bool, device=xp.Device("device1")))


class Reading(np.ndarray):
    pass


def test_numpy_keeps_its_error_state_and_stays_quiet():
    from softxp_conformance.inputs import rows

    for dtype in ("float16", "float32", "float64"):
        x = rows(dtype).x.astype(dtype)
        labels = np.arange(len(x)) % 17
        with np.errstate(all="raise"), warnings.catch_warnings():
            warnings.simplefilter("error")
            before = np.geterr()
            for temperature in (1.0, 0.0, float("inf"), 0.5, 1e-300, 1e300):
                softxp.softmax(x, temperature=temperature)
                softxp.vjp(softxp.log_softmax, x, temperature=temperature)[1](np.ones_like(x))
            softxp.logsumexp(x, b=x, axis=-1), softxp.logmeanexp(x, axis=-1), softxp.logcumsumexp(x)
            softxp.value_and_grad(softxp.cross_entropy)(x, labels, softcap=30.0, z_loss=1e-3)
            for row in x:  # the short road too
                softxp.softmax(row)
            assert np.geterr() == before


@pytest.mark.parametrize(
    "make", [np.float64, lambda v: np.asarray(v, dtype=">f4"), lambda v: np.asarray([v]).view(Reading)]
)
def test_numpy_relatives(make):
    assert float(np.asarray(softxp.softmax(make(3.0))).ravel()[0]) == 1.0


def test_ignore_index_beyond_the_other_librarys_integers():
    jnp = pytest.importorskip("jax.numpy")
    for far in (2**32 + 1, -(2**40)):
        got = softxp.cross_entropy(jnp.zeros((2, 3)), np.asarray([1, far]), ignore_index=far, reduction="none")
        assert got[1] == 0
    labels = np.asarray([1, 2**64 - 1], dtype=np.uint64)
    assert softxp.cross_entropy(X, labels, ignore_index=2**64 - 1, reduction="none")[1] == 0
