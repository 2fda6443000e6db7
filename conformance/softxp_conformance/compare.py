"""The judgement of an answer: every entry against the promise, the worst and the mean against the budget."""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import ulp
from .budgets import PROMISE, budget
from .cases import Case
from .inputs import DRAWN
from .oracle import Truth
from .precise import DD
from .subject import DERIVATIVES, Subject


def judge(
    record: Callable[..., None], subject: Subject, case: Case, kind: str, family: str, what: str, got: Any, truth: Truth,
    *, cells: Any = slice(None), names: list[str] | None = None, long: bool = False,
) -> None:  # fmt: skip
    """Report, and fail with the worst entry where one is past its bound.

    `cells` are the rows of the truth that the answer is about, `names` those rows' names.
    """
    target, dtype, shape = subject.target, subject.dtype, np.shape(got)
    whole = truth.value.hi.shape
    hi = truth.value.hi[cells] if whole else truth.value.hi
    assert hi.size == np.size(got), f"{subject} {case} ({what}): got shape {shape}, where {hi.shape} holds the answers"

    def fit(part: Any) -> Any:
        part = np.broadcast_to(np.asarray(part, dtype=np.float64), whole)
        return np.reshape(part[cells] if whole else part, shape)

    hi, lo, scale, gap = (fit(part) for part in (truth.value.hi, truth.value.lo, truth.scale, truth.gap))
    bound = np.broadcast_to(PROMISE["gradient" if kind in DERIVATIVES else case.kind](dtype, gap), shape)
    distance = ulp.distance(got, DD(hi, lo), dtype, scale, target.lost(case.kind, kind, dtype))
    worst, mean = float(np.max(distance, initial=0.0)), float(np.mean(distance)) if distance.size else 0.0
    arithmetic = target.arithmetic(case.name, kind, dtype, long)
    tight = target.tight and subject.implementation.tight and family != DRAWN  # other rows with every seed
    held = budget(arithmetic, dtype, case.name, kind, family) if tight else None
    finite, ratio = np.isfinite(worst), distance / bound
    record(
        dtype=dtype,
        function=case.name,
        kind=kind,
        family=family,
        what=what,
        arithmetic=arithmetic,
        tight=tight,
        worst=worst if finite else None,
        mean=mean if finite else None,
        # of the promise, at the entry that takes most of it
        share=float(np.max(ratio, initial=0.0)) if finite else None,
        promise=float(np.max(bound, initial=0.0)),
        budget=held and held.worst,
        mean_budget=held and held.mean,
    )
    if not np.all(ratio <= 1):
        at = np.unravel_index(int(np.argmax(np.where(np.isnan(ratio), np.inf, ratio))), ratio.shape)
        row = f" in row {names[at[0]]!r}" if names is not None and shape and len(names) == shape[0] else ""
        raise AssertionError(
            f"{subject} {case} ({what}): {distance[at]:.3g} ulp > {bound[at]:.3g}, the promise,{row} at "
            f"{tuple(int(i) for i in at)}: got {float(np.asarray(got)[at])!r}, truth {float(np.asarray(hi)[at])!r}; "
            f"{int(np.sum(~(ratio <= 1)))} of {ratio.size} entries are past it"
        )
    if held is not None and (worst > held.worst or mean > held.mean):
        raise AssertionError(
            f"{subject} {case} ({what}): within the promise, but {worst:.3g} ulp at worst and {mean:.3g} on average, where "
            f"the budget of {arithmetic} arithmetic for {family!r} rows is {held.worst:.3g} and {held.mean:.3g}"
        )
