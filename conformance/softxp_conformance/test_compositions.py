"""Functions of several arrays, against their definition: values, and both derivatives by every array."""

from typing import Any

import numpy as np

from .compositions import PROMISE, Composition
from .subject import Subject
from .ulp import unit


def _close(subject: Subject, what: str, got: Any, truth: Any) -> None:
    assert got.shape == truth.shape, f"{subject} {what}: got shape {got.shape}, where {truth.shape} is right"
    finite = np.isfinite(truth)
    np.testing.assert_array_equal(got[~finite], truth[~finite], err_msg=f"{subject} {what}")
    size = np.max(np.abs(truth[finite]), initial=0.0)
    error = np.abs(np.where(finite, got, 0.0) - np.where(finite, truth, 0.0)) / unit(size, subject.dtype)
    worst, promise = float(np.max(error, initial=0.0)), PROMISE[subject.dtype]
    assert worst <= promise, f"{subject} {what}: {worst:.3g} ulp of the largest, {size:.3g}, > {promise:g}, the promise"


def test_composed(subject: Subject, composition: tuple[Composition, str]) -> None:
    case, variant = composition
    arrays, options = case.given(variant, subject.dtype)
    given, options = [subject.give(a) for a in arrays], {k: subject.give(v) for k, v in options.items()}
    with subject.untouched(given, options):
        y = subject.target.call(subject.function(case.name), given, options)
    answers = y if isinstance(y, tuple) else (y,)
    if case.moves:
        subject.like(given[0], answers[0])
    for i, (got, truth) in enumerate(zip(answers, case.values(variant, subject.dtype), strict=True)):
        _close(subject, f"{case} ({variant}), answer {i}", subject.take(got), truth)


def _derivative(subject: Subject, kind: str, composition: tuple[Composition, str]) -> None:
    case, variant = composition
    arrays, options = case.given(variant, subject.dtype)
    given, options = [subject.give(a) for a in arrays], {k: subject.give(v) for k, v in options.items()}
    for i in case.moving(variant):
        v = subject.give(case.direction(kind, variant, subject.dtype, i))
        y = subject.moved(kind, case.name, given, options, v, i)
        subject.like(given[i] if kind == "vjp" else given[0], y)
        what = f"{case} ({variant}), {kind} by argument {i}"
        _close(subject, what, subject.take(y), case.derivative(kind, variant, subject.dtype, i))


def test_composed_vjp(subject: Subject, vjp_composition: tuple[Composition, str]) -> None:
    _derivative(subject, "vjp", vjp_composition)


def test_composed_jvp(subject: Subject, jvp_composition: tuple[Composition, str]) -> None:
    _derivative(subject, "jvp", jvp_composition)
