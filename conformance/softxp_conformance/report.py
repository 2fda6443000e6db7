"""The report for people: who was asked, how far the answers were from the truth, ours beside theirs, and what failed.

python -m softxp_conformance.report REPORT.jsonl ... --write page.html       one page from several runs
python -m softxp_conformance.report REPORT.jsonl ... --insert docs/page.md   the same, between two marks of a page
"""

import argparse
import io
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .budgets import PROMISE
from .cases import CASES
from .inputs import FAMILIES
from .targets import TARGETS
from .ulp import FORMATS

Row = dict[str, Any]
INF = math.inf
DTYPES = tuple(FORMATS)
QUESTIONS = [(name, kind) for name in CASES for kind in ("value", "vjp", "jvp")]
BEGIN, END = "<!-- begin: python -m softxp_conformance.report -->", "<!-- end -->"
SUFFIXES = (".jsonl", ".md", ".html")
NEEDS = 'pages need the report extra: pip install "softxp[report]"'


# --- rows ------------------------------------------------------------------------------------------------------------


def read(paths: Iterable[str | Path]) -> tuple[list[Row], list[Row]]:
    """(facts of each run, rows of all, softxp's before its peers' and by target)."""
    runs: list[Row] = []
    rows: list[Row] = []
    for path in paths:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "run" in row:
                runs.append(row["run"])
            else:
                rows.append({**row, "asked in": str(path)})  # the same question may be answered in several runs
    return runs, in_order(rows)


def in_order(rows: list[Row]) -> list[Row]:
    """Workers answer in any order."""
    targets = {name: i for i, name in enumerate(TARGETS)}
    return sorted(rows, key=lambda r: (r["implementation"] != "softxp", targets.get(r["target"], len(targets)), who(r)))


def who(row: Row) -> str:
    """As the suite's own ids have it: the target, and the implementation where it is not softxp."""
    name = row["implementation"]
    return row["target"] if name == "softxp" else f"{row['target']}:{name}"


def measured(rows: Iterable[Row]) -> list[Row]:
    return [r for r in rows if "worst" in r and r["kind"] in ("value", "vjp", "jvp")]


def worst(rows: Iterable[Row], key: str = "worst") -> float | None:
    """The largest, infinite where an infinity, a NaN or a number was met by something else; None of nothing."""
    found = [INF if r[key] is None else r[key] for r in rows]
    return max(found, default=None)


def ulp(value: float | None) -> str:
    if value is None:
        return ""
    if math.isinf(value):
        return "∞"
    if value >= 1e4:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def grouped(rows: Iterable[Row], *keys: Any) -> dict[Any, list[Row]]:
    out: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        out[tuple(key(row) if callable(key) else row[key] for key in keys)].append(row)
    return out


# --- text ------------------------------------------------------------------------------------------------------------


def table(head: list[str], lines: Iterable[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"


def runs_text(runs: list[Row]) -> str:
    versions: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for name, version in run["versions"].items():
            versions[name].add(version)
    machines = sorted({f"{run['processor']}, {run['system']}, Python {run['python']}" for run in runs})
    devices = sorted({d for run in runs for d in run["devices"]})
    named = ", ".join(f"{name} {' and '.join(sorted(v))}" for name, v in sorted(versions.items()))
    return f"Measured on {'; '.join(machines)}. Devices: {', '.join(devices)}. Versions: {named}.\n"


def verdict_text(rows: list[Row]) -> str:
    lines = []
    for (name,), asked in grouped(rows, who).items():
        outcome = Counter({(r.get("asked in"), r["test"]): r["outcome"] for r in asked}.values())
        numbers = measured(asked)
        lines.append([
            f"**{name}**" if not outcome["failed"] else name,
            "conforms" if not outcome["failed"] else "does not conform",
            *(str(outcome[o]) for o in ("passed", "failed", "xfailed", "skipped")),
            ulp(worst(numbers, "share")),
        ])  # fmt: skip
    head = ["asked", "verdict", "passed", "failed", "expected to fail", "skipped", "largest share of the promise"]
    return table(head, lines)


def reached_text(rows: list[Row]) -> str:
    """Worst ulp of softxp, function by dtype, over all targets and families."""
    cells = grouped(measured(r for r in rows if r["implementation"] == "softxp"), "function", "kind", "dtype")
    lines = []
    for name, kind in QUESTIONS:
        found = [cells.get((name, kind, dtype), []) for dtype in DTYPES]
        if any(found):
            texts = [f"{ulp(worst(f))} ({ulp(worst(f, 'share'))})" if f else "" for f in found]
            lines.append([name if kind == "value" else f"{name}, {kind}", *texts])
    return table(["worst ulp (share of the promise)", *DTYPES], lines) if lines else ""


def beside_text(rows: list[Row]) -> str:
    """Family by family, plain calls: softxp and its peers, one table a function and dtype."""
    plain = [r for r in measured(rows) if r["kind"] == "value" and r["what"] in ("plain", "[gap, 0]")]
    long = [r for r in measured(rows) if r["kind"] == "value" and r["family"] == "vocabulary"]
    peers = {r["function"] for r in plain if r["implementation"] != "softxp"}
    parts = []
    for name in CASES:
        for dtype in ("float16", "float32", "float64"):
            cells = grouped((r for r in plain + long if (r["function"], r["dtype"]) == (name, dtype)), who, "family")
            homes = {r["target"] for r in plain if r["function"] == name and r["implementation"] != "softxp"}
            names = [n for n in dict.fromkeys(key[0] for key in cells) if n.partition(":")[0] in homes]
            if name not in peers or not any(":" in n for n in names):
                continue
            lines = []
            for family in FAMILIES:
                found = [cells.get((n, family), []) for n in names]
                if any(found):
                    texts = [
                        f"{ulp(worst(f))}{' ✗' if any(r['outcome'] == 'failed' for r in f) else ''}" for f in found
                    ]
                    lines.append([family, *texts])
            parts.append(f"**{name}, {dtype}**\n\n" + table(["worst ulp", *names], lines))
    return "\n".join(parts)


def faults_text(rows: list[Row], most: int = 12) -> str:
    """What failed, by who: the worst of each test, function and family, by its id and reason."""
    parts = []
    for (name,), failed in grouped((r for r in rows if r["outcome"] == "failed"), who).items():
        alike = grouped(failed, _test, lambda r: r.get("function"), lambda r: r.get("family")).values()
        shown = sorted(alike, key=lambda found: -max(map(_badness, found)))[:most]
        lines = []
        for found in shown:
            row, tests = max(found, key=_badness), _tests(found)
            dtypes = [d for d in DTYPES if any(r["dtype"] == d for r in found)]
            more = f" ({tests - 1} more{' in ' * bool(dtypes)}{', '.join(dtypes)})" if tests > 1 else ""
            lines.append(f"- `{row['test'].partition('::')[2]}`{more}: `{_clean(row['reason'])}`")
        rest = _tests(failed) - sum(map(_tests, shown))
        if rest:
            lines.append(f"- and {rest} more")
        parts.append(f"**{name}**, failed: {_tests(failed)}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _tests(rows: list[Row]) -> int:
    return len({(r.get("asked in"), r["test"]) for r in rows})


def _test(row: Row) -> str:
    return row["test"].partition("::")[2].partition("[")[0]


def _badness(row: Row) -> float:
    """How many times the promise; without a number, as bad as can be."""
    return row["share"] if row.get("share") is not None else INF


def _clean(text: str) -> str:
    text = re.sub(r"^AssertionError: ", "", text).replace("`", "'").replace("\n", " ")
    text = re.sub(r"0x[0-9a-f]{6,}", "0x…", text)
    return text if len(text) <= 220 else text[:217] + "..."


def stated_text(rows: list[Row]) -> str:
    lines = []
    for outcome, title in (("xfailed", "expected failure"), ("skipped", "stated")):
        for (name, reason), found in grouped((r for r in rows if r["outcome"] == outcome and r.get("reason")), who, "reason").items():  # fmt: skip  # noqa: E501
            if outcome == "xfailed" or reason.startswith("stated: "):
                lines.append([name, title, str(len(found)), reason.removeprefix("stated: ")])
    return table(["asked", "", "questions", "reason"], lines) if lines else ""


# --- pictures --------------------------------------------------------------------------------------------------------


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({
        "svg.hashsalt": "softxp", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False,
    })  # fmt: skip
    return plt


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    _pyplot().close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def heat_picture(rows: list[Row]) -> str:
    """Worst ulp, function by dtype, a panel a subject. The number is ulp; the colour says how much of the promise it is."""
    plt = _pyplot()
    cells = grouped(measured(rows), who, "function", "kind", "dtype")
    names = list(dict.fromkeys(key[0] for key in cells))
    asked = [q for q in QUESTIONS if any((n, *q, d) in cells for n in names for d in DTYPES)]
    across = min(4, len(names))
    down = -(-len(names) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(1.4 + 2.3 * across, down * (0.9 + 0.24 * len(asked))), sharey=True, squeeze=False
    )
    colours = plt.get_cmap("YlGnBu").with_extremes(bad="#f2f2f2", over="#d7301f")
    image = None
    for name, ax in zip(names, axes.flat, strict=False):
        dtypes = [d for d in DTYPES if any((name, *q, d) in cells for q in asked)]
        found = [[cells.get((name, *q, d), []) for d in dtypes] for q in asked]
        share = [[math.nan if not f else min(worst(f, "share") or 0.0, 1e9) for f in line] for line in found]
        image = ax.imshow(share, vmin=0, vmax=1, cmap=colours, aspect="auto")
        for y, line in enumerate(found):
            for x, f in enumerate(line):
                if f:
                    dark = share[y][x] > 0.5
                    ax.text(x, y, ulp(worst(f)), ha="center", va="center", size=7, color="white" if dark else "#222222")
        ax.set_title(name, size=9)
        ax.set_xticks(range(len(dtypes)), dtypes, rotation=30, ha="right")
        ax.set_yticks(range(len(asked)), [n if k == "value" else f"{n}, {k}" for n, k in asked])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    for ax in list(axes.flat)[len(names) :]:
        ax.set_visible(False)
    bar = figure.colorbar(image, ax=axes, extend="max", shrink=0.5, aspect=30, pad=0.02)
    bar.set_label("share of the promise (red: beyond it)")
    return _svg(figure)


def gap_picture(rows: list[Row]) -> str | None:
    """The error of log_softmax's dominant entry at [gap, 0], against the gap."""
    lines = [r for r in rows if r["function"] == "log_softmax" and any(e is not None for _, e in r.get("points") or ())]
    if not lines:
        return None
    plt = _pyplot()
    homes = {r["target"] for r in lines if r["implementation"] != "softxp"}
    lines = [r for r in lines if not homes or r["target"] in homes]
    dtypes = [d for d in DTYPES if any(r["dtype"] == d for r in lines)]
    names = list(dict.fromkeys(who(r) for r in lines))
    figure, axes = plt.subplots(1, len(dtypes), figsize=(1.2 + 2.9 * len(dtypes), 3.1), sharey=True, squeeze=False)
    colours = dict(zip(names, plt.get_cmap("tab10").colors * 3, strict=False))
    for dtype, ax in zip(dtypes, axes.flat, strict=True):
        for row in (r for r in lines if r["dtype"] == dtype):
            ours = row["implementation"] == "softxp"
            x, y = zip(*((g, max(e, 1e-2)) for g, e in row["points"] if e is not None), strict=True)
            ax.plot(x, y, color=colours[who(row)], lw=1.8 if ours else 1.2, ls="-" if ours else "--", label=who(row))
        promise = PROMISE["log"](dtype, 0)
        ax.axhline(promise, color="#888888", lw=0.8)
        ax.text(109, promise * 1.4, f"promise: {promise:g}", ha="right", size=7, color="#666666")
        ax.set_yscale("log")
        ax.set_title(dtype, size=9)
        ax.set_xlabel("gap")
    axes[0][0].set_ylabel("error of log_softmax([gap, 0])[0], ulp")
    handles = {label: h for ax in axes.flat for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=min(4, len(handles)), frameon=False,
                  bbox_to_anchor=(0.5, -0.12 - 0.05 * (len(handles) // 4)))  # fmt: skip
    return _svg(figure)


# --- pages -----------------------------------------------------------------------------------------------------------

HEAT, GAP = "heat map: worst error in ulp, function by dtype", "error of log_softmax against the gap"


def sections(runs: list[Row], rows: list[Row], picture: Any) -> str:
    """The whole in Markdown; `picture(name, words, svg)` puts a picture in."""
    peers = any(r["implementation"] != "softxp" for r in rows)
    parts: list[tuple[str, str]] = [("Who was asked", runs_text(runs) + "\n" + verdict_text(rows))]
    if measured(rows):
        parts.append(("How far from the truth", reached_text(rows) + "\n" + picture("heat", HEAT, heat_picture(rows))))
    gap = gap_picture(rows)
    if gap:
        parts.append(("A probability near 1", picture("gap", GAP, gap)))
    if peers:
        parts.append(("Beside its peers", "✗ marks a row past the promise.\n\n" + beside_text(rows)))
    parts += [("What failed", faults_text(rows)), ("What is stated", stated_text(rows))]
    return "\n".join(f"## {title}\n\n{text}" for title, text in parts if text)


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>softxp conformance</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }}
td, th {{ border-bottom: 1px solid #ddd; padding: .2rem .8rem .2rem 0; text-align: left; }}
code {{ font-size: .9em; overflow-wrap: anywhere; }} svg {{ max-width: 100%; height: auto; }}
</style>
<h1>softxp conformance</h1>
{body}
</html>
"""


def cannot_write(path: Path) -> str | None:
    """Why no report can be written there, before hours are spent on one; None where it can."""
    if path.suffix not in SUFFIXES:
        return f"a report is one of {', '.join(SUFFIXES)}, got {path.suffix or 'no suffix'}."
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        return "the file cannot be written; name one in a folder that exists and can be written to."
    if path.suffix != ".jsonl" and any(find_spec(name) is None for name in ("matplotlib", "markdown_it")):
        return NEEDS
    return None


def write(path: Path, runs: list[Row], rows: list[Row]) -> None:
    """A Markdown page with its pictures beside it, or one HTML page that holds them."""
    if path.suffix != ".html":
        text = sections(runs, rows, _beside(path))
        path.write_text(f"# softxp conformance\n\n{text}", encoding="utf-8")
        return
    from markdown_it import MarkdownIt

    pictures: list[str] = []

    def keep(name: str, words: str, svg: str) -> str:
        pictures.append(svg.replace("<svg", f'<svg role="img" aria-label="{words}"', 1))
        return f"PICTURE{len(pictures) - 1}\n"

    body = MarkdownIt("commonmark").enable("table").render(sections(runs, rows, keep))
    for i, svg in enumerate(pictures):
        body = body.replace(f"<p>PICTURE{i}</p>", f"<figure>{svg}</figure>")
    path.write_text(PAGE.format(body=body), encoding="utf-8")


def _beside(path: Path) -> Any:
    def keep(name: str, words: str, svg: str) -> str:
        beside = path.with_name(f"{path.stem}-{name}.svg")
        beside.write_text(svg, encoding="utf-8")
        return f"![{words}]({beside.name})\n"

    return keep


def insert(path: Path, runs: list[Row], rows: list[Row]) -> None:
    """The sections between the marks of a page, in place of what stood there."""
    page = path.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{path} needs the marks {BEGIN} and {END}; put them where the sections belong.")
    head, _, rest = page.partition(BEGIN)
    tail = rest.partition(END)[2]
    path.write_text(f"{head}{BEGIN}\n\n{sections(runs, rows, _beside(path))}\n{END}{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser("python -m softxp_conformance.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reports", nargs="+", help="what --report FILE.jsonl wrote")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page: .html or .md")
    parser.add_argument("--insert", type=Path, metavar="FILE", help=f"a page that holds {BEGIN} and {END}")
    given = parser.parse_args()
    for path in filter(None, (given.write, given.insert)):
        if wrong := cannot_write(path):
            parser.error(f"{path}: {wrong}")
    try:
        runs, rows = read(given.reports)
    except (OSError, ValueError) as error:
        parser.error(f"a report is what --report FILE.jsonl wrote: {error}")
    if given.write:
        write(given.write, runs, rows)
    if given.insert:
        insert(given.insert, runs, rows)


if __name__ == "__main__":
    main()
