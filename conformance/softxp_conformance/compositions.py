"""Functions of several arrays, in which a softmax stands between products: what is asked of each.

Every library adds up its products in its own way, so that an entry's last bits are nobody's to promise: an error is measured
in ulp of the largest entry of its array. The truth is the definition, in float64 and whole, over the inputs as rounded. Its
derivatives are those of the same lines along an imaginary step (Squire & Trapp 1998, doi:10.1137/S003614459631241X), so
that no line here has two cases that differ but in their real part, and none takes an absolute value.

A new function is one more `Composition` here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .ulp import rounded

Arrays = list[Any]
Options = dict[str, Any]

STEP = 1e-40
PROMISE = {"float16": 1.0, "bfloat16": 1.0, "float32": 32.0, "float64": 64.0}  # ulp of the largest entry


@dataclass(frozen=True, eq=False)
class Composition:
    """One function. `variants`: its positional arrays and its options, of floats in float64."""

    name: str
    truth: Callable[..., Any]
    variants: dict[str, Callable[[Any], tuple[Arrays, Options]]]  # of a numpy Generator
    lean: bool = False  # asked little: see Target.lean
    moves: bool = True  # floats, which have derivatives

    def __str__(self) -> str:
        return self.name

    @lru_cache  # noqa: B019 (as many as there are variants and dtypes)
    def given(self, variant: str, dtype: str) -> tuple[Arrays, Options]:
        """The arrays and options, as rounded to the dtype."""
        arrays, options = self.variants[variant](np.random.default_rng(29))

        def fit(a: Any) -> Any:
            return rounded(a, dtype) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a

        return [fit(a) for a in arrays], {k: fit(v) for k, v in options.items()}

    @lru_cache  # noqa: B019
    def values(self, variant: str, dtype: str) -> tuple[Any, ...]:
        """All answers of a call, where it has several."""
        arrays, options = self.given(variant, dtype)
        answer = self.truth(*arrays, **options)
        return tuple(np.asarray(a) for a in (answer if isinstance(answer, tuple) else (answer,)))

    def value(self, variant: str, dtype: str) -> Any:
        """The first answer, which alone has derivatives."""
        return self.values(variant, dtype)[0]

    def moving(self, variant: str) -> list[int]:
        """The positions of the arrays of floats."""
        return [i for i, a in enumerate(self.given(variant, "float64")[0]) if np.asarray(a).dtype.kind == "f"]

    def along(self, variant: str, dtype: str, which: int, v: Any) -> Any:
        """The derivative by one array along v."""
        arrays, options = self.given(variant, dtype)
        moved = [a + 1j * STEP * v if i == which else a for i, a in enumerate(arrays)]
        answer = self.truth(*moved, **options)
        return np.imag(answer[0] if isinstance(answer, tuple) else answer) / STEP

    @lru_cache  # noqa: B019
    def direction(self, kind: str, variant: str, dtype: str, which: int) -> Any:
        """The cotangent, or the tangent of one array, that a derivative is asked with."""
        like = self.value(variant, dtype) if kind == "vjp" else self.given(variant, dtype)[0][which]
        return rounded(np.random.default_rng(31).uniform(0.5, 2.0, np.shape(like)), dtype)

    @lru_cache  # noqa: B019
    def derivative(self, kind: str, variant: str, dtype: str, which: int) -> Any:
        v = self.direction(kind, variant, dtype, which)
        if kind == "jvp":
            return self.along(variant, dtype, which, v)
        a = self.given(variant, dtype)[0][which]
        out = np.zeros(a.shape)
        for i in np.ndindex(a.shape):
            unit = np.zeros(a.shape)
            unit[i] = 1.0
            out[i] = np.sum(v * self.along(variant, dtype, which, unit))
        return out


# --- definitions -----------------------------------------------------------------------------------------------------


def log_softmax(z: Any) -> Any:
    """Along the last axis; -inf takes no part, and a row with nothing in it is -inf throughout."""
    m = np.max(np.real(z), axis=-1, keepdims=True)
    d = z - np.where(np.isfinite(m), m, 0.0)
    e = np.where(np.isfinite(np.real(d)), np.exp(np.where(np.isfinite(np.real(d)), d, 0.0)), 0.0)
    s = np.sum(e, axis=-1, keepdims=True)
    return np.where(np.isfinite(np.real(d)), d - np.log(np.where(s == 0, 1.0, s)), -np.inf)


def softmax(z: Any) -> Any:
    log = log_softmax(z)
    return np.where(np.isfinite(np.real(log)), np.exp(np.where(np.isfinite(np.real(log)), log, 0.0)), 0.0)


def cross_entropy(
    z: Any, labels: Any, *, where: Any = None, temperature: Any = 1.0, label_smoothing: float = 0.0,
    class_weight: Any = None, ignore_index: int = -100, z_loss: float = 0.0, softcap: float | None = None,
    reduction: str = "mean",
) -> Any:  # fmt: skip
    z = (z if softcap is None else softcap * np.tanh(z / softcap)) / temperature
    part = np.ones(z.shape) if where is None else np.broadcast_to(where, z.shape).astype(float)
    z = np.where(part, z, -np.inf)
    w = 1.0 if class_weight is None else class_weight
    y = (labels[..., None] == np.arange(z.shape[-1])).astype(float)
    q = w * ((1 - label_smoothing) * y + label_smoothing * part / np.sum(part, axis=-1, keepdims=True))
    weight, log = np.sum(w * y, axis=-1), log_softmax(z)
    lse = np.sum(y * np.where(y, z, 0.0) - y * np.where(y, log, 0.0), axis=-1)
    loss = -np.sum(np.where(q, q * np.where(q, log, 0.0), 0.0), axis=-1) + z_loss * weight * lse * lse
    loss = np.where(labels == ignore_index, 0.0, loss)
    if reduction == "none":
        return loss
    return np.sum(loss) / (np.sum(weight) if reduction == "mean" else 1.0)


# --- linear_cross_entropy ----------------------------------------------------------------------------------------------


def _linear(hidden: Any, kernel: Any, labels: Any, *, bias: Any = 0.0, chunk_size: Any = None, **options: Any) -> Any:
    return cross_entropy(hidden @ kernel.T + bias, labels, **options)


def _products(**options: Any) -> Callable[[Any], tuple[Arrays, Options]]:
    def make(rng: Any) -> tuple[Arrays, Options]:
        hidden, kernel = rng.normal(size=(2, 3, 4)), rng.normal(size=(7, 4))
        labels, how = np.asarray([[3, 0, 6], [-100, 2, 3]]), dict(options)
        if "class_weight" in options:
            how.update(class_weight=rng.uniform(0.5, 2.0, 7), bias=rng.normal(size=7))
        if "temperature" in options:
            how.update(temperature=rng.uniform(0.75, 1.5, (2, 3, 1)), where=np.asarray([1, 0, 1, 1, 1, 0, 1], bool))
            labels = np.where(labels == -100, 4, np.where(labels == 2, 3, labels))
        return [hidden, kernel, labels], how

    return make


LINEAR = {
    "plain": _products(),
    "tiles": _products(chunk_size=(2, 3), label_smoothing=0.125, class_weight=True, z_loss=0.0625),
    "rows": _products(chunk_size=4, softcap=5.0, temperature=True, reduction="none"),
}


# --- contrastive_loss --------------------------------------------------------------------------------------------------


def _contrastive(a: Any, b: Any, *, loss: str, temperature: Any, chunk_size: Any = None, bias: Any = 0.0) -> Any:
    z, pair = a @ b.T / temperature, np.eye(len(a), dtype=bool)
    if loss == "siglip":
        return np.sum(np.log(1 + np.exp(np.where(pair, -z - bias, z + bias)))) / len(a)
    labels = np.arange(len(a))
    one = cross_entropy(z, labels)
    return one if loss == "infonce" else (one + cross_entropy(z.T, labels)) / 2


def _pairs(**options: Any) -> Callable[[Any], tuple[Arrays, Options]]:
    return lambda rng: ([rng.normal(size=(5, 3)), rng.normal(size=(5, 3))], options)


CONTRASTIVE = {
    "plain": _pairs(loss="infonce", temperature=0.5),
    "clip": _pairs(loss="clip", temperature=0.75, chunk_size=2),
    "siglip": _pairs(loss="siglip", temperature=0.5, bias=-1.5, chunk_size=2),
}


# --- distillation_loss ---------------------------------------------------------------------------------------------------


def _distillation(
    student: Any, teacher: Any, *, temperature: Any, labels: Any = None, alpha: float = 0.5, sample_weight: Any = 1.0,
    reduction: str = "mean",
) -> Any:  # fmt: skip
    p, log = softmax(teacher / temperature), log_softmax(teacher / temperature)
    loss = np.sum(p * (log - log_softmax(student / temperature)), axis=-1) * np.reshape(temperature, -1) ** 2
    s = sample_weight * np.ones(len(loss))
    if labels is not None:
        s = np.where(labels == -100, 0.0, s)
        loss = alpha * loss + (1 - alpha) * cross_entropy(student, labels, reduction="none")
    return s * loss if reduction == "none" else np.sum(s * loss) / np.sum(s)


def _soft_targets(rng: Any) -> tuple[Arrays, Options]:
    t = np.asarray([[1.0], [4.0], [0.5], [20.0], [2.5]])
    return [rng.normal(size=(5, 7)) * 2, rng.normal(size=(5, 7)) * 3], {"temperature": t, "reduction": "none"}


def _soft_and_hard(rng: Any) -> tuple[Arrays, Options]:
    labels = np.asarray([0, 6, -100, 3, 3])
    more = {"labels": labels, "temperature": 3.0, "alpha": 0.75, "sample_weight": rng.uniform(0.5, 2, 5)}
    return [rng.normal(size=(5, 7)) * 2, rng.normal(size=(5, 7)) * 3], more


DISTILLATION = {"soft": _soft_targets, "soft and hard": _soft_and_hard}


# --- mask_logits, sample, gumbel_softmax -------------------------------------------------------------------------------


def _in_order(row: Any, where: Any = True) -> Any:
    """The places of a row's entries that take part, the largest first, of equal ones the first."""
    part = np.flatnonzero(np.broadcast_to(where, row.shape) & (np.real(row) > -np.inf))
    return part[np.argsort(-np.real(row[part]), kind="stable")]


def _mask_logits(
    x: Any, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0, where: Any = True
) -> Any:  # fmt: skip
    y, where = np.full_like(x, -np.inf), np.broadcast_to(where, x.shape)
    for i in np.ndindex(x.shape[:-1]):
        stays = _in_order(x[i], where[i])[:top_k]
        if not stays.size:
            continue
        p = softmax(np.real(x[i][stays]) / temperature)
        stays = stays[np.concatenate([[0.0], np.cumsum(p)[:-1]]) < top_p] if top_p < 1 else stays
        p = softmax(np.real(x[i][stays]) / temperature)
        stays = stays[p >= min_p * np.max(p)]
        y[i][stays] = x[i][stays]
    return y


def _sample(x: Any, uniforms: Any, *, temperature: float = 1.0, **options: Any) -> Any:
    p = softmax(np.real(_mask_logits(x, temperature=temperature, **options)) / temperature)
    found = np.cumsum(p, axis=-1) > uniforms[..., None]
    return np.where(np.any(p > 0, axis=-1), np.argmax(found, axis=-1), -1)


def _gumbel_softmax(x: Any, uniforms: Any, *, temperature: float = 1.0, where: Any = True, hard: bool = False) -> Any:
    part = where & (np.real(x) > -np.inf)
    z = np.where(part, x, 0.0) - np.log(-np.log(uniforms))
    soft = softmax(np.where(part, z / temperature, -np.inf))
    if not hard:
        return soft
    first = np.argmax(np.where(part, np.real(z), -np.inf), axis=-1)[..., None] == np.arange(x.shape[-1])
    return (first & part) + 1j * np.imag(soft)


def _hard(x: Any, uniforms: Any, **options: Any) -> Any:
    y = _gumbel_softmax(x, uniforms, **options)
    return y if np.iscomplexobj(x) or np.iscomplexobj(uniforms) else np.real(y)


def _tokens(draws: str, **options: Any) -> Callable[[Any], tuple[Arrays, Options]]:
    """Logits with ties, an entry and a row of -inf; `draws`: a uniform number for each "row", each "entry", or none."""

    def make(rng: Any) -> tuple[Arrays, Options]:
        x = np.round(2 * rng.normal(size=(2, 3, 7)), 0 if not draws else 2)
        x[0, 1, 2], x[1, 0] = -np.inf, -np.inf
        where = np.ones(7, bool)
        where[4] = False
        u = rng.uniform(0.05, 0.95, {"row": (2, 3), "entry": (2, 3, 7)}.get(draws, 0))
        return [x, u] if draws else [x], {**options, "where": where}

    return make


# --- topk_softmax, balance_loss, router_z_loss -------------------------------------------------------------------------


def _topk_softmax(x: Any, k: int, *, normalize: bool = True, where: Any = True, temperature: float = 1.0) -> Any:
    w, at = np.zeros((*x.shape[:-1], k), x.dtype), np.full((*x.shape[:-1], k), -1)
    where = np.broadcast_to(where, x.shape) & (np.real(x) > -np.inf)
    for i in np.ndindex(x.shape[:-1]):
        best = _in_order(x[i], where[i])[:k]
        p = softmax(np.where(where[i], np.where(where[i], x[i], 0.0) / temperature, -np.inf))
        w[i][: len(best)] = softmax(x[i][best] / temperature) if normalize and len(best) else p[best]
        at[i][: len(best)] = best
    return w, at


def _balance_loss(x: Any, k: int, *, where: Any = True, sample_weight: Any = 1.0) -> Any:
    s = np.broadcast_to(sample_weight, x.shape[:-1])[..., None] * np.any(np.real(x) > -np.inf, axis=-1, keepdims=True)
    where = np.broadcast_to(where, x.shape)
    chosen, tokens = np.zeros(x.shape), tuple(range(x.ndim - 1))
    for i in np.ndindex(x.shape[:-1]):
        chosen[i][_in_order(x[i], where[i])[:k]] = 1.0
    f = np.sum(s * chosen, axis=tokens) / np.sum(s)
    return x.shape[-1] * np.sum(f * np.sum(s * softmax(np.where(where, x, -np.inf)), axis=tokens) / np.sum(s))


def _router_z_loss(x: Any, *, where: Any = True, sample_weight: Any = 1.0) -> Any:
    s = np.broadcast_to(sample_weight, x.shape[:-1]) * np.any(np.real(x) > -np.inf, axis=-1)
    e = np.where(where & (np.real(x) > -np.inf), np.exp(np.where(np.real(x) > -np.inf, x, 0.0)), 0.0)
    lse = np.log(np.where(np.sum(e, axis=-1) == 0, 1.0, np.sum(e, axis=-1)))
    return np.sum(s * lse * lse) / np.sum(s)


def _routed(*k: int, **options: Any) -> Callable[[Any], tuple[Arrays, Options]]:
    def make(rng: Any) -> tuple[Arrays, Options]:
        ((x,), how), how_too = _tokens("")(rng), dict(options)
        if "sample_weight" in options:
            how_too["sample_weight"] = np.asarray([[1.0, 0.5, 2.0], [1.0, 0.0, 3.0]])
        return [x + rng.normal(size=x.shape) / 8 if "temperature" in options else x, *k], {**how, **how_too}

    return make


RULES: Options = dict(temperature=0.75, top_k=5, top_p=0.7, min_p=0.0625)

GUMBEL = {"soft": _tokens("entry", temperature=0.75), "hard": _tokens("entry", temperature=0.75, hard=True)}
TOPK = {"softmax of the top": _routed(3, temperature=0.75), "top of the softmax": _routed(7, normalize=False)}
MASKS = {"all rules": _tokens("", **RULES), "top-k": _tokens("", top_k=3)}


# --- attention ---------------------------------------------------------------------------------------------------------


def _attention(
    q: Any, k: Any, v: Any, *, where: Any = True, bias: Any = 0.0, causal: bool = False, softcap: float | None = None,
    scale: float | None = None, chunk_size: Any = None,
) -> Any:  # fmt: skip
    group = q.shape[-3] // k.shape[-3]
    k, v = np.repeat(k, group, axis=-3), np.repeat(v, group, axis=-3)
    s = (q.shape[-1] ** -0.5 if scale is None else scale) * (q @ np.swapaxes(k, -1, -2))
    s = (s if softcap is None else softcap * np.tanh(s / softcap)) + bias
    part = np.ones(s.shape, bool) & where
    if causal:  # the last query sees every key
        part = part & np.tri(*s.shape[-2:], k=s.shape[-1] - s.shape[-2], dtype=bool)
    return softmax(np.where(part, s, -np.inf)) @ v


def _heads(*, heads: int, kv: int, mask: bool = False, **options: Any) -> Callable[[Any], tuple[Arrays, Options]]:
    def make(rng: Any) -> tuple[Arrays, Options]:
        arrays = [rng.normal(size=(2, heads, 3, 4)), rng.normal(size=(2, kv, 5, 4)), rng.normal(size=(2, kv, 5, 3))]
        how = dict(options)
        if mask:
            where = rng.random((2, 1, 3, 5)) < 0.7
            where[1, 0, 1] = False  # a query that sees nothing
            how.update(where=where, bias=rng.normal(size=(heads, 1, 5)))
        return arrays, how

    return make


ATTENTION = {
    "plain": _heads(heads=2, kv=2),
    "masked, in tiles": _heads(heads=2, kv=1, mask=True, chunk_size=(2, 2), softcap=2.0),
    "causal, grouped": _heads(heads=2, kv=1, causal=True, scale=0.75, chunk_size=1),
}

COMPOSITIONS: dict[str, Composition] = {
    c.name: c
    for c in (
        Composition("linear_cross_entropy", _linear, LINEAR),
        Composition("contrastive_loss", _contrastive, CONTRASTIVE),
        Composition("distillation_loss", _distillation, DISTILLATION, lean=True),
        Composition("mask_logits", _mask_logits, MASKS, lean=True),
        Composition("sample", _sample, {"all rules": _tokens("row", **RULES)}, lean=True, moves=False),
        Composition("gumbel_softmax", _hard, GUMBEL, lean=True),
        Composition("topk_softmax", _topk_softmax, TOPK, lean=True),
        Composition("balance_loss", _balance_loss, {"weighted": _routed(2, sample_weight=True)}, lean=True),
        Composition("attention", _attention, ATTENTION, lean=True),
        Composition("router_z_loss", _router_z_loss, {"weighted": _routed(sample_weight=True)}, lean=True),
    )
}
