"""What is asked of each public function: its variants, its truth, and the bounds its answers must keep.

A new function is one more `Case` here. Options are given as numpy arrays laid out beside rows (rows, n).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import softxp

from . import oracle
from .ulp import rounded

INF = float("inf")
Options = dict[str, Any]
NARROW = ("float16", "bfloat16")

# The bounds, in ulp of the dtype of the answer: what every backend keeps (first), and what those keep whose arithmetic is
# a step wider than the dtype, or compensated (second). `gap` is |x - max| / T of the entry.
BOUNDS: dict[str, dict[str, Callable[[str, Any], Any]]] = {
    "first": {
        "softmax": lambda dtype, gap: 1.0 if dtype in NARROW else 8.0 + gap,
        "log": lambda dtype, gap: 1.0 if dtype in NARROW else 12.0,
        "lse": lambda dtype, gap: 1.0 if dtype in NARROW else 8.0,
        "gradient": lambda dtype, gap: 1.0 if dtype in NARROW else 16.0 + gap,
    },
    "second": {
        "softmax": lambda dtype, gap: 6.0 if dtype == "float64" else 1.0,
        "log": lambda dtype, gap: 6.0 if dtype == "float64" else 1.0,
        "lse": lambda dtype, gap: 6.0 if dtype == "float64" else 1.0,
        "gradient": lambda dtype, gap: 8.0 + gap if dtype == "float64" else 1.0,
    },
}


@dataclass(frozen=True)
class Case:
    name: str
    fn: Callable[..., Any]
    kind: str  # which bound
    truth: Callable[..., oracle.Truth]
    vjp: Callable[..., oracle.Truth]
    jvp: Callable[..., oracle.Truth]
    variants: dict[str, Callable[[Any, str], Options]] = field(default_factory=dict)
    reduces: bool = False  # the answer has no `axis`

    def __str__(self) -> str:
        return self.name

    def options(self, variant: str, x: Any, dtype: str) -> Options:
        return self.variants[variant](x, dtype)


def _plain(x: Any, dtype: str) -> Options:
    return {}


def _where(x: Any, dtype: str) -> Options:
    where = np.random.default_rng(3).random(x.shape) < 0.7
    if where.ndim == 2 and len(where) > 2:
        where[1], where[2] = False, True  # a row with nothing in it, and one whole
    return {"where": where}


def _temperature(t: float) -> Callable[[Any, str], Options]:
    return lambda x, dtype: {"temperature": t}


def _temperatures(x: Any, dtype: str) -> Options:
    return {"temperature": np.resize([0.5, 1.0, 1.75, 0.0, INF, 3.0, 0.625], (x.shape[0], 1))}


MAPS = {
    "plain": _plain,
    "where": _where,
    "T=0.5": _temperature(0.5),
    "T=1.75": _temperature(1.75),
    "T=0": _temperature(0.0),
    "T=inf": _temperature(INF),
    "T per row": _temperatures,
}


def _factors(signed: bool) -> Callable[[Any, str], Options]:
    def make(x: Any, dtype: str) -> Options:
        rng = np.random.default_rng(5)
        b = rng.uniform(0.25, 4.0, x.shape) * (rng.random(x.shape) < 0.8)
        if signed:
            b = b * np.where(rng.random(x.shape) < 0.3, -1, 1)
        return {"b": rounded(b, dtype), **({"return_sign": True} if signed else {})}

    return make


def _labels(x: Any) -> Any:
    return (5 * np.arange(x.shape[0]) + 3) % x.shape[1]


def _soft(x: Any, dtype: str) -> Any:
    y = np.random.default_rng(7).dirichlet(np.full(x.shape[1], 0.5), x.shape[0])
    return rounded(np.where(y < 1e-3, 0.0, y), dtype)


def _calm(x: Any) -> Any:
    """Rows whose loss is a number: the others are dropped by ignore_index or a weight of 0."""
    return np.isfinite(x).all(-1) & (np.abs(x).max(-1) < 1e3)


def _integers(**more: Any) -> Callable[[Any, str], Options]:
    return lambda x, dtype: {"labels": _labels(x), "reduction": "none", **more}


def _integers_masked(x: Any, dtype: str) -> Options:
    labels = np.where(np.arange(x.shape[0]) % 6 == 5, -100, _labels(x))
    return {"labels": labels, "reduction": "none", **_where(x, dtype), "label_smoothing": 0.125}


def _integers_z_loss(x: Any, dtype: str) -> Options:
    """Without the rows whose squared logsumexp is beyond float64."""
    far = (np.abs(np.where(np.isfinite(x), x, 0)) > 1e100).any(-1)
    return {"labels": np.where(far, -100, _labels(x)), "reduction": "none", "z_loss": 2.0**-10}


def _integers_mean(x: Any, dtype: str) -> Options:
    rng = np.random.default_rng(11)
    return {
        "labels": np.where(_calm(x), _labels(x), -100),
        "class_weight": rounded(rng.uniform(0.5, 2, x.shape[1]), dtype),
        "sample_weight": rounded(rng.uniform(0.5, 2, x.shape[0]), dtype),
        "label_smoothing": 0.125,
        "z_loss": 2.0**-10,
    }


def _soft_mean(x: Any, dtype: str) -> Options:
    rng = np.random.default_rng(13)
    return {
        "labels": _soft(x, dtype),
        "sample_weight": rounded(np.where(_calm(x), rng.uniform(0.5, 2, x.shape[0]), 0.0), dtype),
        "class_weight": rounded(rng.uniform(0.5, 2, x.shape[1]), dtype),
    }


def _soft_none(x: Any, dtype: str) -> Options:
    return {"labels": _soft(x, dtype), "reduction": "none", "label_smoothing": 0.25, **_temperatures(x, dtype)}


def _integers_sum(x: Any, dtype: str) -> Options:
    return {"labels": np.where(_calm(x), _labels(x), 1), "ignore_index": 1, "reduction": "sum", "temperature": 0.75}


def _nothing(x: Any, dtype: str) -> Options:
    return {"labels": np.full(x.shape[0], -100)}


LOSSES = {
    "integers": _integers(),
    "integers, temperature": _integers(temperature=1.75),
    "integers, z-loss": _integers_z_loss,
    "integers, softcap": _integers(softcap=30.0),
    "integers, masked": _integers_masked,
    "integers, mean": _integers_mean,
    "integers, sum": _integers_sum,
    "soft": _soft_none,
    "soft, mean": _soft_mean,
    "normalizer": lambda x, dtype: {"labels": np.where(_calm(x), _labels(x), -100), "normalizer": 48.0},
    "nothing counted": _nothing,
}

CASES = {
    case.name: case
    for case in (
        Case("softmax", softxp.softmax, "softmax", oracle.softmax, oracle.softmax_vjp, oracle.softmax_jvp, MAPS),
        Case(
            "log_softmax",
            softxp.log_softmax,
            "log",
            oracle.log_softmax,
            oracle.log_softmax_vjp,
            oracle.log_softmax_jvp,
            MAPS,
        ),
        Case(
            "logsumexp",
            softxp.logsumexp,
            "lse",
            oracle.logsumexp,
            oracle.logsumexp_vjp,
            oracle.logsumexp_jvp,
            {"plain": _plain, "where": _where, "b": _factors(False), "signed b": _factors(True)},
            reduces=True,
        ),
        Case(
            "logmeanexp",
            softxp.logmeanexp,
            "lse",
            oracle.logmeanexp,
            oracle.logmeanexp_vjp,
            oracle.logmeanexp_jvp,
            {"plain": _plain, "where": _where},
            reduces=True,
        ),
        Case(
            "logcumsumexp",
            softxp.logcumsumexp,
            "lse",
            oracle.logcumsumexp,
            oracle.logcumsumexp_vjp,
            oracle.logcumsumexp_jvp,
            {"plain": _plain, "reverse": lambda x, dtype: {"reverse": True}},
        ),
        Case(
            "cross_entropy",
            softxp.cross_entropy,
            "log",
            oracle.cross_entropy,
            oracle.cross_entropy_vjp,
            oracle.cross_entropy_jvp,
            LOSSES,
            reduces=True,
        ),
    )
}
