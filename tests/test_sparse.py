"""sparsemax and entmax beside the package of that name, by alpha, and what their definition says of the answer."""

import numpy as np
import pytest

import softxp

X = np.random.default_rng(0).normal(size=(5, 23)) * 2


@pytest.mark.parametrize("alpha", [1.0, 1.0001, 1.25, 1.5, 1.75, 2.0, 3.0])
def test_the_answer_solves_its_problem(alpha):
    """Distributions; and on the support x less the deformed logarithm of p is one number, which no other x reaches."""
    p = softxp.entmax(X, alpha=alpha)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-13)
    s = alpha - 1
    price = X - (np.expm1(s * np.log(np.where(p > 0, p, 1))) / s if s else np.log(p))
    inside = np.where(p > 0, price, np.nan)
    tau = np.nanmean(inside, -1, keepdims=True)
    np.testing.assert_allclose(
        np.where(p > 0, price, tau), np.broadcast_to(tau, p.shape), rtol=0, atol=1e-11 * max(1, 1 / max(s, 0.1))
    )
    if s:
        assert (np.where(p > 0, -np.inf, X + 1 / s) <= tau + 1e-12).all()


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("near", [1e-9, 1e-4, 0.03, 1 / 16])
def test_near_softmax(library, near):
    """Compilers know that (1 + y) - 1 is y, so no line may count on what its rounding takes away."""
    xp = pytest.importorskip("jax.numpy" if library == "jax" else library)
    x = xp.asarray(X.astype(np.float32))
    want = softxp.entmax(X.astype(np.float32).astype(float), alpha=1 + near)
    for alpha in (1 + near, xp.asarray(np.full((5, 1), 1 + near, np.float32))):
        if not isinstance(alpha, float):
            want = softxp.entmax(X.astype(np.float32).astype(float), alpha=np.asarray(alpha, float))
        np.testing.assert_allclose(np.asarray(softxp.entmax(x, alpha=alpha)), want, rtol=1e-5, atol=1e-6)


def test_an_array_of_alphas_is_each_of_them():
    alphas = np.asarray([[1.0], [1.5], [1.1], [2.0], [3.0]])
    p = softxp.entmax(X, alpha=alphas)
    for row, alpha in enumerate(alphas[:, 0]):
        np.testing.assert_allclose(p[row], softxp.entmax(X, alpha=float(alpha))[row], rtol=1e-12, atol=1e-16)


def test_the_ends_of_the_family():
    np.testing.assert_allclose(softxp.entmax(X, alpha=1), softxp.softmax(X), rtol=2e-15)
    np.testing.assert_array_equal(softxp.entmax(X, alpha=2), softxp.sparsemax(X))


def test_any_axes():
    for axis in 0, -2, (0, 1), None:
        for fn in softxp.sparsemax, softxp.entmax:
            axes = (0, 1) if axis is None else axis
            p = fn(X, axis=axis)
            np.testing.assert_allclose(p.sum(axis=axes), 1, rtol=1e-14)
    np.testing.assert_array_equal(softxp.entmax(X.T, axis=0), softxp.entmax(X).T)
    np.testing.assert_array_equal(softxp.entmax(X, axis=(0, 1)), softxp.entmax(X.ravel()).reshape(X.shape))


@pytest.mark.parametrize("alpha", [1.0, 1.05, 1.4, 1.5, 2.0, 2.5])
def test_derivative_by_alpha(alpha):
    a = np.full((5, 1), alpha)
    h = 1e-6
    up, down = softxp.entmax(X, alpha=a + h), softxp.entmax(X, alpha=np.maximum(a - h, 1))
    want = (up - down) / (a + h - np.maximum(a - h, 1))
    from softxp.sparse import alpha_slope  # no positional array: frameworks reach it through their own autograd

    got = alpha_slope(np, softxp.entmax(X, alpha=a), a, (1,))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=3e-6)


def test_beside_the_entmax_package():
    torch, entmax = pytest.importorskip("torch"), pytest.importorskip("entmax")
    x = torch.from_numpy(X)
    np.testing.assert_allclose(softxp.sparsemax(x), entmax.sparsemax(x), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(softxp.entmax(x), entmax.entmax15(x), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(softxp.entmax(x, alpha=1.3), entmax.entmax_bisect(x, 1.3), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, float("inf"), float("nan"), -1])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match="alpha must be at least 1 and finite"):
        softxp.entmax(X, alpha=alpha)
    with pytest.raises(ValueError, match="got an array with an entry below 1"):
        softxp.entmax(X, alpha=np.asarray([[alpha], [1.5], [1.5], [1.5], [1.5]]))
    with pytest.raises(ValueError, match="alpha must be one number for each row"):
        softxp.entmax(X, alpha=np.full(23, 1.5))


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 30.0])
def test_tiles_are_the_whole(axis, scale):
    """Many rows at once, a few numbers of each or all in the support, have the bits of few rows: values and gradients."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    x, v = scale * rng.normal(size=(130, 401)), rng.normal(size=(130, 401))
    x[3], x[7, ::2], x[9, 5] = -np.inf, -np.inf, np.nan
    t, alphas = rng.uniform(0.5, 2, (130, 1)), np.resize([1.5, 2.0, 1.25], (130, 1))
    if scale == 0.01 and axis == -1:  # halving takes a while
        calls = [(softxp.entmax, {"alpha": alphas, "temperature": t})]
    else:
        calls = [(softxp.sparsemax, {}), (softxp.entmax, {"temperature": t})]
    turn = (lambda a: a.T) if axis == 0 else (lambda a: a)
    for fn, options in calls:
        some = slice(2, 18)
        few = {k: turn(a[some]) for k, a in options.items()}
        options = {k: turn(a) for k, a in options.items()}
        want, pullback = softxp.vjp(fn, turn(x[some]), axis=axis, **few)
        gradient = pullback(turn(v[some]))[0]
        y = fn(turn(x), axis=axis, **options)
        np.testing.assert_array_equal(turn(y)[some], turn(want))
        leaf = torch.tensor(turn(x), requires_grad=True)
        y = fn(leaf, axis=axis, **{k: torch.tensor(a) for k, a in options.items()})
        (g,) = torch.autograd.grad(y, leaf, torch.tensor(turn(v)))
        np.testing.assert_allclose(turn(y.detach().numpy())[some], turn(want), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(turn(g.numpy())[some], turn(gradient), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("n", [50_257, 262_144])
def test_long_rows_of_16_bits_are_summed_where_something_has_a_share(n):
    """In 32 bits the sums over the whole row would leave no digit of the threshold."""
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=n).astype(np.float16)
        for fn in (softxp.sparsemax, softxp.entmax):
            np.testing.assert_allclose(fn(x).astype(np.float64), fn(x.astype(np.float64)), atol=3e-4)
