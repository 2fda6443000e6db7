"""The mergeable state: rows in pieces."""

import pickle
from itertools import permutations

import numpy as np
import pytest

import softxp
from softxp.streaming import LogSumExp

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 60)) * 10


def of_pieces(x, *cuts, axis=-1):
    state = None
    for piece in np.split(x, cuts, axis=axis):
        state = LogSumExp.from_array(piece, axis=axis) if state is None else state.update(piece, axis=axis)
    return state


@pytest.mark.parametrize("cuts", [(1,), (30,), (7, 8, 41), (0, 60)])
def test_pieces_give_the_whole(cuts):
    state = of_pieces(X, *cuts)
    np.testing.assert_allclose(state.logsumexp(), softxp.logsumexp(X, axis=-1), rtol=4e-16)
    for piece, want in zip(np.split(X, cuts, axis=-1), np.split(softxp.softmax(X), cuts, axis=-1), strict=True):
        np.testing.assert_allclose(state.softmax(piece), want, rtol=1e-14)


def test_merging_has_no_order():
    parts = [LogSumExp.from_array(p) for p in np.split(X, 3, axis=-1)]
    answers = [a.merge(b).merge(c).logsumexp() for a, b, c in permutations(parts)]
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], rtol=4e-16)


def test_corners():
    inf = np.inf
    x = np.asarray(
        [[-inf, -inf, -inf, -inf], [-inf, 1.0, -inf, 2.0], [inf, 0.0, inf, 1.0], [np.nan, 0, 1, 2], [0, 0, 0, 0]]
    )
    for cut in (1, 2, 3):
        state = of_pieces(x, cut)
        np.testing.assert_allclose(state.logsumexp(), softxp.logsumexp(x, axis=-1), rtol=4e-16)
        got = np.concatenate([state.softmax(p) for p in np.split(x, [cut], axis=-1)], axis=-1)
        np.testing.assert_allclose(got, softxp.softmax(x), rtol=4e-16)


def test_small_tails_survive_merging():
    state = LogSumExp.from_array(np.asarray([0.0])).update(np.asarray([-40.0]))
    assert float(state.logsumexp()) == np.exp(-40.0)


def test_dtypes_and_masks():
    x = X.astype(np.float16)
    where = RNG.random(X.shape) < 0.5
    state = LogSumExp.from_array(x[:, :20], where=where[:, :20]).update(x[:, 20:], where=where[:, 20:])
    assert state.maximum.dtype == np.float16 and state.rest.dtype == np.float32
    assert state.logsumexp().dtype == np.float16
    assert state.logsumexp(dtype=np.float32).dtype == np.float32
    np.testing.assert_array_equal(state.logsumexp(), softxp.logsumexp(x, axis=-1, where=where))


def test_it_is_plain_arrays_and_pickles():
    state = of_pieces(X, 10)
    again = pickle.loads(pickle.dumps(state))
    assert isinstance(state, tuple) and all(isinstance(a, np.ndarray) for a in state)
    np.testing.assert_array_equal(again.rest, state.rest)


def test_a_stream_longer_than_its_chunks():
    """10 million numbers through a state of two."""
    state, n = None, 0
    for seed in range(10):
        chunk = np.random.default_rng(seed).standard_normal(1_000_000).astype(np.float32)
        state = LogSumExp.from_array(chunk) if state is None else state.update(chunk)
        n += chunk.size
    want = np.log(
        sum(
            np.exp(np.random.default_rng(s).standard_normal(1_000_000).astype("f4").astype("f8")).sum()
            for s in range(10)
        )
    )
    assert abs(float(state.logsumexp()) - want) < 1e-6


def test_gradients_of_a_stream_with_ties_across_chunks():
    torch = pytest.importorskip("torch")
    x = torch.tensor([1.0, 1.0, 1.0, 0.0], requires_grad=True)
    state = LogSumExp.from_array(x[:2]).update(x[2:])
    torch.testing.assert_close(torch.autograd.grad(state.logsumexp(), x)[0], torch.softmax(x.detach(), 0))


def test_errors():
    state = LogSumExp.from_array(X)
    with pytest.raises(ValueError, match="same rows and dtype"):
        state.update(X[:2])
    with pytest.raises(ValueError, match="same rows and dtype"):
        state.update(X.astype(np.float32))
    with pytest.raises(ValueError, match="rows must be the state's"):
        state.softmax(X[:2])
