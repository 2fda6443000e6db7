"""python -m benchmarks: softxp beside its peers and beside a plain copy, in one interleaved run. `make bench`.

Each contender runs in turn within every round, so that a busy machine slows them alike; medians of the rounds. Between two
calls a pause lets the other libraries' threads, which spin for a while after their work, go to sleep. All use the same
number of threads. Nothing here is a test: a machine's mood must not fail a change.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import softxp
from softxp_conformance.rows import processor

from . import page
from .contenders import DTYPES, FUNCTIONS, SHAPES, by_hand, contenders, moved, tensor
from .memory import peaks

PAUSE = 0.003  # seconds


def duel(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median time of one call in seconds, contenders interleaved."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for f in calls.values():
        f()  # compiles, loads, starts threads
    for _ in range(rounds):
        for name, f in calls.items():
            time.sleep(PAUSE)
            begin = time.perf_counter()
            y = f()
            times[name].append(time.perf_counter() - begin)
            del y
    return {name: statistics.median(t) for name, t in times.items()}


def large(functions: Any, dtypes: Any, shapes: Any, axes: Any, peers: Any, rounds: int) -> list[dict[str, Any]]:
    out = []
    for function in functions:
        for dtype in dtypes:
            for shape in shapes:
                for axis in axes:
                    if axis == 0 and shape[0] == 1:
                        continue  # one row is the same memory either way
                    took = duel(contenders(function, dtype, shape, axis, peers), rounds)
                    size = shape[0] * shape[1]
                    row = {"function": function, "dtype": dtype, "rows": shape[0], "n": shape[1], "axis": axis}
                    row["seconds"] = took
                    row["bytes"] = moved(function, size, np.dtype(DTYPES[dtype]).itemsize)
                    out.append(row)
                    print(line(row), flush=True)
    return out


def line(row: dict[str, Any]) -> str:
    """One duel in words: ours, then how many times as long the others took."""
    took, ours = row["seconds"], row["seconds"]["softxp"]
    peers = {k: v for k, v in took.items() if k not in ("copy", "softxp")}
    ratios = "  ".join(f"{k} {v / ours:.2f}" for k, v in peers.items())
    return (
        f"{row['function']:27}{row['dtype']:9}{row['rows']:>7} × {row['n']:<8}axis {row['axis']:2}  {ours * 1e3:8.2f} ms "
        f"{row['bytes'] / ours / 1e9:6.1f} GB/s  copy {took['copy'] / ours:4.2f}  {ratios}"
    )


def small(rounds: int = 25, calls: int = 3000) -> list[dict[str, Any]]:
    """softmax of ten numbers."""
    out = []
    for dtype in ("float32", "float64"):
        x = np.random.default_rng(0).standard_normal(10).astype(dtype)
        peers: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "numpy": (by_hand("softmax", x, -1, None), lambda x=x: softxp.softmax(x))
        }
        try:
            from scipy import special

            peers["scipy"] = lambda x=x: special.softmax(x), lambda x=x: softxp.softmax(x)
        except ImportError:
            pass
        try:
            import torch

            t = tensor(x.copy())
            peers["torch"] = lambda t=t: torch.softmax(t, -1), lambda t=t: softxp.softmax(t)
        except ImportError:
            pass
        for peer, (theirs, ours) in peers.items():
            times: dict[str, list[float]] = {"peer": [], "softxp": []}
            for _ in range(rounds):
                for name, f in (("peer", theirs), ("softxp", ours)):
                    times[name].append(timeit.timeit(f, number=calls) / calls)
            took = {name: statistics.median(t) for name, t in times.items()}
            out.append({"peer": peer, "dtype": dtype, "seconds": took})
            print(
                f"softmax of 10 numbers, {dtype}: softxp {took['softxp'] * 1e6:.2f} µs, {peer} {took['peer'] * 1e6:.2f} µs, "
                f"ratio {took['peer'] / took['softxp']:.2f}",
                flush=True,
            )
    return out


def machine(threads: int) -> dict[str, Any]:
    names = ("numpy", "scipy", "torch", "jax", "numba")
    return {
        "processor": processor(), "machine": platform.machine(), "system": platform.system(), "threads": threads,
        "python": platform.python_version(), "softxp": softxp.__version__,
        **{m: sys.modules[m].__version__ for m in names if m in sys.modules},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="softxp beside its peers, interleaved.")
    parser.add_argument("--function", action="append", choices=FUNCTIONS, help="only these (default: all)")
    parser.add_argument("--dtype", action="append", choices=list(DTYPES), help="only these (default: all)")
    parser.add_argument("--shape", action="append", type=int, help="only these, by the length of a row (default: all)")
    parser.add_argument("--axis", action="append", type=int, choices=(-1, 0), help="only this (default: both)")
    parser.add_argument(
        "--peers", default="numpy,scipy,torch,compiled,jax", help="comma-separated (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of a duel (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="for all (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument(
        "--page", type=Path, help="write docs/speed.md and its pictures from the figures, beside this path"
    )
    args = parser.parse_args()
    shapes = [s for s in SHAPES if not args.shape or s[1] in args.shape]
    softxp.set_num_threads(args.threads)
    if "torch" in args.peers:
        import torch

        torch.set_num_threads(args.threads)
    report: dict[str, Any] = {"small": small()}
    report["large"] = large(
        args.function or FUNCTIONS,
        args.dtype or list(DTYPES),
        shapes,
        args.axis or (-1, 0),
        args.peers.split(","),
        args.rounds,
    )
    report["memory"] = peaks()
    for name, sizes in report["memory"].items():
        print(f"peak memory beside the input, {name}: {sizes:.2f} of its size")
    report["machine"] = machine(args.threads)
    print("\n" + ", ".join(f"{k} {v}" for k, v in report["machine"].items()))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.page:
        page.write(report, args.page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
