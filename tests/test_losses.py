"""entropy, kl_divergence, distillation_loss, sparsemax_loss and entmax_loss: definitions, limits, corners, peers."""

import numpy as np
import pytest

import softxp

RNG = np.random.default_rng(0)
X, Q = RNG.normal(size=(5, 13)) * 2, RNG.normal(size=(5, 13)) * 2
LABELS = np.asarray([0, 12, -100, 4, 4])
SOFT = RNG.dirichlet(np.full(13, 0.3), 5)
INF, NAN = float("inf"), float("nan")


def close(a, b, **how):
    np.testing.assert_allclose(a, b, **{"rtol": 1e-12, "atol": 1e-15, **how})


# --- entropy, divergence -----------------------------------------------------------------------------------------------


def test_beside_scipy():
    special, stats = pytest.importorskip("scipy.special"), pytest.importorskip("scipy.stats")
    p, q = softxp.softmax(X, temperature=0.7), softxp.softmax(Q, temperature=0.7)
    close(softxp.entropy(X, temperature=0.7), stats.entropy(p, axis=-1))
    close(softxp.kl_divergence(X, Q, temperature=0.7), special.rel_entr(p, q).sum(-1))


def test_small_numbers_keep_their_digits():
    """A confident row's entropy, (1 + gap) e^-gap, and ½ ε² Var v between x and x + ε v."""
    for gap in 20.0, 40.0, 300.0:
        close(softxp.entropy(np.asarray([gap, 0.0])), (1 + gap) * np.exp(-gap), rtol=1e-8)
    p, v = softxp.softmax(X), RNG.normal(size=13)
    variance = (p * v**2).sum(-1) - (p * v).sum(-1) ** 2
    base = np.round(X, 2)  # so that x + ε v has as many digits of ε v as can be
    near = base + 1e-9 * v
    got, step = softxp.kl_divergence(base, near), near - base
    p = softxp.softmax(base)
    variance = (p * step**2).sum(-1) - (p * step).sum(-1) ** 2
    close(got, variance / 2, rtol=1e-7, atol=0)
    assert (softxp.kl_divergence(X, X) == 0).all()


def test_corners_of_entropy():
    x = np.asarray(
        [[0.0, 0.0, -INF, -INF], [-INF] * 4, [INF, INF, 1.0, INF], [1.0, NAN, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]]
    )
    close(softxp.entropy(x), [np.log(2), 0, np.log(3), NAN, softxp.entropy(x[4])])
    close(softxp.entropy(x[4:], temperature=0.0), [0])
    close(softxp.entropy(x[4:], temperature=INF), [np.log(4)])
    close(softxp.entropy(x[4:], where=np.asarray([False, False, True, True])), [np.log(2)])
    assert softxp.entropy(np.zeros((3, 0))).tolist() == [0, 0, 0] and softxp.entropy(np.zeros((0, 3))).shape == (0,)
    assert softxp.entropy(np.asarray(3.0)) == 0
    assert softxp.entropy(X, axis=None, keepdims=True).shape == (1, 1)
    _, pullback = softxp.vjp(softxp.entropy, x)
    gradient = pullback(np.ones(5))[0]
    assert (gradient[:3] == 0).all() and np.isnan(gradient[3]).all() and np.isfinite(gradient[4]).all()


def test_corners_of_divergence():
    p = np.asarray([[0.0, 0.0, -INF], [0.0, 0.0, 0.0], [-INF] * 3, [0.0] * 3, [NAN, 0.0, 0.0], [0.0] * 3, [-INF] * 3])
    q = np.asarray([[0.0, 0.0, 0.0], [0.0, 0.0, -INF], [0.0] * 3, [-INF] * 3, [0.0] * 3, [0.0, 0.0, INF], [-INF] * 3])
    got, pullback = softxp.vjp(softxp.kl_divergence, p, q)
    close(got, [np.log(1.5), INF, 0, INF, NAN, INF, 0])
    by_p, by_q = pullback(np.ones(7))
    close(by_q[:4], [[-1 / 6, -1 / 6, 1 / 3], [1 / 6, 1 / 6, -1 / 3], [0] * 3, [0] * 3])
    assert np.isnan(by_p[4]).all() and np.isnan(by_q[4]).all()
    for g in by_p, by_q:
        assert (np.delete(g, 4, 0)[3:] == 0).all()
    close(by_p[:4], np.zeros((4, 3)), atol=1e-15)


def test_logits_beside_logits():
    a, b = X.astype(np.float16), Q.astype(np.float32)
    assert softxp.kl_divergence(a, b).dtype == np.float32 and softxp.kl_divergence(b, Q).dtype == np.float64
    close(softxp.kl_divergence(b, Q), softxp.kl_divergence(b.astype(float), Q), rtol=1e-14)
    _, pullback = softxp.vjp(softxp.kl_divergence, a, b)
    assert [g.dtype for g in pullback(np.ones(5, np.float32))] == [np.float16, np.float32]
    assert softxp.distillation_loss(a, Q).dtype == np.float16
    with pytest.raises(ValueError, match=r"q_logits needs the shape of p_logits, \(5, 13\), got \(13,\)"):
        softxp.kl_divergence(X, Q[0])
    with pytest.raises(TypeError, match="teacher must hold real numbers"):
        softxp.distillation_loss(X, Q > 0)


def test_axes():
    stacked, beside = X.reshape(5, 13, 1), Q.reshape(5, 13, 1)
    for fn, arrays in (softxp.entropy, (stacked,)), (softxp.kl_divergence, (stacked, beside)):
        rows = [a.reshape(5, 13) for a in arrays]
        close(fn(*arrays, axis=1), fn(*rows)[:, None])
        close(fn(*arrays, axis=(0, 1)), fn(*[a.reshape(1, -1) for a in rows]))
    labels = np.abs(LABELS)[:, None] % 13
    close(softxp.entmax_loss(stacked, labels, axis=-2), softxp.entmax_loss(X, labels[:, 0]))
    close(softxp.distillation_loss(stacked, beside, axis=-2), softxp.distillation_loss(X, Q))


# --- distillation ------------------------------------------------------------------------------------------------------


def test_distillation_is_its_definition():
    F = pytest.importorskip("torch").nn.functional
    import torch

    student, teacher, t = torch.tensor(X, requires_grad=True), torch.tensor(Q), 4.0
    kl = F.kl_div((student / t).log_softmax(-1), (teacher / t).log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )
    entropy = F.cross_entropy(student, torch.tensor(LABELS), reduction="none")
    want = (0.3 * t**2 * kl + 0.7 * entropy)[LABELS >= 0].mean()
    got = softxp.distillation_loss(student, teacher, temperature=t, labels=torch.tensor(LABELS), alpha=0.3)
    torch.testing.assert_close(got, want)
    (ours,), (theirs,) = torch.autograd.grad(got, student), torch.autograd.grad(want, student)
    torch.testing.assert_close(ours, theirs)
    close(softxp.distillation_loss(X, Q, temperature=t, alpha=0.9), (t**2 * kl).mean().item())


def test_a_high_temperature_matches_logits():
    """Hinton et al. 2015, section 2.1: half the mean square of the centred differences."""
    want = (X - Q).var(-1) / 2
    for t, rtol in (1e3, 1e-2), (1e6, 1e-5), (1e12, 1e-11):
        close(softxp.distillation_loss(X, Q, temperature=t, reduction="none"), want, rtol=rtol)


def test_dropped_rows_of_distillation():
    x, q = X.copy(), Q.copy()
    x[2], q[2] = NAN, INF
    kept = [0, 1, 3, 4]
    want = softxp.distillation_loss(X[kept], Q[kept], labels=LABELS[kept])
    both = softxp.value_and_grad(softxp.distillation_loss, argnums=(0, 1))
    loss, gradients = both(x, q, labels=LABELS)
    close(loss, want)
    assert all((g[2] == 0).all() and np.isfinite(g).all() for g in gradients)
    loss, gradients = both(x, q, sample_weight=np.asarray([1.0, 2.0, 0.0, 1.0, 1.0]))
    close(loss, softxp.distillation_loss(X[kept], Q[kept], sample_weight=np.asarray([1.0, 2.0, 1.0, 1.0])))
    assert all((g[2] == 0).all() and np.isfinite(g).all() for g in gradients)
    assert softxp.distillation_loss(x[2:3], q[2:3], labels=LABELS[2:3]) == 0


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_one_part_alone(alpha):
    """A part of weight 0 adds nothing, not even where it is infinite."""
    x = np.where(np.arange(13) == 7, -INF, X)
    labels = np.asarray([0, 12, 7, 4, 4]) if alpha else np.abs(LABELS) % 13
    got, (by_x, by_q) = softxp.value_and_grad(softxp.distillation_loss, argnums=(0, 1))(
        x if not alpha else X, Q, labels=labels, alpha=alpha
    )
    want = softxp.distillation_loss(X, Q) if alpha else softxp.cross_entropy(x, labels)
    close(got, want)
    assert np.isfinite(by_x).all() and (by_q != 0).any() == bool(alpha)


def test_what_distillation_refuses():
    for t in (0, INF, -1, np.zeros((5, 1))):
        with pytest.raises(ValueError, match="temperature must be above 0 and finite"):
            softxp.distillation_loss(X, Q, temperature=t)
    with pytest.raises(ValueError, match="alpha must be within"):
        softxp.distillation_loss(X, Q, alpha=1.5)
    with pytest.raises(IndexError, match="labels must lie within"):
        softxp.distillation_loss(X, Q, labels=np.full(5, 13))


# --- sparse losses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 1.0001, 1.3, 1.5, 2.0, 3.0])
def test_fenchel_young(alpha):
    """max_p (z·p - Ω(p)) + Ω(y) - z·y; its gradient p - y; for a number and for an array of alphas."""

    def omega(p):
        if alpha == 1:
            return (p * np.log(np.where(p > 0, p, 1))).sum(-1)
        return (p**alpha - p).sum(-1) / (alpha * (alpha - 1))

    p = softxp.entmax(X, alpha=alpha)
    want = (X * p).sum(-1) - omega(p) + omega(SOFT) - (X * SOFT).sum(-1)
    for a in alpha, np.full((5, 1), alpha):
        got, pullback = softxp.vjp(softxp.entmax_loss, X, SOFT, alpha=a, reduction="none")
        close(got, want, rtol=1e-10, atol=1e-10 if alpha == 1.0001 else 1e-13)
        close(pullback(np.ones(5))[0], p - SOFT, atol=1e-13)
    if alpha == 2:
        close(softxp.sparsemax_loss(X, SOFT), want.mean())
    if alpha == 1:
        labels = np.abs(LABELS) % 13
        close(softxp.entmax_loss(X, labels, alpha=1), softxp.cross_entropy(X, labels))


def test_beside_the_entmax_package():
    torch, entmax = pytest.importorskip("torch"), pytest.importorskip("entmax")
    x, counted = torch.tensor(X), torch.tensor(LABELS).clamp(0)  # theirs cannot ignore a label below 0
    for fn, theirs in (softxp.sparsemax_loss, entmax.sparsemax_loss), (softxp.entmax_loss, entmax.entmax15_loss):
        torch.testing.assert_close(fn(x, counted, reduction="none"), theirs(x, counted))
    torch.testing.assert_close(
        softxp.entmax_loss(x, counted, alpha=1.3, reduction="none"), entmax.entmax_bisect_loss(x, counted, 1.3)
    )
    # its losses multiply 0 and -inf; its gradient there is right
    masked = torch.where(torch.arange(13) == 7, -INF, x)
    assert entmax.sparsemax_loss(masked, counted).isnan().all() and entmax.entmax15_loss(masked, counted).isnan().all()
    without = masked[:, torch.arange(13) != 7]
    labels = torch.where(counted > 7, counted - 1, counted)
    torch.testing.assert_close(softxp.entmax_loss(masked, counted), entmax.entmax15_loss(without, labels).mean())


def test_a_leading_label_costs_nothing():
    """By temperature / (alpha - 1) or more: exactly 0, and so is the gradient."""
    x = np.asarray([[3.0, 1.0, 0.9], [3.0, 2.0, -9.0]])
    for alpha, t in (1.5, 1.0), (2.0, 2.0), (3.0, 4.0), (1.25, 0.25):
        both = softxp.value_and_grad(softxp.entmax_loss)
        loss, g = both(x[:1], np.asarray([0]), alpha=alpha, temperature=t)
        assert loss == 0 and (g == 0).all()
        loss, g = both(x[1:], np.asarray([0]), alpha=alpha, temperature=t * 1.01)
        assert loss > 0 and (g[0, :2] != 0).all()
    assert softxp.entmax_loss(x, np.asarray([2, 2]), reduction="none").min() > 0


def test_corners_of_sparse_losses():
    x = np.asarray([[1.0, -INF, 0.5], [NAN, 0.0, 0.0], [-INF] * 3, [INF, INF, 0.0]])
    for alpha in 1.0, 1.5, 2.0, 1.3:
        got, pullback = softxp.vjp(softxp.entmax_loss, x, np.asarray([1, 0, 0, 0]), alpha=alpha, reduction="none")
        ties = softxp.entmax_loss(np.zeros((1, 2)), np.asarray([0]), alpha=alpha)
        close(got, [INF, NAN, INF, ties])
        g = pullback(np.ones(4))[0]
        p = softxp.entmax(x[0], alpha=alpha)
        close(g[0], p - [0, 1, 0])
        assert np.isnan(g[1]).all() and (g[2:] == 0).all()
        dropped = softxp.value_and_grad(softxp.entmax_loss)(x, np.full(4, -100), alpha=alpha)
        assert dropped[0] == 0 and (dropped[1] == 0).all()
    with pytest.raises(IndexError, match="labels must lie within"):
        softxp.sparsemax_loss(X, np.full(5, 13))
    with pytest.raises(ValueError, match="alpha must be at least 1"):
        softxp.entmax_loss(X, LABELS, alpha=0.5)


@pytest.mark.parametrize("kernels", [True, False])
def test_labels_whose_share_is_too_small_for_its_dtype(kernels):
    """Up to about alpha 1.1 a label far below the others has a share, of less than the smallest number."""
    softxp.use_kernels(kernels)
    try:
        for alpha in (1.0, 1.0001, 1.001):
            for a in (alpha, np.asarray(alpha)):
                close(softxp.entmax_loss(np.asarray([[2000.0, 0.0]]), np.asarray([1]), alpha=a), 2000.0)
    finally:
        softxp.use_kernels(True)


def test_smoothing_and_weights_of_sparse_losses():
    where, s = np.arange(13) != 3, np.asarray([1.0, 0.5, 3.0, 0.0, 2.0])
    one_hot = np.eye(13)[LABELS % 13] * (LABELS >= 0)[:, None]
    share = where / where.sum()
    smooth = softxp.entmax_loss(X, LABELS, where=where, label_smoothing=0.2, sample_weight=s, reduction="none")
    soft = (0.8 * one_hot + 0.2 * share) * (LABELS >= 0)[:, None]
    close(smooth, softxp.entmax_loss(X, soft, where=where, reduction="none") * s)
    mean = softxp.entmax_loss(X, LABELS, where=where, label_smoothing=0.2, sample_weight=s)
    close(mean, smooth.sum() / s[LABELS >= 0].sum())
    close(softxp.entmax_loss(X, LABELS, normalizer=8.0), softxp.entmax_loss(X, LABELS, reduction="sum") / 8)


# --- derivatives -------------------------------------------------------------------------------------------------------

CALLS = {
    "entropy": (softxp.entropy, (X,), {"temperature": 0.7, "where": np.arange(13) != 3}),
    "kl": (softxp.kl_divergence, (X, Q), {"temperature": np.asarray([[0.5], [1.0], [2.0], [3.0], [0.7]])}),
    "distillation": (softxp.distillation_loss, (X, Q), {"labels": LABELS, "temperature": 2.0, "alpha": 0.3}),
    "entmax": (softxp.entmax_loss, (X, SOFT), {"alpha": 1.3, "label_smoothing": 0.1, "temperature": 0.5}),
    "sparsemax": (softxp.sparsemax_loss, (X, SOFT), {"reduction": "none"}),
}


@pytest.mark.parametrize("name", CALLS)
def test_jvp_and_vjp_are_adjoint_and_right(name):
    fn, arrays, options = CALLS[name]
    rng, h = np.random.default_rng(1), 1e-6
    v = [rng.standard_normal(a.shape) for a in arrays]
    v = [t - t.mean(-1, keepdims=True) for t in v]  # labels stay distributions
    y, dy = softxp.jvp(fn, arrays, tuple(v), **options)
    moved = [fn(*(a + s * h * t for a, t in zip(arrays, v, strict=True)), **options) for s in (1, -1)]
    if name not in ("entmax", "sparsemax"):  # else labels of 0 would be negative
        close(dy, (moved[0] - moved[1]) / (2 * h), rtol=1e-6, atol=1e-8)
    ct = rng.standard_normal(y.shape)
    out = softxp.vjp(fn, *arrays, **options)[1](ct)
    close(np.sum(ct * dy), sum(np.sum(g * t) for g, t in zip(out, v, strict=True)))


def test_every_array_and_every_order():
    """Reverse, forward and double backward, by logits, temperature, alpha, soft labels and weights."""
    torch = pytest.importorskip("torch")
    from torch.autograd import gradcheck, gradgradcheck

    def given(*shape):
        return torch.tensor(np.random.default_rng(3).uniform(0.5, 2.0, shape), requires_grad=True)

    x, q, y = (torch.tensor(a, requires_grad=True) for a in (X[:2, :4], Q[:2, :4], X[2:4, :4]))
    t, s, alpha, labels = given(2, 1), given(2), given(2, 1), torch.tensor([3, -100])
    for f, arrays in [
        (lambda x, t: softxp.entropy(x, temperature=t), (x, t)),
        (lambda x, q, t: softxp.kl_divergence(x, q, temperature=t), (x, q, t)),
        (lambda x, q: softxp.kl_divergence(x, q + 0 * x), (q, q)),  # at equality, where the divergence is flat
        (
            lambda x, q, t, s: softxp.distillation_loss(x, q, temperature=t, labels=labels, sample_weight=s),
            (x, q, t, s),
        ),
        (lambda x, q, y: softxp.distillation_loss(x, q, labels=y.softmax(-1)), (x, q, y)),
        (lambda x, a, y, t: softxp.entmax_loss(x, y.softmax(-1), alpha=1 + a, temperature=t), (x, alpha, y, t)),
        (lambda x, y, s: softxp.entmax_loss(x, y.softmax(-1), sample_weight=s), (x, y, s)),
        (lambda x, s: softxp.sparsemax_loss(x, labels, sample_weight=s, label_smoothing=0.1), (x, s)),
    ]:
        assert gradcheck(f, arrays, check_forward_ad=True, fast_mode=True)
        assert gradgradcheck(f, arrays, fast_mode=True)
