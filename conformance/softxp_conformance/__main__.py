"""Judges a softmax family on an array library, answer by answer, against a high-precision truth.

python -m softxp_conformance --target torch [its options, and pytest's own]
"""

import argparse
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

EPILOG = """\
All of pytest's options are taken too: -n 2 for two workers, -k and -x, --tb=short for where an exception came from.
Exit code: 0 when everything asked was answered within its bound, 1 when not, 4 for a target that cannot be used,
5 when nothing was asked. The last line says the verdict and the counts.
"""


class Verdict:
    """What failed, the counts, and the last line."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("passed", "failed", "expected to fail", "skipped"), 0)
        self.failures: list[str] = []
        self.start = time.monotonic()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._fails(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._fails(report)
        elif report.skipped:
            self.counts["expected to fail" if hasattr(report, "wasxfail") else "skipped"] += 1
        elif report.when == "call":
            self.counts["passed"] += 1

    def _fails(self, report: Any) -> None:
        from .rows import reason

        self.counts["failed"] += 1
        self.failures.append(f"FAILED {report.nodeid.rpartition('::')[2]}: {reason(report)}")

    @property
    def empty(self) -> bool:
        return not any(self.counts[k] for k in ("passed", "failed", "expected to fail"))

    def line(self, subjects: list[Any]) -> str:
        names = dict.fromkeys(s.library for s in subjects)
        failed = self.counts["failed"]
        if self.empty:
            return "nothing was asked"
        word = "does not conform" if failed else "conforms"
        if len(names) > 1:
            word = "do not all conform" if failed else "conform"
        counts = ", ".join(f"{n} {what}" for what, n in self.counts.items() if n or what in ("passed", "failed"))
        return f"{', '.join(names)} {word}: {counts} in {time.monotonic() - self.start:.0f} s"


def help_page() -> str:
    from . import plugin

    parser = argparse.ArgumentParser("python -m softxp_conformance", description=__doc__, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    for name, how in plugin.OPTIONS:
        parser.add_argument(name, **how)
    return parser.format_help()


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(given):
        print(help_page())
        return 0
    here = str(Path(__file__).parent)
    defaults = ["-p", "softxp_conformance.plugin", "-p", "no:cacheprovider", "--rootdir", here, "-c", os.devnull]
    defaults += ["-q"]
    if find_spec("xdist"):
        defaults += ["--dist=worksteal"]  # neighbouring tests share an answer: keep them on one worker
    defaults += ["--tb=no", "-rN", "--disable-warnings"]  # what failed is said once, by the verdict
    verdict, ended = Verdict(), []

    class Keep:
        def pytest_sessionfinish(self, session: pytest.Session) -> None:
            from .plugin import subjects

            if not hasattr(session.config, "workerinput") and not session.config.option.collectonly:
                ended.append(subjects(session.config))

    code = int(pytest.main([*defaults, here, *given], plugins=[verdict, Keep()]))
    if code == 2 and verdict.failures:  # -x among workers, or a test file that cannot be read
        code = 1
    if ended and code in (0, 1, 5):
        print(*verdict.failures, verdict.line(ended[0]), sep="\n")
        code = 5 if verdict.empty else code
    return code


if __name__ == "__main__":
    raise SystemExit(main())
