"""Derivatives, against the truth: reverse and forward, corners included."""

from typing import Any

import numpy as np
import pytest

from . import inputs
from .cases import CASES, Case
from .compare import judge
from .inputs import ALL, VOCABULARY
from .subject import DERIVATIVES, Question, Subject, answer, truth
from .ulp import rounded


def _ask(subject: Subject, kind: str, q: Question, record: Any) -> None:
    got, _ = answer(subject, kind, q)
    right = truth(kind, q.case, q.variant, subject.dtype)
    judge(record, subject, q.case, kind, q.family or ALL, q.variant, got, right, cells=q.cells, names=q.names)


def test_vjp(subject: Subject, vjp_question: Question, record: Any) -> None:
    _ask(subject, "vjp", vjp_question, record)


def test_jvp(subject: Subject, jvp_question: Question, record: Any) -> None:
    _ask(subject, "jvp", jvp_question, record)


@pytest.mark.about("cross_entropy")
@pytest.mark.family("dominant")
@pytest.mark.parametrize("label", ["top", "other"])
def test_confident_loss(subject: Subject, label: str, record: Any) -> None:
    """p = 0.999 and nearer to 1 still: the class of the label keeps its last bits in p - 1."""
    if not subject.can("vjp"):
        pytest.skip(f"{subject.library} has no vjp")
    case = CASES["cross_entropy"]
    x = rounded(np.asarray([[6.9, 0.0], [12.0, 0.0], [17.0, 0.0], [40.0, 0.0]]), subject.dtype)
    options = {"labels": np.full(4, 0 if label == "top" else 1), "reduction": "none"}
    got = subject.take(subject.derivative("vjp", case.name, x, options, np.ones(4)))
    right = case.derivative("vjp", x, np.ones(4), **options)
    judge(record, subject, case, "vjp", "dominant", f"confident, {label}", got, right)


@pytest.mark.thorough
@pytest.mark.family(VOCABULARY)
@pytest.mark.parametrize("kind", DERIVATIVES)
def test_long(subject: Subject, case: Case, kind: str, record: Any) -> None:
    if not subject.can(kind):
        pytest.skip(f"{subject.library} has no {kind}")
    if case.name == "logcumsumexp":
        pytest.skip("the truth of its derivative takes the square of the row's length")
    n = 50257
    x = inputs.long_row(n, subject.dtype, "dominant")[None]
    options = {"labels": np.asarray([2 * n // 3]), "reduction": "none"} if case.labels(x) else {}
    rng = np.random.default_rng(23)
    if kind == "vjp":
        v = rounded(rng.uniform(0.5, 2.0, (1,) if case.reduces else x.shape), subject.dtype)
    else:
        v = rounded(rng.standard_normal(x.shape), subject.dtype)
    got = subject.take(subject.derivative(kind, case.name, x, options, v))
    right = case.derivative(kind, x, v, **options)
    judge(record, subject, case, kind, VOCABULARY, f"{n} dominant", got, right, long=True)
