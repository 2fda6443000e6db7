"""What is asked of each public function: its variants, its truth, and the bounds its answers must keep.

A new function is one more `Case` here. Options are given as numpy arrays laid out beside rows (rows, n).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from . import oracle
from .inputs import rows
from .ulp import rounded

INF = float("inf")
Options = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """One function. Whoever is asked has it under this name, with softxp's signature."""

    name: str
    kind: str  # which bound its values have: see budgets.PROMISE
    truth: Callable[..., oracle.Truth]
    vjp: Callable[..., oracle.Truth]
    jvp: Callable[..., oracle.Truth]
    variants: dict[str, Callable[[Any, str], Options]] = field(default_factory=dict)
    reduces: bool = False  # the answer has no `axis`
    quick: tuple[str, ...] = ("plain",)  # the variants that --quick asks for
    unsure: tuple[str, ...] = ()  # families with rows where the derivative jumps, so that none is the right one
    labelled: bool = False  # a loss: labels come second
    beside: Callable[[Any], Any] | None = None  # of rows: a second array of logits, which comes second and moves too
    brief: bool = False  # rows as long as vocabularies in one shape alone: its truth takes seconds, or is another's
    lean: bool = False  # asked one question a variant, about all families at once, and little else: see Target.lean

    def __post_init__(self) -> None:
        for name in ("truth", "vjp", "jvp"):
            object.__setattr__(self, name, oracle.remembered(getattr(self, name), most=256))

    def __str__(self) -> str:
        return self.name

    @lru_cache  # noqa: B019 (as many as there are cases and dtypes)
    def options(self, variant: str, dtype: str) -> Options:
        """The variant's options for the named rows."""
        return self.variants[variant](rows(dtype).x, dtype)

    def whole(self, variant: str) -> bool:
        """Is the answer one number for the whole batch?"""
        return self.options(variant, "float32").get("reduction", "none") != "none"

    def derivative(self, kind: str, x: Any, v: Any, **options: Any) -> oracle.Truth:
        """The truth of "vjp" or "jvp": a cotangent of one number a row stands beside the rows."""
        v = v[:, None] if kind == "vjp" and np.ndim(v) == 1 else v
        return (self.vjp if kind == "vjp" else self.jvp)(x, v, **options)

    def labels(self, x: Any) -> Options:
        """What the function needs beside rows of logits, in the simplest form."""
        if self.beside is not None:
            return {"beside": self.beside(x)}
        return {"labels": _labels(x), "reduction": "none"} if self.labelled else {}


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


def _alphas(x: Any, dtype: str) -> Options:
    alphas = np.resize([1.0, 1.5, 1.25, 2.0, 1.0078125, 3.0, 1.75, 1.5], (x.shape[0], 1))
    return {"alpha": alphas, "temperature": np.where(np.arange(x.shape[0])[:, None] % 3 == 1, 1.75, 1.0)}


SPARSEMAX = {"plain": _plain, "where": _where}
ENTMAX = {"plain": _plain, "alpha=1.25": lambda x, dtype: {"alpha": 1.25}, "alpha and T per row": _alphas}


def _factors(signed: bool) -> Callable[[Any, str], Options]:
    def make(x: Any, dtype: str) -> Options:
        rng = np.random.default_rng(5)
        b = rng.uniform(0.25, 4.0, x.shape) * (rng.random(x.shape) < 0.8)
        if signed:
            b = b * np.where(rng.random(x.shape) < 0.3, -1, 1)
        return {"b": rounded(b, dtype), **({"return_sign": True} if signed else {})}

    return make


def _labels(x: Any) -> Any:
    return (5 * np.arange(x.shape[0]) + 3) % max(x.shape[1], 1)


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
    return {"labels": labels, "ignore_index": -100, "reduction": "none", **_where(x, dtype), "label_smoothing": 0.125}


def _integers_z_loss(x: Any, dtype: str) -> Options:
    """Without the rows whose squared logsumexp is beyond float64."""
    far = (np.abs(np.where(np.isfinite(x), x, 0)) > 1e100).any(-1)
    return {"labels": np.where(far, -100, _labels(x)), "ignore_index": -100, "reduction": "none", "z_loss": 2.0**-10}


def _integers_mean(x: Any, dtype: str) -> Options:
    rng = np.random.default_rng(11)
    return {
        "labels": np.where(_calm(x), _labels(x), -100),
        "ignore_index": -100,
        "reduction": "mean",
        "class_weight": rounded(rng.uniform(0.5, 2, x.shape[1]), dtype),
        "sample_weight": rounded(rng.uniform(0.5, 2, x.shape[0]), dtype),
        "label_smoothing": 0.125,
        "z_loss": 2.0**-10,
    }


def _soft_mean(x: Any, dtype: str) -> Options:
    rng = np.random.default_rng(13)
    return {
        "labels": _soft(x, dtype),
        "reduction": "mean",
        "sample_weight": rounded(np.where(_calm(x), rng.uniform(0.5, 2, x.shape[0]), 0.0), dtype),
        "class_weight": rounded(rng.uniform(0.5, 2, x.shape[1]), dtype),
    }


def _soft_none(x: Any, dtype: str) -> Options:
    return {"labels": _soft(x, dtype), "reduction": "none", "label_smoothing": 0.25, **_temperatures(x, dtype)}


def _integers_sum(x: Any, dtype: str) -> Options:
    return {"labels": np.where(_calm(x), _labels(x), 1), "ignore_index": 1, "reduction": "sum", "temperature": 0.75}


def _nothing(x: Any, dtype: str) -> Options:
    return {"labels": np.full(x.shape[0], -100), "ignore_index": -100, "reduction": "mean"}


def _ignored_mean(x: Any, dtype: str) -> Options:
    return {"labels": np.where(_calm(x), _labels(x), -100), "ignore_index": -100, "reduction": "mean"}


def _normalizer(x: Any, dtype: str) -> Options:
    return {**_ignored_mean(x, dtype), "normalizer": 48.0}


LOSSES = {
    "plain": _integers(),
    "temperature": _integers(temperature=1.75),
    "smoothed": _integers(label_smoothing=0.125),
    "z-loss": _integers_z_loss,
    "softcap": _integers(softcap=30.0),
    "where": _integers_masked,
    "mean": _ignored_mean,
    "weighted mean": _integers_mean,
    "sum": _integers_sum,
    "soft": lambda x, dtype: {"labels": _soft(x, dtype), "reduction": "none"},
    "soft, T per row": _soft_none,
    "soft, weighted mean": _soft_mean,
    "normalizer": _normalizer,
    "nothing counted": _nothing,
}


def _second(x: Any) -> Any:
    """Logits beside logits: the same entries in another order, hardly others, less of them, the neighbour's. Less of them
    too where a sum of their differences is beyond the largest number.
    """
    huge = (np.abs(np.where(np.isfinite(x), x, 0.0)) > 1e30).any(-1, keepdims=True)
    i = np.where(huge, 2, np.arange(len(x))[:, None] % 4)
    with np.errstate(all="ignore"):
        nudged = np.where(np.isfinite(x) & (np.arange(x.shape[1]) % 3 == 1), x + np.abs(x) * 2.0**-6, x)
        return np.select([i == 0, i == 1, i == 2], [np.roll(x, 5, -1), nudged, 0.75 * x], np.roll(x, 1, 0))


def _pairs(more: Callable[[Any, str], Options]) -> Callable[[Any, str], Options]:
    return lambda x, dtype: {"beside": rounded(_second(x), dtype), **more(x, dtype)}


def _masked_and_tempered(x: Any, dtype: str) -> Options:
    return {**_where(x, dtype), **_temperatures(x, dtype)}


def _soft_and_alphas(x: Any, dtype: str) -> Options:
    return {"labels": _soft(x, dtype), "reduction": "none", **_alphas(x, dtype)}


def _lean(name: str, of: oracle.Definition, variants: dict[str, Any], **more: Any) -> Case:
    return Case(name, "log", of.value, of.vjp, of.jvp, variants, reduces=True, lean=True, **more)


CASES = {
    case.name: case
    for case in (
        Case("softmax", "map", oracle.softmax, oracle.softmax_vjp, oracle.softmax_jvp, MAPS,
             quick=("plain", "where", "T per row")),
        Case("log_softmax", "log", oracle.log_softmax, oracle.log_softmax_vjp, oracle.log_softmax_jvp, MAPS),
        Case("logsumexp", "lse", oracle.logsumexp, oracle.logsumexp_vjp, oracle.logsumexp_jvp,
             {"plain": _plain, "where": _where, "b": _factors(False), "signed b": _factors(True)}, reduces=True),
        Case("logmeanexp", "lse", oracle.logmeanexp, oracle.logmeanexp_vjp, oracle.logmeanexp_jvp,
             {"plain": _plain, "where": _where}, reduces=True, brief=True),
        Case("logcumsumexp", "lse", oracle.logcumsumexp, oracle.logcumsumexp_vjp, oracle.logcumsumexp_jvp,
             {"plain": _plain, "reverse": lambda x, dtype: {"reverse": True}}, brief=True),
        Case("cross_entropy", "log", oracle.cross_entropy, oracle.cross_entropy_vjp, oracle.cross_entropy_jvp, LOSSES,
             reduces=True, quick=("plain", "weighted mean"), labelled=True),
        Case("sparsemax", "map", oracle.sparsemax, oracle.sparsemax_vjp, oracle.sparsemax_jvp, SPARSEMAX,
             unsure=("ties",), brief=True),
        Case("entmax", "map", oracle.entmax, oracle.entmax_vjp, oracle.entmax_jvp, ENTMAX, unsure=("ties",), brief=True),
        _lean("entropy", oracle.ENTROPY, {"plain": _plain, "where, T per row": _masked_and_tempered}),
        _lean("kl_divergence", oracle.DIVERGENCE,
              {"plain": _pairs(_plain), "where, T per row": _pairs(_masked_and_tempered)}, beside=_second),
        _lean("sparsemax_loss", oracle.SPARSEMAX_LOSS, {"plain": _integers()}, labelled=True),
        _lean("entmax_loss", oracle.FENCHEL_YOUNG,
              {"plain": _integers(), "soft, alpha and T per row": _soft_and_alphas}, labelled=True),
    )
}  # fmt: skip
