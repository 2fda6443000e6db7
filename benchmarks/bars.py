"""What the CUDA kernels are to reach on a GPU, and what a run of benchmarks.gpu says of it. What it did not measure is not
reached. Knows no array library: docs/speed.md is written anywhere.
"""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

LENGTHS = (256, 2048, 4096, 32_768, 50_257, 50_256, 131_072, 262_144, 64, 1000, 1024)  # the ones of most bars first
FUNCTIONS = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy and gradient", "softmax, vjp")
DTYPES = ("bfloat16", "float32", "float16", "float64")
ODD, NEIGHBOUR = 50_257, 50_256  # of which the second is aligned to 16 bytes in every dtype

Found = tuple[float | None, str]  # a figure, and where


def bar(name: str, wanted: float, found: Iterable[Found], most: bool = False, unit: str = "") -> dict[str, Any]:
    """Held to the worst of what was found."""
    figures = list(found)
    known = [(got, where) for got, where in figures if got is not None]
    lacking = [where for got, where in figures if got is None]
    worst = (max if most else min)(known, default=(None, ""))
    complete = bool(known) and not lacking
    got = worst[0]
    reached = complete and got is not None and (got <= wanted if most else got >= wanted)
    where = worst[1] if complete else f"{len(lacking)} of {len(figures)} not measured"
    return {"name": name, "most": most, "wanted": wanted, "unit": unit, "got": got, "where": where, "reached": reached}


def line(each: dict[str, Any]) -> str:
    got = "-" if each["got"] is None else f"{each['got']:.3g}"
    word = "reached" if each["reached"] else "NOT REACHED"
    sense = "at most" if each["most"] else "at least"
    return f"{word:12}{each['name']}: {got}, wanted {sense} {each['wanted']:g}{each['unit']} ({each['where']})"


def bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    plain = by_shape(large(rows))
    small = {r["function"]: r["host seconds"] for r in rows if "host seconds" in r}

    def share(function: str, dtype: str, n: int) -> float | None:
        return plain.get((function, dtype, n), {}).get("of copy", {}).get("softxp")

    def shares(function: str, lengths: Iterable[int]) -> list[Found]:
        return [(share(function, d, n), f"{d}, n = {n}") for d in DTYPES for n in lengths]

    def beside(function: str, dtype: str) -> Found:
        odd, even = share(function, dtype, ODD), share(function, dtype, NEIGHBOUR)
        return (odd / even if odd and even else None), dtype

    def mean(function: str, peer: str, dtypes: Iterable[str]) -> list[Found]:
        out: list[Found] = []
        for d in dtypes:
            took = [plain.get((function, d, n), {}).get("seconds", {}) for n in LENGTHS]
            ratios = [t[peer] / t["softxp"] for t in took if peer in t and "softxp" in t]
            out.append((statistics.mean(ratios) if len(ratios) == len(LENGTHS) else None, d))
        return out

    def of_small(function: str, figure: Callable[[Any], float]) -> list[Found]:
        try:
            return [(figure(small[function]), "32 × 1000, float32")]
        except KeyError:
            return [(None, "32 × 1000, float32")]

    long = [n for n in sorted(LENGTHS) if n >= 2048 and n != NEIGHBOUR]
    of_cupy = [d for d in DTYPES if d != "bfloat16"]
    out = [bar(f"{f}, of a copy's speed, n from 2048 to 262144", 0.85, shares(f, long)) for f in FUNCTIONS]
    out += [bar(f"{f}, of a copy's speed, n = 256", 0.60, shares(f, [256])) for f in FUNCTIONS]
    out += [bar(f"{f}, n = {ODD} beside {NEIGHBOUR}", 0.90, [beside(f, d) for d in DTYPES]) for f in FUNCTIONS]
    for function, peer, wanted in (
        ("softmax", "cupyx", 3.5), ("softmax", "torch", 1.5), ("logsumexp", "cupyx", 5), ("logsumexp", "torch", 5),
        ("cross_entropy and gradient", "torch", 3),
    ):  # fmt: skip
        found = mean(function, peer, of_cupy if peer == "cupyx" else DTYPES)
        out.append(bar(f"{function}, times as fast as {peer}, mean over n", wanted, found, unit=" ×"))
    for f in FUNCTIONS[:5]:
        later = of_small(f, lambda took: 1e6 * (took["softxp"] - took["torch"]))
        out.append(bar(f"small {f}, later than torch", 2, later, most=True, unit=" µs"))
    for f in FUNCTIONS[:3]:
        times = of_small(f, lambda took: took["cupyx"] / took["softxp on cupy"])
        out.append(bar(f"small {f}, times as fast as cupyx", 5, times, unit=" ×"))
    product = next((r["seconds"] for r in rows if r["function"] == "linear_cross_entropy"), {})
    took = product.get("softxp")
    found = [(took and 1e3 * took, "8192 × 4096 × 131072, bfloat16; asked of an H200")]
    return [*out, bar("linear_cross_entropy, forward and backward", 40, found, most=True, unit=" ms")]


def large(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that fill one size, without compilers: not the shapes of few rows, which share some lengths."""

    def many(r: dict[str, Any]) -> bool:
        return r["n"] <= 262_144 and (r["rows"], r["n"]) not in ((4, 262_144), (32, 131_072))

    return [r for r in rows if "of copy" in r and not r.get("compilers") and many(r)]


def by_shape(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], dict[str, Any]]:
    return {(r["function"], r["dtype"], r["n"]): r for r in rows}
