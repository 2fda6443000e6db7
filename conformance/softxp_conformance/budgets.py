"""How far an answer may be from the truth, in ulp of its dtype: the promise, and the budget.

The *promise* is entry by entry, and everybody's: every library on every device keeps it.

The *budget* is tighter: for each function, dtype and family of rows, the worst and the mean error that the formula has
reached on the libraries we measure (reached.tsv), and HEADROOM, since no two libraries have the same exp. It catches the
change that costs an ulp where the promise would let it pass. softxp's own targets are held to it; a stranger's may be
(`Target.tight`).

    python -m softxp_conformance.budgets REPORT.jsonl ...     writes reached.tsv anew from reports (`make budgets`)
    python -m softxp_conformance.budgets --more REPORT.jsonl ...     raises what the reports have passed, and keeps the rest
"""

import csv
import json
import math
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .inputs import DRAWN, FAMILIES
from .ulp import FORMATS

NARROW = ("float16", "bfloat16")
VANISHES = {dtype: math.log(2) * (bits - lowest) for dtype, (bits, lowest, _) in FORMATS.items()}  # exp(-that) is 0

# kind: (dtype, gap) -> ulp. `gap` is |x - max| / T of the entry: exp turns an absolute error of its argument into a relative
# one of its value, so an argument's own rounding costs about gap of them.
# No more of it than takes an entry to 0.
PROMISE: dict[str, Callable[[str, Any], Any]] = {
    "map": lambda dtype, gap: 1.0 if dtype in NARROW else 8.0 + np.minimum(gap, VANISHES[dtype]),
    "log": lambda dtype, gap: 1.0 if dtype in NARROW else 12.0,
    "lse": lambda dtype, gap: 1.0 if dtype in NARROW else 8.0,
    "gradient": lambda dtype, gap: 1.0 if dtype in NARROW else 16.0 + np.minimum(gap, VANISHES[dtype]),
}

HEADROOM = 2.0
FLOOR = (
    0.5  # half an ulp is what rounding once costs, on average too where a family has few rows; no budget is below it
)

HELD = tuple(f for f in FAMILIES if f != DRAWN)  # drawn rows are others with every seed: the promise alone holds

TABLE = Path(__file__).with_name("reached.tsv")
KEY = ("arithmetic", "dtype", "function", "kind")


class Budget(NamedTuple):
    worst: float
    mean: float


@lru_cache
def reached() -> dict[tuple[str, ...], tuple[float, float]]:
    """(arithmetic, dtype, function, kind, family) -> the worst and the mean error reached."""
    with TABLE.open(newline="") as file:
        return {
            (*(line[k] for k in KEY), family): tuple(map(float, line[family].split("/")))  # type: ignore[misc]
            for line in csv.DictReader(file, delimiter="\t")
            for family in HELD
            if line[family]
        }


def budget(arithmetic: str, dtype: str, function: str, kind: str, family: str) -> Budget | None:
    """None where nothing was measured: then the promise alone holds."""
    found = reached().get((arithmetic, dtype, function, kind, family))
    return found and Budget(max(FLOOR, HEADROOM * found[0]), max(FLOOR, HEADROOM * found[1]))


def _up(value: float) -> float:
    """To two digits, upwards."""
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / step - 1e-9) * step, 12)


def measure(reports: list[str], more: bool = False) -> None:
    """Write the table from reports: in each cell the largest worst and the largest mean of any tight target."""
    cells: dict[tuple[str, ...], tuple[float, float]] = dict(reached()) if more else {}
    for path in reports:
        for line in Path(path).read_text().splitlines():
            row = json.loads(line)
            if not row.get("tight") or row.get("worst") is None:
                continue
            key = (*(row[k] for k in KEY), row["family"])
            worst, mean = cells.get(key, (0.0, 0.0))
            cells[key] = max(worst, row["worst"]), max(mean, row["mean"])
    lines = sorted({key[:-1] for key in cells})
    with TABLE.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow([*KEY, *HELD])
        for line in lines:
            found = (cells.get((*line, family)) for family in HELD)
            table.writerow([*line, *("" if f is None else f"{_up(f[0]):g}/{_up(f[1]):g}" for f in found)])
    print(f"{TABLE}: {len(cells)} cells from {len(reports)} reports")


if __name__ == "__main__":
    paths = [a for a in sys.argv[1:] if a != "--more"]
    measure(paths, more="--more" in sys.argv)
