"""Lazy throughout, folded over chunks, never gathered."""

import dask
import dask.array as da
import numpy as np
import pytest
from dask.highlevelgraph import HighLevelGraph

import softxp


def refuse(*args, **kwargs):
    raise AssertionError("a lazy array was computed")


def chunked(x, chunks):
    return da.from_array(x, chunks=chunks)


X = np.random.default_rng(0).standard_normal((6, 40)) * 5
LABELS = np.arange(6) * 6


@pytest.mark.parametrize("labels", [LABELS, chunked(LABELS, 4)], ids=["numpy labels", "Dask labels"])
def test_stays_lazy_and_agrees(labels):
    x = chunked(X, (4, 7))
    with dask.config.set(scheduler=refuse):
        lazy = {
            "softmax": (softxp.softmax(x), softxp.softmax(X)),
            "axis 0": (softxp.log_softmax(x, axis=0), softxp.log_softmax(X, axis=0)),
            "all": (softxp.logsumexp(x), softxp.logsumexp(X)),
            "scan": (softxp.logcumsumexp(x), softxp.logcumsumexp(X)),
            "loss": (softxp.cross_entropy(x, labels), softxp.cross_entropy(X, LABELS)),
            "gradient": (
                softxp.value_and_grad(softxp.cross_entropy)(x, labels)[1],
                softxp.value_and_grad(softxp.cross_entropy)(X, LABELS)[1],
            ),
        }
    for name, (got, want) in lazy.items():
        assert isinstance(got, da.Array), name
        np.testing.assert_allclose(got.compute(), want, rtol=1e-13, err_msg=name)


def test_an_axis_in_chunks_is_folded_not_gathered():
    """No task of the graph ever holds more of a row than a chunk: their largest input is watched as they run."""
    largest = []

    def watch(block):
        largest.append(block.shape)
        return block

    x = chunked(X, (6, 5)).map_blocks(watch, dtype=X.dtype, meta=X[:0, :0])
    got = softxp.logsumexp(x, axis=1)
    for name in HighLevelGraph.merge(got.dask).layers:
        if "rechunk" in name:
            raise AssertionError(f"{name} gathers the axis")
    np.testing.assert_allclose(got.compute(scheduler="synchronous"), softxp.logsumexp(X, axis=1), rtol=1e-14)
    assert max(shape[1] for shape in largest) <= 5
    assert softxp.softmax(x).chunks == x.chunks


def test_a_row_in_chunks_keeps_its_tails():
    x = np.zeros((1, 12))
    x[0, 5] = 40.0
    got = softxp.log_softmax(chunked(x, (1, 5))).compute()
    np.testing.assert_allclose(got[0, 5], -11 * np.exp(-40.0), rtol=4e-16)


def test_sizes_not_known_yet():
    x = chunked(X, (4, 7))
    some = x[x[:, 0] > 0]
    keep = X[:, 0] > 0
    np.testing.assert_allclose(softxp.softmax(some).compute(), softxp.softmax(X[keep]), rtol=1e-14)
    got = softxp.cross_entropy(some, chunked(LABELS, 4)[x[:, 0] > 0], reduction="none")
    np.testing.assert_allclose(got.compute(), softxp.cross_entropy(X[keep], LABELS[keep], reduction="none"), rtol=1e-14)


def test_a_chunk_with_nothing_in_it():
    x = np.full((2, 9), -np.inf)
    x[0, 8] = 1.0
    np.testing.assert_array_equal(softxp.softmax(chunked(x, (1, 3))).compute(), softxp.softmax(x))
