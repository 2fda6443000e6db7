"""What is drawn: the rules in their order, ties, draws that follow their distribution, rows with nothing to draw."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import softxp

INF, NAN = np.inf, np.nan
P = np.asarray([0.35, 0.05, 0.25, 0.0, 0.2, 0.15])
LOGITS = np.log(np.where(P > 0, P, 1)) + np.where(P > 0, 0, -INF)


def rows(n, logits=LOGITS):
    return np.broadcast_to(logits, (n, len(logits)))


# --- mask_logits -------------------------------------------------------------------------------------------------------


def by_the_rules(x, temperature, top_k, top_p, min_p, where):
    """One rule after the other, each over what the one before has left: as transformers chains its logits processors."""
    y = np.full_like(x, -INF)
    for i, row in enumerate(x):
        left = [j for j in np.argsort(-row, kind="stable") if where[i, j] and row[j] > -INF]

        def shares(left, row=row):
            w = np.exp((row[left] - row[left[0]]) / temperature)
            return w / w.sum()

        left = left if top_k is None else left[:top_k]
        if top_p is not None and left:
            left = left[: 1 + np.sum(np.cumsum(shares(left))[:-1] < top_p)]
        if min_p is not None and left:
            left = [j for j, p in zip(left, shares(left), strict=True) if p >= min_p * shares(left)[0]]
        y[i, left] = row[left]
    return y


def test_the_rules_in_their_order():
    rng = np.random.default_rng(0)
    x = np.round(2 * rng.normal(size=(24, 17)), 1)  # with ties
    x[3], x[4, :9] = -INF, -INF
    some = rng.random(x.shape) < 0.8
    for t, k, p, m, where in product(
        [0.5, 1.7], [None, 1, 4, 30], [None, 0, 0.3, 0.77], [None, 0, 0.13, 1], [some, some | True]
    ):
        y = softxp.mask_logits(x, temperature=t, top_k=k, top_p=p, min_p=m, where=where)
        np.testing.assert_array_equal(y, by_the_rules(x, t, k, p, m, where), err_msg=f"{t} {k} {p} {m}")


def test_the_first_of_equal_logits_stay():
    x = np.asarray([1.0, 2.0, 1.0, 2.0, 1.0, 0.0])
    for k in range(1, 7):
        stays = np.flatnonzero(softxp.mask_logits(x, top_k=k) > -INF)  # transformers would keep 5 of them from k = 3 on
        assert stays.tolist() == sorted([1, 3, 0, 2, 4, 5][:k])
    equal = np.zeros(8)
    assert np.flatnonzero(softxp.mask_logits(equal, top_p=0.5) > -INF).tolist() == [0, 1, 2, 3]
    assert (softxp.mask_logits(equal, min_p=1) > -INF).all()


def test_at_least_one_token_stays():
    x = np.asarray([[0.0, 3.0, 3.0], [-INF, -INF, -1e30], [INF, 1.0, INF]])
    for how in {"top_p": 0}, {"min_p": 1, "top_k": 1}, {"top_k": 1}, {"top_p": 0, "temperature": 0}:
        assert (softxp.mask_logits(x, **how) > -INF).argmax(-1).tolist() == [1, 2, 0], how
        assert (softxp.mask_logits(x, **how) > -INF).sum(-1).tolist() == [1, 1, 1], how


def test_a_full_nucleus_keeps_tails_that_rounding_loses():
    x = np.asarray([0.0, -60.0, -800.0, -INF])
    np.testing.assert_array_equal(softxp.mask_logits(x, top_p=1.0), x)


def test_the_temperature_moves_the_nucleus_and_is_not_divided_by():
    x = np.asarray([[2.0, 1.0, 0.0, -1.0]] * 3)
    t = np.asarray([[0.25], [1.0], [100.0]])
    y = softxp.mask_logits(x, top_p=0.8, temperature=t)
    assert (y > -INF).sum(-1).tolist() == [1, 2, 4]
    assert set(y[y > -INF]) == {2.0, 1.0, 0.0, -1.0}


def test_derivative_of_a_mask():
    _, pullback = softxp.vjp(softxp.mask_logits, LOGITS, top_k=2)
    np.testing.assert_array_equal(pullback(np.arange(1.0, 7.0))[0], [1, 0, 3, 0, 0, 0])
    torch = pytest.importorskip("torch")
    x = torch.tensor([[1.0, 2.0, 0.5]], requires_grad=True)
    t = torch.ones(1, 1, requires_grad=True)
    kept = softxp.mask_logits(x, top_p=0.8, min_p=0.1, temperature=t)
    (softxp.softmax(kept) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    p = softxp.softmax(np.asarray([1.0, 2.0, -INF]))
    np.testing.assert_allclose(x.grad[0], p * ([1, 2, 3] - p @ [1, 2, 3]), rtol=1e-6)
    assert t.grad.tolist() == [[0.0]]


# --- sample ------------------------------------------------------------------------------------------------------------


def generators(seed):
    """(array of the library, a generator of its own) for those that draw."""
    yield np.asarray, np.random.default_rng(seed)
    try:
        import torch

        yield torch.from_numpy, torch.Generator().manual_seed(seed)
        import jax

        yield jax.numpy.asarray, jax.random.key(seed)
    except ImportError:
        pass


DRAWS = 20_000


@pytest.mark.parametrize(
    "how, expected",
    [
        ({}, P),
        ({"temperature": 2.0}, np.sqrt(P) / np.sqrt(P).sum()),
        ({"top_k": 4, "top_p": 0.8, "min_p": 0.1}, np.asarray([0.35, 0, 0.25, 0, 0.2, 0]) / 0.8),
    ],
    ids=["plain", "T=2", "rules"],
)
def test_draws_follow_their_distribution(how, expected):
    """0.1 % of true samplers would fail; the seeds are fixed, so none does."""
    for asarray, rng in generators(1):
        tokens = np.asarray(softxp.sample(asarray(rows(DRAWS).copy()), rng, **how))
        counts = np.bincount(tokens, minlength=6)
        assert counts[expected == 0].sum() == 0
        live = expected > 0
        assert stats.chisquare(counts[live], DRAWS * expected[live]).pvalue > 1e-3, (asarray, counts)


def test_a_longer_vocabulary_in_32_bits():
    jax = pytest.importorskip("jax")
    x = np.random.default_rng(2).normal(size=500).astype(np.float32)
    tokens = np.asarray(softxp.sample(jax.numpy.asarray(rows(DRAWS, x)), jax.random.PRNGKey(3)))
    counts = np.bincount(tokens, minlength=500)
    assert stats.chisquare(counts, DRAWS * softxp.softmax(x.astype(float))).pvalue > 1e-3


def test_greedy_at_temperature_0():
    x = np.asarray([[1.0, 4.0, 4.0], [4.0, 4.0, 1.0], [INF, 0.0, INF], [-INF, -2.0, -2.0]])
    first = [1, 0, 0, 1]
    for u in 0.0, 0.5, 1 - 2.0**-53:
        assert softxp.sample(x, np.full(4, u), temperature=0).tolist() == first
        t = np.asarray([[0.0], [0.0], [0.0], [0.0]])
        assert softxp.sample(x, np.full(4, u), temperature=t, top_p=0.9).tolist() == first
    mixed = softxp.sample(x, np.full(4, 0.99), temperature=np.asarray([[0.0], [1.0], [0.0], [INF]]))
    assert mixed.tolist() == [1, 2, 0, 2]


def test_temperatures_of_rows():
    t = np.repeat([0.5, 2.0], DRAWS)[:, None]
    tokens = softxp.sample(rows(2 * DRAWS), np.random.default_rng(5), temperature=t)
    for half, power in zip(np.split(tokens, 2), (2.0, 0.5), strict=True):
        live, want = P > 0, P**power / np.sum(P**power)
        assert stats.chisquare(np.bincount(half, minlength=6)[live], DRAWS * want[live]).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_masked_is_never_drawn(dtype):
    """At both ends of a row, with uniforms at both ends of [0, 1), and sums that rounding lets fall short."""
    x = np.random.default_rng(7).normal(size=(1, 3001)).astype(dtype)
    where = np.ones(3001, bool)
    where[[0, 1, -1, -2]] = False
    inf = np.where(where, x, dtype(-INF))
    for u, edge in (0.0, 2), (1 - 2.0**-53, 2998):
        for logits, mask in (x, where), (inf, None):
            assert softxp.sample(logits, np.full(1, u), where=mask).tolist() == [edge]
    for asarray, _ in generators(0) if dtype is np.float32 else ():
        just_below = np.nextafter(np.float32(1), np.float32(0))
        token = softxp.sample(asarray(inf), asarray(np.full(1, just_below, np.float32)))
        assert where[int(token[0])]


def test_running_sums_that_waver():
    """Added in blocks, a running sum may grow by a rounding where a masked token adds nothing."""
    from softxp._backends._numpy import XP
    from softxp.decode import sample_forward

    def wavering(x, axis):
        return np.cumsum(x, axis) + 1e-17 * (x % 1 > 0).any()

    x, how = np.asarray([[-INF, 0.0, -1.0]]), dict(axis=(1,), top_k=None, top_p=None, min_p=None)
    xp = SimpleNamespace(**{**vars(XP), "cumulative_sum": wavering})
    assert sample_forward(xp, x, np.zeros(1), **how, integer=np.int64, compute=np.float64).tolist() == [1]


def test_rows_with_nothing_to_draw():
    x = np.asarray([[-INF, -INF], [0.0, NAN], [0.0, 1.0], [NAN, 0.0]])
    where = np.asarray([[True, True], [True, True], [False, False], [False, True]])
    for temperature in 1.0, 0.0, np.asarray([[1.0], [0.0], [INF], [0.0]]):
        tokens = softxp.sample(x, np.full(4, 0.5), temperature=temperature, where=where)
        assert tokens.tolist() == [-1, -1, -1, 1]
    assert softxp.sample(np.zeros((3, 0)), np.zeros(3)).tolist() == [-1, -1, -1]
    assert softxp.sample(np.zeros((0, 3)), np.zeros(0)).shape == (0,)
    assert softxp.sample(np.asarray(2.0), np.random.default_rng(0)) == 0


def test_infinite_logits_share_the_draws():
    tokens = softxp.sample(rows(DRAWS, np.asarray([INF, 0.0, INF])), np.random.default_rng(0))
    counts = np.bincount(tokens)
    assert counts[1] == 0 and stats.chisquare(counts[[0, 2]]).pvalue > 1e-3


def test_any_axes():
    x, u = np.random.default_rng(0).normal(size=(4, 3, 5)), np.random.default_rng(1)
    row, column = u.random((4, 3)), u.random((3, 5))
    tokens = softxp.sample(x, column, axis=0, top_k=3)
    np.testing.assert_array_equal(tokens, softxp.sample(np.moveaxis(x, 0, -1), column, top_k=3))
    both = softxp.sample(x, row[:, 0], axis=(1, 2), top_p=0.7)
    np.testing.assert_array_equal(both, softxp.sample(x.reshape(4, 15), row[:, 0], top_p=0.7))
    assert softxp.sample(x, np.asarray(0.3), axis=None).shape == ()
    hot = softxp.gumbel_softmax(x, u.random(x.shape), axis=(0, 2), hard=True)
    np.testing.assert_array_equal(hot.sum((0, 2)), 1)


def test_seeds_reproduce():
    for (asarray, a), (_, b) in zip(generators(11), generators(11), strict=True):
        x = asarray(rows(50).copy())
        first, again = softxp.sample(x, a), softxp.sample(x, b)
        assert first.tolist() == again.tolist()
        if hasattr(a, "random") or hasattr(a, "manual_seed"):
            assert softxp.sample(x, a).tolist() != first.tolist()  # and the generator has moved on


def test_one_numpy_generator_for_every_library():
    want = softxp.sample(rows(50), np.random.default_rng(3), top_p=0.9).tolist()
    for asarray, _ in generators(0):
        logits = asarray(rows(50).astype(np.float64))
        got = softxp.sample(logits, np.random.default_rng(3), top_p=0.9)
        if "jax" not in type(got).__module__:  # whose logits are float32, and the draws with them
            assert got.tolist() == want
    da, strict = pytest.importorskip("dask.array"), pytest.importorskip("array_api_strict")
    for x in da.from_array(rows(50), chunks=(20, 2)), strict.asarray(rows(50).copy()):
        got = softxp.sample(x, np.random.default_rng(3), top_p=0.9)
        assert np.asarray(got.compute() if hasattr(got, "compute") else got._array).tolist() == want


def test_jax_keys_and_traces():
    jax = pytest.importorskip("jax")
    x = jax.numpy.asarray(rows(8), dtype="float32")
    new, old = jax.random.key(4), jax.random.PRNGKey(4)
    want = softxp.sample(x, new, top_k=3).tolist()
    assert softxp.sample(x, old, top_k=3).tolist() == want
    assert jax.jit(lambda x, key: softxp.sample(x, key, top_k=3))(x, new).tolist() == want
    keys = jax.random.split(new, 8)
    assert jax.vmap(softxp.sample)(x, keys).shape == (8,)
    with pytest.raises(ValueError, match="one JAX key, got an array of them"):
        softxp.sample(x, keys)
    with pytest.raises(TypeError, match="cannot draw for each call"):
        jax.jit(lambda x: softxp.sample(x, np.random.default_rng(0)))(x)
    nan = jax.numpy.asarray([NAN] * 4 + [0.0] * 4)  # cannot be read, and chooses nothing
    assert softxp.sample(x, nan, top_k=3).tolist() == [-1] * 4 + [0] * 4
    # a draw inside a loss is constant
    g = jax.grad(lambda x: (x[:, 0] * softxp.sample(x, new)).sum())(x)
    np.testing.assert_array_equal(g[:, 0], softxp.sample(x, new))


def test_torch_compiled_and_mapped():
    torch = pytest.importorskip("torch")
    x, u = torch.from_numpy(rows(8).copy()), torch.rand(8, dtype=torch.float64)
    fn = lambda x, u: softxp.sample(x, u, top_k=4, top_p=0.9, min_p=0.05)  # noqa: E731
    compiled = torch.compile(fn, fullgraph=True, backend="eager")
    assert compiled(x, u).tolist() == fn(x, u).tolist()
    assert torch.func.vmap(fn)(x, u).tolist() == fn(x, u).tolist()
    with pytest.raises(TypeError, match="cannot draw for each call"):
        torch.func.vmap(lambda x: softxp.sample(x, np.random.default_rng(0)))(x)


def test_wrong_generators():
    for rng in 0, None, np.random, np.random.RandomState(0):
        with pytest.raises(TypeError, match=r"rng must be numpy's Generator.* shape \(4,\), got"):
            softxp.sample(rows(4), rng)
    with pytest.raises(ValueError, match=r"need shape \(4,\), got \(3,\)"):
        softxp.sample(rows(4), np.zeros(3))
    for u in 1.0, -0.1, NAN:
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
            softxp.sample(rows(2), np.asarray([u, 0.5]))
    with pytest.raises(TypeError, match="real floats in"):
        softxp.sample(rows(4), np.zeros(4, int))
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="rng must be numpy's Generator"):
        softxp.sample(rows(4), torch.Generator())
    with pytest.raises(TypeError, match="come from one library"):
        softxp.sample(torch.zeros(4, 3), np.zeros(4))


@pytest.mark.parametrize(
    "how, error, words",
    [
        ({"top_k": 0}, ValueError, "top_k must be an int of at least 1, got 0"),
        ({"top_k": 2.0}, TypeError, "top_k must be an int"),
        ({"top_k": True}, ValueError, "top_k must be"),
        ({"top_p": 1.5}, ValueError, r"top_p must be within \[0, 1\]"),
        ({"min_p": NAN}, ValueError, "min_p must be"),
        ({"top_p": np.ones(3)}, TypeError, "top_p must be a Python number"),
        ({"temperature": -1.0}, ValueError, "temperature must be at least 0"),
    ],
)
def test_options_out_of_range(how, error, words):
    with pytest.raises(error, match=words):
        softxp.mask_logits(rows(4), **how)
    with pytest.raises(error, match=words):
        softxp.sample(rows(4), np.random.default_rng(0), **how)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_sixteen_bits_are_worked_in_32(name):
    """A running sum of 4096 equal masses in 16 bits would stop growing long before the last."""
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)
    x = np.zeros((3, 4096), dtype)
    assert softxp.sample(x, np.asarray([0.25, 0.5, 0.999])).tolist() == [1024, 2048, 4091]
    assert (softxp.mask_logits(x, top_p=0.75) > -INF).sum(-1).tolist() == [3072] * 3
    assert softxp.mask_logits(x, top_p=0.75).dtype == dtype


# --- gumbel_softmax ----------------------------------------------------------------------------------------------------


def test_the_largest_follows_softmax():
    """At every temperature; and the hard answer is the one-hot of the soft one's maximum."""
    for asarray, _ in generators(0):
        draws = [softxp.gumbel_softmax(asarray(rows(DRAWS).copy()), rng, temperature=0.5, hard=hard)
                 for hard in (False, True) for a, rng in generators(9) if a is asarray or a == asarray]  # fmt: skip
        soft, hot = (np.asarray(d) for d in draws)
        counts = np.bincount(soft.argmax(-1), minlength=6)
        assert stats.chisquare(counts[P > 0], DRAWS * P[P > 0]).pvalue > 1e-3
        np.testing.assert_array_equal(hot, np.eye(6)[soft.argmax(-1)])
        np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-6)


def test_straight_through():
    """Forward one-hot, derivatives of the soft answer: on numpy by closed forms, on torch and JAX by their autograd."""
    rng = np.random.default_rng(0)
    x, u, v = rng.normal(size=(4, 5)), rng.random((4, 5)), rng.normal(size=(4, 5))
    how = {"temperature": 0.7}
    hot, pull = softxp.vjp(softxp.gumbel_softmax, x, u, hard=True, **how)
    soft, pull_soft = softxp.vjp(softxp.gumbel_softmax, x, u, **how)
    assert set(np.unique(hot)) == {0.0, 1.0}
    np.testing.assert_allclose(pull(v)[0], pull_soft(v)[0], rtol=1e-13)
    np.testing.assert_allclose(soft, softxp.softmax(x - np.log(-np.log(u)), temperature=0.7), rtol=1e-12)
    assert softxp.jvp(softxp.gumbel_softmax, (x, u), (v, None), hard=True, **how)[0].tolist() == hot.tolist()
    np.testing.assert_allclose(
        softxp.jvp(softxp.gumbel_softmax, (x, u), (v, None), hard=True, **how)[1],
        softxp.jvp(softxp.gumbel_softmax, (x, u), (v, None), **how)[1], rtol=1e-13,
    )  # fmt: skip
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    t = torch.tensor(x, requires_grad=True)
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y = softxp.gumbel_softmax(t, torch.from_numpy(u), temperature=temperature, hard=True)
    assert y.tolist() == hot.tolist()
    y.backward(torch.from_numpy(v))
    np.testing.assert_allclose(t.grad, pull(v)[0], rtol=1e-12)
    h = 1e-6
    up, down = (softxp.gumbel_softmax(x, u, temperature=0.7 + d) for d in (h, -h))
    np.testing.assert_allclose(temperature.grad, np.sum(v * (up - down)) / (2 * h), rtol=1e-7)
    f32 = [jax.numpy.asarray(a, dtype="float32") for a in (x, u, v)]
    y, pull_jax = jax.vjp(lambda x: softxp.gumbel_softmax(x, f32[1], hard=True, **how), f32[0])
    assert y.tolist() == hot.tolist()
    np.testing.assert_allclose(pull_jax(f32[2])[0], pull(v)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_at_the_ends(dtype):
    """u = 0, the smallest numbers, and the largest below 1: finite noise, no warning, and derivatives without NaN."""
    u = np.asarray(
        [[0.0, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).tiny, np.nextafter(dtype(1), dtype(0))]], dtype
    )
    x = np.zeros((1, 4), dtype)
    for asarray, _ in list(generators(0))[: 3 if dtype is np.float32 else 2]:
        for hard in False, True:
            y = softxp.gumbel_softmax(asarray(x), asarray(u), hard=hard)
            assert np.isfinite(np.asarray(y)).all() and int(np.asarray(y).argmax()) == 3
            assert float(y.sum()) == pytest.approx(1)
    assert (softxp.gumbel_softmax(x, np.zeros((1, 4), dtype)) == 0.25).all()
    for g in softxp.vjp(softxp.gumbel_softmax, x, u)[1](np.ones((1, 4), dtype) * np.arange(4, dtype=dtype)):
        assert np.isfinite(g).all()
    with np.errstate(all="raise"):
        softxp.gumbel_softmax(x, u)


def test_a_common_offset_leaves_the_noise():
    jax = pytest.importorskip("jax")
    x, key = np.zeros((3, 5), np.float32), jax.random.key(0)
    want = softxp.gumbel_softmax(jax.numpy.asarray(x), key)
    np.testing.assert_array_equal(softxp.gumbel_softmax(jax.numpy.asarray(x + np.float32(2.0**26)), key), want)


def test_corners_of_gumbel_softmax():
    x = np.asarray([[-INF, -INF, -INF], [-INF, 0.0, 0.0], [INF, 0.0, INF], [NAN, 0.0, 1.0]])
    u = np.asarray([[0.5, 0.5, 0.5], [0.9, 0.3, 0.6], [0.2, 0.9, 0.7], [0.5, 0.5, 0.5]])
    hot, pull = softxp.vjp(softxp.gumbel_softmax, x, u, hard=True)
    np.testing.assert_array_equal(hot, [[0, 0, 0], [0, 0, 1], [0, 0, 1], [NAN] * 3])
    soft = softxp.gumbel_softmax(x, u)
    np.testing.assert_array_equal(soft == 0, [[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
    (g, _) = pull(np.ones((4, 3)) * [1.0, 2.0, 4.0])
    assert (g[[0, 2]] == 0).all() and g[1, 0] == 0 and np.isnan(g[3]).all() and g[1, 2] != 0
