"""linear_cross_entropy and contrastive_loss: against the losses of whole logits, in every way of cutting them."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import softxp
from softxp.transform import _Call

RNG = np.random.default_rng(0)
N, H, V = 13, 5, 17
HIDDEN, KERNEL, BIAS = RNG.normal(size=(N, H)), 2 * RNG.normal(size=(V, H)), RNG.normal(size=V)
LABELS = RNG.integers(0, V, N)
LABELS[3] = -100
SOFT = RNG.dirichlet(np.ones(V), N)
WEIGHTS = {"class_weight": RNG.uniform(0.5, 2, V), "sample_weight": np.where(np.arange(N) == 5, 0.0, 1.5)}
WHERE = RNG.random((N, V)) < 0.8
ROWS = RNG.uniform(0.5, 2, (N, 1))

OPTIONS = {
    "plain": {},
    "bias, smoothing": {"bias": BIAS, "label_smoothing": 0.1},
    "weights": WEIGHTS,
    "z-loss, temperatures": {"z_loss": 0.01, "temperature": ROWS},
    "softcap": {"softcap": 3.0, "temperature": 0.7},
    "where": {"where": WHERE, "z_loss": 0.01},
    "classes masked": {"where": WHERE[:1], "label_smoothing": 0.2, "class_weight": WEIGHTS["class_weight"]},
    "one temperature": {"temperature": np.asarray(1.5), "normalizer": 3.0},
}


def whole(options):
    """The logits of softxp.cross_entropy, and its options."""
    return HIDDEN @ KERNEL.T + options.get("bias", 0.0), {k: v for k, v in options.items() if k != "bias"}


@pytest.mark.parametrize("chunk_size", [None, 4, (4, 5), (13, 6), (5, 17)], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_cut_gives_what_whole_logits_give(name, chunk_size):
    options = OPTIONS[name]
    logits, of_logits = whole(options)
    for labels in (LABELS, SOFT):
        for reduction in ("mean", "none") if "normalizer" not in options else ("mean",):
            want = _Call(softxp.cross_entropy, (logits, labels), {"reduction": reduction, **of_logits})
            got = _Call(
                softxp.linear_cross_entropy,
                (HIDDEN, KERNEL, labels),
                {"reduction": reduction, "chunk_size": chunk_size, **options},
            )
            close = dict(rtol=1e-11, atol=1e-12)
            np.testing.assert_allclose(got.y, want.y, **close)

            ct = np.random.default_rng(1).normal(size=want.y.shape)
            by_temperature = ["temperature"] if isinstance(options.get("temperature"), np.ndarray) else []
            g = want.pulled(ct, ("x", *by_temperature))
            truth = {
                "hidden": g["x"] @ KERNEL, "kernel": g["x"].T @ HIDDEN, "bias": g["x"].sum(0),
                "temperature": g.get("temperature"),
            }  # fmt: skip
            names = ["hidden", "kernel", *(["bias"] if "bias" in options else []), *by_temperature]
            out = got.pulled(ct, tuple(names))
            for k in names:
                np.testing.assert_allclose(out[k], truth[k], **close, err_msg=k)
            moved = {k: np.random.default_rng(2).normal(size=truth[k].shape) for k in names}
            np.testing.assert_allclose(
                np.sum(ct * got.tangent(moved)), sum(np.sum(truth[k] * moved[k]) for k in names), rtol=1e-10
            )
            if reduction == "mean":
                y, out = got.gradients(names)
                np.testing.assert_allclose(y, want.y, **close)
                np.testing.assert_allclose(ct * out["kernel"], truth["kernel"], **close)


@pytest.mark.parametrize("loss", ["linear", "infonce", "clip", "siglip"])
def test_nothing_of_the_logits_size_is_there(loss):
    rng = np.random.default_rng(3)
    rows, vocabulary = (256, 4096) if loss == "linear" else (1024, 1024)
    a, b = rng.normal(size=(rows, 8)).astype(np.float32), rng.normal(size=(vocabulary, 8)).astype(np.float32)
    if loss == "linear":
        arrays, options, fn = (a, b, np.arange(rows)), {"chunk_size": (16, 512)}, softxp.linear_cross_entropy
    else:
        arrays, options, fn = (a, b), {"chunk_size": 16, "loss": loss}, softxp.contrastive_loss
    call = softxp.value_and_grad(fn, argnums=(0, 1))
    call(*arrays, **options)
    tracemalloc.start()
    call(*arrays, **options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * rows * vocabulary / 3


def test_jax_keeps_no_logits_for_its_reverse_mode():
    rows, vocabulary, h = 64, 96, 4
    hidden, kernel = jnp.ones((rows, h)), jnp.ones((vocabulary, h))
    for chunk_size in (8, (16, 24)):
        loss = jax.grad(
            lambda a, b, c=chunk_size: softxp.linear_cross_entropy(a, b, jnp.arange(rows), chunk_size=c), argnums=(0, 1)
        )
        sizes = [
            np.prod(v.aval.shape) for e in _equations(jax.make_jaxpr(loss)(hidden, kernel).jaxpr) for v in e.outvars
        ]
        assert max(sizes) < rows * vocabulary / 2


def _equations(jaxpr):
    for e in jaxpr.eqns:
        yield e
        for p in e.params.values():
            for q in p if isinstance(p, (list, tuple)) else [p]:
                inner = getattr(q, "jaxpr", q)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


@pytest.mark.parametrize("chunk_size", [3, (3, 4)], ids=str)
def test_torch_derivatives_of_every_order(chunk_size):
    hidden, kernel, bias = (torch.from_numpy(a[:5]).requires_grad_() for a in (HIDDEN, KERNEL, BIAS))
    labels = torch.tensor([1, 4, -100, 0, 2])

    def fn(a, b, c, t, reduction="mean"):
        how = dict(chunk_size=chunk_size, label_smoothing=0.1, z_loss=0.1, reduction=reduction)
        return softxp.linear_cross_entropy(a, b, labels, bias=c, temperature=t, **how)

    given = (hidden, kernel, bias, torch.tensor(0.8, dtype=torch.float64, requires_grad=True))
    torch.autograd.gradcheck(fn, given, check_forward_ad=True, fast_mode=True)
    torch.autograd.gradcheck(lambda *a: fn(*a, reduction="none"), given, check_forward_ad=True, fast_mode=True)
    torch.autograd.gradgradcheck(fn, given, fast_mode=True)
    # the tangent that a chunked road may lose
    _, dy = torch.func.jvp(lambda a: fn(a, *given[1:]), (hidden.detach(),), (torch.ones_like(hidden),))
    np.testing.assert_allclose(dy.detach(), torch.autograd.grad(fn(*given), hidden)[0].sum(), rtol=1e-10)


def test_contrastive_derivatives_on_torch():
    a, b = (torch.from_numpy(x[:5]).requires_grad_() for x in (HIDDEN, KERNEL))
    for loss in ("infonce", "clip", "siglip"):
        bias = {"bias": torch.tensor([0.5], dtype=torch.float64, requires_grad=True)} if loss == "siglip" else {}

        def fn(a, b, t, *bias, loss=loss):
            shift = dict(zip(("bias",), bias, strict=False))
            return softxp.contrastive_loss(a, b, temperature=t, loss=loss, chunk_size=4, **shift)

        given = (a, b, torch.tensor(0.7, dtype=torch.float64, requires_grad=True), *bias.values())
        torch.autograd.gradcheck(fn, given, check_forward_ad=True, fast_mode=True)
        torch.autograd.gradgradcheck(fn, given, fast_mode=True)


@pytest.mark.parametrize("name", ["plain", "bias, smoothing", "weights", "where"])
def test_four_shards_are_the_whole(name):
    options, width = OPTIONS[name], 5
    for labels in (LABELS, SOFT):
        shards = [
            softxp.VocabularyShard(
                HIDDEN, KERNEL[i : i + width], labels if labels.ndim == 1 else labels[:, i : i + width],
                start=i, vocabulary=V, chunk_size=(4, 3),
                **{k: v[..., i : i + width] if k in ("bias", "class_weight", "where") else v for k, v in options.items()},
            )
            for i in range(0, V, width)
        ]  # fmt: skip
        assert len(shards) == 4
        states = [s.state() for s in shards]
        state = shards[0].merge(states[2], states[0], shards[1].merge(states[3], states[1]))
        want = softxp.value_and_grad(softxp.linear_cross_entropy, argnums=(0, 1))
        loss, (by_hidden, by_kernel) = want(HIDDEN, KERNEL, labels, **options)
        parts = [s.value_and_grad(state) for s in shards]
        for y, _ in parts:
            np.testing.assert_allclose(y, loss, rtol=1e-12)
        np.testing.assert_allclose(shards[1].loss(state), loss, rtol=1e-12)
        np.testing.assert_allclose(sum(g for _, (g, _) in parts), by_hidden, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(np.concatenate([g for _, (_, g) in parts]), by_kernel, rtol=1e-10, atol=1e-14)


def test_corners():
    loss = softxp.linear_cross_entropy
    both = softxp.value_and_grad(loss, argnums=(0, 1))
    for chunk_size in (2, (2, 4)):
        # dropped rows may hold anything
        hidden, labels = HIDDEN.copy(), LABELS.copy()
        hidden[3], hidden[5], labels[5] = np.nan, np.inf, -100
        y, (by_hidden, by_kernel) = both(hidden, KERNEL, labels, chunk_size=chunk_size)
        assert np.isfinite(y)
        assert (by_hidden[[3, 5]] == 0).all()
        assert np.isfinite(by_hidden).all()
        assert np.isfinite(by_kernel).all()
        nothing = np.full(N, -100)
        y, (by_hidden, by_kernel) = both(HIDDEN, KERNEL, nothing, chunk_size=chunk_size)
        assert y == 0
        assert not by_hidden.any()
        assert not by_kernel.any()
        none = loss(HIDDEN[:0], KERNEL, LABELS[:0], chunk_size=chunk_size)
        assert none == 0
        # a row with NaN, and no other
        hidden = HIDDEN.copy()
        hidden[4] = np.nan
        rows = loss(hidden, KERNEL, LABELS, reduction="none", chunk_size=chunk_size)
        assert np.isnan(rows[4])
        assert np.isfinite(np.delete(rows, 4)).all()
        # a label that no logit can reach
        masked = np.ones(V, dtype=bool)
        masked[LABELS[0]] = False
        assert loss(HIDDEN[:1], KERNEL, LABELS[:1], where=masked, chunk_size=chunk_size) == np.inf
    # the last bits of a confident row
    row, weights = np.asarray([[1.0]]), np.asarray([[40.0], [0.0]])
    for chunk_size in (1, (1, 1)):
        np.testing.assert_allclose(loss(row, weights, np.asarray([0]), chunk_size=chunk_size), 4.248354255291589e-18)


def test_errors():
    loss = softxp.linear_cross_entropy
    with pytest.raises(ValueError, match=r"kernel must be \(vocabulary, h\)"):
        loss(HIDDEN, KERNEL.T, LABELS)
    with pytest.raises(ValueError, match=r"bias needs shape \(17,\)"):
        loss(HIDDEN, KERNEL, LABELS, bias=BIAS[:3])
    with pytest.raises(ValueError, match="chunk_size must be"):
        loss(HIDDEN, KERNEL, LABELS, chunk_size=0)
    with pytest.raises(IndexError, match=r"labels must lie within \[0, 17\)"):
        loss(HIDDEN, KERNEL, LABELS + 17)
    with pytest.raises(TypeError, match="asked for one by class_weight"):
        softxp.value_and_grad(loss, argnums="class_weight")(
            HIDDEN, KERNEL, LABELS, class_weight=WEIGHTS["class_weight"]
        )
    with pytest.raises(TypeError, match="all arrays of a call must come from one library"):
        loss(HIDDEN, torch.from_numpy(KERNEL), LABELS)
    with pytest.raises(ValueError, match="must lie within the vocabulary"):
        softxp.VocabularyShard(HIDDEN, KERNEL, LABELS, start=1, vocabulary=V)
    with pytest.raises(ValueError, match="matrices"):
        softxp.contrastive_loss(HIDDEN, KERNEL)
    with pytest.raises(ValueError, match="bias shifts the scores"):
        softxp.contrastive_loss(HIDDEN, HIDDEN, bias=1.0)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        softxp.contrastive_loss(HIDDEN, HIDDEN, temperature=0.0)
    with pytest.raises(ValueError, match="loss must be"):
        softxp.contrastive_loss(HIDDEN, HIDDEN, loss="triplet")


def test_a_state_that_is_not_whole():
    """A shard that is missing, or there twice, would give a wrong number."""
    first, second = (
        softxp.VocabularyShard(HIDDEN, KERNEL[part], LABELS, start=part.start, vocabulary=V)
        for part in (slice(0, 7), slice(7, V))
    )
    one, other = first.state(), second.state()
    for state in (one, first.merge(one, one), first.merge(one, other, other)):
        for ask in first.loss, first.value_and_grad:
            with pytest.raises(ValueError, match=f"must hold all {V} classes once"):
                ask(state)
    with pytest.raises(TypeError, match="the merged state of all shards, got int"):
        first.loss(3)
    jnp = pytest.importorskip("jax.numpy")
    there = softxp.VocabularyShard(
        jnp.asarray(HIDDEN), jnp.asarray(KERNEL[:7]), jnp.asarray(LABELS), start=0, vocabulary=V
    )
    assert np.isnan(there.loss(there.state()))  # where nothing can be read
    assert np.isnan(there.value_and_grad(there.state())[1][0]).any()


def test_a_shard_says_what_it_cannot_do():
    shard = softxp.VocabularyShard(HIDDEN, KERNEL, LABELS, start=0, vocabulary=V)
    for argnums in (2, "bias", "temperature", "class_weight"):
        with pytest.raises(TypeError, match="a shard has derivatives by"):
            shard.value_and_grad(shard.state(), argnums=argnums)
    with pytest.raises(TypeError, match="labels must be an array"):
        softxp.VocabularyShard(HIDDEN, KERNEL, LABELS.tolist(), start=0, vocabulary=V)
