"""One question to a target and the judgement of its answer."""

from typing import Any

import numpy as np

from . import ulp
from .cases import BOUNDS, Case
from .oracle import Truth
from .targets import Target


def judge(
    record: Any, target: Target, dtype: str, case: Case, kind: str, what: str, got: Any, truth: Truth, names: Any,
    long: bool = False,
) -> None:  # fmt: skip
    """Hold every entry to its bound; report and, where one is past it, fail with the worst of them."""
    storey = (
        "second"
        if target.second(f"{case.name} gradient" if kind == "gradient" else case.name, dtype, long)
        else "first"
    )
    shape = np.shape(got)
    hi, lo = (np.reshape(part, shape) for part in (truth.value.hi, truth.value.lo))
    value = type(truth.value)(hi, lo)

    def fit(extra: Any) -> Any:
        extra = np.asarray(extra, dtype=np.float64)
        return np.reshape(extra, shape) if extra.size == hi.size else np.broadcast_to(extra, shape)

    distance = ulp.distance(got, value, dtype, fit(truth.scale), target.flushes)
    bound = np.broadcast_to(BOUNDS[storey][kind](dtype, fit(truth.gap)), shape)
    record(
        target=target.name,
        dtype=dtype,
        function=case.name,
        what=what,
        worst=float(np.max(distance, initial=0.0)),
        mean=float(np.mean(distance)) if distance.size else 0.0,
        bound=float(np.max(bound, initial=0.0)),
    )
    ratio = distance / bound
    if not np.all(ratio <= 1):
        at = np.unravel_index(int(np.argmax(np.where(np.isnan(ratio), np.inf, ratio))), shape) if shape else ()
        row = names[at[0]] if at and names is not None and len(names) == shape[0] else ""
        raise AssertionError(
            f"{target.name} {dtype} {case.name} ({what}): {distance[at]:.3g} ulp > {bound[at]:.3g} ({storey} bound) in row "
            f"{row!r} at {tuple(int(i) for i in at)}: got {np.asarray(got)[at]!r}, truth {hi[at]!r}; "
            f"{int(np.sum(~(ratio <= 1)))} of {ratio.size} entries are past it"
        )
