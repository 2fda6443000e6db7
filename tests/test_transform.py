"""vjp, jvp and value_and_grad, for libraries without an autograd."""

import numpy as np
import pytest

import softxp

X = np.random.default_rng(0).standard_normal((3, 5))


def test_jvp_and_vjp_are_adjoint():
    """⟨ct, J v⟩ = ⟨Jᵀ ct, v⟩, whatever J is."""
    rng = np.random.default_rng(1)
    labels = rng.dirichlet(np.ones(5), 3)
    calls = [
        (softxp.softmax, (X,), {"temperature": 0.7}),
        (softxp.log_softmax, (X,), {"axis": 0}),
        (softxp.logsumexp, (X,), {"axis": 1, "b": rng.random((3, 5))}),
        (softxp.logmeanexp, (X,), {}),
        (softxp.logcumsumexp, (X,), {"reverse": True}),
        (
            softxp.cross_entropy,
            (X, labels),
            {"z_loss": 0.1, "softcap": 2.0, "sample_weight": np.asarray([1.0, 0.0, 2.0])},
        ),
    ]
    for fn, arrays, options in calls:
        v = [rng.standard_normal(a.shape) for a in arrays]
        y, dy = softxp.jvp(fn, arrays, tuple(v), **options)
        ct = rng.standard_normal(y.shape)
        _, pullback = softxp.vjp(fn, *arrays, **options)
        left = np.sum(ct * dy)
        right = sum(np.sum(g * t) for g, t in zip(pullback(ct), v, strict=True))
        np.testing.assert_allclose(left, right, rtol=1e-12, err_msg=fn.__name__)


def test_gradient_of_cross_entropy_is_p_minus_y():
    labels = np.asarray([0, 4, 2])
    loss, g = softxp.value_and_grad(softxp.cross_entropy)(X, labels, reduction="sum")
    np.testing.assert_allclose(g, softxp.softmax(X) - np.eye(5)[labels], rtol=1e-13, atol=1e-16)
    assert loss.shape == ()


def test_integer_labels_have_no_cotangent():
    _, pullback = softxp.vjp(softxp.cross_entropy, X, np.asarray([0, 1, 2]))
    assert pullback(1.0)[1] is None


def test_errors():
    with pytest.raises(TypeError, match="derivatives of its own functions"):
        softxp.vjp(np.exp, X)
    with pytest.raises(ValueError, match="answer of one number"):
        softxp.value_and_grad(softxp.softmax)(X)
    with pytest.raises(ValueError, match=r"the cotangent needs shape \(3, 5\)"):
        softxp.vjp(softxp.softmax, X)[1](np.ones(3))
    with pytest.raises(ValueError, match="one tangent"):
        softxp.jvp(softxp.softmax, (X,), ())
    with pytest.raises(TypeError, match="no tangent"):
        softxp.jvp(softxp.cross_entropy, (X, np.asarray([0, 1, 2])), (X, np.ones(3)))
    with pytest.raises(ValueError, match="sign has no derivative"):
        softxp.vjp(softxp.logsumexp, X, return_sign=True)
