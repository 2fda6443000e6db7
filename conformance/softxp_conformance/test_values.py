"""Values, against the truth: the named rows family by family, drawn rows, every axis, rows as long as vocabularies."""

from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, seed, settings

from . import inputs
from .budgets import NARROW
from .cases import CASES, Case
from .compare import judge
from .inputs import ALL, DRAWN, VOCABULARY
from .rows import NOTE
from .subject import Question, Subject, answer, truth
from .ulp import distance


def test_rows(subject: Subject, value_question: Question, record: Any) -> None:
    q = value_question
    got, sign = answer(subject, "value", q)
    right = truth("value", q.case, q.variant, subject.dtype)
    signed = q.case.options(q.variant, subject.dtype).get("return_sign", False)
    assert (sign is not None) == signed, f"{subject} {q}: return_sign=True returns a logarithm and a sign"
    if signed:
        np.testing.assert_array_equal(sign, right.sign[:, 0][q.cells])
    judge(record, subject, q.case, "value", q.family or ALL, q.variant, got, right, cells=q.cells, names=q.names)


@pytest.mark.family(DRAWN)
def test_drawn(subject: Subject, case: Case, record: Any, request: pytest.FixtureRequest) -> None:
    """Rows that hypothesis draws; --seed N draws others. Not made simpler where one fails: that takes minutes."""
    number: Any = request.config.getoption("--seed")
    examples: Any = request.config.getoption("--examples")
    what = f"seed {number}"
    rows: list[dict[str, Any]] = []

    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate])
    @given(inputs.drawn(subject.dtype))
    def check(x: Any) -> None:
        options = case.labels(x)
        got = subject.take(subject.value(case.name, x, options))
        right = case.truth(x, **options)
        judge(lambda **row: rows.append(row), subject, case, "value", DRAWN, what, got, right)

    try:
        check()
    except Exception as error:
        if what not in str(error):
            error.add_note(f"{NOTE} {number}")
        raise
    finally:
        if rows:  # one line of the report for all of them
            worst, mean = ([row[k] for row in rows] for k in ("worst", "mean"))
            if None in worst:
                record(**{**rows[-1], "worst": None, "mean": None})
            else:
                promise = max(row["promise"] for row in rows)
                share = max(row["share"] for row in rows)
                record(**{**rows[-1], "worst": max(worst), "mean": max(mean), "share": share, "promise": promise})


# distinct primes, so that no axis passes for another
SHAPE = (3, 5, 7)


@pytest.mark.family("normal")
@pytest.mark.parametrize(
    "axis", [0, (0, 2), *(pytest.param(axis, marks=pytest.mark.thorough) for axis in (1, -1, (-1, 1), None))], ids=str
)
def test_axis(subject: Subject, case: Case, axis: Any, record: Any) -> None:
    subject.needs(case.name, axis=axis)
    x = inputs.block(SHAPE, subject.dtype, seed=1)
    over = range(3) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(sorted(a % 3 for a in over))
    others = tuple(a for a in range(3) if a not in axes)
    kept = tuple(SHAPE[a] for a in others)
    rows = np.transpose(x, (*others, *axes)).reshape(int(np.prod(kept)), -1)
    labels = case.labels(rows)
    shaped = {k: v.reshape(kept) if k == "labels" else v for k, v in labels.items()}
    got = subject.take(subject.value(case.name, x, {"axis": axis, **shaped}))
    assert got.shape == (kept if case.reduces else SHAPE)
    if not case.reduces:
        got = np.transpose(got, (*others, *axes)).reshape(rows.shape)
    judge(
        record, subject, case, "value", "normal", f"axis={axis}", got.reshape(len(rows), -1), case.truth(rows, **labels)
    )


# vocabularies: one that is no multiple of anything, and the longest in use, a power of two
LENGTHS = [
    (50257, "normal"),
    *(
        pytest.param(n, rows, marks=pytest.mark.thorough)
        for n, rows in [(50257, "dominant"), (262144, "normal"), (262144, "equal")]
    ),
]


@pytest.mark.family(VOCABULARY)
@pytest.mark.parametrize("axis", [-1, pytest.param(0, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("n,rows", LENGTHS)
def test_long(subject: Subject, case: Case, n: int, rows: str, axis: int, record: Any) -> None:
    if case.brief and not (rows == "normal" and n == 50257 and axis == -1):
        pytest.skip("asked of long rows in one shape alone")
    x = inputs.long_row(n, subject.dtype, rows)[None]
    labels = {**case.labels(x), "labels": np.asarray([2 * n // 3])} if case.labels(x) else {}
    right = case.truth(x, **labels)
    got = subject.take(subject.value(case.name, x if axis == -1 else x.T, {"axis": axis, **labels}))
    what = f"{n} {rows}, axis={axis}"
    judge(record, subject, case, "value", VOCABULARY, what, got.reshape(right.value.shape), right, long=True)


@pytest.mark.family(VOCABULARY)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("n", [70_000, pytest.param(200_000, marks=pytest.mark.thorough)])
def test_half_sums(subject: Subject, name: str, n: int, record: Any) -> None:
    """Sums are never taken in 16 bits: float16 ends at 65504, bfloat16 counts to 256."""
    if subject.dtype not in NARROW:
        pytest.skip("sums of 16 bits are asked for in 16 bits")
    subject.needs(name)
    case, x = CASES[name], np.zeros((1, n))
    got = subject.take(subject.value(name, x, {}))
    judge(record, subject, case, "value", VOCABULARY, f"{n} zeros", got, case.truth(x), long=True)


GAPS = np.arange(0.0, 110.5, 0.5)


@pytest.mark.family("dominant")
@pytest.mark.parametrize("name", ["log_softmax", "cross_entropy"])
def test_gap(subject: Subject, name: str, record: Any) -> None:
    """[gap, 0]: the logarithm of a probability ever nearer to 1, which keeps its digits as it goes to 0."""
    case = CASES[name]
    subject.needs(name)
    x = np.stack([GAPS, 0 * GAPS], -1)
    labels = {"labels": np.zeros(len(x), int), "reduction": "none"} if case.reduces else {}
    got = subject.take(subject.value(name, x, labels))
    right = case.truth(x, **labels)
    rows: list[dict[str, Any]] = []
    try:
        judge(lambda **row: rows.append(row), subject, case, "value", "dominant", "[gap, 0]", got, right,
              names=[f"gap {g:g}" for g in GAPS])  # fmt: skip
    finally:
        if rows:
            record(**rows[0], points=_points(subject, got, right))


def _points(subject: Subject, got: Any, right: Any) -> list[list[float | None]]:
    """[gap, ulp] of the dominant entry, for the picture."""
    target, dominant = subject.target, got.reshape(len(GAPS), -1)[:, 0]
    d = distance(dominant, right.value[:, 0], subject.dtype, lost=target.lost("log", "value", subject.dtype))
    return [[float(g), float(e) if np.isfinite(e) else None] for g, e in zip(GAPS, d, strict=True)]
