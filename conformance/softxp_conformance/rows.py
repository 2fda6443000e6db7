"""The rows of the report: what each question measured, and how it ended, gathered from all workers."""

import json
import math
import platform
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import pytest

from . import report
from .subject import Subject, subject_named

NOTE = "drawn by --seed"  # how a note begins that a reader needs to ask again
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

    def __init__(self, config: pytest.Config, subjects: Callable[[], list[Subject]]) -> None:
        self.rows = config.stash.setdefault(ROWS, [])
        self.subjects = subjects

    def _by_name(self, report: pytest.TestReport) -> dict[str, Any] | None:
        """Who a test was about whose worker died before it could say."""
        path, _, name = report.nodeid.rpartition("::")
        if not report.failed or not Path(__file__).with_name(Path(path).name).exists():
            return None
        owner = subject_named(name, self.subjects())
        return described(owner, section=Path(path).stem.removeprefix("test_")) if owner else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        properties: list[tuple[str, Any]] = list(report.user_properties)
        who = next((value for name, value in properties if name == "subject"), None) or self._by_name(report)
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


def described(subject: Subject, **more: Any) -> dict[str, Any]:
    """Who was asked, as the columns of a row."""
    return {
        "target": subject.target.name,
        "implementation": subject.implementation.name,
        "device": subject.target.device,
        "dtype": subject.dtype,
        "function": None,
        "family": None,
        **more,
    }


def reason(report: Any) -> str:
    """What went wrong, in one line, and what was noted beside it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash else report.longrepr).removeprefix("AssertionError:")
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    said = lines[:1]
    if text.startswith("[XPASS(strict)]"):
        said = [f"was expected to fail, and passed; remove the line that says: {text.removeprefix('[XPASS(strict)] ')}"]
    elif said and said[0].startswith(("Arrays are not equal", "Not equal to tolerance", "Regex pattern")):
        said = [" ".join(lines)[:300]]  # numpy's and pytest's words, on many lines
    return ", ".join([*said, *(line for line in lines[1:] if line.startswith(NOTE))])


def facts(subjects: list[Subject], seed: int) -> dict[str, Any]:
    """What a reader must know to believe, or repeat, the run."""
    names = {"numpy", "softxp", "mpmath", "gmpy2", "array-api-compat", "hypothesis"}
    found = packages_distributions()  # pebble may come from pebble-arrays
    for s in subjects:
        for module in (s.target.module.partition(".")[0], s.implementation.name.partition(".")[0]):
            names |= set(found.get(module, ()))
    versions = {}
    for name in sorted(names):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
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
        path.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines), encoding="utf-8")
    else:
        report.write(path, [run], report.in_order(rows))
