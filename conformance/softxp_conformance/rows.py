"""The rows of the report: what each question measured, and how it ended, gathered from all workers."""

import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from . import report
from .subject import Subject

ROWS: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Any:
    """record(function=..., kind=..., family=..., worst=...): one row of the report."""

    def add(**row: Any) -> None:
        row = {k: v.item() if hasattr(v, "item") else v for k, v in row.items()}  # rows travel between processes
        # JSON has no infinity
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        request.node.user_properties.append(("row", row))

    return add


class Rows:
    """Gathers the rows of all tests."""

    def __init__(self, config: pytest.Config) -> None:
        self.rows = config.stash.setdefault(ROWS, [])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and not (report.when == "setup" and not report.passed):
            return
        properties: list[tuple[str, Any]] = list(report.user_properties)
        who = next((value for name, value in properties if name == "subject"), None)
        if who is None:
            return
        outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
        end: dict[str, Any] = {"test": report.nodeid.rpartition("/")[2], "outcome": outcome}
        if outcome == "skipped" and isinstance(report.longrepr, tuple):
            end["reason"] = report.longrepr[2].removeprefix("Skipped: ")
        if outcome == "failed":
            end["reason"] = reason(report)
        if outcome == "xfailed":
            end["reason"] = report.wasxfail
        for row in [value for name, value in properties if name == "row"] or [{}]:
            self.rows.append({**who, **row, **end})


def reason(report: Any) -> str:
    """What went wrong, in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash else report.longrepr).removeprefix("AssertionError:")
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return ", ".join(lines[:2]) if lines[:1] == ["Arrays are not equal"] else "".join(lines[:1])


def facts(subjects: list[Subject], seed: int) -> dict[str, Any]:
    """What a reader must know to believe, or repeat, the run."""
    names = {"numpy", "softxp", "mpmath", "gmpy2", "array-api-compat"}
    for s in subjects:
        names |= {s.target.module.partition(".")[0], s.implementation.name.partition(".")[0]}
    versions = {}
    for name in sorted(names):
        try:
            versions[name] = version(name.replace("_", "-"))
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "devices": sorted({s.target.device for s in subjects}),
        "versions": versions,
        "seed": seed,
    }


def processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def write(path: Path, run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """JSON rows, or a page for people, by the path's suffix."""
    if path.suffix == ".jsonl":
        lines = [{"run": run}, *rows]
        path.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    else:
        report.write(path, [run], report.in_order(rows))
