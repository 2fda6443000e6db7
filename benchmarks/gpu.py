"""python -m benchmarks.gpu: softxp on a GPU beside its peers and beside a plain copy, in one interleaved run. Needs torch.

Every call is timed by events of its stream, behind a pause of the GPU in which the host runs ahead, so that figures are the
GPU's own; the small calls alone are timed by the host's clock. Arrays take turns, so that none is left in a cache. Medians.
Bytes are those that must cross the memory bus, and `of copy` is their rate as a fraction of a copy's in the same round.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import softxp

LENGTHS = (64, 256, 1000, 1024, 4096, 32_768, 50_257, 131_072, 262_144)
FEW = ((1, 1 << 24), (4, 262_144), (32, 131_072))  # rows, n
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16, "float64": torch.float64}
SIZE = 1 << 28  # bytes of an array: some times the caches
TURNS = 3  # arrays that take turns
FUNCTIONS = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy and gradient", "softmax, vjp")
ACCESSES = dict(zip(FUNCTIONS, (2, 2, 1, 1, 2, 3), strict=True))  # of each number, at least
COMPILED = {("bfloat16", 1024), ("bfloat16", 50_257), ("float32", 4096)}  # a compilation takes seconds


class Gpu:
    """The clock of the current stream."""

    device = "cuda"

    def __call__(self, f: Callable[[], Any]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(1_000_000)
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


def of_torch(function: str, x: Any, labels: Any, v: Any) -> Any:
    ce = torch.nn.functional.cross_entropy
    return {
        "softmax": lambda: torch.softmax(x, -1),
        "log_softmax": lambda: torch.log_softmax(x, -1),
        "logsumexp": lambda: torch.logsumexp(x, -1),
        "cross_entropy": lambda: ce(x, labels),
        "cross_entropy and gradient": lambda: gradient(lambda z: ce(z, labels), x),
        "softmax, vjp": backward(lambda z: torch.softmax(z, -1), x, v) if function == "softmax, vjp" else None,
    }[function]


def of_softxp(function: str, x: Any, labels: Any, v: Any) -> Any:
    return {
        "softmax": lambda: softxp.softmax(x),
        "log_softmax": lambda: softxp.log_softmax(x),
        "logsumexp": lambda: softxp.logsumexp(x, axis=-1),
        "cross_entropy": lambda: softxp.cross_entropy(x, labels),
        "cross_entropy and gradient": lambda: gradient(lambda z: softxp.cross_entropy(z, labels), x),
        "softmax, vjp": backward(softxp.softmax, x, v) if function == "softmax, vjp" else None,
    }[function]


def backward(f: Callable[[Any], Any], x: Any, v: Any) -> Callable[[], Any]:
    """The backward alone."""
    z = x.detach().requires_grad_()
    y = f(z)
    return lambda: torch.autograd.grad(y, z, v, retain_graph=True)


def gradient(f: Callable[[Any], Any], x: Any) -> Any:
    z = x.detach().requires_grad_()
    return torch.autograd.grad(f(z), z)


def formula(f: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        softxp.use_kernels(False, device="cuda")
        try:
            return f()
        finally:
            softxp.use_kernels(True, device="cuda")

    return call


def of_others(function: str, x: Any) -> dict[str, Callable[[], Any]]:
    """cupyx and JAX on the same memory, where they are installed."""
    calls: dict[str, Callable[[], Any]] = {}
    if x.dtype is not torch.bfloat16:
        with suppress(Exception):
            import cupy
            import cupyx.scipy.special as special

            a = cupy.from_dlpack(x)
            if hasattr(special, function):
                calls["cupyx"] = lambda: getattr(special, function)(a, axis=-1)
    with suppress(Exception):
        import jax

        j = jax.dlpack.from_dlpack(x)
        if function in ("softmax", "log_softmax", "logsumexp") and next(iter(j.devices())).platform == "gpu":
            fn = jax.jit(getattr(jax.nn, function))
            fn(j).block_until_ready()
            calls["jax"] = lambda: fn(j).block_until_ready()  # JAX has a stream of its own: by the host's clock
    return calls


def contenders(function: str, dtype: str, rows: int, n: int, device: str) -> list[dict[str, Callable[[], Any]]]:
    """Who computes what, once for each array of the turn."""
    turns = []
    for turn in range(TURNS):
        make = torch.Generator(device).manual_seed(turn)
        x, v = (torch.randn(rows, n, generator=make, device=device, dtype=DTYPES[dtype]) for _ in range(2))
        labels = torch.randint(n, (rows,), generator=make, device=device)
        y, ours, theirs = torch.empty_like(x), of_softxp(function, x, labels, v), of_torch(function, x, labels, v)
        calls: dict[str, Callable[[], Any]] = {
            "copy": lambda x=x, y=y: y.copy_(x), "softxp": ours, "formula": formula(ours), "torch": theirs,
        }  # fmt: skip
        if (dtype, n) in COMPILED and device == "cuda" and function != "softmax, vjp":
            calls["compiled"] = torch.compile(theirs)
        if device == "cuda":
            calls.update(of_others(function, x))
        turns.append(calls)
    return turns


def duel(clock: Any, turns: list[dict[str, Callable[[], Any]]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender; who fails is left out."""
    times: dict[str, list[float]] = {}
    for name in turns[0]:
        try:
            for calls in turns:
                calls[name]()
            clock.wait()
            times[name] = []
        except Exception as error:
            print(f"  {name} fails: {type(error).__name__}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
    for i in range(rounds):
        for name in times:
            f = turns[i % len(turns)][name]
            times[name].append((Rehearsal() if name == "jax" else clock)(f))
    return {name: statistics.median(t) for name, t in times.items()}


def row(clock: Any, function: str, dtype: str, rows: int, n: int, rounds: int) -> dict[str, Any]:
    took = duel(clock, contenders(function, dtype, rows, n, clock.device), rounds)
    size = rows * n * DTYPES[dtype].itemsize
    moved = ACCESSES[function] * size
    copied = 2 * size / took["copy"]
    return {
        "function": function, "dtype": dtype, "rows": rows, "n": n, "bytes": moved, "seconds": took,
        "of copy": {name: moved / t / copied for name, t in took.items() if name != "copy"},
    }  # fmt: skip


def small(clock: Any, calls: int) -> list[dict[str, Any]]:
    """32 × 1000, by the host's clock: what a call costs."""
    out = []
    x = torch.randn(32, 1000, device=clock.device)
    labels = torch.arange(32, device=clock.device)
    for function in FUNCTIONS[:5]:
        took = {}
        for name, f in (
            ("softxp", of_softxp(function, x, labels, x)), ("torch", of_torch(function, x, labels, x)),
        ):  # fmt: skip
            times = []
            for _ in range(7):
                clock.wait()
                begin = time.perf_counter()
                for _ in range(calls):
                    f()
                clock.wait()
                times.append((time.perf_counter() - begin) / calls)
            took[name] = min(times)
        out.append({"function": function, "dtype": "float32", "rows": 32, "n": 1000, "host seconds": took})
    return out


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


def measure(clock: Any, size: int, limit: float, rounds: int) -> list[dict[str, Any]]:
    """All rows, the ones that matter most first, until the time is up."""
    out, until = [], time.monotonic() + limit
    out += small(clock, 3 if clock.device == "cpu" else 1000)
    out.append(linear(clock, *((64, 16, 100) if clock.device == "cpu" else (8192, 4096, 131_072))))
    for dtype, of_dtype in DTYPES.items():
        shapes = [(max(1, size // (n * of_dtype.itemsize)), n) for n in LENGTHS if n * of_dtype.itemsize <= size]
        for rows, n in shapes + [each for each in FEW if size >= SIZE]:
            for function in FUNCTIONS:
                if time.monotonic() > until:
                    print("the time is up: what is left out is not in the report", file=sys.stderr)
                    return out
                out.append(row(clock, function, dtype, rows, n, rounds))
                said = "  ".join(f"{name} {share:4.0%}" for name, share in out[-1]["of copy"].items())
                print(f"{function:27}{dtype:9}{rows:>9} × {n:<9} of copy: {said}", flush=True)
    return out


def machine(clock: Any) -> dict[str, Any]:
    versions = {"softxp": softxp.__version__, "torch": torch.__version__, "cuda": torch.version.cuda}
    return {**versions, "gpu": "none: a rehearsal" if clock.device == "cpu" else torch.cuda.get_device_name()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=240.0, help="begin no further duel after so long")
    parser.add_argument("--rehearse", action="store_true", help="tiny arrays on the CPU; the figures mean nothing")
    given = parser.parse_args()
    if not given.rehearse and not torch.cuda.is_available():
        print("benchmarks.gpu needs a GPU that torch sees; --rehearse runs its lines on the CPU.", file=sys.stderr)
        return 2
    clock = Rehearsal() if given.rehearse else Gpu()
    softxp.use_kernels(True, device="cuda")
    try:
        rows = measure(clock, 1 << 14 if given.rehearse else SIZE, given.seconds, 3 if given.rehearse else 15)
    finally:
        softxp.use_kernels(False, device="cuda")
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"machine": machine(clock), "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
