"""How softxp sits in JAX: grad, jvp, second order, jit, vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import softxp

LABELS = np.asarray([1, 2, -100, 6])


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def rng(seed=0):
    return np.random.default_rng(seed)


def arrays():
    x = rng(0).standard_normal((4, 7))
    mask = rng(9).random((4, 7)) > 0.2
    mask[:, [1, 2, 6]] = True
    weights = dict(label_smoothing=0.1, z_loss=0.1, softcap=3.0)
    w, s, t = rng(1).random(7) + 0.5, rng(2).random(4) + 0.5, rng(3).random((4, 1)) + 0.5
    mask = jnp.asarray(mask)
    return {
        "softmax": (lambda x, t: softxp.softmax(x, temperature=t, where=mask), x, t),
        "logsumexp": (
            lambda x, b: softxp.logsumexp(x, b=b, axis=1, return_sign=True)[0],
            x,
            rng(5).standard_normal((4, 7)),
        ),
        "integers": (
            lambda x, t: softxp.cross_entropy(
                x,
                LABELS,
                class_weight=jnp.asarray(w),
                sample_weight=jnp.asarray(s),
                temperature=t,
                where=mask,
                **weights,
            ),
            *(x, t),
        ),
    }


@pytest.mark.parametrize("name", ["softmax", "logsumexp", "integers"])
def test_check_grads_to_second_order(name):
    """A map, a reduction and a loss: all others are held to second order on torch (test_torch.py)."""
    f, *given = arrays()[name]
    check_grads(lambda *a: f(*map(jnp.asarray, a)), given, order=2, modes=("fwd", "rev"))


def test_hessian_at_ties():
    p = jnp.full(3, 1 / 3)
    want = jnp.diag(p) - p[:, None] * p
    np.testing.assert_allclose(jax.hessian(softxp.logsumexp)(jnp.zeros(3)), want, atol=1e-15)


def test_vmap_jit_and_grad_together():
    x, labels = jnp.asarray(rng().standard_normal((5, 7))), jnp.arange(5)
    each = jax.jit(jax.vmap(jax.grad(softxp.cross_entropy)))(x, labels)
    np.testing.assert_allclose(each, jax.nn.softmax(x) - jax.nn.one_hot(labels, 7), atol=1e-14)


def test_traces_once():
    traced = []

    @jax.jit
    def f(x):
        traced.append(1)
        return softxp.softmax(x, temperature=0.5)

    for seed in range(3):
        f(jnp.asarray(rng(seed).standard_normal(9)))
    assert len(traced) == 1


def test_traced_temperature_that_is_negative_is_nan():
    y = jax.jit(lambda x, t: softxp.softmax(x, temperature=t))(jnp.zeros((2, 3)), jnp.asarray([[-1.0], [1.0]]))
    assert jnp.isnan(y[0]).all() and not jnp.isnan(y[1]).any()


def test_state_passes_through_jit_and_scan():
    from softxp.streaming import LogSumExp

    chunks = jnp.asarray(rng().standard_normal((8, 16)))
    start = LogSumExp.from_array(chunks[0])
    state, _ = jax.lax.scan(lambda s, c: (s.update(c), None), start, chunks[1:])
    np.testing.assert_allclose(state.logsumexp(), jax.nn.logsumexp(chunks), rtol=1e-14)
