"""python -m benchmarks.gpu: softxp on a GPU beside its peers and beside a plain copy, in one interleaved run. Needs torch.

Every call is timed by events of its stream, behind a pause of the GPU in which the host runs ahead, so that figures are the
GPU's own. By the host's clock: small calls, of which many run between two looks at it; and JAX, which has a stream of its
own, in batches that hide what the host does. Arrays take turns, so that none is left in a cache. Medians. Bytes are those
that must cross the memory bus, and `of copy` is their rate as a fraction of a copy's in the same round.

What the bars need is measured first, so that a run that is cut off has it. Exit code 1: softxp's kernels failed somewhere.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import softxp
from softxp._backends import _warm

from .bars import FUNCTIONS, LENGTHS, bars, line

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of the GPU's memory

FEW = ((1, 1 << 24), (4, 262_144), (32, 131_072))  # rows, n
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16, "float64": torch.float64}
SIZE = 1 << 28  # bytes of an array: some times the caches
TURNS = 3  # arrays that take turns
ACCESSES = dict(zip(FUNCTIONS, (2, 2, 1, 1, 2, 3), strict=True))  # of each number, at least
COMPILED = (
    ("bfloat16", 4096),
    ("float32", 1024),
    ("bfloat16", 50_257),
)  # beside compilers, which take seconds for each
BATCH = 10  # calls of JAX between two looks at the clock
SMALL = (32, 1000)
LINEAR = (8192, 4096, 131_072)  # rows, width, n


class Gpu:
    """The clock of the current stream."""

    device = "cuda"

    def __call__(self, f: Callable[[], Any]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(5_000_000)  # cycles, some 2.5 ms: the host's lead
        begin.record()
        y = f()
        end.record()
        end.synchronize()
        del y
        return begin.elapsed_time(end) / 1e3

    def wait(self) -> None:
        torch.cuda.synchronize()


class Rehearsal(Gpu):
    """The same lines on a CPU, to see that they run. The figures mean nothing."""

    device = "cpu"

    def __call__(self, f: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        f()
        return time.perf_counter() - begin

    def wait(self) -> None:
        pass


def call_of(function: str, f: Callable[[Any], Any], x: Any, v: Any) -> Callable[[], Any]:
    """f of x as the benchmark's function asks for it: the value, with its gradient, or the backward alone."""
    if function.endswith("vjp"):
        return backward(f, x, v)
    return (lambda: gradient(f, x)) if function.endswith("gradient") else lambda: f(x)


def value(function: str) -> str:
    """Whose value, gradient or backward is asked for."""
    return function.partition(",")[0].partition(" and")[0]


def torchs(function: str, labels: Any) -> Callable[[Any], Any]:
    ce = torch.nn.functional.cross_entropy
    return {
        "softmax": lambda z: torch.softmax(z, -1), "log_softmax": lambda z: torch.log_softmax(z, -1),
        "logsumexp": lambda z: torch.logsumexp(z, -1), "cross_entropy": lambda z: ce(z, labels),
    }[value(function)]  # fmt: skip


def of_torch(function: str, x: Any, labels: Any, v: Any) -> Callable[[], Any]:
    return call_of(function, torchs(function, labels), x, v)


def of_softxp(function: str, x: Any, labels: Any, v: Any) -> Callable[[], Any]:
    ours: dict[str, Callable[[Any], Any]] = {
        "softmax": softxp.softmax, "log_softmax": softxp.log_softmax,
        "logsumexp": lambda z: softxp.logsumexp(z, axis=-1), "cross_entropy": lambda z: softxp.cross_entropy(z, labels),
    }  # fmt: skip
    return call_of(function, ours[value(function)], x, v)


def backward(f: Callable[[Any], Any], x: Any, v: Any) -> Callable[[], Any]:
    """The backward alone."""
    made: list[Any] = []

    def call() -> Any:
        if not made:
            z = x.detach().requires_grad_()
            made[:] = f(z), z
        return torch.autograd.grad(*made, v, retain_graph=True)

    return call


def gradient(f: Callable[[Any], Any], x: Any) -> Any:
    z = x.detach().requires_grad_()
    return torch.autograd.grad(f(z), z)


def formula(f: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        _warm.cuda = False
        try:
            return f()
        finally:
            _warm.cuda = not _warm.cuda_closed  # use_kernels would forget that they had failed

    return call


def of_cupy(function: str, x: Any) -> dict[str, Callable[[], Any]]:
    """cupyx, and softxp on cupy's arrays, on the same memory, where cupy is installed and knows the dtype."""
    with suppress(Exception):
        import cupy
        import cupyx.scipy.special as special

        a = cupy.from_dlpack(x)
        theirs, ours = getattr(special, function), getattr(softxp, function)
        return {"cupyx": lambda: theirs(a, axis=-1), "softxp on cupy": lambda: ours(a, axis=-1)}
    return {}


def of_jax(function: str, x: Any) -> dict[str, Callable[[], Any]]:
    """A batch of calls on the same memory."""
    with suppress(Exception):
        import jax

        j = jax.dlpack.from_dlpack(x)
        if function in ("softmax", "log_softmax", "logsumexp") and next(iter(j.devices())).platform == "gpu":
            fn = jax.jit({"logsumexp": lambda a: jax.nn.logsumexp(a, axis=-1)}.get(function, getattr(jax.nn, function)))
            return {"jax": lambda: [fn(j) for _ in range(BATCH)][-1].block_until_ready()}
    return {}


def of_compiled(function: str, x: Any, labels: Any, v: Any) -> dict[str, Callable[[], Any]]:
    torch._dynamo.reset()  # which gives up on a function after eight shapes
    return {"compiled": call_of(function, torch.compile(torchs(function, labels), dynamic=False), x, v)}


def given(function: str, dtype: str, rows: int, n: int, device: str, seed: int = 0) -> tuple[str, Any, Any, Any]:
    make = torch.Generator(device).manual_seed(seed)
    x, v = (torch.randn(rows, n, generator=make, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    return function, x, torch.randint(n, (rows,), generator=make, device=device), v


def contenders(
    function: str, dtype: str, rows: int, n: int, device: str, compilers: bool
) -> list[dict[str, Callable[[], Any]]]:
    """Who computes what, once for each array of the turn."""
    turns = []
    for turn in range(TURNS):
        all_of = given(function, dtype, rows, n, device, turn)
        x, ours = all_of[1], of_softxp(*all_of)
        y = torch.empty_like(x)
        calls: dict[str, Callable[[], Any]] = {
            "copy": lambda x=x, y=y: y.copy_(x), "softxp": ours, "torch": of_torch(*all_of)
        }  # fmt: skip
        if compilers:
            calls.update(of_compiled(*all_of))
            calls.update(of_jax(function, x))
        else:
            calls["formula"] = formula(ours)
            calls.update({k: f for k, f in of_cupy(function, x).items() if k == "cupyx"})
        turns.append(calls)
    return turns


def kernels(name: str) -> None:
    """That a contender of softxp's had them: where they fail its formula serves."""
    if name.startswith("softxp") and _warm.cuda_closed:
        raise RuntimeError(f"the formula answered for the kernels: {_warm.cuda_closed}")


def duel(clock: Any, turns: list[dict[str, Callable[[], Any]]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender; who fails is left out."""
    softxp.use_kernels(True, device="cuda")  # tried again, after another duel's failure
    times: dict[str, list[float]] = {}

    def attempt(name: str, f: Callable[[], Any]) -> Any:
        try:
            took = f()
            clock.wait()
            kernels(name)
            return took
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            print(f"  {name} fails: {type(error).__name__}: {first[:200]}", file=sys.stderr)
            times.pop(name, None)
            return None

    for name in turns[0]:
        times[name] = []
        for calls in turns:
            attempt(name, calls[name])
    for i in range(rounds):
        for name in list(times):
            f, by_host = turns[i % len(turns)][name], name == "jax"
            took = attempt(name, lambda f=f, by_host=by_host: (Rehearsal() if by_host else clock)(f))
            if took is not None:
                times[name].append(took / BATCH if by_host else took)
    return {name: statistics.median(t) for name, t in times.items()}


def row(
    clock: Any, function: str, dtype: str, rows: int, n: int, rounds: int, compilers: bool = False
) -> dict[str, Any]:
    took = duel(clock, contenders(function, dtype, rows, n, clock.device, compilers), rounds)
    if "copy" not in took:
        raise RuntimeError("a plain copy fails: the GPU is lost to this process")
    size = rows * n * DTYPES[dtype].itemsize
    moved = ACCESSES[function] * size
    copied = 2 * size / took["copy"]
    return {
        "function": function, "dtype": dtype, "rows": rows, "n": n, "bytes": moved, "seconds": took,
        "of copy": {name: moved / t / copied for name, t in took.items() if name != "copy"},
        **({"compilers": True, "by the host's clock": ["jax"]} if compilers else {}),
    }  # fmt: skip


class Many:
    """The host's clock around many calls: what one costs."""

    def __init__(self, clock: Any, calls: int) -> None:
        self.wait, self.calls = clock.wait, calls

    def __call__(self, f: Callable[[], Any]) -> float:
        self.wait()
        begin = time.perf_counter()
        for _ in range(self.calls):
            f()
        self.wait()
        return (time.perf_counter() - begin) / self.calls


def small(clock: Any, calls: int) -> Iterator[dict[str, Any]]:
    """32 × 1000, where a call's own cost shows."""
    for function in FUNCTIONS[:5]:
        all_of = given(function, "float32", *SMALL, clock.device)
        them = {"softxp": of_softxp(*all_of), "torch": of_torch(*all_of), **of_cupy(function, all_of[1])}
        took = duel(Many(clock, calls), [them], 7)
        yield {"function": function, "dtype": "float32", "rows": SMALL[0], "n": SMALL[1], "host seconds": took}


def linear(clock: Any, rows: int, width: int, n: int) -> dict[str, Any]:
    """Linear cross-entropy, forward and backward; and its three products alone, which nobody can do without."""
    hidden = torch.randn(rows, width, device=clock.device, dtype=torch.bfloat16, requires_grad=True)
    kernel = (torch.randn(n, width, device=clock.device) / width**0.5).to(torch.bfloat16).requires_grad_()
    labels = torch.randint(n, (rows,), device=clock.device)

    def ours(chunk_size: int | None = None) -> Any:
        loss = softxp.linear_cross_entropy(hidden, kernel, labels, chunk_size=chunk_size)
        return torch.autograd.grad(loss, (hidden, kernel))

    def theirs() -> Any:
        return torch.autograd.grad(torch.nn.functional.cross_entropy(hidden @ kernel.T, labels), (hidden, kernel))

    def products() -> Any:
        with torch.no_grad():
            z = hidden @ kernel.T
            return z @ kernel, z.T @ hidden

    calls: dict[str, Callable[[], Any]] = {"softxp": ours, "torch": theirs, "products": products}
    calls.update({f"softxp, {k} rows": lambda k=k: ours(k) for k in (rows // 8, rows // 2)})
    took = duel(clock, [calls], 5)
    return {
        "function": "linear_cross_entropy",
        "dtype": "bfloat16",
        "rows": rows,
        "width": width,
        "n": n,
        "seconds": took,
    }


Shape = tuple[str, str, int, int, bool]  # function, dtype, rows, n, beside compilers


def shapes(size: int) -> list[Shape]:
    """In the order in which they are measured."""

    def rows(dtype: str, n: int) -> int:
        return max(1, size // (n * DTYPES[dtype].itemsize))

    plain = [(d, n) for d in DTYPES for n in LENGTHS if n * DTYPES[d].itemsize <= size]
    out = [(f, d, rows(d, n), n, False) for d, n in plain for f in FUNCTIONS]
    few = [(d, r, n) for d in DTYPES for r, n in FEW if size >= SIZE]
    out += [(f, d, r, n, True) for d, n in COMPILED for f in FUNCTIONS for r in [rows(d, n)] if (d, n) in plain]
    return out + [(f, d, r, n, False) for d, r, n in few for f in FUNCTIONS]


def compile_part(part: int, parts: int, size: int) -> None:
    """One call of each shape whose turn it is, which leaves its kernels in the cache on disk."""
    softxp.use_kernels(True, device="cuda")
    for i, (function, dtype, rows, n, compilers) in enumerate(shapes(size)):
        if i % parts == part and not compilers:
            of_softxp(*given(function, dtype, rows, n, "cuda"))()


def compile_all(seconds: float) -> None:
    """A process compiles one kernel after the other, so some share them. What is not done in time is compiled later."""
    parts = max(1, min(12, (os.cpu_count() or 1) - 2))
    command = [sys.executable, "-m", "benchmarks.gpu", "--compile"]
    them = [subprocess.Popen([*command, f"{part}/{parts}"], stderr=subprocess.DEVNULL) for part in range(parts)]
    until = time.monotonic() + seconds
    for each in them:
        try:
            each.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.kill()


def measure(clock: Any, size: int, limit: float, rounds: int) -> Iterator[dict[str, Any]]:
    """All rows, the ones that matter most first, until the time is up."""
    until, rehearsed = time.monotonic() + limit, clock.device == "cpu"
    yield from small(clock, 3 if rehearsed else 1000)
    yield linear(clock, *((64, 16, 100) if rehearsed else LINEAR))
    for function, dtype, r, n, compilers in shapes(size):
        if time.monotonic() > until:
            print("the time is up: what is left out is not in the report", file=sys.stderr)
            return
        found = row(clock, function, dtype, r, n, rounds, compilers and not rehearsed)
        said = "  ".join(f"{name} {share:4.0%}" for name, share in found["of copy"].items())
        print(f"{function:27}{dtype:9}{r:>9} × {n:<9} of copy: {said}", flush=True)
        yield found


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """The rows that softxp is not in."""
    out = []
    for each in rows:
        took = each.get("seconds") or each.get("host seconds") or {}
        lacks = {"softxp", *(["softxp on cupy"] if "cupyx" in took and "host seconds" in each else [])} - set(took)
        out += [f"{name}: {each['function']}, {each['dtype']}, {each['rows']} × {each['n']}" for name in sorted(lacks)]
    return out


def machine(clock: Any) -> dict[str, Any]:
    versions = {"softxp": softxp.__version__, "torch": torch.__version__, "cuda": torch.version.cuda}
    return {**versions, "gpu": "none: a rehearsal" if clock.device == "cpu" else torch.cuda.get_device_name()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=240.0, help="begin no further duel after so long")
    parser.add_argument("--rehearse", action="store_true", help="tiny arrays on the CPU; the figures mean nothing")
    parser.add_argument("--compile", metavar="PART/PARTS", help="only compile a part of the kernels into the cache")
    given = parser.parse_args(argv)
    if not given.rehearse and not torch.cuda.is_available():
        print("benchmarks.gpu needs a GPU that torch sees; --rehearse runs its lines on the CPU.", file=sys.stderr)
        return 2
    if given.compile:
        part, parts = map(int, given.compile.split("/"))
        compile_part(part, parts, SIZE)
        return 0
    begin, clock = time.monotonic(), Rehearsal() if given.rehearse else Gpu()
    rows: list[dict[str, Any]] = []
    report = {"machine": machine(clock), "rows": rows, "bars": bars(rows)}
    broken = ""
    if not given.rehearse:
        compile_all(given.seconds / 3)
    left = given.seconds - (time.monotonic() - begin)
    try:
        for each in measure(clock, 1 << 14 if given.rehearse else SIZE, left, 3 if given.rehearse else 11):
            rows.append(each)
            report["bars"] = bars(rows)
            if given.json is not None:  # at once: the run may be cut off
                given.json.parent.mkdir(parents=True, exist_ok=True)
                given.json.write_text(json.dumps(report, indent=1))
    except RuntimeError as error:
        broken = str(error)
    finally:
        softxp.use_kernels(False, device="cuda")
    print("", *map(line, report["bars"]), sep="\n")
    reached = sum(each["reached"] for each in report["bars"])
    print(f"{reached} of {len(report['bars'])} bars are reached")
    wrong = [*failures(rows), *([broken] if broken else [])]
    for each in wrong:
        print(f"FAILED {each}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
