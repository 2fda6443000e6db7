"""The road to the CUDA kernels, on a GPU that is not there (pretend.py): what is launched, with which fields, on which
stream; what is compiled, kept and tried again; and that nobody waits for the GPU. The kernels themselves are
test_cuda_kernels.py's.
"""

import gc
import os
import subprocess
import sys
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import emulated as kernels
import numpy as np
import pretend
import pytest

import softxp
from softxp._backends import _warm
from softxp._kernels import cuda
from softxp._kernels import plan as P
from softxp.streaming import LogSumExp

INF = float("inf")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTXP_CACHE_DIR", str(tmp_path / "cache"))
    with pretend.gpu() as here:
        yield here


def host(a):
    return np.asarray(a.view(np.ndarray), np.float64)


def normal(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# --- what is launched -------------------------------------------------------------------------------------------------

LABELS = np.asarray([1, 2, -100, 4])
SOFT = np.full((4, 7), 1 / 7, np.float32)


def calls(cp):
    """Call, and the operations and flags that it comes to."""
    x, y, soft = cp.asarray(normal(4, 7)), cp.asarray(LABELS), cp.asarray(SOFT)
    where, w, s = cp.asarray(normal(4, 7) > -1), cp.asarray(normal(7) ** 2), cp.asarray(normal(4) ** 2)
    t, ct, one = cp.asarray(np.ones((4, 1), np.float32)), cp.asarray(normal(4, 7)), cp.asarray(np.float32(1))
    ce, lse = softxp.cross_entropy, softxp.logsumexp
    every = P.MASK | P.TEMPERATURE | P.SOFTCAP | P.SMOOTHING | P.CLASS_WEIGHT

    def pulled(fn, ct, *arrays, **how):
        # (by the first array alone: by soft labels too there is no kernel)
        return softxp.vjp(fn, *arrays, argnums=0, **how)[1](ct)

    def swept(*arrays, **how):
        return softxp.value_and_grad(ce)(*arrays, **how)

    options = dict(where=where, temperature=t, softcap=5.0, label_smoothing=0.1, class_weight=w, sample_weight=s)
    return {
        "softmax": (lambda: softxp.softmax(x), [("softmax", 0)]),
        "two axes": (lambda: softxp.softmax(x, axis=(0, 1)), [("softmax", 0)]),
        "mask": (lambda: softxp.softmax(x, where=where), [("softmax", P.MASK)]),
        "temperature": (lambda: softxp.log_softmax(x, temperature=2.0), [("log_softmax", P.TEMPERATURE)]),
        "temperatures": (lambda: softxp.log_softmax(x, temperature=t), [("log_softmax", P.TEMPERATURE)]),
        "logsumexp": (lambda: lse(x, axis=0, where=where), [("logsumexp", P.MASK)]),
        "state": (lambda: LogSumExp.from_array(x), [("state", 0)]),
        "wider": (lambda: softxp.softmax(cp.asarray(normal(4, 7, dtype="float16")), dtype=np.float32), [("softmax", 0)]),
        "softmax, vjp": (lambda: pulled(softxp.softmax, ct, x), [("softmax", 0), ("softmax_pullback", 0)]),
        "log_softmax, vjp": (
            lambda: pulled(softxp.log_softmax, ct, x, where=where),
            [("log_softmax", P.MASK), ("log_softmax_pullback", P.MASK)],
        ),
        "logsumexp, vjp": (lambda: pulled(lse, s, x, axis=1), [("logsumexp", 0), ("softmax", 0)]),
        "loss": (lambda: ce(x, y), [("loss", 0), ("total", 0)]),
        "loss, sum": (lambda: ce(x, y, reduction="sum", dtype=np.float16), [("loss", 0), ("total", P.GIVEN)]),
        "loss, none": (lambda: ce(x, y, reduction="none", z_loss=0.1), [("loss", 0)]),
        "loss, every option": (lambda: ce(x, y, **options), [("loss", every), ("total", P.CLASS_WEIGHT)]),
        "loss, soft": (
            lambda: ce(x, soft, **options), [("loss", every | P.SOFT), ("total", P.SOFT | P.CLASS_WEIGHT)]
        ),
        "loss, vjp": (
            lambda: pulled(ce, one, x, y, **options),
            [("loss", every), ("total", P.CLASS_WEIGHT), ("share", P.CLASS_WEIGHT), ("loss_and_gradient", every)],
        ),
        "loss, vjp of soft": (
            lambda: pulled(ce, one, x, soft, reduction="sum"),
            [("loss", P.SOFT), ("total", P.GIVEN), ("loss_and_gradient", P.SOFT)],
        ),
        "swept": (lambda: swept(x, y), [("share", 0), ("loss_and_gradient", 0), ("total", 0)]),
        "swept, sum": (lambda: swept(x, y, reduction="sum"), [("loss_and_gradient", 0), ("total", P.GIVEN)]),
        "swept, every option": (
            lambda: swept(x, y, **options),
            [("share", P.CLASS_WEIGHT), ("loss_and_gradient", every), ("total", P.CLASS_WEIGHT)],
        ),
        "swept, normalizer": (
            lambda: swept(x, soft, normalizer=one),
            [("share", P.GIVEN), ("loss_and_gradient", P.SOFT), ("total", P.GIVEN)],
        ),
        # what distributions add up to is known after they were read
        "swept, soft": (
            lambda: swept(x, soft),
            [("loss", P.SOFT), ("share", P.SOFT), ("loss_and_gradient", P.SOFT), ("total", P.SOFT)],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", calls(pretend._modules()["cupy"]))
def test_one_launch_for_each_answer(gpu, name):
    call, launches = calls(gpu.cupy)[name]
    call()
    assert all(each.answer == each.element for each in gpu.driver.launches) == (name not in ("wider", "loss, sum"))
    assert [(each.operation, each.flags) for each in gpu.driver.launches] == launches


def test_fields(gpu):
    """One call with every option, field by field."""
    x, y = gpu.cupy.asarray(normal(4, 7)), gpu.cupy.asarray(LABELS)
    w, s = normal(7) ** 2, normal(4) ** 2
    softxp.cross_entropy(
        x, y, class_weight=gpu.cupy.asarray(w), sample_weight=gpu.cupy.asarray(s), label_smoothing=0.25, z_loss=0.5,
        softcap=5.0, temperature=2.0, ignore_index=3, reduction="none",
    )  # fmt: skip
    (launch,) = gpu.driver.launches
    call = launch.call
    assert (call.rows, call.inner, call.n, call.pieces) == (4, 1, 7, 1)
    assert call.x.address == x.ctypes.data
    assert (call.x.outer, call.x.inner, call.x.along) == (7, 1, 1)
    assert (call.label.address, call.label.step, call.label_kind) == (y.ctypes.data, 1, 8)
    assert (call.ignore, call.ignore_index) == (1, 3)
    assert (call.smoothing, call.z_loss, call.softcap) == (0.25, 0.5, 5.0)
    assert (call.temperature.address, call.temperature.value) == (0, 2.0)
    assert call.sample_weight.step == 1
    assert call.sample_weight.address
    assert call.class_weight
    assert (call.weight.address - call.loss.address, call.loss.step) == (4 * 8, 1)
    assert not any((call.y.address, call.v.address, call.mask.address, call.m.address, call.workspace))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint64"])
def test_labels_of_every_integer_type(gpu, kind):
    labels = np.asarray([1, 200 if kind == "uint8" else 5, 6, 0], kind)
    got = softxp.cross_entropy(gpu.cupy.asarray(normal(4, 7)), gpu.cupy.asarray(labels), reduction="none")
    assert list(np.isnan(host(got))) == [False, kind == "uint8", False, False]
    assert gpu.driver.launches[0].call.label_kind == (-8 if kind == "uint64" else 8)


def test_long_rows_take_two_launches_and_room_between(gpu):
    got, want = both(gpu, softxp.logsumexp, normal(2, 300_001), axis=1)
    first, last = gpu.driver.launches
    assert (first.part, last.part) == ("FIRST", "LAST")
    assert bytes(first.call) == bytes(last.call)
    assert first.call.pieces > 1
    assert first.call.workspace
    agree(got, want)


def test_what_the_kernels_do_not_take_is_the_formulas(gpu):
    cp, x = gpu.cupy, normal(3, 4, 5)
    there = cp.asarray(x)
    for fn, how in (
        (softxp.softmax, dict(axis=(0, 2))),  # not neighbours
        (softxp.softmax, dict(dtype="float64")),
        (softxp.logsumexp, dict(b=np.abs(x))),
        (softxp.logcumsumexp, {}),
    ):
        given = {k: cp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in how.items()}
        np.testing.assert_allclose(host(fn(there, **given)), fn(x, **how), rtol=1e-5, atol=1e-7)
    assert softxp.softmax(cp.asarray(np.zeros((0, 4)))).shape == (0, 4)
    assert softxp.logsumexp(cp.asarray(np.zeros((4, 0))), axis=1).shape == (4,)
    softxp.softmax(cp.asarray(np.float32(3.0)))
    softxp.softmax(there.view(type("Mine", (pretend.ndarray,), {})))
    assert not gpu.driver.launches
    softxp.use_kernels(False, device="cuda")
    softxp.softmax(there)
    assert not gpu.driver.launches


# --- layouts and values: the launch reads by the addresses and steps that it is given ---------------------------------


def draw(seed):
    """An array of some shape, dtype and layout, an axis, and options; and how to lay an array out so."""
    rng = np.random.default_rng(seed)
    shape = [int(n) for n in rng.choice([1, 2, 3, 5, 7, 17], rng.integers(1, 5))]
    first = int(rng.integers(len(shape)))
    axis = tuple(range(first, int(rng.integers(first, len(shape))) + 1))
    layout = str(rng.choice(["C", "F", "step", "back", "broadcast", "turned"]))

    def lay(a):
        if layout == "F":
            return np.asfortranarray(a)
        if layout == "step":
            return np.repeat(a, 2, axis=first)[(slice(None),) * first + (slice(None, None, 2),)]
        if layout == "back":
            return np.flip(np.ascontiguousarray(np.flip(a)))
        if layout == "turned":
            return np.ascontiguousarray(np.moveaxis(a, 0, -1)).transpose(a.ndim - 1, *range(a.ndim - 1))
        return np.broadcast_to(a[:1], a.shape) if layout == "broadcast" else a

    x = lay((rng.normal(size=shape) * rng.choice([1, 4])).astype(["float16", "float32", "float64"][seed % 3]))
    options = {}
    if rng.random() < 0.4:
        options["where"] = rng.random([n if rng.random() < 0.7 else 1 for n in shape]) < 0.8
    temperature = rng.choice(["one", "number", "rows"])
    if temperature == "number":
        options["temperature"] = 0.75
    elif temperature == "rows":
        kept = [1 if a in axis or rng.random() < 0.3 else n for a, n in enumerate(shape)]
        options["temperature"] = rng.choice([0.5, 0.0, INF, 3.0], size=kept).astype(x.dtype)
    return x, axis, options, lay, rng


def agree(got, want):
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    eps = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-13}[want.dtype.name]
    np.testing.assert_allclose(host(got), np.asarray(want, np.float64), rtol=eps, atol=eps)


def both(gpu, f, *arrays, **options):
    """f on the GPU, and on the host by the formula."""

    def there(v):
        return gpu.cupy.asarray(v) if isinstance(v, np.ndarray) else v

    softxp.use_kernels(False)
    try:
        want = f(*arrays, **options)
    finally:
        softxp.use_kernels(True)
    return f(*map(there, arrays), **{k: there(v) for k, v in options.items()}), want


@pytest.mark.parametrize("seed", range(60))
def test_maps_and_reductions_by_steps(gpu, seed):
    x, axis, options, lay, rng = draw(seed)
    ct = lay(rng.normal(size=x.shape).astype(x.dtype))
    for fn in softxp.softmax, softxp.log_softmax:
        agree(*both(gpu, fn, x, axis=axis, **options))
        agree(*both(gpu, lambda x, ct, fn=fn, **how: softxp.vjp(fn, x, **how)[1](ct)[0], x, ct, axis=axis, **options))
    where = {k: v for k, v in options.items() if k == "where"}
    got, want = both(gpu, softxp.logsumexp, x, axis=axis, keepdims=seed % 2 == 0, **where)
    agree(got, want)
    ct = rng.normal(size=want.shape).astype(x.dtype)
    agree(*both(gpu, lambda x, ct, **how: softxp.vjp(softxp.logsumexp, x, **how)[1](ct)[0], x, ct,
                axis=axis, keepdims=seed % 2 == 0, **where))  # fmt: skip
    for got, want in zip(*both(gpu, LogSumExp.from_array, x, axis=axis, **where), strict=True):
        np.testing.assert_allclose(host(got), np.asarray(want, np.float64), rtol=2e-3, atol=1e-6)
    assert len(gpu.driver.launches) == 10


@pytest.mark.parametrize("seed", range(60))
def test_losses_by_steps(gpu, seed):
    x, axis, options, lay, rng = draw(seed)
    options = {k: v for k, v in options.items() if k != "temperature" or isinstance(v, float)}
    rows = tuple(n for a, n in enumerate(x.shape) if a not in axis)
    sizes = tuple(x.shape[a] for a in axis)
    n = int(np.prod(sizes))
    labels = np.where(rng.random(rows) < 0.8, rng.integers(0, n, rows), -100)
    if seed % 3 == 0:
        labels = lay(rng.random(x.shape).astype(x.dtype))
    elif rows:
        labels = np.asfortranarray(labels)
    if rng.random() < 0.4:
        options["class_weight"] = rng.random(sizes).astype(x.dtype)
    if rng.random() < 0.4:
        options["sample_weight"] = (rng.random([n if rng.random() < 0.6 else 1 for n in rows]) < 0.7).astype(x.dtype)
    options["label_smoothing"] = float(rng.choice([0, 0.1]))
    options["z_loss"] = float(rng.choice([0, 0.01]))
    options["softcap"] = rng.choice([None, 30.0])
    options["reduction"] = str(rng.choice(["mean", "sum", "none"]))
    if options["reduction"] == "mean" and rng.random() < 0.4:
        options["normalizer"] = 3.0 if rng.random() < 0.5 else np.asarray([3.0])
    got, want = both(gpu, softxp.cross_entropy, x, labels, axis=axis, **options)
    agree(got, want)
    ct = rng.normal(size=want.shape).astype(x.dtype)

    def pulled(x, labels, ct, **how):
        return softxp.vjp(softxp.cross_entropy, x, labels, argnums=0, **how)[1](ct)[0]

    agree(*both(gpu, pulled, x, labels, ct, axis=axis, **options))
    if options["reduction"] != "none":
        got, want = both(gpu, softxp.value_and_grad(softxp.cross_entropy), x, labels, axis=axis, **options)
        for mine, theirs in zip(got, want, strict=True):
            agree(mine, theirs)
    assert len(gpu.driver.launches) >= 3


def test_numbers_are_made_where_they_are_needed(gpu, monkeypatch):
    """A copy of the host's would be waited for, and cannot be captured in a graph."""
    x = gpu.cupy.asarray(normal(3, 5))
    y = gpu.cupy.asarray(np.asarray([1, 2, 3]))
    monkeypatch.setattr(gpu.cupy, "asarray", None)
    softxp.cross_entropy(x, y, sample_weight=0.5)
    softxp.cross_entropy(x[0], 2)
    softxp.vjp(softxp.cross_entropy, x, y)[1](1.0)


def test_nothing_counted_and_bad_labels(gpu):
    x = normal(3, 5)
    for labels in ([-100, -100, -100], [-100, 9, 1], [9, -100, -100]):
        y = np.asarray(labels)
        value, gradient = softxp.value_and_grad(softxp.cross_entropy)(gpu.cupy.asarray(x), gpu.cupy.asarray(y))
        assert np.isnan(host(value)) == (9 in labels)
        bad = y == 9
        assert (np.isnan(host(gradient)).all(-1) == bad).all()
        assert (host(gradient)[y == -100] == 0).all()


@pytest.mark.skipif(kernels.COMPILER is None, reason="softrow.cu is built here by g++, which is not there")
def test_the_kernels_read_the_calls_as_they_are_filled(gpu):
    """The same calls by softrow.cu itself, built for this processor."""
    cp, noted = gpu.cupy, {}
    x, y = normal(5, 3, 40), np.asarray([[1, 2, -100]] * 5)
    w, s, t = normal(40) ** 2, normal(5, 1) ** 2, np.full((5, 3, 1), 0.75, np.float32)
    every = dict(
        where=x > -1, temperature=t, softcap=5.0, label_smoothing=0.1, class_weight=w, sample_weight=s, z_loss=0.01
    )

    def calls():
        def there(**how):
            return {k: cp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in how.items()}

        def pulled(fn, *arrays, **how):
            out, pullback = softxp.vjp(fn, *map(cp.asarray, arrays), argnums=0, **there(**how))
            return out, pullback(cp.asarray(normal(*out.shape, seed=3)))[0]

        yield from pulled(softxp.softmax, x, axis=1, where=x > -1)
        yield from pulled(softxp.log_softmax, np.asfortranarray(x), axis=(1, 2))
        yield from pulled(softxp.logsumexp, x[:, :, ::-2], axis=2)
        yield from pulled(softxp.cross_entropy, x, y, axis=2, reduction="none", **every)
        yield from softxp.value_and_grad(softxp.cross_entropy)(cp.asarray(x), cp.asarray(y))
        yield from LogSumExp.from_array(cp.asarray(normal(2, 70_000)))

    def noting(launch):
        noted[launch.options] = P.Launch(launch.options, launch.grid, launch.block)
        pretend.by_formulas(launch)

    gpu.driver.execute = noting
    wants = list(calls())
    library = kernels.Library(noted.values())
    gpu.driver.execute = lambda launch: library.launch(
        P.Launch(launch.options, launch.grid, launch.block), launch.call, 0
    )
    for got, want in zip(calls(), wants, strict=True):
        agree(got, np.asarray(want.view(np.ndarray)))


def conformance(target, *options, **environment):
    """The suite's own questions, a part of them, by way of the launches."""
    command = [sys.executable, "-m", "softxp_conformance", "--target", f"pretend_target:{target}", "--quick", *options]
    home = Path(__file__).parent
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)


def test_conformance(tmp_path):
    done = conformance("TARGET", XDG_CACHE_HOME=str(tmp_path / "user"), SOFTXP_CACHE_DIR=str(tmp_path / "given"))
    assert "conforms" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
    assert done.returncode == 0
    assert not list(tmp_path.iterdir())  # nothing that a real NVRTC would be taken for is left behind


def test_conformance_of_kernels_that_always_fail():
    """The formula answers rightly in their place: the suite has been asked about the kernels."""
    done = conformance("FAILING", "--function", "log_softmax")
    assert "the formula answered for the kernels" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
    assert done.returncode == 1


# --- streams, GPUs, threads -------------------------------------------------------------------------------------------


def test_the_arrays_own_gpu_and_its_current_stream(gpu):
    with pretend.Device(1):
        x = gpu.cupy.asarray(normal(4, 7))
    with pretend.Device(1):
        pretend.current.stream = 99
    try:
        for f in softxp.softmax, softxp.log_softmax, lambda x: softxp.cross_entropy(x, LABELS):
            assert f(x).device == pretend.Device(1)
    finally:
        del pretend.current.stream
    assert {(each.context, each.stream) for each in gpu.driver.launches} == {(1001, 99)}
    assert gpu.driver.stack() == [0]
    assert pretend.here() == 0


def test_many_threads_compile_once(gpu):
    x = normal(64, 100)
    there, want = gpu.cupy.asarray(x), softxp.softmax(x.astype(np.float64))

    def work(i):
        fn = (softxp.softmax, softxp.log_softmax)[i % 2]
        got = host(fn(there, temperature=2.0) if i % 3 == 0 else fn(there))
        if i % 3:
            np.testing.assert_allclose(got if fn is softxp.softmax else np.exp(got), want, rtol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(64)))
    assert len(gpu.nvrtc.compiled) == len(set(gpu.nvrtc.compiled)) == 4
    assert len(gpu.driver.launches) == 64


def test_both_gpus_load_what_was_compiled_once(gpu):
    for number in (0, 1):
        with pretend.Device(number):
            softxp.softmax(gpu.cupy.asarray(normal(4, 7)))
    assert len(gpu.nvrtc.compiled) == 1
    assert len(gpu.driver.loaded) == 2


# --- the cache on disk ------------------------------------------------------------------------------------------------


def once(gpu):
    """As in a new process. How often was something compiled?"""
    before = len(gpu.nvrtc.compiled)
    pretend.forget()
    _warm.cuda = True
    x = normal(4, 7)
    np.testing.assert_allclose(host(softxp.softmax(gpu.cupy.asarray(x))), softxp.softmax(x), rtol=1e-5)
    return len(gpu.nvrtc.compiled) - before


def test_compiled_once_for_all_processes(gpu):
    assert [once(gpu) for _ in range(3)] == [1, 0, 0]
    (file,) = cuda.cache_folder().iterdir()
    gpu.nvrtc.known = (80,)  # another architecture is other code
    assert once(gpu) == 1
    assert len(list(cuda.cache_folder().iterdir())) == 2
    assert file.exists()


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 500])
def test_a_broken_file_is_written_anew(gpu, content):
    once(gpu)
    (file,) = cuda.cache_folder().iterdir()
    file.write_bytes(content)
    assert [once(gpu), once(gpu)] == [1, 0]


def test_a_cut_file_is_written_anew(gpu):
    once(gpu)
    (file,) = cuda.cache_folder().iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert [once(gpu), once(gpu)] == [1, 0]


def test_no_folder_no_room_no_home(gpu, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOFTXP_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert [once(gpu), once(gpu)] == [1, 1]
    monkeypatch.setenv("SOFTXP_CACHE_DIR", str(tmp_path / "full"))

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(cuda.os, "replace", full)
        assert [once(gpu), once(gpu)] == [1, 1]
    assert not list((tmp_path / "full").iterdir())
    monkeypatch.delenv("SOFTXP_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cuda.os.path, "expanduser", lambda path: path)
    assert cuda.cache_folder() is None
    assert once(gpu) == 1


# --- what is missing --------------------------------------------------------------------------------------------------


def turned_off(gpu, match):
    """One warning, the formula's answer, and no more of either."""
    x = normal(4, 7)
    there, want = gpu.cupy.asarray(x), softxp.softmax(x)
    with pytest.warns(RuntimeWarning, match=match) as caught:
        np.testing.assert_allclose(host(softxp.softmax(there)), want, rtol=1e-5)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(host(softxp.softmax(there)), want, rtol=1e-5)
        np.testing.assert_allclose(host(softxp.log_softmax(there)), np.log(want), rtol=1e-4)
    assert not _warm.cuda
    assert _warm.cuda_closed
    assert not [each for each in gpu.driver.launches if each.context]


def test_without_bindings(gpu):
    sys.modules["cuda.bindings"] = None  # (the fixture puts it back)
    turned_off(gpu, r"cuda\.bindings cannot be imported.*pip install 'softxp\[cuda\]'")


def test_without_nvrtc(gpu, monkeypatch):
    def missing():
        raise RuntimeError("libnvrtc.so.13 not found")

    with monkeypatch.context() as patch:  # (undoing all would undo the fixture's folder)
        patch.setattr(gpu.nvrtc, "nvrtcGetSupportedArchs", missing)
        turned_off(gpu, "libnvrtc.so.13 not found")
    softxp.use_kernels(True, device="cuda")  # tried again
    softxp.softmax(gpu.cupy.asarray(normal(4, 7)))
    assert len(gpu.driver.launches) == 1


def test_code_that_does_not_compile(gpu):
    gpu.nvrtc.error = 6
    turned_off(gpu, "nvrtcCompileProgram: 6: softrow.cu.1.: error: bad line")


@pytest.mark.parametrize("function", ["cuInit", "cuModuleLoadData"])
def test_a_driver_that_refuses(gpu, monkeypatch, function):
    def refuses(*_):
        return 209, None

    refuses.__name__ = function
    monkeypatch.setattr(gpu.driver, function, refuses)
    turned_off(gpu, f"{function}: 209")


def test_a_launch_that_fails(gpu, monkeypatch):
    monkeypatch.setattr(gpu.driver, "cuLaunchKernel", lambda *_: (701,))
    with pretend.Device(0):
        turned_off(gpu, "701")


@pytest.mark.parametrize("fn", [softxp.log_softmax, softxp.logsumexp])
def test_one_warning_for_all_threads(gpu, fn):
    sys.modules["cuda.bindings"] = None
    x = gpu.cupy.asarray(normal(4, 7))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: fn(x), range(32)))
    assert len(caught) == 1


def test_architectures():
    assert cuda.target(90, [80, 90, 100]) == "sm_90"
    assert cuda.target(103, [80, 90, 100]) == "compute_100"
    for capability, known in ((75, [75, 80]), (120, [50, 75])):
        with pytest.raises(cuda.Unavailable, match=str(capability / 10)):
            cuda.target(capability, known)


@pytest.mark.parametrize("room, apart", [(P.ROOM, True), (48 << 10, False)])
def test_a_kernel_asks_for_its_shared_memory(room, apart, monkeypatch, tmp_path):
    """As much as the GPU has (the driver that is not there looks whether it was asked for)."""
    monkeypatch.setenv("SOFTXP_CACHE_DIR", str(tmp_path / "cache"))
    driver = pretend.Driver(multiprocessors=4)
    driver.facts["CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"] = room
    with pretend.gpu(driver) as here:
        x, ct = normal(3, 70_000), normal(3, 70_000, seed=1)
        got = host(softxp.vjp(softxp.log_softmax, here.cupy.asarray(x))[1](here.cupy.asarray(ct))[0])
        want = softxp.vjp(softxp.log_softmax, x)[1](ct)[0]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
        (launch,) = (each for each in driver.launches if each.operation == "log_softmax_pullback")
        assert any("SHARED" in option for option in launch.options) == apart


def test_a_gpu_that_nvrtc_does_not_know(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTXP_CACHE_DIR", str(tmp_path))
    with pretend.gpu(pretend.Driver(capability=(13, 0))) as here:
        softxp.softmax(here.cupy.asarray(normal(4, 7)))
        assert "--gpu-architecture=compute_90" in here.nvrtc.compiled[0]
        assert len(here.driver.launches) == 1


def test_the_switch():
    assert not _warm.cuda  # until a GPU has run it
    with pytest.raises(ValueError, match="got 'tpu'"):
        softxp.use_kernels(True, device="tpu")
    softxp.use_kernels(True, device="cuda")
    assert _warm.cuda
    assert _warm.wanted
    softxp.use_kernels(False, device="cuda")
    assert not _warm.cuda
    assert _warm.wanted


# --- torch, whose tensors on the CPU stand in -------------------------------------------------------------------------


@pytest.fixture
def torch(gpu, monkeypatch):
    torch = pytest.importorskip("torch")
    pretend.stand_in(monkeypatch)
    return torch


def names(gpu):
    out = [each.operation for each in gpu.driver.launches]
    gpu.driver.launches.clear()
    return out


def test_torch_forward_and_backward(gpu, torch):
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 2, -100, 6])
    for fn, own in (
        (lambda x: softxp.log_softmax(x, temperature=2.0), lambda x: torch.log_softmax(x / 2, -1)),
        (lambda x: softxp.softmax(x, axis=0), lambda x: torch.softmax(x, 0)),
        (lambda x: softxp.logsumexp(x, axis=1), lambda x: torch.logsumexp(x, 1)),
        (lambda x: softxp.cross_entropy(x, labels), lambda x: torch.nn.functional.cross_entropy(x, labels)),
    ):
        y, want = fn(x), own(x)
        torch.testing.assert_close(y, want)
        ct = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, x, ct), torch.autograd.grad(want, x, ct))
    assert names(gpu) == [
        "log_softmax", "log_softmax_pullback", "softmax", "softmax_pullback", "logsumexp", "softmax", "share",
        "loss_and_gradient", "total", "loss_and_gradient",
    ]  # fmt: skip
    assert all(each.stream == 5 for each in gpu.driver.launches)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_writes_the_gradient_with_the_loss(gpu, torch, reduction, dtype):
    """The backward's launch finds it there, unless the loss was scaled; and rounds once in any case."""
    x = torch.randn(4, 7, dtype=getattr(torch, dtype), requires_grad=True)
    labels = torch.tensor([1, 2, -100, 6])
    wide = x.detach().double().requires_grad_()
    own = torch.nn.functional.cross_entropy(wide, labels, reduction=reduction)
    (want,) = torch.autograd.grad(own, wide)
    for scale in (1.0, 0.3):
        loss = softxp.cross_entropy(x, labels, reduction=reduction)
        by = torch.tensor(scale, dtype=x.dtype)
        first = torch.autograd.grad(loss, x, by, retain_graph=True)[0]
        (second,) = torch.autograd.grad(loss, x, by)  # computed anew
        torch.testing.assert_close(
            first, (want * by.double()).to(x.dtype), rtol=2e-5 if dtype == "float32" else 0, atol=1e-7
        )
        torch.testing.assert_close(first, second, rtol=1e-6, atol=0)
    assert sum(each.call.cotangent.address != 0 for each in gpu.driver.launches) == 2


def test_torch_scales_the_gradient_of_a_shorter_loss(gpu, torch):
    """The loss has 16 bits, the logits and their gradient 32."""
    x, labels = torch.randn(4, 7, requires_grad=True), torch.tensor([1, 2, -100, 6])
    loss = softxp.cross_entropy(x, labels, dtype=torch.float16)
    (got,) = torch.autograd.grad(loss, x, torch.tensor(0.25, dtype=torch.float16))
    wide = x.detach().double().requires_grad_()
    own = torch.nn.functional.cross_entropy(wide, labels)
    (want,) = torch.autograd.grad(own, wide, torch.tensor(0.25, dtype=torch.float64))
    torch.testing.assert_close(got, want.float(), rtol=2e-5, atol=1e-7)


def test_torch_lets_go_of_a_loss_without_a_backward(gpu, torch):
    """At once: where the graph held itself, logits and gradients would pile up until Python looks for such."""
    gc.disable()
    try:
        for reduction in ("mean", "sum"):
            x = torch.randn(4, 7, requires_grad=True)
            logits = x * 2
            loss = softxp.cross_entropy(logits, torch.tensor([1, 2, -100, 6]), reduction=reduction)
            seen = weakref.ref(logits), weakref.ref(loss)
            del loss, logits
            assert [each() for each in seen] == [None, None]
    finally:
        gc.enable()


def test_torch_hooks_that_keep_what_is_saved_elsewhere(gpu, torch):
    x, labels = torch.randn(4, 7, requires_grad=True), torch.tensor([1, 2, -100, 6])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        loss = softxp.cross_entropy(x, labels)
    wide = x.detach().double().requires_grad_()
    with torch.no_grad():
        x.zero_()
    (got,) = torch.autograd.grad(loss, x, torch.tensor(2.0))
    (want,) = torch.autograd.grad(torch.nn.functional.cross_entropy(wide, labels), wide, torch.tensor(2.0).double())
    torch.testing.assert_close(got, want.float(), rtol=2e-5, atol=1e-7)


def test_torch_double_backward_and_transforms_go_by_the_formula(gpu, torch):
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    y = softxp.log_softmax(x)
    (g,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    assert "log_softmax_pullback" not in names(gpu)
    (h,) = torch.autograd.grad((g**2).sum(), x)
    z = x.detach().clone().requires_grad_()
    (g2,) = torch.autograd.grad((torch.log_softmax(z, -1) ** 2).sum(), z, create_graph=True)
    torch.testing.assert_close(h, torch.autograd.grad((g2**2).sum(), z)[0])
    names(gpu)
    torch.func.vmap(softxp.softmax)(x.detach())
    torch.compile(softxp.log_softmax, fullgraph=True, backend="eager")(x.detach())
    assert names(gpu) == []


def test_torch_plain_rows(gpu, torch):
    """Their kernels, asked before a call's options are looked at."""
    from torch.utils.flop_counter import FlopCounterMode

    from softxp._backends import on_torch

    kernels = on_torch.BACKEND.kernels

    def softmax(x, axis=-1):
        return kernels["softmax"](x, axis, None, 1.0, None)

    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.randn(3, 5, 7).to(dtype)
        for _ in range(2):
            got = softmax(x)
            assert got.dtype is dtype
            torch.testing.assert_close(got, torch.softmax(x, -1), rtol=1e-2, atol=1e-3)
            got = kernels["log_softmax"](x, 2, None, 1.0, None)
            torch.testing.assert_close(got, torch.log_softmax(x, -1), rtol=2e-2, atol=1e-2)
            got = kernels["logsumexp"](x, -1, None, None, False, False, None)
            torch.testing.assert_close(got, torch.logsumexp(x, -1), rtol=1e-2, atol=1e-2)
    assert names(gpu) == ["softmax", "log_softmax", "logsumexp"] * 8
    assert softmax(x.mT) is softmax(x, 1) is softmax(x[:0]) is softmax(x[0, 0, 0]) is NotImplemented
    assert softmax(x.as_subclass(type("Mine", (torch.Tensor,), {}))) is NotImplemented
    with FlopCounterMode(display=False):
        assert softmax(x) is NotImplemented
    x = torch.nn.Parameter(x)
    assert softmax(x) is NotImplemented
    with torch.no_grad():
        softmax(x)
    assert names(gpu) == ["softmax"]


def test_torch_plain_losses(gpu, torch):
    from softxp._backends import on_torch

    def plain(x, labels, axis=-1, ignore_index=-100, reduction="mean", smoothing=0.0, normalizer=None):
        options = None, 1.0, smoothing, None, None, ignore_index, 0.0, None, reduction, normalizer, None
        return on_torch.BACKEND.kernels["cross_entropy"](x, labels, axis, *options)

    for dtype, rtol in ((torch.bfloat16, 1e-2), (torch.float32, 1e-5), (torch.float64, 1e-12)):
        x = torch.randn(3, 5, 7).to(dtype)
        for kind in (torch.int64, torch.int32, torch.int8):
            labels = torch.arange(15, dtype=kind).view(3, 5) % 7
            labels[0, 1:3] = -100
            for reduction, ignored in (("mean", -100), ("sum", -100), ("mean", 6)):
                here = labels.where(labels >= 0, 6) if ignored == 6 else labels
                want = torch.nn.functional.cross_entropy(
                    x.view(15, 7), here.view(15).long(), reduction=reduction, ignore_index=ignored
                )
                for _ in range(2):
                    got = plain(x, here, ignore_index=ignored, reduction=reduction)
                    assert got.dtype is dtype and got.shape == ()
                    torch.testing.assert_close(got, want, rtol=rtol, atol=0)
    assert names(gpu) == ["loss", "total"] * 54
    labels = torch.arange(15).view(3, 5) % 7
    assert plain(x, labels, ignore_index=None).isfinite() and plain(x, labels, ignore_index=1).isfinite()
    assert plain(x, labels + 3).isnan()
    assert plain(x, labels * 0 - 100) == 0 == plain(x[:1, :1], labels[:1, :1] * 0 - 100, reduction="sum")
    names(gpu)
    for x_, labels_, how in (
        (x, labels, dict(reduction="none")), (x, labels, dict(smoothing=0.1)), (x, labels, dict(normalizer=3.0)),
        (x, labels, dict(ignore_index=1.0)), (x, labels, dict(ignore_index=True)), (x, labels, dict(axis=1)),
        (x, labels, dict(reduction=["mean"])), (x, labels, dict(ignore_index=1 << 70)), (x, labels.T.contiguous().T, {}),
        (x, labels[:1], {}), (x, labels.to(torch.uint8), {}), (x, labels.double(), {}), (x, torch.softmax(x, -1), {}),
        (x, labels.numpy(), {}), (x.mT, labels, {}), (x[0, 0], 3, {}), (x.requires_grad_(), labels, {}),
    ):  # fmt: skip
        assert plain(x_, labels_, **how) is NotImplemented, how
    assert names(gpu) == []
    with pytest.raises(TypeError, match="ignore_index"):
        softxp.cross_entropy(x.detach(), labels, ignore_index=1.0)


def test_torch_batched_cotangents(gpu, torch):
    """Of torch's older vmap: tensors by their class, without memory."""
    x, cts = torch.randn(4, 7, requires_grad=True), torch.randn(3, 4, 7)
    for ours, own in (
        (softxp.log_softmax, lambda x: torch.log_softmax(x, -1)),
        (lambda x: softxp.softmax(x, temperature=2.0), lambda x: torch.softmax(x / 2, -1)),
    ):
        (got,) = torch.autograd.grad(ours(x), x, cts, is_grads_batched=True)
        torch.testing.assert_close(got, torch.autograd.grad(own(x), x, cts, is_grads_batched=True)[0])
    assert not {"log_softmax_pullback", "softmax_pullback"} & set(names(gpu))


def test_torch_of_another_kind_goes_by_the_formula(gpu, torch):
    x = torch.randn(4, 7)
    negated = torch.complex(x, x).conj().imag
    assert negated.is_neg()
    torch.testing.assert_close(softxp.log_softmax(negated), torch.log_softmax(-x, -1))
    softxp.log_softmax(x.as_subclass(type("Mine", (torch.Tensor,), {})))
    softxp.cross_entropy(x, torch.softmax(x.double(), -1))  # labels of another dtype
    assert names(gpu) == []


def test_torch_linear_cross_entropy_takes_the_sweep(gpu, torch):
    hidden, kernel = torch.randn(40, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    labels = torch.arange(40) % 50
    loss = softxp.linear_cross_entropy(hidden, kernel, labels, chunk_size=16)
    loss.backward()
    assert set(names(gpu)) == {"loss_and_gradient", "total"}
    torch.testing.assert_close(
        softxp.linear_cross_entropy(hidden.detach(), kernel.detach(), labels), loss.detach(), rtol=1e-5, atol=1e-6
    )
    grads = hidden.grad, kernel.grad
    own = torch.nn.functional.cross_entropy(hidden @ kernel.T, labels)
    torch.testing.assert_close(grads, torch.autograd.grad(own, (hidden, kernel)), rtol=1e-4, atol=1e-6)


@pytest.fixture
def mixed(torch):
    """Products of bfloat16 with sums in 32 bits, which torch has for CUDA alone."""
    seen = []

    def mm(a, b, dtype):
        assert a.dtype is b.dtype is torch.bfloat16 and dtype is torch.float32
        seen.append("mm")
        return a.float() @ b.float()

    def addmm(c, a, b, dtype, *, beta=1, alpha=1, out):
        assert out is c or out.data_ptr() == c.data_ptr()
        seen.append("addmm")
        return out.add_(mm(a, b, dtype))

    library = torch.library.Library("aten", "IMPL")
    library.impl("mm.dtype", mm, "CPU")
    library.impl("addmm.dtype_out", addmm, "CPU")
    yield seen
    library._destroy()


def linear(torch, dtype):
    generator = torch.Generator().manual_seed(0)
    hidden, kernel, bias = (
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((300, 48), (1000, 48), (1000,))
    )
    return hidden, kernel, bias, torch.randint(1000, (300,), generator=generator)


def test_torch_multiplies_bfloat16_as_it_is(gpu, torch, mixed):
    hidden, kernel, bias, labels = linear(torch, torch.bfloat16)
    wide = [t.detach().double().requires_grad_() for t in (hidden, kernel, bias)]
    own = torch.nn.functional.cross_entropy(wide[0] @ wide[1].T + wide[2], labels)
    want = torch.autograd.grad(own, wide)
    loss = softxp.linear_cross_entropy(hidden, kernel, labels, bias=bias, chunk_size=128)
    assert set(mixed) == {"mm", "addmm"}
    last = gpu.driver.launches[-2]
    assert (last.operation, last.element, last.answer) == ("loss_and_gradient", "float", "Bfloat")
    torch.testing.assert_close(loss, own.bfloat16())
    got = torch.autograd.grad(loss, (hidden, kernel, bias))
    for mine, true in zip(got, want, strict=True):
        # a slope of a logit is rounded to 2^-9 of itself, and a sum of them once more
        assert float((mine.double() - true).abs().max()) < 2**-8 * float(true.abs().max())


def test_torch_multiplies_in_32_bits_where_it_must(gpu, torch, mixed):
    for dtype in (torch.float16, torch.float32, torch.float64):
        hidden, kernel, _, labels = linear(torch, dtype)
        softxp.linear_cross_entropy(hidden, kernel, labels).backward()
    hidden, kernel, _, labels = linear(torch, torch.bfloat16)
    loss = softxp.linear_cross_entropy(hidden, kernel, labels)
    mixed.clear()
    torch.autograd.grad(loss, hidden, create_graph=True)  # which an autograd follows
    assert not mixed
    hidden, kernel, _, labels = linear(torch, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        softxp.linear_cross_entropy(hidden, kernel, labels).backward()
    assert mixed


def test_tiles_on_a_gpu_have_many_rows(gpu):
    hidden, kernel = gpu.cupy.asarray(normal(1200, 4)), gpu.cupy.asarray(normal(4500, 4, seed=1))
    softxp.value_and_grad(softxp.linear_cross_entropy)(hidden, kernel, gpu.cupy.asarray(np.arange(1200)))
    assert [each.call.rows for each in gpu.driver.launches if each.operation == "loss_and_gradient"] == [1024, 176]


def test_torch_without_an_autograd(gpu, torch):
    x, labels = torch.randn(4, 7, dtype=torch.float64), torch.tensor([1, 2, -100, 6])
    loss, g = softxp.value_and_grad(softxp.cross_entropy)(x, labels)
    z = x.clone().requires_grad_()
    own = torch.nn.functional.cross_entropy(z, labels)
    torch.testing.assert_close((loss, g), (own, torch.autograd.grad(own, z)[0]))
    (got,) = softxp.vjp(softxp.log_softmax, x)[1](g)
    torch.testing.assert_close(got, g - torch.softmax(x, -1) * g.sum(-1, keepdim=True))
    assert names(gpu) == ["share", "loss_and_gradient", "total", "log_softmax", "log_softmax_pullback"]
    softxp.vjp(softxp.log_softmax, z)[1](g)[0].sum().backward()  # where one follows, it still does
    assert z.grad is not None


def test_torch_strides(gpu, torch):
    x = torch.randn(5, 3, 4)
    for view in (x.permute(2, 0, 1), x[:, :, ::2], x.expand(2, 5, 3, 4), x[:, 1:, :]):
        for axis in range(view.ndim):
            torch.testing.assert_close(softxp.log_softmax(view, axis=axis), torch.log_softmax(view, axis))
    assert set(names(gpu)) == {"log_softmax"}


def test_make_gpu_refuses_without_a_gpu():
    script = Path(__file__).parent.parent / ".ci" / "gpu"
    done = subprocess.run(
        [script], env={"PATH": "/usr/bin:/bin", "PYTHON": "false"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("make gpu needs an NVIDIA GPU")
    assert len(done.stderr.splitlines()) == 1


# --- the real NVRTC, where it is installed ----------------------------------------------------------------------------


def real_nvrtc():
    try:
        _, nvrtc = cuda.bindings()
        cuda.ask(nvrtc.nvrtcVersion)
    except cuda.Unavailable as error:
        pytest.skip(f"there is no NVRTC here: {error}")
    return nvrtc


@pytest.mark.parametrize("architecture", ["sm_90", "compute_80"])
def test_nvrtc_compiles_a_plan(architecture, monkeypatch, tmp_path):
    nvrtc = real_nvrtc()
    monkeypatch.setenv("SOFTXP_CACHE_DIR", str(tmp_path))
    pretend.forget()
    (launch,) = P.plan("log_softmax", "float16", P.MASK, 1000, 4096, multiprocessors=132).launches
    image = cuda.image(nvrtc, launch.options, architecture)
    assert (image[:4] == b"\x7fELF") if architecture == "sm_90" else (b".entry softrow(" in image)
    pretend.forget()
    monkeypatch.setattr(cuda, "compile", None)
    assert cuda.image(nvrtc, launch.options, architecture) == image  # from disk


def test_nvrtc_says_what_is_wrong():
    nvrtc = real_nvrtc()
    with pytest.raises(cuda.Unavailable, match=r"NVRTC_ERROR_COMPILATION: softrow\.cu\(1\): error"):
        cuda.compile(nvrtc, "int f( {", (), "sm_90")
