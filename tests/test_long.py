"""2^24 numbers in a row, along any axis: as exact as a short one."""

import numpy as np
import pytest

import softxp

N = 2**24


@pytest.fixture(scope="module")
def row():
    x = np.random.default_rng(0).standard_normal(N).astype(np.float32)
    wide = x.astype(np.float64)
    s = np.sum(np.exp(np.sort(wide - wide.max())))  # smallest first, pairwise: right to a few parts in 1e16
    return x, wide.max() + np.log(s)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("axis", [0, 1])
def test_sixteen_million(row, library, axis):
    x, lse = row
    given = x.reshape((-1, 1) if axis == 0 else (1, -1))
    if library != "numpy":
        lib = pytest.importorskip(library if library == "torch" else "jax.numpy")
        given = lib.asarray(given)
    assert abs(float(softxp.logsumexp(given, axis=axis).reshape(-1)[0]) - lse) <= 1 * np.spacing(np.float32(lse))
    p = np.asarray(softxp.softmax(given, axis=axis)).ravel()
    want = np.exp(x.astype(np.float64) - lse)
    bound = 8 + np.abs(x - x.max())
    assert np.all(np.abs(p - want) <= bound * np.spacing(want.astype(np.float32)))


@pytest.mark.parametrize("axis", [0, 1])
def test_sixteen_million_doubles_along_any_axis(row, axis):
    x, lse = row
    wide = x.astype(np.float64).reshape((-1, 1) if axis == 0 else (1, -1))
    assert abs(float(softxp.logsumexp(wide, axis=axis)[0]) - lse) <= 4 * np.spacing(lse)
