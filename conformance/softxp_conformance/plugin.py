"""The pytest plugin behind `python -m softxp_conformance`: options, who is asked, what is left out, the report."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import report, rows
from .cases import CASES, Case
from .compositions import COMPOSITIONS, Composition
from .implementations import IMPLEMENTATIONS, Implementation
from .inputs import ALL, FAMILIES
from .subject import Question, Subject, questions, subject_named
from .targets import TARGETS, Target, numpy_dtype
from .ulp import FORMATS

KINDS = ("values", "derivatives", "compositions", "contract", "relations")  # one test file each

# What `--help` shows: argparse's words, which pytest's parser knows too.
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("--target", dict(
        action="append", metavar="NAME",
        help=f"library to test, again for more: one of {', '.join(TARGETS)}; 'all' for those installed here; or "
        "package.module:TARGET for a Target of your own. A target that was named and cannot be imported is an error. "
        "Default: all.",
    )),
    ("--implementation", dict(
        action="append", metavar="NAME",
        help=f"whose functions, again for more: one of {', '.join(IMPLEMENTATIONS)}; or package.module:IMPLEMENTATION. "
        "Default: softxp.",
    )),
    ("--function", dict(
        action="append", choices=[*CASES, *COMPOSITIONS],
        help="ask about this function alone, again for more",
    )),
    ("--dtype", dict(
        action="append", choices=list(FORMATS),
        help="in this dtype alone, again for more",
    )),
    ("--device", dict(action="append", metavar="NAME", help="targets on this device alone, such as cpu or cuda")),
    ("--kind", dict(action="append", choices=KINDS, help="this kind of test alone, again for more")),
    ("--family", dict(action="append", choices=FAMILIES, help="this family of rows alone, again for more")),
    ("--quick", dict(action="store_true", help="a first look, in less than a minute")),
    ("--seed", dict(type=int, default=0, metavar="N", help="which rows hypothesis draws (default: 0)")),
    ("--examples", dict(type=int, default=20, metavar="N", help="how many batches it draws (default: 20)")),
    ("--report", dict(
        action="append", metavar="FILE",
        help="write what was measured, again for more: .jsonl for one JSON row a question, .md or .html for people",
    )),
    ("--junit", dict(metavar="FILE", help="write JUnit's XML (pytest's --junitxml)")),
]  # fmt: skip

HERE = Path(__file__).parent

SUBJECTS: pytest.StashKey[list[Subject]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("softxp conformance")
    for name, how in OPTIONS:
        group.addoption(name, **how)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--junit"):
        config.option.xmlpath = config.getoption("--junit")
    for line in (
        "about(function): which function the test is about",
        "family(name): which family of rows the test is about",
        "thorough: left out by --quick",
    ):
        config.addinivalue_line("markers", line)
    if config.getoption("--examples") < 1:  # type: ignore[operator]
        raise pytest.UsageError(f"--examples must be at least 1, got {config.getoption('--examples')}.")
    for name in config.getoption("--report") or []:
        wrong = report.cannot_write(Path(name))
        if wrong:
            raise pytest.UsageError(f"--report {name}: {wrong}")
    if any(config.getoption(option) for option in ("--target", "--implementation", "--device")):
        subjects(config)  # who was named and cannot be asked is said at once
    config.pluginmanager.register(rows, "softxp conformance fixtures")
    config.pluginmanager.register(rows.Rows(config, lambda: subjects(config)), "softxp conformance rows")


# --- who is asked ----------------------------------------------------------------------------------------------------


def _named(option: str, name: str, known: Iterable[str], kind: type) -> Any:
    """An object of the caller's, `package.module:NAME`."""
    module, _, attribute = name.partition(":")
    if not attribute:
        what = f"package.module:{kind.__name__.upper()}"
        raise pytest.UsageError(f"{option} {name} is none of {', '.join(known)}, and no {what}.")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:
        raise pytest.UsageError(f"{option} {name} was named but cannot be imported, or made: {error}") from error
    if not isinstance(found, kind):
        raise pytest.UsageError(f"{option} {name} must be a {kind.__module__}.{kind.__name__}, got {found!r}.")
    return found


def target(name: str) -> Target:
    """A target by name, imported, or a usage error that says what to do."""
    found = TARGETS.get(name) or _named("--target", name, TARGETS, Target)
    try:
        import_module(found.module)
        found.ready()
        _gives_its_own(found)
    except Exception as error:
        raise pytest.UsageError(f"--target {name} was named but cannot be used: {error}") from error
    return found


def _gives_its_own(target: Target) -> None:
    """A library that is handed numpy's arrays would conform without having been asked."""
    with target.context(target.dtypes[0]):
        a = target.asarray(np.zeros((1, 1), numpy_dtype(target.dtypes[0])))
        if type(a) is np.ndarray and target.module.partition(".")[0] not in ("numpy", "ml_dtypes"):
            raise TypeError(f"its asarray must give arrays of {target.module}, got a numpy.ndarray.")
        back = target.asnumpy(a)
    if not isinstance(back, np.ndarray):
        raise TypeError(f"its asnumpy must give a numpy.ndarray, got {type(back).__module__}.{type(back).__name__}.")


def implementation(name: str) -> Implementation:
    """An implementation by name, its signatures read, or a usage error that says what to do."""
    make = IMPLEMENTATIONS.get(name)
    theirs: Any = None if make else _named("--implementation", name, IMPLEMENTATIONS, Implementation)
    try:
        found = make() if make else theirs
        for function in found.functions:
            if function not in CASES and function not in COMPOSITIONS:
                raise TypeError(f"its functions must be among {', '.join((*CASES, *COMPOSITIONS))}, got {function!r}.")
            found.takes(function, {})
        return found
    except Exception as error:
        raise pytest.UsageError(f"--implementation {name} was named but cannot be used: {error}") from error


def _installed(names: Iterable[str] = TARGETS) -> Iterator[Target]:
    for name in names:
        try:
            yield target(name)
        except pytest.UsageError:
            continue


def subjects(config: pytest.Config) -> list[Subject]:
    """Every implementation on every target that it serves, in every dtype."""
    if SUBJECTS in config.stash:
        return config.stash[SUBJECTS]
    makers = [implementation(name) for name in dict.fromkeys(config.getoption("--implementation") or ["softxp"])]
    names = config.getoption("--target")
    if names is None:  # all that is installed; for a peer, its own library as it comes
        everywhere = all(not m.modules for m in makers)
        targets = list(_installed(name for name in TARGETS if everywhere or name in _homes(makers)))
    else:
        targets = [t for name in names for t in (_installed() if name == "all" else [target(name)])]
    devices, found = config.getoption("--device"), {t.device for t in targets}
    if devices and not found & set(devices):
        raise pytest.UsageError(f"--device must be one of {', '.join(sorted(found))}, got {', '.join(devices)}.")
    targets = [t for t in dict.fromkeys(targets) if not devices or t.device in devices]
    for maker in makers:
        if targets and not any(maker.serves(t.module) for t in targets):
            names_of = ", ".join(t.name for t in targets)
            raise pytest.UsageError(
                f"--implementation {maker.name} takes arrays of {', '.join(maker.modules)}, got --target {names_of}."
            )
    for chosen in (targets, makers):
        twice = [each for i, each in enumerate(chosen) if each.name in {other.name for other in chosen[:i]}]
        if twice:
            raise pytest.UsageError(f"two of those named are called {twice[0].name!r}; give each a name of its own.")
    dtypes = config.getoption("--dtype")
    served = {d for t in targets for d in t.dtypes}
    if dtypes and targets and not served & set(dtypes):
        names_of = ", ".join(t.name for t in targets)
        raise pytest.UsageError(
            f"--dtype must be one of {', '.join(sorted(served))} for {names_of}, got {', '.join(dtypes)}."
        )
    config.stash[SUBJECTS] = [
        Subject(t, maker, dtype)
        for t in targets
        for maker in makers
        if maker.serves(t.module)
        for dtype in t.dtypes
        if not dtypes or dtype in dtypes
    ]
    return config.stash[SUBJECTS]


def _homes(makers: list[Implementation]) -> set[str]:
    return {module for maker in makers for module in maker.modules}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`subject` runs over all, `library` over one dtype of each, `case` and questions over what each can be asked."""
    names = metafunc.fixturenames
    if not metafunc.definition.path.is_relative_to(HERE) or not {"subject", "library"} & set(names):
        return
    chosen = subjects(metafunc.config)
    if metafunc.config.getoption("--quick") and _kind_of(metafunc.definition) != "values":
        chosen = _one_dtype(chosen)
    who = "subject"
    if "library" in names:
        who, chosen = "library", _one_dtype(chosen)
    about = metafunc.definition.get_closest_marker("about")
    if about:
        chosen = [s for s in chosen if s.implementation.takes(about.args[0], {})]
    if "case" in names:
        _over(metafunc, who, "case", [(s, c) for s in chosen for c in CASES.values() if _has(s, c)])
        return
    for kind in ("value", "vjp", "jvp"):
        if f"{kind}_question" in names:
            asked = [q for q in questions(kind) if _wanted(metafunc.config, q, kind)]
            pairs = [(s, q) for s in chosen if kind == "value" or s.can(kind) for q in asked if _answers(s, q)]
            _over(metafunc, who, f"{kind}_question", pairs)
            return
        if f"{kind}_composition".removeprefix("value_") in names:
            asked = [(c, v) for c in COMPOSITIONS.values() for v in c.variants if _whole(metafunc.config, c, v, kind)]
            asked = [(c, v) for c, v in asked if kind == "value" or c.moves]
            able = [s for s in chosen if kind == "value" or s.can(kind)]
            pairs = [(s, each) for s in able for each in asked if s.implementation.takes(each[0].name, {})]
            _over(metafunc, who, f"{kind}_composition".removeprefix("value_"), pairs)
            return
    ids = [str(s) if who == "subject" else s.library for s in chosen]
    metafunc.parametrize(who, chosen, ids=ids)


def _one_dtype(chosen: list[Subject]) -> list[Subject]:
    """One subject a library, in float32 where it is asked in that: what is no value seldom differs by dtype."""
    best: dict[str, Subject] = {}
    for s in chosen:
        if s.library not in best or s.dtype == "float32":
            best[s.library] = s
    return list(best.values())


def _over(metafunc: pytest.Metafunc, who: str, what: str, pairs: list[tuple[Subject, Any]]) -> None:
    def name(each: Any) -> str:
        return f"{each[0]}-{each[1]}" if isinstance(each, tuple) else str(each)

    ids = [f"{s if who == 'subject' else s.library}-{name(each)}" for s, each in pairs]
    metafunc.parametrize(f"{who},{what}", pairs, ids=ids)


def _has(subject: Subject, case: Case) -> bool:
    needed = {"reduction": "none"} if case.labelled else {}
    return subject.implementation.takes(case.name, needed)


def _answers(subject: Subject, q: Question) -> bool:
    options = {k: v for k, v in q.case.options(q.variant, "float32").items() if k not in ("labels", "beside")}
    return subject.implementation.takes(q.case.name, options)


def _wanted(config: pytest.Config, q: Question, kind: str) -> bool:
    """What --quick leaves of the questions: a few variants, and reverse mode of plain ones."""
    if not config.getoption("--quick"):
        return True
    return q.variant in q.case.quick if kind == "value" else kind == "vjp" and q.variant == "plain"


def _whole(config: pytest.Config, composition: Composition, variant: str, kind: str) -> bool:
    """What --quick leaves of the compositions: values in the first variant."""
    return not config.getoption("--quick") or (kind == "value" and variant == next(iter(composition.variants)))


# --- what is left out, what is expected to fail -----------------------------------------------------------------------


def _subject_of(item: pytest.Item) -> Subject | None:
    params = getattr(getattr(item, "callspec", None), "params", {})
    found = params.get("subject", params.get("library"))
    return found if isinstance(found, Subject) else None


def _function_of(item: Any) -> str | None:
    params, about = item.callspec.params, item.get_closest_marker("about")
    for value in params.values():
        if isinstance(value, Case):
            return value.name
        if isinstance(value, Question):
            return value.case.name
        if isinstance(value, tuple) and value and isinstance(value[0], Composition):
            return value[0].name
    return about.args[0] if about else params.get("name") if params.get("name") in CASES else None


def _lean(item: Any) -> bool:
    """Is the test about a function of which little is asked?"""
    for value in item.callspec.params.values():
        case = value.case if isinstance(value, Question) else value[0] if isinstance(value, tuple) and value else value
        if isinstance(case, (Case, Composition)):
            return case.lean
    return False


def _family_of(item: Any) -> str | None:
    for value in item.callspec.params.values():
        if isinstance(value, Question):
            return value.family or ALL
    marker = item.get_closest_marker("family")
    return marker.args[0] if marker else None


def _kind_of(item: Any) -> str:
    return item.path.stem.removeprefix("test_")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wants: list[tuple[str, Callable[[Any], Any]]] = [
        ("--function", _function_of), ("--family", _family_of), ("--kind", _kind_of),
    ]  # fmt: skip
    filters = [(set(config.getoption(option) or ()), find) for option, find in wants if config.getoption(option)]
    kept, dropped = [], []
    for item in items:
        subject = _subject_of(item)
        if subject is None:
            empty = "softxp_conformance" in str(item.path) and hasattr(item, "callspec")
            (dropped if empty else kept).append(item)  # a test that none of the chosen can be asked
            continue
        only = subject.target.lean if _lean(item) else subject.target.only
        if (
            any(find(item) not in wanted for wanted, find in filters)
            or (config.getoption("--quick") and item.get_closest_marker("thorough"))
            or (only and not any(re.search(part, item.name) for part in only))
        ):
            dropped.append(item)
            continue
        for part, reason in subject.xfail.items():
            if part in item.name:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
        for part, reason in subject.target.stated.items():
            if part in item.name:
                item.add_marker(pytest.mark.skip(reason=f"stated: {reason}"))
        item.user_properties.append(("subject", _who(subject, item)))
        kept.append(item)
    items[:] = kept
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    if not hasattr(config, "workerinput") and any(_subject_of(item) for item in kept):
        _refuse_stale(config, [item.nodeid for item in kept])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    if any(f"test_{kind}.py::" in each for each in ids for kind in KINDS):
        _refuse_stale(node.config, ids)


def _narrowed(config: pytest.Config) -> bool:
    """Was less asked than everything?"""
    options = ("--function", "--family", "--kind", "--quick", "--dtype", "--device", "keyword", "markexpr", "deselect",
               "ignore")  # fmt: skip
    paths = [config.invocation_params.dir / arg for arg in config.args]
    return any(config.getoption(o, None) for o in options) or not any(HERE.is_relative_to(p.resolve()) for p in paths)


def _refuse_stale(config: pytest.Config, ids: list[str]) -> None:
    """A line of xfail or of stated that matches none of its own tests is an error, unless the run was narrowed."""
    if _narrowed(config):
        return
    chosen = {s.library: s for s in subjects(config)}
    asked: dict[str, list[str]] = {library: [] for library in chosen}
    for name in (each.rpartition("::")[2] for each in ids):
        owner = subject_named(name, list(chosen.values()))
        if owner:
            asked[owner.library].append(name)
    stale = [
        f"{part!r} of {library}"
        for library, s in chosen.items()
        if s.ours  # a peer may never be asked what the target states
        for part in {**s.target.xfail, **s.target.stated}
        if not any(part in name for name in asked[library])
    ]
    for maker in {s.implementation: s for s in chosen.values()}:
        of_all = [name for library, s in chosen.items() if s.implementation is maker for name in asked[library]]
        stale += [f"{part!r} of {maker.name}" for part in maker.xfail if not any(part in name for name in of_all)]
    if stale:
        raise pytest.UsageError(
            f"expected failures, or statements, that match no test: {', '.join(sorted(stale))}; remove them."
        )


@pytest.fixture(autouse=True)
def _in_context(request: pytest.FixtureRequest) -> Any:
    """A target may need a setting around each test, such as JAX's 64-bit mode."""
    subject = _subject_of(request.node)
    if subject is None:
        yield
        return
    with warnings.catch_warnings():
        # what others warn of is not what they are judged by
        quiet = subject.target.quiet and subject.implementation.words
        warnings.simplefilter("error" if quiet else "ignore", RuntimeWarning)
        with subject.target.context(subject.dtype):  # inside: it may want to hear of a warning
            yield


# --- the report ------------------------------------------------------------------------------------------------------


def _who(subject: Subject, item: Any) -> dict[str, Any]:
    dtype = subject.dtype if "subject" in item.callspec.params else None
    return rows.described(
        subject, dtype=dtype, function=_function_of(item), family=_family_of(item), section=_kind_of(item)
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if not hasattr(config, "workerinput"):
        seed: Any = config.getoption("--seed")
        for name in (config.getoption("--report") or []) if config.stash[rows.ROWS] else []:
            rows.write(Path(name), rows.facts(subjects(config), seed), config.stash[rows.ROWS])
