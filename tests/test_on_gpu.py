"""What only a GPU can show: real launches, on real streams. Skipped without one. `make gpu` runs it, and the tests named
sanitized once more under compute-sanitizer. rehearsal.py runs most of its lines without a GPU.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import softxp
from softxp._backends import _warm
from softxp._kernels import cuda
from softxp.streaming import LogSumExp

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# one thread, a warp, some, a block, more than a block holds, a row in pieces; odd ones, whose rows begin anywhere
LENGTHS = (1, 7, 64, 513, 5000, 40_000, 300_001)
# rows and numbers of each way to hold a row: some lanes, a warp, a block, a cluster, one whose cotangents wait in shared
# memory, read again by a cluster, in pieces
ROADS = ((1000, 7), (37, 513), (9, 5000), (3, 50_000), (70, 100_001), (70, 300_001), (2, 300_001))


@pytest.fixture(autouse=True)
def _kernels():
    softxp.use_kernels(False)  # the truth is the formula's, and Numba has nothing to compile
    softxp.use_kernels(True, device="cuda")
    yield
    softxp.use_kernels(True)
    assert _warm.cuda, _warm.cuda_closed  # nothing fell back to the formula
    softxp.use_kernels(False, device="cuda")


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).cuda()


def near(got, want, dtype):
    """Beside the largest number: where there are many, each is small, and zeros would pass a fixed tolerance."""
    rtol = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 4e-6, torch.float64: 1e-13}[dtype]
    assert got.dtype is dtype
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    atol = rtol / 8 * min(1.0, float(want.abs().max())) + (6e-8 if dtype is torch.float16 else 0)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def leaves(x):
    """Here, and in float64 on the host."""
    return x.clone().requires_grad_(), x.double().cpu().clone().requires_grad_()


def formula(f, *arrays):
    """In float64, on the host."""
    return f(*(a.double().cpu() if a.is_floating_point() else a.cpu() for a in arrays))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_small_values_and_gradients(n, dtype):
    rows = 3 if n > 1000 else 37
    x, v = randn(rows, n, dtype=dtype), randn(rows, n, dtype=dtype, seed=1)
    labels = torch.arange(rows, device="cuda") * 7 % n
    labels[0] = -100
    plain = (
        softxp.softmax,
        softxp.log_softmax,
        lambda x: softxp.logsumexp(x, axis=1),
        lambda x: softxp.cross_entropy(x, labels.to(x.device)),
    )
    flagged = (
        lambda x: softxp.softmax(x, temperature=0.75, where=torch.arange(n, device=x.device) % 5 != 3),
        lambda x: softxp.cross_entropy(x, labels.to(x.device), label_smoothing=0.1, z_loss=1e-3, softcap=20.0),
        lambda x: softxp.cross_entropy(x, torch.softmax(v.to(x), -1), reduction="sum"),
    )
    # (each is another instance to compile: of those with options a third, all lengths and all dtypes among them)
    third = (LENGTHS.index(n) + DTYPES.index(dtype)) % 3 == 0
    for f in plain + flagged if third else plain:
        here, there = leaves(x)
        y, want = f(here), f(there)
        near(y, want, dtype)
        ct = randn(*y.shape, dtype=dtype, seed=2)
        y.backward(ct)
        want.backward(ct.double().cpu())
        near(here.grad, there.grad, dtype)
    for got, want in zip(LogSumExp.from_array(x), formula(LogSumExp.from_array, x), strict=True):
        torch.testing.assert_close(got.double().cpu(), want.double(), rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("rows, n", ROADS)
def test_sanitized_roads(rows, n):
    """Each way to hold a row, forward and backward: what compute-sanitizer looks at."""
    x, labels = randn(rows, n), torch.arange(rows, device="cuda") % n
    for f in softxp.softmax, softxp.log_softmax, lambda x: softxp.cross_entropy(x, labels.to(x.device)):
        here, there = leaves(x)
        y, want = f(here), f(there)
        near(y, want, torch.float32)
        ct = randn(*y.shape, seed=1)
        y.backward(ct)
        want.backward(ct.double().cpu())
        near(here.grad, there.grad, torch.float32)


def test_sanitized_columns_and_odd_beginnings():
    x = randn(513, 41, dtype=torch.float16)
    for view in (x, x[1:, 3:], x[:, ::2]):
        for axis in (0, 1):
            want = formula(lambda a, axis=axis: softxp.softmax(a, axis=axis), view)
            near(softxp.softmax(view, axis=axis), want, torch.float16)


def test_small_calls_are_launches(monkeypatch):
    """A formula in their place would be right as well."""
    launches, start = [], cuda.Gpu.start
    monkeypatch.setattr(cuda.Gpu, "start", lambda self, *how: launches.append(how) or start(self, *how))
    x, labels = randn(5, 100), torch.arange(5, device="cuda")
    for f in (softxp.softmax, softxp.log_softmax, lambda x: softxp.logsumexp(x, axis=1), LogSumExp.from_array,
              lambda x: softxp.cross_entropy(x, labels)):  # fmt: skip
        f(x)
        assert launches
        launches.clear()
    x.requires_grad_()
    for f in softxp.softmax, lambda x: softxp.cross_entropy(x, labels):
        y = f(x)
        launches.clear()
        y.sum().backward()
        assert launches


@pytest.mark.parametrize("axis", [0, 1, 2, (0, 1), (1, 2)])
def test_small_axes_and_views(axis):
    x = randn(37, 29, 41)
    for view in (x, x.permute(2, 0, 1), x[:, 1:], x[:, :, ::2], x.flatten()[1:-1188].view(36, 29, 41)[:, :, 1:]):
        near(softxp.log_softmax(view, axis=axis), formula(lambda a: softxp.log_softmax(a, axis=axis), view), view.dtype)


@pytest.mark.parametrize("n", [64, 1001, 40_000])
def test_small_answers_of_other_bits(n):
    for dtype, answer in (
        (torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float16),
        (torch.float32, torch.bfloat16),
    ):  # fmt: skip
        x = randn(5, n, dtype=dtype)
        for f in softxp.softmax, softxp.log_softmax:
            near(f(x, dtype=answer), formula(f, x), answer)


@pytest.mark.parametrize("rows", [3, 5000, 100_001])
def test_small_means_over_many_rows(rows):
    x, weights, sample = randn(rows, 33), randn(33, seed=1).abs(), randn(rows, seed=2).abs()
    labels = torch.arange(rows, device=x.device) % 33
    labels[::5] = -100
    for how in ({}, dict(class_weight=weights, sample_weight=sample), dict(normalizer=7.0)):
        wide = {k: v.double().cpu() if torch.is_tensor(v) else v for k, v in how.items()}
        here, there = leaves(x)
        y, want = softxp.cross_entropy(here, labels, **how), softxp.cross_entropy(there, labels.cpu(), **wide)
        near(y, want, torch.float32)
        y.backward()
        want.backward()
        near(here.grad * rows, there.grad * rows, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_linear_cross_entropy(dtype):
    hidden, kernel = randn(3000, 256, dtype=dtype), randn(5000, 256, dtype=dtype, seed=1) / 16
    labels = torch.arange(3000, device=hidden.device)
    hidden, kernel = hidden.requires_grad_(), kernel.detach().requires_grad_()
    wide = [t.detach().double().cpu().requires_grad_() for t in (hidden, kernel)]
    y, want = softxp.linear_cross_entropy(hidden, kernel, labels), softxp.linear_cross_entropy(*wide, labels.cpu())
    near(y, want, dtype)
    by = 2**-7 if dtype is torch.bfloat16 else 1e-5
    for got, true in zip(torch.autograd.grad(y, (hidden, kernel)), torch.autograd.grad(want, wide), strict=True):
        assert got.dtype is dtype
        assert float((got.double().cpu() - true).abs().max()) < by * float(true.abs().max())


def test_small_corners_and_bad_labels():
    inf = float("inf")
    x = torch.tensor([[1.0, 2.0], [-inf, -inf], [inf, 0.0], [inf, inf], [float("nan"), 0.0]], device="cuda")
    got = softxp.softmax(x).cpu()
    torch.testing.assert_close(got[1:4], torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5]]))
    assert got[4].isnan().all()
    labels = torch.tensor([2, -1, 1 << 40, 0, 1], device="cuda")
    losses = softxp.cross_entropy(x[:1].expand(5, 2), labels, reduction="none").cpu()
    assert losses.isnan().tolist() == [True, True, True, False, False]
    torch.cuda.synchronize()  # the context lives


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
def test_nobody_waits_for_the_gpu():
    x, labels = randn(64, 1000), torch.arange(64, device="cuda")
    x.requires_grad_()
    calls = (softxp.softmax, softxp.log_softmax, lambda x: softxp.cross_entropy(x, labels).mean())
    for mode in ("default", "error"):  # first what is compiled at first use
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for f in calls:
                torch.autograd.grad(f(x).sum(), x)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_current_stream():
    x, late, stream = torch.zeros(64, 5000, device="cuda"), randn(64, 5000), torch.cuda.Stream()
    softxp.log_softmax(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        x.copy_(late)
        y = softxp.log_softmax(x)
    assert not stream.query()
    stream.synchronize()
    near(y, formula(softxp.log_softmax, late), torch.float32)


@pytest.mark.parametrize("n", [1000, 300_000])
def test_graphs(n):
    x, labels = randn(8, n), torch.arange(8, device="cuda")

    def step():
        return softxp.softmax(x), softxp.logsumexp(x, axis=1), softxp.cross_entropy(x, labels)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    x.copy_(randn(8, n, seed=5))
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(out, step(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_what_is_first_met_while_a_graph_is_captured():
    x = randn(8, 777, dtype=torch.float64)
    softxp.softmax(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = softxp.log_softmax(x, temperature=2.5)
    graph.replay()
    torch.cuda.synchronize()
    near(y, formula(lambda a: softxp.log_softmax(a, temperature=2.5), x), torch.float64)


def test_many_threads_and_streams():
    xs = [randn(64, 1000 + i, seed=i) for i in range(32)]
    wants = [softxp.log_softmax(x) for x in xs]
    torch.cuda.synchronize()

    def work(i):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            got = [softxp.log_softmax(xs[i]) for _ in range(20)]
        stream.synchronize()
        return all(torch.equal(g, wants[i]) for g in got)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(32)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_the_arrays_own_gpu():
    x = randn(64, 1000).to("cuda:1")
    with torch.cuda.device(0):
        y = softxp.log_softmax(x)
    assert y.device == x.device
    near(y, formula(softxp.log_softmax, x), torch.float32)


def test_the_same_bits_alone_and_in_a_batch():
    for n in LENGTHS:
        x = randn(16, n)
        torch.testing.assert_close(softxp.softmax(x[3:4]), softxp.softmax(x)[3:4], rtol=1e-6, atol=0)
        assert torch.equal(softxp.softmax(x), softxp.softmax(x))


def _room(size):
    free, _ = torch.cuda.mem_get_info()
    if free < size:
        pytest.skip(f"{size / 2**30:.0f} GiB are not free")


def test_more_than_2_to_the_31_numbers():
    _room(14 << 30)
    x = torch.zeros((1 << 16) + 3, (1 << 15) + 1, dtype=torch.float16, device="cuda")
    assert x.numel() > 1 << 31
    x[-1] = randn(x.shape[1], dtype=torch.float16)
    y = softxp.softmax(x)
    near(y[-1], formula(softxp.softmax, x[-1]), torch.float16)
    near(y[-2], torch.full((x.shape[1],), 1 / x.shape[1]), torch.float16)
    del y
    lse = softxp.logsumexp(x, axis=0)
    assert lse.isfinite().all()


def test_a_row_of_2_to_the_31_numbers():
    _room(10 << 30)
    x = torch.zeros(1, 1 << 31, dtype=torch.float16, device="cuda")
    x[0, -1] = 30.0
    want = np.logaddexp(np.log(2.0**31 - 1), 30.0)
    assert abs(softxp.logsumexp(x, axis=1).item() - want) < 0.02


def test_small_cupy():
    cp = pytest.importorskip("cupy")
    rng = np.random.default_rng(0)
    for shape in ((37, 100), (3, 300_001)):
        for dtype in ("float16", "float32", "float64"):
            x, labels = rng.normal(size=shape).astype(dtype), np.arange(shape[0])
            there, wide = cp.asarray(x), x.astype(np.float64)
            for f in softxp.softmax, softxp.log_softmax, lambda a: softxp.logsumexp(a, axis=1):
                near(torch.as_tensor(cp.asnumpy(f(there))), torch.as_tensor(f(wide)), getattr(torch, dtype))
            got = softxp.value_and_grad(softxp.cross_entropy)(there, cp.asarray(labels))
            want = softxp.value_and_grad(softxp.cross_entropy)(wide, labels)
            for mine, theirs in zip(got, want, strict=True):
                near(torch.as_tensor(cp.asnumpy(mine)), torch.as_tensor(theirs), getattr(torch, dtype))
