"""The row kernels against the formula, which is the same call with the kernels off: shapes, strides, dtypes, options,
threads. What the conformance suite cannot see: who computes, in which pieces, and what happens around it.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, current_thread, main_thread

import ml_dtypes
import numpy as np
import pytest

import softxp
from softxp._backends import _rows, _threads
from softxp._kernels import _numba as compiling
from softxp._kernels import rows as kernels
from softxp.streaming import LogSumExp

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    softxp.use_kernels(True)
    softxp.set_num_threads(None)


def formula(f):
    softxp.use_kernels(False)
    try:
        return f()
    finally:
        softxp.use_kernels(True)


def served(monkeypatch):
    """The kernels that are run from now on, by name."""
    seen = []
    run = _rows.Rows.run
    monkeypatch.setattr(
        _rows.Rows, "run", lambda self, kernel, *a, **k: seen.append(kernel.__name__) or run(self, kernel, *a, **k)
    )
    return seen


# --- fuzz: primes, one past a tile, strides of every kind ----------------------------------------------------------------

SIZES = (1, 2, 3, 7, 16, 17, 31, 64, 131)
LONG = (kernels.TILE - 1, kernels.TILE, kernels.TILE + 1, 3 * kernels.TILE + 5)


def draw(seed):
    """An array of some shape, dtype and layout, an axis, and options."""
    rng = np.random.default_rng(seed)
    dtype = list(DTYPES)[seed % 4]
    shape = [int(rng.choice(SIZES)) for _ in range(rng.integers(1, 4))]
    axis = int(rng.integers(len(shape)))
    if rng.random() < 0.3:
        shape[axis] = int(rng.choice(LONG))
        for a in range(len(shape)):
            shape[a] = shape[a] if a == axis else min(shape[a], 17)
    layout = rng.choice(["C", "F", "step", "back", "broadcast", "view"])
    x = rng.normal(size=shape) * rng.choice([1, 4, 30]) + rng.choice([0, 0, 1000])
    x[rng.random(shape) < 0.05] = -np.inf
    if rng.random() < 0.2:
        x[rng.random(shape) < 0.02] = rng.choice([np.inf, np.nan])
    x = x.astype(DTYPES[dtype])
    if layout == "F":
        x = np.asfortranarray(x)
    elif layout == "step":
        x = np.repeat(x, 2, axis=axis)[(slice(None),) * axis + (slice(None, None, 2),)]
    elif layout == "back":
        x = np.flip(np.ascontiguousarray(np.flip(x)))
    elif layout == "broadcast":
        x = np.broadcast_to(x[:1], shape)
    elif layout == "view":
        x = np.concatenate([x, x], axis=-1)[..., 1 : shape[-1] + 1]
    options = {}
    if rng.random() < 0.4:
        mask = [n if rng.random() < 0.7 else 1 for n in shape]
        options["where"] = rng.random(mask) < 0.8
    temperature = rng.choice(["one", "one", "number", "rows", "limits"])
    if temperature == "number":
        options["temperature"] = float(rng.choice([0.3, 1.75, 20.0]))
    elif temperature != "one":
        some = [0.5, 1.0, 3.0] if temperature == "rows" else [0.0, np.inf, 1.0]
        size = [1 if a == axis else n for a, n in enumerate(shape)]
        options["temperature"] = rng.choice(some, size=size).astype(DTYPES[dtype])
    return dtype, x, axis, options, rng


def agree(got, want, dtype, terms=1):
    """Some ulp, and what the exponent's argument of up to some hundreds may add."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    tiny = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 5e-324}[dtype]
    np.testing.assert_allclose(
        got, want, rtol=(2 if dtype in ("float16", "bfloat16") else 64) * EPS[dtype], atol=4 * tiny
    )


@pytest.mark.parametrize("seed", range(80))
def test_maps_and_reductions_agree_with_the_formula(seed):
    dtype, x, axis, options, rng = draw(seed)
    before = np.array(x)
    ct = rng.normal(size=x.shape).astype(x.dtype)
    for fn in softxp.softmax, softxp.log_softmax:
        agree(fn(x, axis=axis, **options), formula(lambda fn=fn: fn(x, axis=axis, **options)), dtype)
    where = {k: v for k, v in options.items() if k == "where"}
    got, want = (f(lambda: softxp.logsumexp(x, axis=axis, **where)) for f in (lambda g: g(), formula))
    np.testing.assert_allclose(
        np.asarray(got, np.float64), np.asarray(want, np.float64), rtol=4 * EPS[dtype], atol=32 * EPS[dtype] * 2
    )
    for fn, how in ((softxp.softmax, options), (softxp.log_softmax, options)):

        def pulled(fn=fn, how=how):
            y, pullback = softxp.vjp(fn, x, axis=axis, **how)
            return np.asarray(pullback(ct)[0], np.float64), np.asarray(y, np.float64)

        (got, _), (want, y) = pulled(), formula(pulled)
        assert (np.isnan(got) == np.isnan(want)).all()
        scale = np.nanmax(np.abs(want), axis=axis, keepdims=True, initial=0)
        scale = scale + np.nanmax(y, axis=axis, keepdims=True, initial=0)
        assert (np.nan_to_num(np.abs(got - want)) <= 64 * EPS[dtype] * scale + 1e-300).all()
    np.testing.assert_array_equal(np.asarray(x, np.float64), np.asarray(before, np.float64))


@pytest.mark.parametrize("seed", range(80))
def test_losses_agree_with_the_formula(seed):
    dtype, x, axis, options, rng = draw(seed)
    if "temperature" in options and not np.all(np.asarray(options["temperature"], np.float64) > 0):
        del options["temperature"]
    rows = tuple(np.delete(x.shape, axis))
    n = x.shape[axis]
    labels = rng.integers(0, n, rows)
    if rng.random() < 0.4:
        labels = np.where(rng.random(rows) < 0.2, -100, labels)
    if rng.random() < 0.3:
        labels = rng.random(x.shape).astype(x.dtype)
    if rng.random() < 0.3:
        options["class_weight"] = rng.random(n).astype(x.dtype)
    if rng.random() < 0.3:
        options["sample_weight"] = (rng.random(rows) < 0.8).astype(x.dtype)
    options["label_smoothing"] = float(rng.choice([0, 0, 0.1]))
    if "temperature" not in options or isinstance(options["temperature"], float):
        options["z_loss"] = float(rng.choice([0, 0, 0.01]))
    options["softcap"] = rng.choice([None, None, 30.0])
    options["reduction"] = str(rng.choice(["mean", "sum", "none"]))

    def both():
        y, pullback = softxp.vjp(softxp.cross_entropy, x, labels, axis=axis, **options)
        return y, pullback(np.ones_like(y))[0]

    (y, g), (y2, g2) = both(), formula(both)
    np.testing.assert_allclose(np.asarray(y, np.float64), np.asarray(y2, np.float64), rtol=64 * EPS[dtype], atol=1e-300)
    g, g2 = np.asarray(g, np.float64), np.asarray(g2, np.float64)
    assert (np.isnan(g) == np.isnan(g2)).all()
    scale = np.nanmax(np.abs(g2), axis=axis, keepdims=True, initial=0)
    assert (np.nan_to_num(np.abs(g - g2)) <= 256 * EPS[dtype] * scale + 1e-300).all()
    if options["reduction"] != "none" and labels.dtype == int:  # vjp differentiates soft labels too, by the formula
        y3, g3 = softxp.value_and_grad(softxp.cross_entropy)(x, labels, axis=axis, **options)
        np.testing.assert_array_equal(np.asarray(y3, np.float64), np.asarray(y, np.float64))
        np.testing.assert_array_equal(np.asarray(g3, np.float64), g)


@pytest.mark.parametrize("seed", range(60))
def test_sparse_maps_and_losses_agree_with_the_formula(seed):
    dtype, x, axis, options, rng = draw(seed)
    alpha = float(rng.choice([1.0, 1.001, 1.25, 1.5, 1.9, 2.0, 2.5]))
    fn = softxp.sparsemax if alpha == 2 and seed % 2 else lambda x, **how: softxp.entmax(x, alpha=alpha, **how)
    steep = 1 if alpha <= 2 else 256  # near the edge of the support a share is steep, and a share near 0 weighs much
    agree_near = dict(rtol=64 * steep**2 * EPS[dtype], atol=16 * steep * EPS[dtype])
    if dtype in ("float16", "float32"):  # as the losses' formulas ask for it
        options["dtype"] = np.float64
        got, want = fn(x, axis=axis, **options), formula(lambda: fn(x, axis=axis, **options))
        assert got.dtype == want.dtype == np.float64
        np.testing.assert_allclose(got, want, rtol=1e-12 if dtype == "float32" else 1e-5, atol=1e-6)
        del options["dtype"]
    got, want = (np.asarray(f(lambda: fn(x, axis=axis, **options)), np.float64) for f in (lambda g: g(), formula))
    np.testing.assert_allclose(got, want, **agree_near)
    ct = rng.normal(size=x.shape).astype(x.dtype)

    def pulled():
        return np.asarray(softxp.vjp(softxp.entmax, x, alpha=alpha, axis=axis, **options)[1](ct)[0], np.float64)

    np.testing.assert_allclose(pulled(), formula(pulled), rtol=256 * steep * EPS[dtype], atol=64 * steep * EPS[dtype])
    labels = rng.integers(0, x.shape[axis], np.delete(x.shape, axis))
    labels = np.where(rng.random(labels.shape) < 0.2, -100, labels)
    if rng.random() < 0.3:
        options["sample_weight"] = (rng.random(labels.shape) < 0.8).astype(x.dtype)
    for how in (dict(reduction="none"), dict(reduction="mean")):

        def both(how=how):
            y, pullback = softxp.vjp(softxp.entmax_loss, x, labels, alpha=alpha, axis=axis, **options, **how)
            return np.asarray(y, np.float64), np.asarray(pullback(np.ones_like(y))[0], np.float64)

        for a, b in zip(both(), formula(both), strict=True):
            np.testing.assert_allclose(a, b, rtol=64 * EPS[dtype], atol=32 * EPS[dtype])
    y, g = softxp.value_and_grad(softxp.entmax_loss)(x, labels, alpha=alpha, axis=axis, **options)
    np.testing.assert_array_equal(np.asarray(y, np.float64), both()[0])
    np.testing.assert_array_equal(np.asarray(g, np.float64), both()[1])


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0, 3.0])
def test_thresholds_where_newton_is_slow_or_far(alpha):
    """Numbers that leave the support one after the other; equal ones; one far above; very many."""
    rows = [-(2.0 ** -np.arange(60.0)), np.zeros(60), np.linspace(-3, 0, 60), np.where(np.arange(60) == 7, 0.0, -0.999)]
    for x in (np.stack(rows), np.zeros((2, 50_257)), np.log(np.arange(1, 50_258))[None]):
        p = softxp.entmax(x, alpha=alpha)
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-13)
        np.testing.assert_allclose(p, formula(lambda x=x: softxp.entmax(x, alpha=alpha)), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("alpha", [3.0, 5.0, 8.0, 20.0, 60.0, 1000.0])
def test_equal_numbers_share_equally_whatever_alpha(alpha):
    for n in 2, 50, 1000:
        for a in alpha, np.asarray(alpha):
            for dtype, rtol in (np.float64, 1e-12), (np.float32, 1e-5):
                x = np.zeros(n, dtype)
                for p in softxp.entmax(x, alpha=a), formula(lambda x=x, a=a: softxp.entmax(x, alpha=a)):
                    np.testing.assert_allclose(p, 1 / n, rtol=rtol)
        assert softxp.entmax_loss(np.zeros(n), np.asarray(0), alpha=alpha) > 0


@pytest.mark.parametrize("name", DTYPES)
def test_states_agree_with_the_formula(name):
    x = (np.random.default_rng(0).normal(size=(7, 3001)) * 5).astype(DTYPES[name])
    got, want = LogSumExp.from_array(x), formula(lambda: LogSumExp.from_array(x))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=1e-5 if a.dtype == "float32" else 1e-14
        )


# --- corners of layout and of range: each was wrong once -----------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 129])
@pytest.mark.parametrize("n", [1, 33, 64, 65, 2 * kernels.TILE + 1])
def test_blocks_whose_last_one_is_not_full(rows, n):
    rng = np.random.default_rng(rows * n)
    x = rng.normal(size=(rows, n)).astype(np.float32)
    for x, axis in ((x, 1), (np.asfortranarray(x), 1), (np.ascontiguousarray(x.T), 0)):  # noqa: B020
        for how in ({"temperature": 2.0}, {"where": rng.random(x.shape) < 0.9}):
            for fn in softxp.softmax, softxp.log_softmax:
                agree(
                    fn(x, axis=axis, **how),
                    formula(lambda fn=fn, x=x, how=how, axis=axis: fn(x, axis=axis, **how)),
                    "float32",
                )


def test_one_row_for_all():
    """Rows of step 0 that lie contiguous, the last block one row; and the same number along a row."""
    v = np.random.default_rng(0).normal(size=100).astype(np.float32)
    for x in np.broadcast_to(v[:, None], (100, 65)), np.broadcast_to(v, (65, 100)).T:
        for axis in 0, 1:
            agree(softxp.softmax(x, axis=axis), formula(lambda x=x, axis=axis: softxp.softmax(x, axis=axis)), "float32")


def test_a_transposed_matrix_is_read_as_it_lies(monkeypatch):
    monkeypatch.setattr(
        _rows.Rows, "run", lambda self, kernel, *a, run=_rows.Rows.run: seen.append(self.inner) or run(self, kernel, *a)
    )
    seen = []
    x = np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32)
    np.testing.assert_array_equal(softxp.softmax(x.T), softxp.softmax(x, axis=0).T)
    assert seen == [200, 200]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_temperatures_near_their_limits(dtype):
    x = np.asarray([[1.0, -np.inf, 0.5] + [0.25] * k for k in (1,)], dtype)
    for t in (5e-324, 1e-46, 1e-39, 1e-30, 1e30, 1e37, 1e39, 1e306):
        for fn in softxp.softmax, softxp.log_softmax:
            got, want = fn(x, temperature=t), formula(lambda fn=fn, t=t: fn(x, temperature=t))
            agree(got, want, dtype)


def test_a_temperature_that_float32_rounds_costs_no_digits():
    x = np.random.default_rng(0).uniform(-80, 0, (200, 300)).astype(np.float32)
    for t in 0.7, 1.3, 0.1:
        got, want = softxp.softmax(x, temperature=t), softxp.softmax(x.astype(np.float64), temperature=t)
        live = want > 1e-37
        assert np.max(np.abs(got - want)[live] / np.spacing(want[live].astype(np.float32))) < 4


def test_far_apart_in_log_softmax():
    x = np.asarray([[-3e38, 3e38]], np.float32)
    agree(softxp.log_softmax(x, temperature=10.0), formula(lambda: softxp.log_softmax(x, temperature=10.0)), "float32")


def test_a_row_of_16_bits_does_not_see_its_neighbours_temperature():
    x = np.random.default_rng(0).normal(size=(20000, 13)).astype(np.float16)
    t = np.ones((20000, 1), np.float16)
    t[1::2] = 2
    np.testing.assert_array_equal(softxp.softmax(x, temperature=t)[::2], softxp.softmax(x)[::2])


@pytest.mark.parametrize("n", [5, 70])
def test_ignored_rows_hide_what_they_hold(n):
    x = np.zeros((2, n), np.float32)
    x[1] = np.nan
    y, g = softxp.value_and_grad(softxp.cross_entropy)(x, np.asarray([0, -100]), softcap=30.0)
    assert np.isfinite(y) and not g[1].any()


@pytest.mark.parametrize("label", [70, 100, 10**12, -5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_that_change_after_they_were_checked(label, smoothing):
    x, labels = np.random.default_rng(0).normal(size=(4, 70)).astype(np.float32), np.zeros(4, np.int64)
    _, pullback = softxp.vjp(softxp.cross_entropy, x, labels, label_smoothing=smoothing, reduction="sum")
    labels[0] = label
    g = pullback(np.float32(1))[0]
    assert np.isnan(g[0]).all() and np.isfinite(g[1:]).all()


def test_strided_class_weights_of_torch():
    torch = pytest.importorskip("torch")
    x, labels = torch.randn(6, 10, dtype=torch.float64), torch.arange(6)
    for w in torch.rand(20, dtype=torch.float64)[::2], torch.ones(1, dtype=torch.float64).expand(10):
        got = softxp.cross_entropy(x, labels, class_weight=w, reduction="none")
        assert torch.equal(got, softxp.cross_entropy(x, labels, class_weight=w.clone(), reduction="none"))


def test_torch_ignored_rows_are_0_beside_an_infinite_cotangent():
    torch = pytest.importorskip("torch")
    x = torch.randn(3, 5, requires_grad=True)
    softxp.cross_entropy(x, torch.tensor([0, 1, -100])).backward(torch.tensor(float("inf")))
    assert not x.grad[2].any()


def test_no_warning_escapes():
    x, labels = np.zeros((3, 70_000), np.float16), np.zeros(3, int)
    with np.errstate(all="raise"):
        y, g = softxp.value_and_grad(softxp.cross_entropy)(
            x, labels, reduction="sum", sample_weight=np.full(3, 30_000.0, np.float16)
        )
        assert np.isinf(y) and np.isfinite(g).all()
        small = np.full(3, 1e-300)
        softxp.value_and_grad(softxp.cross_entropy)(x.astype(float), labels, sample_weight=small)
        softxp.vjp(softxp.cross_entropy, x, labels, normalizer=0.0)[1](np.float16(1))


# --- who serves ----------------------------------------------------------------------------------------------------------


def test_the_kernels_serve_what_they_are_for(monkeypatch):
    seen = served(monkeypatch)
    x, labels = np.zeros((40, 3000), np.float32), np.zeros(40, int)
    softxp.softmax(x)
    softxp.log_softmax(x, axis=0)
    softxp.logsumexp(x, axis=1)
    softxp.cross_entropy(x, labels)
    softxp.value_and_grad(softxp.cross_entropy)(x, labels)
    softxp.vjp(softxp.softmax, x)[1](x)
    softxp.vjp(softxp.logsumexp, x, axis=1)[1](np.ones(40))
    softxp.cross_entropy(x, labels, label_smoothing=0.1)
    LogSumExp.from_array(x)
    softxp.vjp(softxp.sparsemax, x)[1](x)
    softxp.entmax(x, alpha=1.0)
    softxp.value_and_grad(softxp.entmax_loss)(x, labels)
    assert seen == [
        "softmax", "log_softmax", "row_states", "cross_entropy", "cross_entropy", "softmax", "softmax_pullback",
        "row_states", "softmax", "soft_cross_entropy", "row_states", "entmax", "entmax_pullback", "softmax", "entmax_loss",
    ]  # fmt: skip
    seen.clear()
    formula(lambda: softxp.softmax(x))
    softxp.logsumexp(x, axis=1, b=x)
    softxp.softmax(x, dtype=np.float64)
    softxp.entmax(x, alpha=np.full((40, 1), 1.5))
    softxp.entmax_loss(x, labels, label_smoothing=0.1)
    assert not seen


@pytest.mark.parametrize("axis", [0, 1])
def test_bits_do_not_depend_on_threads_neighbours_or_pieces(axis, monkeypatch):
    """Rows of many tiles, cut by rows and cut by tiles; a row alone and in a batch; contiguous and not."""
    monkeypatch.setattr(_rows, "SMALL", 1000)
    monkeypatch.setattr(_rows, "PIECE", 4 * kernels.TILE)
    rng = np.random.default_rng(0)
    for n, rows in ((9 * kernels.TILE + 7, 3), (9 * kernels.TILE + 7, 70), (333, 200), (37, 500)):
        x = (rng.normal(size=(rows, n)) * 4).astype(np.float32)
        labels = rng.integers(0, n, rows)
        calls = {
            "softmax": lambda x: softxp.softmax(x, axis=axis),
            "log_softmax": lambda x: softxp.log_softmax(x, axis=axis, temperature=1.5),
            "logsumexp": lambda x: softxp.logsumexp(x, axis=axis),
            "loss": lambda x, labels=labels: softxp.cross_entropy(
                x, labels[: x.shape[1 - axis]], axis=axis, reduction="none"
            ),
            "gradient": lambda x, labels=labels: softxp.vjp(
                softxp.cross_entropy, x, labels[: x.shape[1 - axis]], axis=axis, reduction="sum"
            )[1](1.0)[0],
        }
        x = x if axis else np.ascontiguousarray(x.T)
        for name, f in calls.items():
            softxp.set_num_threads(1)
            want = f(x)
            for threads in 2, 3, 8:
                softxp.set_num_threads(threads)
                np.testing.assert_array_equal(f(x), want, err_msg=f"{name}, {threads} threads")
            one = x[:1] if axis else np.ascontiguousarray(x[:, :1])
            of_one = want[:1] if want.ndim == 1 else want[:1] if axis else want[:, :1]
            np.testing.assert_array_equal(f(one), of_one, err_msg=f"{name}, alone")


def test_a_row_and_its_transpose_are_the_same_bits():
    x = np.random.default_rng(0).normal(size=(50, 3000)).astype(np.float32)
    np.testing.assert_array_equal(softxp.softmax(x), softxp.softmax(x.T, axis=0).T)
    np.testing.assert_array_equal(softxp.softmax(x), softxp.softmax(np.ascontiguousarray(x.T), axis=0).T)


def test_exp_is_good_to_a_unit():
    """exp(x - m) alone, seen through softmax of two numbers far apart and of long rows' entries."""
    for dtype, bound in ((np.float32, 1.3), (np.float64, 1.1)):
        x = np.random.default_rng(0).uniform(-80, 0, 20000).astype(dtype)
        pairs = np.stack([np.full_like(x, 45.0), x], axis=-1)
        got = softxp.softmax(pairs)[:, 1]
        with np.errstate(under="ignore"):
            want = np.exp(x.astype(np.longdouble) - 45)
        want = want / (1 + want)
        live = want > np.finfo(dtype).tiny
        ulp = np.spacing(want.astype(dtype)).astype(np.longdouble)
        assert np.max((np.abs(got - want) / ulp)[live]) < bound


def test_half_conversions_are_exact():
    h = np.arange(65536, dtype=np.uint16).view(np.float16)
    e = h.astype(np.float32)
    from softxp._backends._numpy import narrow, widen

    np.testing.assert_array_equal(widen(h), e)
    f = np.random.default_rng(0).integers(0, 2**32, 400_000, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(narrow(f), f.astype(np.float16))
        between = (e[:31743] + e[1:31744]) / 2  # ties
        np.testing.assert_array_equal(narrow(between), between.astype(np.float16))


@pytest.mark.parametrize("instructions", [True, False])
def test_half_conversions_of_the_kernels_are_exact(instructions, monkeypatch):
    """By the processor's instructions for them, where it has them, and by bits."""
    from numba import njit

    from softxp._kernels import arithmetic as a

    if instructions and not a.HALVES:
        pytest.skip("this processor has no instructions for float16")
    monkeypatch.setattr(a, "HALVES", instructions)
    half = np.uint16(0)

    wide, narrow = njit(a._wide(a.HALF, None)), njit(a._narrow(a.HALF, None))

    @njit
    def there(bits, out):
        for i in range(len(bits)):
            out[i] = wide(half, bits[i])

    @njit
    def back(numbers, out):
        for i in range(len(numbers)):
            out[i] = narrow(half, numbers[i])

    h = np.arange(65536, dtype=np.uint16)
    e, want = np.empty(65536, np.float32), h.view(np.float16).astype(np.float32)
    there(h, e)
    np.testing.assert_array_equal(e, want)
    f = np.random.default_rng(0).integers(0, 2**32, 400_000, dtype=np.uint32).view(np.float32)
    f = np.concatenate([f, want, (want[:31743] + want[1:31744]) / 2])  # ties
    got = np.empty(len(f), np.uint16)
    back(f, got)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got.view(np.float16), f.astype(np.float16))


# --- threads -------------------------------------------------------------------------------------------------------------


def test_eight_threads_at_once(monkeypatch):
    monkeypatch.setattr(_rows, "SMALL", 1000)
    x = np.random.default_rng(0).normal(size=(64, 2000)).astype(np.float32)
    labels = np.arange(64)
    want = softxp.softmax(x), softxp.cross_entropy(x, labels)
    softxp.set_num_threads(4)

    def work(_):
        return softxp.softmax(x), softxp.cross_entropy(x, labels)

    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(work, range(64)):
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)


def test_small_arrays_start_no_thread():
    code = (
        "import numpy as np, softxp, threading; x = np.zeros((100, 100)); softxp.softmax(x); softxp.logsumexp(x); "
        "assert threading.active_count() == 1, threading.enumerate()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_number_of_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert _threads.num_threads() == cores
    for text, count in (("1", 1), ("1,2", 1), (" 1 ", 1), ("1000", cores), ("nonsense", cores), ("0", cores)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert _threads.num_threads() == count
    softxp.set_num_threads(5)
    assert _threads.num_threads() == 5
    with pytest.raises(ValueError, match="at least 1, got 0"):
        softxp.set_num_threads(0)
    with pytest.raises(TypeError, match=r"an integer or None, got 2\.0"):
        softxp.set_num_threads(2.0)


def test_torch_keeps_to_its_own_number_of_threads(monkeypatch):
    torch = pytest.importorskip("torch")
    from softxp._backends import on_torch

    softxp.set_num_threads(8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert on_torch.HOST.threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork_the_child_computes():
    code = """
import os, numpy as np, softxp
softxp.set_num_threads(2)
x = np.random.default_rng(0).normal(size=(2000, 1000))
want = softxp.softmax(x)
child = os.fork()
if child == 0:
    os._exit(0 if (softxp.softmax(x) == want).all() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (softxp.softmax(x) == want).all()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_at_exit_and_in_a_daemon():
    """While the interpreter goes down no thread starts; the caller does all by itself."""
    code = """
import atexit, threading, time, numpy as np, softxp
softxp.set_num_threads(2)
x = np.random.default_rng(0).normal(size=(2000, 1000))
want = softxp.softmax(x)
atexit.register(lambda: print("same" if (softxp.softmax(x) == want).all() else "other"))
def forever():
    while True:
        softxp.softmax(x)
threading.Thread(target=forever, daemon=True).start()
time.sleep(0.2)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert done.stdout == "same\n", done
    assert not done.stderr


def test_an_error_in_a_piece_is_raised():
    def task(i):
        if i == 3:
            raise MemoryError("piece 3")

    with pytest.raises(MemoryError, match="piece 3"):
        _threads.share(task, [(i,) for i in range(100)], 4)


def test_an_interrupted_caller_waits_for_its_helpers():
    """They hold addresses: what they write to must not be freed below them."""
    done, started = [], Event()

    def task(i):
        if current_thread() is main_thread():
            started.wait(10)
            raise KeyboardInterrupt
        started.set()
        time.sleep(0.3)
        done.append(i)

    with pytest.raises(KeyboardInterrupt):
        _threads.share(task, [(i,) for i in range(2)], 2)
    assert len(done) == 1


# --- compiling -----------------------------------------------------------------------------------------------------------


def test_warmup_says_what_it_does(capsys):
    count = len(kernels.KERNELS) + 1  # float32 in float64, for a state that goes on
    assert softxp.warmup("float32") == count
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == count
    assert lines[0].startswith("softxp: compiling 1 of ")
    assert softxp.warmup("float32", progress=False) == count
    assert not capsys.readouterr().err
    with pytest.raises(ValueError, match="got 'int8'"):
        softxp.warmup("int8")


def test_without_a_directory_for_the_cache(monkeypatch):
    def njit(**how):
        if how.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda f: f

    monkeypatch.setattr(compiling, "_njit", njit)
    monkeypatch.setattr(compiling, "KERNELS", {})
    assert compiling.kernel(len) is len


def test_a_kernel_on_disk_is_as_old_as_all_it_is_made_of():
    files = [file.stat() for file in Path(compiling.__file__).parent.glob("*.py")]
    assert len(files) > 3
    kept = kernels.softmax._cache._cache_file._source_stamp
    assert kept == (max(file.st_mtime for file in files), sum(file.st_size for file in files))


def test_a_full_disk_is_no_error(monkeypatch):
    def kept(*_):
        raise OSError("no space left")

    from numba.core.caching import FunctionCache

    monkeypatch.setattr(FunctionCache, "save_overload", kept)
    monkeypatch.setattr(compiling, "KERNELS", {})

    def three(x):
        return x + 3

    assert compiling.kernel(three)(4) == 7


def test_without_numba():
    code = """
import sys
sys.modules["numba"] = None
import numpy as np, softxp
from softxp._backends import _rows
x = np.random.default_rng(0).normal(size=(300, 1000)).astype(np.float32)
p = softxp.softmax(x)
assert _rows.kernels() is False and softxp.warmup() == 0
assert np.allclose(p.sum(-1), 1) and np.isclose(softxp.cross_entropy(x, np.zeros(300, int)), -np.log(p[:, 0]).mean())
corners = np.asarray([[1.0, 1.0], [np.inf, 0.0], [-np.inf, -np.inf]])
assert np.array_equal(softxp.softmax(corners), [[0.5, 0.5], [1, 0], [0, 0]])
"""
    subprocess.run([sys.executable, "-c", code], check=True)
