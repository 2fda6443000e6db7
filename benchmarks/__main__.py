"""python -m benchmarks: what a call costs on ten numbers, as ratios in one interleaved run. `make bench`.

Each contender runs in turn within every round, so that a busy machine slows them alike; medians of the rounds.
"""

import json
import platform
import statistics
import sys
import timeit
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import softxp
from softxp_conformance.rows import processor

ROUNDS, CALLS = 25, 4000


def duel(contenders: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median time of one call in microseconds, contenders interleaved."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, f in contenders.items():
            times[name].append(timeit.timeit(f, number=CALLS) / CALLS * 1e6)
    return {name: statistics.median(t) for name, t in times.items()}


def four_lines(x: Any) -> Any:
    """What people write by hand."""
    m = x.max(axis=-1, keepdims=True)
    e = np.exp(x - m)
    s = e.sum(axis=-1, keepdims=True)
    return e / s


def rows(dtype: str) -> list[tuple[str, str, float, dict[str, float]]]:
    """(peer, dtype, ratio allowed, times) for each peer that is installed."""
    x = np.random.default_rng(0).standard_normal(10).astype(dtype)

    def against(peer: str, bound: float, theirs: Callable[[], Any], given: Any) -> None:
        out.append((peer, dtype, bound, duel({"peer": theirs, "softxp": lambda: softxp.softmax(given)})))

    out: list[tuple[str, str, float, dict[str, float]]] = []
    against("numpy, four lines", 1.25, lambda: four_lines(x), x)
    with suppress(ImportError):
        from scipy import special

        against("scipy.special.softmax", 1.0, lambda: special.softmax(x), x)
    with suppress(ImportError):
        import torch

        torch.set_num_threads(1)
        t = torch.from_numpy(x.copy())
        against("torch.softmax", 2.5, lambda: torch.softmax(t, -1), t)
    return out


def main() -> int:
    print("softmax of ten numbers: time of softxp / time of the peer\n")
    print(f"{'peer':24}{'dtype':10}{'peer, us':>10}{'softxp, us':>12}{'ratio':>8}{'at most':>9}")
    out = []
    for peer, dtype, bound, t in [*rows("float32"), *rows("float64")]:
        ratio = t["softxp"] / t["peer"]
        print(f"{peer:24}{dtype:10}{t['peer']:10.2f}{t['softxp']:12.2f}{ratio:8.2f}{bound:9.2f}")
        out.append(
            {
                "peer": peer,
                "dtype": dtype,
                "peer_us": t["peer"],
                "softxp_us": t["softxp"],
                "ratio": ratio,
                "bound": bound,
            }
        )
    versions = {m: sys.modules[m].__version__ for m in ("numpy", "torch", "scipy") if m in sys.modules}
    machine = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        **versions,
    }
    print("\n" + ", ".join(f"{k} {v}" for k, v in machine.items()))
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"machine": machine, "rows": out}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
