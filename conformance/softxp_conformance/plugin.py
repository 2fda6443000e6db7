"""The pytest plugin behind `python -m softxp_conformance`: options, targets as parameters, the report."""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from . import targets as known
from .targets import TARGETS, Target

CHOSEN: pytest.StashKey[list[Target]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("softxp conformance")
    group.addoption(
        "--target",
        action="append",
        metavar="NAME",
        help=f"library to test, again for more: one of {', '.join(TARGETS)}; 'all' for those installed here; or "
        "package.module:TARGET for a Target of your own. A target that was named and cannot be imported is an error.",
    )
    group.addoption("--report", metavar="FILE", help="write one JSON row per target, dtype, function and input")


def resolve(name: str) -> Target:
    """A target by name, imported, or a usage error that says what to do."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            target = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise pytest.UsageError(f"--target {name}: {error}") from error
    elif name in TARGETS:
        target = TARGETS[name]
    else:
        raise pytest.UsageError(f"--target {name} is none of {', '.join(TARGETS)}, and no package.module:TARGET.")
    try:
        import_module(target.module)
        if target.module == "torch" and target.name.endswith("cuda") and not import_module("torch").cuda.is_available():
            raise ImportError("torch sees no CUDA device")
        if target.module == "cupy":
            import_module("cupy").cuda.runtime.getDeviceCount()
    except Exception as error:
        raise pytest.UsageError(f"--target {name} was named but cannot be used: {error}") from error
    return target


def _chosen(config: pytest.Config) -> list[Target]:
    if CHOSEN not in config.stash:
        names = config.getoption("--target") or ["all"]
        chosen = []
        for name in names:
            if name != "all":
                chosen.append(resolve(name))
                continue
            for each in TARGETS:
                try:
                    chosen.append(resolve(each))
                except pytest.UsageError:
                    continue
        config.stash[CHOSEN] = chosen
    return config.stash[CHOSEN]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`target` runs over the chosen targets, `dtype` over each target's dtypes."""
    if "target" not in metafunc.fixturenames:
        return
    chosen = _chosen(metafunc.config)
    if "dtype" in metafunc.fixturenames:
        pairs = [(t, d) for t in chosen for d in t.dtypes]
        metafunc.parametrize("target,dtype", pairs, ids=[f"{t.name}-{d}" for t, d in pairs])
    else:
        metafunc.parametrize("target", chosen, ids=[t.name for t in chosen])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = any("softxp_conformance" in str(item.path) for item in items)
    unused = {(t.name, part) for t in _chosen(config) for part in t.xfail} if ours else set()
    kept, dropped = [], []
    for item in items:
        target = getattr(getattr(item, "callspec", None), "params", {}).get("target")
        if isinstance(target, Target):
            if target.only and not any(re.search(part, item.name) for part in target.only):
                dropped.append(item)
                continue
            for part, reason in target.xfail.items():
                if part in item.nodeid:
                    item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
                    unused.discard((target.name, part))
        kept.append(item)
    items[:] = kept
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    narrowed = config.getoption("keyword") or config.getoption("markexpr") or any("::" in a for a in config.args)
    if unused and not narrowed:
        lines = ", ".join(f"{part!r} of {name}" for name, part in sorted(unused))
        raise pytest.UsageError(f"expected failures that match no test: {lines}; remove them.")


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Any:
    """record(function=..., input=..., worst=..., bound=...): one row of the report."""

    def add(**row: Any) -> None:
        request.node.user_properties.append(("softxp", row))

    return add


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        rows: Any = [row for name, row in report.user_properties if name == "softxp"]
        _REPORTED.extend(rows)


_REPORTED: list[dict[str, Any]] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--report")
    if path and not hasattr(session.config, "workerinput"):
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in _REPORTED))


@pytest.fixture(autouse=True)
def _in_context(request: pytest.FixtureRequest) -> Any:
    """A target may need a setting around each test, such as JAX's 64-bit mode."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    target = params.get("target")
    if isinstance(target, known.Target):
        with target.context(params.get("dtype", "float32")):
            yield
    else:
        yield
