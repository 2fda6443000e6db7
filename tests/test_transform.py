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


def test_logcumsumexp_beside_a_far_larger_entry():
    """A later entry, however large, has no part in an earlier prefix."""
    _, pullback = softxp.vjp(softxp.logcumsumexp, np.asarray([0.1, 3.2, 1e17]))
    (g,) = pullback(np.asarray([0.0, 1.0, 0.0]))
    np.testing.assert_allclose(g, [*softxp.softmax(np.asarray([0.1, 3.2])), 0.0], rtol=1e-14)


def test_nothing_counted_moves_with_nothing():
    torch = pytest.importorskip("torch")
    x, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    s = torch.zeros(2, requires_grad=True)
    (g,) = torch.autograd.grad(softxp.cross_entropy(x, labels, sample_weight=s), s)
    assert g.tolist() == [0.0, 0.0]
    (g,) = torch.autograd.grad(softxp.cross_entropy(x, labels, sample_weight=s, reduction="sum"), s)
    np.testing.assert_allclose(g, np.log([3.0, 3.0]), rtol=1e-6)


def test_a_row_of_no_class_weight_moves_no_weight():
    torch = pytest.importorskip("torch")
    x, labels = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]], dtype=torch.float64), torch.tensor([0, 1])
    w = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    loss = lambda w: softxp.cross_entropy(x, labels, class_weight=w, label_smoothing=0.3)  # noqa: E731
    (g,) = torch.autograd.grad(loss(w), w)
    for i in (1, 2):
        step = torch.zeros(3, dtype=torch.float64)
        step[i] = 1e-6
        np.testing.assert_allclose(g[i], (loss(w + step) - loss(w - step)).detach() / 2e-6, rtol=1e-6)


def test_by_keyword_arrays_too():
    q, k, v = (np.random.default_rng(i).normal(size=(1, 3, 4)) for i in range(3))
    bias = np.zeros((3, 3))
    y, pullback = softxp.vjp(softxp.attention, q, k, v, bias=bias, argnums=("bias", 0))
    by_bias, by_q = pullback(np.ones_like(y))
    assert by_bias.shape == bias.shape
    np.testing.assert_array_equal(by_q, softxp.vjp(softxp.attention, q, k, v, bias=bias)[1](np.ones_like(y))[0])
    with pytest.raises(ValueError, match="no argument 'bais'"):
        softxp.vjp(softxp.attention, q, k, v, argnums="bais")
    _, by_logits = softxp.value_and_grad(softxp.cross_entropy, argnums="logits")(X, np.asarray([0, 1, 2]))
    np.testing.assert_array_equal(by_logits, softxp.value_and_grad(softxp.cross_entropy)(X, np.asarray([0, 1, 2]))[1])
    with pytest.raises(ValueError, match="no argument 'x'"):  # what its formula calls the logits
        softxp.value_and_grad(softxp.cross_entropy, argnums="x")(X, np.asarray([0, 1, 2]))
    with pytest.raises(ValueError, match=r"got shape \(1, 3, 4\)"):
        softxp.value_and_grad(softxp.attention)(q, k, v)
    with pytest.raises(TypeError, match="give an array of one"):
        softxp.value_and_grad(softxp.cross_entropy, argnums="temperature")(X, np.asarray([0, 1, 2]), temperature=2.0)


def test_gradients_by_weights_have_their_shape():
    labels = np.asarray([0, 4, 2])
    for axis, logits in ((1, X), (0, X.T)):
        for name, size in (("sample_weight", 3), ("class_weight", 5)):
            w = np.linspace(1.0, 2.0, size)
            _, g = softxp.value_and_grad(softxp.cross_entropy, argnums=name)(logits, labels, axis=axis, **{name: w})
            assert g.shape == w.shape
