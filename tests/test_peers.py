"""The answers of scipy, torch and optax, wherever their semantics agree with ours."""

import numpy as np
import pytest

import softxp

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 9)) * 3
LABELS = np.asarray([0, 8, 3, -100, 5, 1])
SOFT = RNG.dirichlet(np.ones(9), 6)


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
def test_scipy(axis):
    special = pytest.importorskip("scipy.special")
    b = RNG.uniform(-1, 2, X.shape)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12)  # noqa: E731
    close(softxp.softmax(X, axis=axis), special.softmax(X, axis=axis))
    close(softxp.log_softmax(X, axis=axis), special.log_softmax(X, axis=axis))
    for keepdims in (False, True):
        close(softxp.logsumexp(X, axis=axis, keepdims=keepdims), special.logsumexp(X, axis=axis, keepdims=keepdims))
    got, want = (
        softxp.logsumexp(X, axis=axis, b=b, return_sign=True),
        special.logsumexp(X, axis=axis, b=b, return_sign=True),
    )
    close(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_torch_cross_entropy(smoothing, reduction, weighted):
    torch = pytest.importorskip("torch")
    w = RNG.random(9) + 0.5 if weighted else None
    tw = None if w is None else torch.tensor(w)
    x = torch.tensor(X, requires_grad=True)
    for labels in (LABELS, SOFT):
        if labels is SOFT and weighted and reduction == "mean":
            continue  # torch divides by the count there, so that one-hot and integer labels differ
        want = torch.nn.functional.cross_entropy(
            x, torch.tensor(labels), weight=tw, label_smoothing=smoothing, reduction=reduction
        )
        got, pullback = softxp.vjp(
            softxp.cross_entropy, X, labels, class_weight=w, label_smoothing=smoothing, reduction=reduction
        )
        np.testing.assert_allclose(got, want.detach(), rtol=1e-12, atol=1e-15)
        (g,) = torch.autograd.grad(want.sum(), x)
        np.testing.assert_allclose(pullback(np.ones(got.shape))[0], g, rtol=1e-11, atol=1e-15)


def test_torch_maps():
    torch = pytest.importorskip("torch")
    x = torch.tensor(X)
    torch.testing.assert_close(softxp.log_softmax(x), torch.log_softmax(x, -1))
    torch.testing.assert_close(softxp.logcumsumexp(x, axis=0), torch.logcumsumexp(x, 0))
    torch.testing.assert_close(softxp.logsumexp(x, axis=(0, 1)), torch.logsumexp(x, (0, 1)))


def test_optax_losses():
    optax = pytest.importorskip("optax")
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(True):
        x, labels, soft = jnp.asarray(X), jnp.asarray(np.abs(LABELS) % 9), jnp.asarray(SOFT)
        np.testing.assert_allclose(
            softxp.cross_entropy(x, labels, reduction="none"),
            optax.softmax_cross_entropy_with_integer_labels(x, labels),
            rtol=1e-12,
        )
        np.testing.assert_allclose(
            softxp.cross_entropy(x, soft, reduction="none"), optax.softmax_cross_entropy(x, soft), rtol=1e-12
        )
        mask = jnp.asarray(RNG.random((6, 9)) < 0.7)
        np.testing.assert_allclose(softxp.softmax(x, where=mask), jax.nn.softmax(x, where=mask), rtol=1e-12)
