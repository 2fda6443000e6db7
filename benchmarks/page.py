"""docs/speed.md and its pictures, from a run's figures: `python -m benchmarks.page build/speed.json docs/speed.md`. With
`--gpu build/gpu/speed.json` it has the GPU's half too; that alone, without the first file, leaves the other half as it is.
"""

import argparse
import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .bars import DTYPES, FUNCTIONS, LENGTHS, by_shape, large

# what was set as a floor: peer's time / ours, and ours as a fraction of a plain copy's speed
LONG = 50_257
BARS = {
    "softmax": {"scipy": 3.0, "torch": 1.0, "copy": 0.33},
    "log_softmax": {"scipy": 3.0, "torch": 1.0, "copy": 0.33},
    "logsumexp": {"scipy": 8.0, "torch": 2.0},
    "cross_entropy": {"torch": 1.2},
    "cross_entropy and gradient": {"torch": 3.0, "copy": 0.25},
}
LONG_BARS = {"softmax": 4.0, "log_softmax": 4.0, "cross_entropy": 5.0, "cross_entropy and gradient": 8.0}


def bar(row: dict[str, Any], peer: str) -> float | None:
    """The floor for this duel, if there is one."""
    function, narrow = row["function"], row["dtype"] in ("float16", "bfloat16")
    floor = BARS[function].get(peer)
    if floor is None or (narrow and peer == "copy"):
        return None
    if function.endswith("gradient") and row["dtype"] != "float32":
        return None
    if peer == "torch" and row["n"] >= LONG and not narrow:
        floor = LONG_BARS.get(function, floor)
    if peer == "scipy" and narrow and function.endswith("softmax"):
        floor = 20.0
    return floor


def ratio(row: dict[str, Any], peer: str, ours: str = "softxp") -> float | None:
    took = row["seconds"]
    return took[peer] / took[ours] if peer in took and ours in took else None


def cell(row: dict[str, Any], peer: str, ours: str = "softxp") -> str:
    value, floor = ratio(row, peer, ours), bar(row, peer)
    if value is None:
        return ""
    text = f"{value:.2f}" if value < 10 else f"{value:.0f}"
    return f"**{text}**" if floor is not None and value < floor else text


def table(rows: list[dict[str, Any]]) -> list[str]:
    out = [
        "| dtype | rows × n | axis | ms | GB/s | copy | scipy | numpy | torch | torch.compile | jax "
        "| torch / softxp on torch |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours = row["seconds"]["softxp"]
        cells = [cell(row, peer) for peer in ("copy", "scipy", "numpy", "torch", "torch.compile", "jax")]
        out.append(
            f"| {row['dtype']} | {row['rows']} × {row['n']} | {row['axis']} | {ours * 1e3:.2f} "
            f"| {row['bytes'] / ours / 1e9:.1f} | {' | '.join(cells)} | {cell(row, 'torch', 'softxp on torch')} |"
        )
    return out


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """How many floors there are, and which are not reached."""
    out, count, below = [], 0, 0
    for row in rows:
        for peer, ours in (("copy", "softxp"), ("scipy", "softxp"), ("torch", "softxp"), ("torch", "softxp on torch")):
            value, floor = ratio(row, peer, ours), bar(row, peer)
            if value is None or floor is None:
                continue
            count += 1
            if value < floor:
                below += 1
                out.append(
                    f"| {row['function']} | {row['dtype']} | {row['rows']} × {row['n']} | {row['axis']} | {ours} | {peer} "
                    f"| {value:.2f} | {floor:g} |"
                )
    head = ["| function | dtype | rows × n | axis | road | peer | ratio | floor |", "|---|---|---|---|---|---|---|---|"]
    return (
        [f"{count - below} of {count} floors are reached; these are not:", "", *head, *out]
        if out
        else ["All are reached."]
    )


PEERS = ("scipy", "numpy", "torch", "torch.compile", "jax", "copy")


def plots() -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "softxp"
    import matplotlib.pyplot as plt

    return plt


def picture(rows: list[dict[str, Any]], path: Path, peers: Iterable[str] = PEERS, dtype: str = "float32") -> None:
    """How many times as fast as each peer, over shapes: a panel for each function, in a dtype along the last axis."""
    plt = plots()
    rows = [r for r in rows if r["dtype"] == dtype and r.get("axis", -1) == -1]
    functions = list(dict.fromkeys(r["function"] for r in rows))
    peers = [p for p in peers if any(p in r["seconds"] for r in rows)]
    figure, panels = plt.subplots(len(functions), 1, figsize=(9, 2.3 * len(functions)), sharex=True, squeeze=False)
    for panel, function in zip(panels[:, 0], functions, strict=True):
        mine = [r for r in rows if r["function"] == function]
        for i, peer in enumerate(peers):
            x = [j + (i - 2.5) * 0.14 for j in range(len(mine))]
            panel.bar(x, [ratio(r, peer) or 0 for r in mine], 0.13, label=peer, color=f"C{i}")
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set_yscale("log")
        panel.set_ylabel("time / softxp's", fontsize=8)
        panel.set_title(function, fontsize=9, loc="left")
        labels = [
            f"{r['rows']} × {r['n']}" if "axis" in r else str(r["n"]) for r in mine
        ]  # (a GPU's rows fill one size)
        panel.set_xticks(range(len(mine)), labels, fontsize=8)
    names, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(names, labels, ncols=6, fontsize=7, loc="upper center")
    figure.set_layout_engine("tight", rect=(0, 0, 1, 0.97))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def text(report: dict[str, Any], images: str) -> str:
    rows, on = report["large"], report["machine"]
    lines = [
        "# Speed",
        "",
        "Measured by `make bench`: every contender in turn within each round, medians of the rounds, the same number of",
        "threads for all. A number under a peer's name is its time divided by softxp's: above 1, softxp is faster. `copy`",
        "is a plain copy of the input, so its column is the fraction of a copy's speed. GB/s counts what must cross the",
        "memory bus: the input once, and an answer of its size once. **Bold** is below the floor that was set for it; a",
        "floor is a promise to keep trying, not a test. An empty cell was not measured.",
        "",
        f"On {on['processor']}, {on['threads']} threads: "
        + ", ".join(f"{k} {v}" for k, v in on.items() if k not in ("processor", "threads", "machine", "system"))
        + f". {NO_GPU}",
        "",
        f"![How many times as long the peers take, float32, last axis]({images})",
        "",
        "## Ten numbers",
        "",
        "| peer | dtype | softxp, µs | peer, µs | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in report["small"]:
        took = row["seconds"]
        lines.append(
            f"| {row['peer']} | {row['dtype']} | {took['softxp'] * 1e6:.2f} | {took['peer'] * 1e6:.2f} "
            f"| {took['peer'] / took['softxp']:.2f} |"
        )
    lines += ["", "## Memory", "", "Peak memory beside the input, in sizes of the input (512 × 50257, float32).", ""]
    lines += ["| call | peak |", "|---|---|", *(f"| {k} | {v:.2f} |" for k, v in report["memory"].items()), ""]
    lines += ["A pullback holds the answer of its function and the gradient.", "", "## Floors", "", *missed(rows), ""]
    for function in dict.fromkeys(r["function"] for r in rows):
        mine = [r for r in rows if r["function"] == function]
        copies = [r["seconds"]["copy"] / r["seconds"]["softxp"] for r in mine if r["dtype"] == "float32"]
        lines += [f"## {function}", ""]
        if copies:
            lines += [f"Median fraction of a copy's speed in float32: {statistics.median(copies):.2f}.", ""]
        lines += [*table(mine), ""]
    return "\n".join(lines)


# --- the GPU's half --------------------------------------------------------------------------------------------------

NO_GPU, SOME_GPU = "Nothing here was measured on a GPU.", "A GPU's figures are [at the end](#on-a-gpu)."
ON_A_GPU = "## On a GPU"


def figure(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def gpu_half(report: dict[str, Any], stem: str) -> list[str]:
    on, rows, bars = report["machine"], report["rows"], report["bars"]
    lines = [
        ON_A_GPU,
        "",
        "Measured by `make gpu`: contenders in turn within each round, arrays that take turns, medians, by the GPU's own",
        "clock. Fractions are of a plain copy's speed in the same rounds, of the bytes that must cross the memory bus.",
        "",
        f"On {on['gpu']}: " + ", ".join(f"{k} {v}" for k, v in on.items() if k != "gpu") + ".",
        "",
        "### Bars",
        "",
        f"{sum(each['reached'] for each in bars)} of {len(bars)} are reached. Each is held to its worst dtype and length;",
        "what was not measured is not reached.",
        "",
        "| bar | wanted | got | where | reached |",
        "|---|---|---|---|---|",
    ]
    for each in bars:
        sense = "at most" if each["most"] else "at least"
        lines.append(
            f"| {each['name']} | {sense} {each['wanted']:g}{each['unit']} | {figure(each['got'])} | {each['where']} "
            f"| {'yes' if each['reached'] else '**no**'} |"
        )
    plain = by_shape(large(rows))
    lengths = sorted(LENGTHS)
    lines += ["", "### Fractions of a copy's speed", "", f"![Fractions of a copy's speed]({stem}-gpu.svg)", ""]
    lines += [f"| function | dtype | {' | '.join(map(str, lengths))} |", "|---" * (2 + len(lengths)) + "|"]
    for function in FUNCTIONS:
        for dtype in DTYPES:
            shares = [plain.get((function, dtype, n), {}).get("of copy", {}).get("softxp") for n in lengths]
            if any(s is not None for s in shares):
                cells = " | ".join("" if s is None else f"{s:.2f}" for s in shares)
                lines.append(f"| {function} | {dtype} | {cells} |")
    lines += ["", "### Beside others", "", "Their time / softxp's; n is the length of a row.", ""]
    lines += [f"![How many times as long the others take, float32]({stem}-gpu-peers.svg)", ""]
    lines += ["| function | dtype | rows × n | ms | torch | cupyx | formula | compiled | jax |", "|---" * 9 + "|"]
    for r in rows:
        ours = r.get("seconds", {}).get("softxp")
        if "of copy" in r and ours:
            cells = [figure(ratio(r, peer)) for peer in ("torch", "cupyx", "formula", "compiled", "jax")]
            lines.append(
                f"| {r['function']} | {r['dtype']} | {r['rows']} × {r['n']} | {figure(ours * 1e3)} | {' | '.join(cells)} |"
            )
    lines += ["", "### 32 × 1000", "", "Microseconds a call, by the host's clock, float32.", ""]
    lines += ["| function | softxp | torch | softxp on cupy | cupyx |", "|---|---|---|---|---|"]
    for r in rows:
        if "host seconds" in r:
            took = [r["host seconds"].get(name) for name in ("softxp", "torch", "softxp on cupy", "cupyx")]
            lines.append(f"| {r['function']} | {' | '.join(figure(t and t * 1e6) for t in took)} |")
    for r in rows:
        if r["function"] == "linear_cross_entropy":
            lines += [
                "",
                f"### Linear cross-entropy\n\n{r['rows']} × {r['width']} × {r['n']}, {r['dtype']}, forward and",
            ]
            lines += ["backward. `products` are its three matrix products alone.", "", "| who | ms |", "|---|---|"]
            lines += [f"| {name} | {figure(1e3 * t)} |" for name, t in r["seconds"].items()]
    return [*lines, ""]


def gpu_pictures(report: dict[str, Any], path: Path) -> None:
    plt = plots()
    rows = sorted(large(report["rows"]), key=lambda r: r["n"])
    if not rows:
        raise ValueError("the GPU's report holds no row of the large shapes; run make gpu again.")
    figure, panels = plt.subplots(len(FUNCTIONS), 1, figsize=(9, 2.3 * len(FUNCTIONS)), sharex=True)
    for panel, function in zip(panels, FUNCTIONS, strict=True):
        for i, dtype in enumerate(DTYPES):
            mine = {r["n"]: r["of copy"] for r in rows if (r["function"], r["dtype"]) == (function, dtype)}
            for name, style in (("softxp", "o-"), ("torch", ":")):
                known = [(n, of[name]) for n, of in mine.items() if name in of]
                panel.plot(*zip(*known, strict=True) if known else ([], []), style, color=f"C{i}", label=f"{name}, {dtype}",
                           markersize=3)  # fmt: skip
        panel.axhline(0.85, color="black", linewidth=0.6)
        panel.axhline(1, color="black", linewidth=0.3)
        panel.set_xscale("log", base=2)
        panel.set_ylim(0, 1.2)
        panel.set_ylabel("of a copy's speed", fontsize=8)
        panel.set_title(function, fontsize=9, loc="left")
    panels[-1].set_xlabel("numbers in a row", fontsize=8)
    names, labels = panels[0].get_legend_handles_labels()
    figure.legend(names, labels, ncols=4, fontsize=7, loc="upper center")
    figure.set_layout_engine("tight", rect=(0, 0, 1, 0.95))
    figure.savefig(path.with_name(f"{path.stem}-gpu.svg"), metadata={"Date": None})
    plt.close(figure)
    picture(rows, path.with_name(f"{path.stem}-gpu-peers.svg"), ("torch", "cupyx", "formula", "copy"))


def write(report: dict[str, Any] | None, path: Path, gpu: dict[str, Any] | None = None) -> None:
    """The half that is not given stays as the page has it."""
    before = path.read_text() if path.exists() else ""
    host, _, half = before.partition(f"\n{ON_A_GPU}\n")
    half = f"{ON_A_GPU}\n{half}" if half else ""
    if report is not None:
        image = path.with_name(f"{path.stem}.svg")
        picture(report["large"], image)
        host = text(report, image.name)
    if gpu is not None:
        if str(gpu["machine"]["gpu"]).startswith("none"):
            raise ValueError("a rehearsal's figures mean nothing; give those of a GPU.")
        gpu_pictures(gpu, path)
        half = "\n".join(gpu_half(gpu, path.stem))
    if half:
        host = re.sub(re.escape(NO_GPU), SOME_GPU, host)
    path.write_text(host.rstrip("\n") + "\n" + (f"\n{half}" if half else ""))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="build/speed.json, if given, and the page")
    parser.add_argument("--gpu", type=Path, help="what benchmarks.gpu has measured")
    given = parser.parse_args(argv)
    *source, target = given.files
    if len(source) > 1 or not (source or given.gpu):
        parser.error("give build/speed.json and the page, or --gpu and the page")
    read = [None if name is None else json.loads(name.read_text()) for name in (*(source or [None]), given.gpu)]
    write(read[0], target, read[1])


if __name__ == "__main__":
    main()
