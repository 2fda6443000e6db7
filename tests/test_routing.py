"""The gate's choices, and losses that leave padding out and whose derivatives flow where they should."""

import numpy as np
import pytest

import softxp

INF, NAN = np.inf, np.nan
X = np.random.default_rng(0).normal(size=(2, 6, 8)) * 2


def one_hot(indices, n):
    return (indices[..., None] == np.arange(n)).astype(float)


# --- topk_softmax ------------------------------------------------------------------------------------------------------


def test_both_orders_of_softmax_and_choice():
    p = softxp.softmax(X)
    order = np.argsort(-p, axis=-1, kind="stable")[..., :3]
    top = np.take_along_axis(p, order, -1)
    weights, indices = softxp.topk_softmax(X, 3, normalize=False)  # Switch Transformer's, for k = 1
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(weights, top, rtol=1e-14)
    weights, indices = softxp.topk_softmax(X, 3)  # Mixtral's, which is also the choice's share of its own mass
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(weights, top / top.sum(-1, keepdims=True), rtol=1e-14)
    assert (np.diff(weights, axis=-1) <= 0).all()


def test_of_equal_logits_the_first():
    libraries = [np.asarray]
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    libraries += [torch.from_numpy, lambda a: jax.numpy.asarray(a, dtype="float32")]
    x = np.asarray([[0.0] * 40, [1.0, 0.0] * 20])
    for asarray in libraries:
        _, indices = softxp.topk_softmax(asarray(x), 21)
        assert indices.tolist() == [list(range(21)), [*range(0, 40, 2), 1]]


def test_slots_without_an_expert():
    x = np.asarray([[3.0, 1.0, 2.0], [-INF] * 3, [-INF, 0.0, -INF], [0.0, NAN, 1.0], [INF, 0.0, INF]])
    where = np.ones(x.shape, bool)
    where[0, 0] = False
    for normalize in True, False:
        weights, indices = softxp.topk_softmax(x, 3, where=where, normalize=normalize)
        assert indices.tolist() == [[2, 1, -1], [-1] * 3, [1, -1, -1], [-1] * 3, [0, 2, 1]]
        p = softxp.softmax(np.asarray([2.0, 1.0]))
        want = [[*p, 0], [0, 0, 0], [1, 0, 0], [NAN] * 3, [0.5, 0.5, 0]]
        np.testing.assert_allclose(weights, want, rtol=1e-14)
        _, pullback = softxp.vjp(softxp.topk_softmax, x, 3, where=where, normalize=normalize)
        g = pullback(np.ones((5, 3)) * [1.0, 2.0, 3.0])[0]
        assert (g[[1, 2, 4]] == 0).all() and g[0, 0] == 0 and g[0, 1] > 0 and np.isnan(g[3]).all()


def test_experts_along_any_axis():
    weights, indices = softxp.topk_softmax(X, 2, axis=1)
    w, i = softxp.topk_softmax(np.moveaxis(X, 1, -1), 2)
    np.testing.assert_array_equal(weights, np.moveaxis(w, -1, 1))
    np.testing.assert_array_equal(indices, np.moveaxis(i, -1, 1))
    assert softxp.topk_softmax(X[0, 0], 8, axis=None)[0].shape == (8,)
    with pytest.raises(ValueError, match="one axis of experts"):
        softxp.topk_softmax(X, 2, axis=(1, 2))


def test_temperature_moves_weights_and_no_choice():
    t = np.asarray([[[0.0]] * 6, [[2.0]] * 6])
    weights, indices = softxp.topk_softmax(X, 2, temperature=t)
    np.testing.assert_array_equal(indices, softxp.topk_softmax(X, 2)[1])
    assert (weights[0] == [1, 0]).all()
    np.testing.assert_allclose(weights[1], softxp.topk_softmax(X[1] / 2, 2)[0], rtol=1e-13)


@pytest.mark.parametrize("normalize", [True, False])
def test_derivatives_of_the_gate(normalize):
    """Against the whole softmax of masked logits, on numpy, torch (twice) and JAX; by temperature too."""
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    rng = np.random.default_rng(1)
    x, v = rng.normal(size=(5, 7)), rng.normal(size=(5, 3))
    how = {"normalize": normalize, "temperature": 0.8}
    _, pullback = softxp.vjp(softxp.topk_softmax, x, 3, **how)
    g, none = pullback(v)
    assert none is None
    hot = one_hot(softxp.topk_softmax(x, 3)[1], 7)
    where = hot.sum(1) > 0 if normalize else None
    want = softxp.vjp(softxp.softmax, x, where=where, temperature=0.8)[1](np.einsum("rk,rkn->rn", v, hot))[0]
    np.testing.assert_allclose(g, want, rtol=1e-12, atol=1e-15)
    t, temperature = (
        torch.tensor(x, requires_grad=True),
        torch.tensor([[0.8]] * 5, dtype=torch.float64, requires_grad=True),
    )
    gate = lambda x, t: softxp.topk_softmax(x, 3, normalize=normalize, temperature=t)[0]  # noqa: E731
    assert torch.autograd.gradcheck(gate, (t, temperature), check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(gate, (t, temperature), check_undefined_grad=False)
    f32 = [jax.numpy.asarray(a, dtype="float32") for a in (x, v)]
    g32 = jax.jit(lambda x, v: jax.vjp(lambda x: softxp.topk_softmax(x, 3, **how)[0], x)[1](v)[0])(*f32)
    np.testing.assert_allclose(g32, g, rtol=1e-4, atol=1e-6)


def test_choices_out_of_range():
    for fn in softxp.topk_softmax, softxp.balance_loss:
        with pytest.raises(ValueError, match="k must be at most the number of experts, the size 8 of axis"):
            fn(X, 9)
        with pytest.raises(ValueError, match="k must be an int of at least 1, got 0"):
            fn(X, 0)
        with pytest.raises(TypeError, match="static under jit"):
            fn(X, 1.5)


# --- balance_loss ------------------------------------------------------------------------------------------------------


def by_definition(x, k, padding):
    """Over the tokens that count, as in transformers' Mixtral: choices by expert, over all k, times mean probabilities."""
    x = x[padding]
    p = softxp.softmax(x)
    chosen = one_hot(np.argsort(-x, axis=-1, kind="stable")[:, :k], x.shape[-1])
    return x.shape[-1] * np.sum(chosen.mean(0).sum(0) * p.mean(0))


def test_load_without_padding():
    padding = np.ones((2, 6), bool)
    padding[0, 4:], padding[1, 1] = False, False
    dirty = np.where(padding[..., None], X, NAN)
    for k in 1, 2, 8:
        loss = softxp.balance_loss(dirty, k, sample_weight=padding.astype(float))
        np.testing.assert_allclose(loss, by_definition(X, k, padding), rtol=1e-13)
        g = softxp.value_and_grad(softxp.balance_loss)(dirty, k, sample_weight=padding.astype(float))[1]
        assert (g[~padding] == 0).all() and np.isfinite(g).all()


def test_an_even_load_gives_k():
    even = 5 * np.eye(4)
    assert softxp.balance_loss(even, 1) == pytest.approx(1)
    assert softxp.balance_loss(np.zeros((4, 4)) + even + np.roll(even, 1, -1), 2) == pytest.approx(2)
    assert softxp.balance_loss(np.asarray([[50.0, 0, 0, 0]] * 3), 1) == pytest.approx(4)


def test_load_of_no_token():
    for x, s in (X, np.zeros((2, 6))), (np.full((3, 4), -INF), None), (np.zeros((0, 4)), None):
        for fn, more in (softxp.balance_loss, (2,)), (softxp.router_z_loss, ()):
            loss, g = softxp.value_and_grad(fn)(x, *more, sample_weight=s)
            assert loss == 0 and (g == 0).all() and g.shape == x.shape
    # a token with nothing in its row is one that does not count
    with_empty = np.concatenate([X[0], np.full((2, 8), -INF)])
    np.testing.assert_allclose(softxp.balance_loss(with_empty, 2), softxp.balance_loss(X[0], 2), rtol=1e-14)
    np.testing.assert_allclose(softxp.router_z_loss(with_empty), softxp.router_z_loss(X[0]), rtol=1e-14)


def test_the_gradient_flows_through_probabilities_alone():
    p, hot = softxp.softmax(X), one_hot(softxp.topk_softmax(X, 2)[1], 8).sum(-2)
    f = hot.mean((0, 1))
    want = softxp.vjp(softxp.softmax, X)[1](np.broadcast_to(8 * f / 12, p.shape))[0]
    np.testing.assert_allclose(softxp.value_and_grad(softxp.balance_loss)(X, 2)[1], want, rtol=1e-12, atol=1e-16)


LOSSES = [
    (lambda x, s, t: softxp.balance_loss(x, 2, sample_weight=s, temperature=t)),
    (lambda x, s, t: softxp.router_z_loss(x, sample_weight=s) * t.mean()),
    (lambda x, s, t: softxp.router_z_loss(x, sample_weight=s, normalizer=t.mean())),
    (lambda x, s, t: softxp.router_z_loss(x, sample_weight=s, reduction="none") * t[:, 0]),
]


@pytest.mark.parametrize("loss", LOSSES, ids=["balance", "z", "z, normalizer", "z, none"])
def test_every_derivative_on_torch(loss):
    """By logits, sample weights, temperature and normalizer; reverse, twice, and forward."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    x, s = torch.tensor(X[0, :4, :3], requires_grad=True), torch.tensor(rng.uniform(0.5, 2, 4), requires_grad=True)
    t = torch.tensor(rng.uniform(0.5, 2, (4, 1)), requires_grad=True)
    assert torch.autograd.gradcheck(loss, (x, s, t), check_forward_ad=True, check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(loss, (x, s, t), check_undefined_grad=False)


def test_the_losses_under_jit_and_compile():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    s = np.asarray([1.0, 0.0, 2.0, 1.0, 0.5, 1.0])

    def both(x, s):
        return softxp.balance_loss(x, 2, sample_weight=s) + softxp.router_z_loss(x, sample_weight=s)

    want = [softxp.value_and_grad(softxp.balance_loss)(X[0], 2, sample_weight=s),
            softxp.value_and_grad(softxp.router_z_loss)(X[0], sample_weight=s)]  # fmt: skip
    value, gradient = (want[0][i] + want[1][i] for i in (0, 1))
    y, g = jax.jit(jax.value_and_grad(both))(*(jax.numpy.asarray(a, dtype="float32") for a in (X[0], s)))
    np.testing.assert_allclose(y, value, rtol=1e-5)
    np.testing.assert_allclose(g, gradient, rtol=1e-4, atol=1e-6)
    x = torch.tensor(X[0], requires_grad=True)
    compiled = torch.compile(both, fullgraph=True, backend="eager")
    y = compiled(x, torch.from_numpy(s))
    y.backward()
    np.testing.assert_allclose(y.item(), value, rtol=1e-12)
    np.testing.assert_allclose(x.grad, gradient, rtol=1e-10, atol=1e-15)
    gate = torch.compile(lambda x: softxp.topk_softmax(x, 2), fullgraph=True, backend="eager")
    assert gate(x.detach())[1].tolist() == softxp.topk_softmax(X[0], 2)[1].tolist()


# --- router_z_loss -----------------------------------------------------------------------------------------------------


def test_squares_beside_numpy_and_without_padding():
    padding = np.asarray([[1.0, 1, 0, 1, 1, 1], [0.0, 1, 1, 1, 0, 1]])
    dirty = np.where(padding[..., None] > 0, X, INF)
    lse = np.log(np.exp(X).sum(-1))
    loss, g = softxp.value_and_grad(softxp.router_z_loss)(dirty, sample_weight=padding)
    np.testing.assert_allclose(loss, (padding * lse**2).sum() / padding.sum(), rtol=1e-13)
    want = 2 * (padding * lse)[..., None] * softxp.softmax(X) / padding.sum()
    np.testing.assert_allclose(g, np.where(padding[..., None] > 0, want, 0), rtol=1e-12)
    np.testing.assert_allclose(softxp.router_z_loss(X, reduction="none"), lse**2, rtol=1e-13)
    np.testing.assert_allclose(softxp.router_z_loss(X, normalizer=5.0), (lse**2).sum() / 5, rtol=1e-13)
    np.testing.assert_allclose(softxp.router_z_loss(X, reduction="sum"), (lse**2).sum(), rtol=1e-13)
    with pytest.raises(ValueError, match="normalizer replaces"):
        softxp.router_z_loss(X, reduction="sum", normalizer=5.0)
    with pytest.raises(ValueError, match='reduction must be "mean"'):
        softxp.router_z_loss(X, reduction="max")


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_large_logits_in_sixteen_bits(name):
    """A square of 300 is beyond float16, and a sum of many squares sooner: neither is kept in 16 bits."""
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)
    x = np.full((4096, 4), 100.0, dtype)
    lse = 100 + np.log(4)
    assert float(softxp.router_z_loss(x)) == pytest.approx(lse**2, rel=2**-8)
    big = np.full((4096, 4), 300.0, dtype)
    assert float(softxp.router_z_loss(big, dtype=np.float32)) == pytest.approx((300 + np.log(4)) ** 2, rel=1e-6)
    _, pullback = softxp.vjp(softxp.router_z_loss, big)
    (g,) = pullback(np.ones((), dtype) * dtype.type(4096))
    np.testing.assert_allclose(g.astype(float), 2 * (300 + np.log(4)) / 4, rtol=2**-8)


def test_a_value_that_is_not_finite():
    x = X[0].copy()
    x[2, 3] = INF
    loss, g = softxp.value_and_grad(softxp.router_z_loss)(x)
    assert loss == INF and (g[2] == 0).all() and np.isfinite(g).all()
    x[2, 3] = NAN
    loss, g = softxp.value_and_grad(softxp.router_z_loss)(x)
    assert np.isnan(loss) and np.isnan(g[2]).all() and np.isfinite(g[[0, 1, 3, 4, 5]]).all()
    assert np.isnan(softxp.balance_loss(x, 2))
