"""docs/speed.md and its pictures, from a run's figures: `python -m benchmarks.page build/speed.json docs/speed.md`."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

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


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """How many times as fast as each peer, over shapes: a panel for each function, in float32 along the last axis."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "softxp"
    import matplotlib.pyplot as plt

    rows = [r for r in rows if r["dtype"] == "float32" and r["axis"] == -1]
    functions = list(dict.fromkeys(r["function"] for r in rows))
    peers = [
        p for p in ("scipy", "numpy", "torch", "torch.compile", "jax", "copy") if any(p in r["seconds"] for r in rows)
    ]
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
        panel.set_xticks(range(len(mine)), [f"{r['rows']} × {r['n']}" for r in mine], fontsize=8)
    names, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(names, labels, ncols=6, fontsize=7, loc="upper center")
    figure.tight_layout(rect=(0, 0, 1, 0.97))
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
        + ". Nothing here was measured on a GPU.",
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


def write(report: dict[str, Any], path: Path) -> None:
    image = path.with_name(f"{path.stem}.svg")
    picture(report["large"], image)
    path.write_text(text(report, image.name))


if __name__ == "__main__":
    source, target = sys.argv[1:]
    write(json.loads(Path(source).read_text()), Path(target))
