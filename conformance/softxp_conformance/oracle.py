"""The truth, from the definitions: in fifty digits for short rows, in double-double (32 digits) for long ones.

Never imports softxp. Every function takes rows, float64 arrays (rows, n) that hold numbers already rounded to the dtype
under test, and answers a `Truth`. The corners are decided here row by row and in words, apart from any formula.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from hashlib import blake2b
from typing import Any

import numpy as np

from . import precise as num
from .precise import Number, number

INF, NAN = float("inf"), float("nan")
quiet = np.errstate(all="ignore")


def remembered(found_out: Callable[..., Any], most: int | None = None) -> Callable[..., Any]:
    """Of the same numbers it is found out once, for all libraries that are asked: it takes longer than their answers."""
    known: dict[Any, Any] = {}

    def content(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        return value.shape, value.dtype.str, blake2b(value.tobytes(), digest_size=16).digest()

    @wraps(found_out)
    def remembers(*given: Any, **options: Any) -> Any:
        if any(isinstance(value, Number) for value in given):  # made on the way: nobody asks for it again
            return found_out(*given, **options)
        key = (*map(content, given), *((name, content(value)) for name, value in options.items()))
        if key in known:
            known[key] = known.pop(key)  # the one last asked for is the last to go
        else:
            if most is not None and len(known) >= most:
                del known[next(iter(known))]
            known[key] = found_out(*given, **options)
        return known[key]

    return remembers


@dataclass
class Truth:
    value: Number
    scale: Any = 0.0  # where terms of this size cancel to a smaller value, error is counted in ulp of their size
    gap: Any = 0.0  # |x - max| / T, which softmax's first bound grows with
    sign: Any = None


@dataclass
class Row:
    """Rows taken apart: who takes part in the softmax, and the pieces it is made of."""

    x: Number
    m: Number  # (rows, 1) maximum
    first: Any  # bool: one maximum of each row
    part: Any  # bool: entries with a share in the mass
    d: Number  # (x - m) / T; 0 where the mass is shared equally
    e: Number
    r: Number  # (rows, 1) sum of e but for one maximum
    frozen: Any  # (rows, 1) bool: the answer does not change with x
    broken: Any  # (rows, 1) bool: a NaN, or an invalid temperature
    empty: Any  # (rows, 1) bool
    t: Any

    def log(self) -> Number:
        return num.log1p(self.r)

    def p(self) -> Number:
        p = num.where(self.part, self.e / (self.r + 1.0), 0.0)
        return num.where(self.broken, NAN, p)

    def not_p(self) -> Number:
        """1 - p, exact where p is near 1."""
        p = self.p()
        return num.where(self.first, self.r / (self.r + 1.0), 1.0 - p)

    def logp(self) -> Number:
        value = num.where(self.part, self.d - self.log(), -INF)
        return num.where(self.broken, NAN, value)

    def gap(self) -> Any:
        return np.where(np.isfinite(self.d.hi), np.abs(self.d.hi), 0.0)


@partial(remembered, most=48)
def take_apart(x: Any, where: Any = None, temperature: Any = 1.0) -> Row:
    x = number(x)
    where = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    given = t = np.broadcast_to(np.asarray(temperature, float), (x.shape[0], 1))
    nan = (where & np.isnan(x.hi)).any(-1, keepdims=True)
    broken = nan | ~(t >= 0)
    part = where & (x.hi > -INF)
    empty = ~part.any(-1, keepdims=True)
    infinite = (part & (x.hi == INF)).any(-1, keepdims=True)
    seen = np.where(part, x.hi, -INF)
    m = seen.max(-1, keepdims=True, initial=-INF)
    # those that share the mass equally: the +inf entries; at T = 0 the maxima; at T = inf all that take part
    part = np.where(infinite, part & (x.hi == INF), np.where(t == 0, part & (x.hi == m), part))
    equal = infinite | (t == 0) | (t == INF)
    first = np.zeros(x.shape, bool)
    if x.shape[1]:
        np.put_along_axis(first, np.argmax(np.where(part, x.hi, -INF), -1)[:, None], True, -1)
    first &= part
    pick = num.total(num.where(first, x, 0.0))
    finite = np.isfinite(x.hi) & part
    d = num.where(finite, x, 0.0) - num.where(np.isfinite(pick.hi), pick, 0.0)
    t = np.where((t > 0) & (t < INF), t, 1.0)
    far = np.abs(d.hi) > 1e290  # beyond what double-double can divide; its exponential is 0 anyway
    d = num.where(far, d.hi / t, num.where(far, 0.0, d) / t)
    d = num.where(equal | first, 0.0, num.where(part, d, -INF))
    e = num.where(part, num.exp(d), 0.0)
    r = num.total(num.where(first, 0.0, e))
    frozen = (equal | empty) & ~broken
    return Row(x, number(m), first, part, d, e, r, frozen, broken, empty, given)


# --- values ----------------------------------------------------------------------------------------------------------


@quiet
def softmax(x: Any, *, where: Any = None, temperature: Any = 1.0) -> Truth:
    row = take_apart(x, where, temperature)
    return Truth(row.p(), gap=row.gap())


@quiet
def log_softmax(x: Any, *, where: Any = None, temperature: Any = 1.0) -> Truth:
    return Truth(take_apart(x, where, temperature).logp())


def _lse(row: Row) -> Number:
    value = num.where(np.isfinite(row.m.hi), row.m + row.log(), row.m)
    return num.where(row.broken, NAN, value)


@quiet
def logsumexp(x: Any, *, where: Any = None, b: Any = None, return_sign: bool = False) -> Truth:
    if b is None:
        row = take_apart(x, where)
        sign = np.where(row.broken, NAN, np.where(row.empty, 0.0, 1.0))
        return Truth(_lse(row), np.maximum(np.abs(row.m.hi), row.log().hi), sign=sign)
    b = np.broadcast_to(b, x.shape)
    where = (b != 0) if where is None else (b != 0) & where
    row = take_apart(x, where)
    terms = num.where(row.part, row.e * b, 0.0)
    s, size = num.total(terms), num.total(num.absolute(terms))
    sign = np.where(row.broken, NAN, np.where(row.empty, 0.0, np.sign(s.hi)))
    log = num.where(s.hi == 0, -INF, num.log(num.where(s.hi == 0, 1.0, num.absolute(s))))
    value = num.where(row.empty, -INF, num.where(np.isfinite(row.m.hi), row.m + log, row.m))
    value = num.where(row.broken | ((sign < 0) & (not return_sign)), NAN, value)
    lost = size.hi / np.abs(s.hi)  # how much of the sum's precision the signs cancel
    widest = np.max(np.where(row.part, np.abs(np.log(np.abs(np.where(b == 0, 1, b)))), 0), -1, keepdims=True)
    widest = np.maximum(widest, np.max(np.where(row.part & np.isfinite(x), np.abs(x), 0), -1, keepdims=True))
    return Truth(value, (widest + np.abs(log.hi) + 1) * np.maximum(lost, 1), sign=sign)


@quiet
def logmeanexp(x: Any, *, where: Any = None) -> Truth:
    row = take_apart(x, where)
    count = np.broadcast_to(True if where is None else where, x.shape).sum(-1, keepdims=True)
    # Σ exp(d) / count - 1, from exp(d) - 1 so that numbers that hardly differ keep their difference
    over = num.total(num.where(row.part, num.expm1(row.d), 0.0)) + (row.part.sum(-1, keepdims=True) - count).astype(
        float
    )
    log = num.log1p(over / np.maximum(count, 1).astype(float))
    value = num.where(np.isfinite(row.m.hi), row.m + log, row.m)
    return Truth(num.where(row.broken, NAN, value), np.maximum(np.abs(row.m.hi), np.abs(log.hi)))


def _prefixes(x: Any, reverse: bool) -> Row:
    """Every prefix of every row as a row of its own: (rows · n, n)."""
    n = x.shape[1]
    seen = np.tril(np.ones((n, n), bool))
    seen = seen.T if reverse else seen
    return take_apart(np.repeat(x, n, 0), np.tile(seen, (x.shape[0], 1)))


@quiet
def logcumsumexp(x: Any, *, reverse: bool = False) -> Truth:
    if x.shape[1] <= 64:
        row = _prefixes(x, reverse)
        y, scale = _lse(row), np.maximum(np.abs(row.m.hi), row.log().hi)
        return Truth(y.mapped(lambda a: a.reshape(x.shape)), scale.reshape(x.shape))
    # long rows, all finite
    z = x[:, ::-1] if reverse else x
    m = z.max(-1, keepdims=True)
    s = num.cumulative(num.exp(number(z) - m))
    y = num.log(s) + m
    return Truth(y[:, ::-1] if reverse else y, np.abs(m) + np.abs(num.log(s).hi[:, :: -1 if reverse else 1]))


# --- derivatives: (cotangent or tangent) v -> product with the Jacobian or its transpose ------------------------------


def _settle(row: Row, g: Number, where: Any = None) -> Number:
    g = num.where(row.frozen, 0.0, g)
    g = num.where(row.broken, NAN, g)
    return g if where is None else num.where(where, g, 0.0)


def _softmax_product(row: Row, v: Any) -> tuple[Number, Number]:
    """p (v - Σ p v), taking v at the first maximum as 0, and the size of its terms."""
    p = row.p()
    v = number(v) - num.total(num.where(row.first, number(v), 0.0))
    size = p * (num.absolute(v) + num.total(p * num.absolute(v)))
    return p * (v - num.total(p * v)), size


@quiet
def softmax_vjp(x: Any, ct: Any, *, where: Any = None, temperature: Any = 1.0) -> Truth:
    row = take_apart(x, where, temperature)
    g, size = _softmax_product(row, ct)
    t = np.where(row.frozen, 1.0, row.t)
    return Truth(_settle(row, g / t, where), (size / t).hi, row.gap())


@quiet
def softmax_jvp(x: Any, v: Any, *, where: Any = None, temperature: Any = 1.0) -> Truth:
    """The Jacobian is symmetric; but an answer that is NaN moves by NaN, whether its entry takes part or not."""
    truth = softmax_vjp(x, v, where=where, temperature=temperature)
    return Truth(num.where(take_apart(x, where, temperature).broken, NAN, truth.value), truth.scale, truth.gap)


@quiet
def log_softmax_vjp(x: Any, ct: Any, *, where: Any = None, temperature: Any = 1.0) -> Truth:
    row = take_apart(x, where, temperature)
    g, size = _log_softmax_product(row, num.where(row.part, number(ct), 0.0))
    t = np.where(row.frozen, 1.0, row.t)
    return Truth(_settle(row, g / t, where), (size / t).hi, row.gap())


def _log_softmax_product(row: Row, ct: Number) -> tuple[Number, Number]:
    """ct - p Σ ct = ct (1 - p) - p Σ(the others), and the size of its terms."""
    p, q = row.p(), row.not_p()

    def others(v: Number) -> Number:
        return num.where(row.first, num.total(num.where(row.first, 0.0, v)), num.total(v) - v)

    size = num.absolute(ct)
    return ct * q - p * others(ct), size * q + p * others(size)


@quiet
def log_softmax_jvp(x: Any, v: Any, *, where: Any = None, temperature: Any = 1.0) -> Truth:
    row = take_apart(x, where, temperature)
    v = number(v) - num.total(num.where(row.first, number(v), 0.0))
    p, t = row.p(), np.where(row.frozen, 1.0, row.t)
    g = (v - num.total(p * v)) / t
    size = (num.absolute(v) + num.total(p * num.absolute(v))) / t
    return Truth(_settle(row, num.where(row.part, g, 0.0)), size.hi, row.gap())


def _weights(x: Any, where: Any, b: Any) -> tuple[Row, Number, Any]:
    if b is None:
        row = take_apart(x, where)
        return row, row.p(), 1.0
    b = np.broadcast_to(b, x.shape)
    row = take_apart(x, (b != 0) if where is None else (b != 0) & where)
    terms = num.where(row.part, row.e * b, 0.0)
    s = num.total(terms)
    lost = num.total(num.absolute(terms)).hi / np.abs(s.hi)
    return row, num.where(row.broken, NAN, terms / s), lost


@quiet
def logsumexp_vjp(x: Any, ct: Any, *, where: Any = None, b: Any = None, return_sign: bool = False) -> Truth:
    row, w, lost = _weights(x, where, b)
    size = np.abs(ct * w.hi)
    return Truth(_settle(row, w * ct, where), size * lost, row.gap() + (0 if b is None else np.abs(row.m.hi)))


@quiet
def logsumexp_jvp(x: Any, v: Any, *, where: Any = None, b: Any = None, return_sign: bool = False) -> Truth:
    row, w, lost = _weights(x, where, b)
    size = num.total(num.absolute(w * v)).hi
    gap = np.max(row.gap() + (0 if b is None else np.abs(row.m.hi)), -1, keepdims=True)
    return Truth(_settle(row, num.total(w * v)), size * lost, gap)


logmeanexp_vjp, logmeanexp_jvp = logsumexp_vjp, logsumexp_jvp


def _prefix_weights(x: Any, reverse: bool) -> tuple[Number, Any]:
    row = _prefixes(x, reverse)
    n = x.shape[1]
    seen = np.tril(np.ones((n, n), bool))
    seen = np.tile(seen.T if reverse else seen, (x.shape[0], 1))
    p = num.where(row.broken & seen, NAN, num.where(row.frozen | ~seen, 0.0, row.p()))
    shape = (x.shape[0], n, n)  # [row, which prefix, which entry]
    gap = np.where(np.isfinite(x), x, 0)
    return p.mapped(lambda a: a.reshape(shape)), np.max(gap, -1, keepdims=True) - np.min(gap, -1, keepdims=True)


@quiet
def logcumsumexp_vjp(x: Any, ct: Any, *, reverse: bool = False) -> Truth:
    p, gap = _prefix_weights(x, reverse)
    terms = p.mapped(lambda a: np.swapaxes(a, 1, 2)) * ct[:, None, :]
    return Truth(num.total(terms)[..., 0], num.total(num.absolute(terms)).hi[..., 0], gap)


@quiet
def logcumsumexp_jvp(x: Any, v: Any, *, reverse: bool = False) -> Truth:
    p, gap = _prefix_weights(x, reverse)
    terms = p * v[:, None, :]
    return Truth(num.total(terms)[..., 0], num.total(num.absolute(terms)).hi[..., 0], gap)


# --- sparse projections ----------------------------------------------------------------------------------------------
# Martins & Astudillo 2016, arXiv:1602.02068 (sparsemax); Peters, Niculae & Martins 2019, doi:10.18653/v1/P19-1146 (alpha =
# 1.5, and the others). For alpha 2 and 1.5, z is d = (x - max) / T, or half of it; the threshold tau is found among the
# sorted z, and what lies above it has the mass. For any other, p = (1 + s (d - c))^(1/s) with s = alpha - 1, exp(d - c) at
# s = 0, and c by Newton's method from where bisection in float64 leaves it.


@dataclass
class Projection:
    row: Row
    p: Number
    weights: Number  # p^(2 - alpha) where p has a share: the derivative is made of them
    size: Any  # (rows, n) of the terms whose difference p is


def _project(x: Any, where: Any, temperature: Any, alpha: Any) -> Projection:
    row = take_apart(x, where, temperature)
    d = num.where(row.part & (row.d.hi > -1e4) & ~row.broken, row.d, -1e4)  # nothing that far below has mass
    if np.ndim(alpha) == 0 and alpha in (1.5, 2):
        p, weights, size = _sorted(row, d, alpha)
    else:
        p, weights, size = _solved(row, d, np.broadcast_to(np.asarray(alpha, float), (len(d.hi), 1)))
    live = row.part & ~row.broken
    p, weights = (num.where(row.broken, NAN, num.where(live, a, 0.0)) for a in (p, weights))
    return Projection(row, p, weights, np.where(live, size, 0.0))


def _sorted(row: Row, d: Number, alpha: float) -> tuple[Number, Number, Any]:
    z = num.where(d.hi > -3.0, d, -3.0) * (alpha - 1)
    reach = max(1, int((z.hi > -1).sum(-1).max(initial=1)))
    order = np.argsort(-z.hi, -1, kind="stable")[:, :reach]
    best = z.mapped(lambda a: np.take_along_axis(a, order, -1))  # in the precision of the whole row
    k = np.arange(1.0, best.shape[1] + 1)
    mean = num.cumulative(best) / k
    if alpha == 2:
        taus = (num.cumulative(best) - 1.0) / k
    else:
        rest = (1.0 - (num.cumulative(best * best) - mean * mean * k)) / k
        taus = mean - num.sqrt(num.where(rest.hi > 0, rest, 0.0))
    last = np.maximum(((best - taus).hi > 0).sum(-1, keepdims=True), 1) - 1
    tau = taus.mapped(lambda a: np.take_along_axis(a, last, -1))
    above = num.where((z - tau).hi > 0, z - tau, 0.0)
    size = np.where(z.hi > -1.5, np.maximum(np.abs(z.hi), np.abs(tau.hi)), 0.0)
    if alpha == 2:
        return above, num.where(above.hi > 0, 1.0, 0.0), size
    return above * above, above, (2 * above.hi + 2.0**-20 * size) * size  # the square of a hardly known number, too


def _power(base: Number, exponent: Any) -> Number:
    return num.exp(num.log(base) * exponent)


def _solved(row: Row, d: Number, alpha: Any) -> tuple[Number, Number, Any]:
    s = alpha - 1
    some = np.where(s == 0, 1.0, s)

    def plainly(c: Any) -> Any:
        base = np.maximum(1 + some * (d.hi - c), 0)
        return np.where(s == 0, np.exp(d.hi - c), base ** (1 / some)).sum(-1, keepdims=True)

    low, high = np.zeros(s.shape), np.full(s.shape, 50.0)
    for _ in range(80):
        c = (low + high) / 2
        more = plainly(c) > 1
        low, high = np.where(more, c, low), np.where(more, high, c)

    def at(c: Number) -> tuple[Number, Number, Any]:
        u = d - c
        base = u * s + 1.0
        inside = np.where(s == 0, True, base.hi > 0) & row.part
        base = num.where(inside & (s != 0), base, 1.0)
        p = num.where(inside, num.where(s == 0, num.exp(u), _power(base, 1 / number(some))), 0.0)
        p_some = num.where(inside & (p.hi > 0), p, 1.0)
        return p, num.where(inside & (p.hi > 0), _power(p_some, 1 - number(s)), 0.0), inside

    c = number(low)
    for _ in range(3):
        p, weights, _ = at(c)
        mass = num.total(weights)
        c = c + (num.total(p) - 1.0) / num.where(mass.hi == 0, 1.0, mass)
    p, weights, inside = at(c)
    return p, weights, weights.hi * np.maximum(np.abs(np.where(inside, d.hi, 0.0)), np.abs(c.hi))


def _share(a: Projection) -> Truth:
    return Truth(a.p, a.size, a.row.gap())


@quiet
def entmax(x: Any, *, where: Any = None, temperature: Any = 1.0, alpha: Any = 1.5) -> Truth:
    return _share(_project(x, where, temperature, alpha))


@quiet
def entmax_vjp(x: Any, ct: Any, *, where: Any = None, temperature: Any = 1.0, alpha: Any = 1.5) -> Truth:
    """w (v - Σ w v / Σ w) with the weights w. Its own transpose."""
    a = _project(x, where, temperature, alpha)
    w, v, t = a.weights, number(ct), np.where(a.row.frozen, 1.0, a.row.t)
    mass = num.total(w)
    mass = num.where(mass.hi == 0, 1.0, mass)
    g = w * (v - num.total(w * v) / mass) / t
    size = w * (np.abs(ct) + num.total(w * np.abs(ct)) / mass)
    felt = np.abs(ct) * _felt(a, alpha)  # how a weight's own error shows
    return Truth(_settle(a.row, g, where), (size.hi + felt) / t, a.row.gap())


def _felt(a: Projection, alpha: Any) -> Any:
    w, p = a.weights.hi, a.p.hi
    return np.abs(2 - np.asarray(alpha)) * np.where(p > 0, w / np.where(p > 0, p, 1.0), 0.0) * a.size


@quiet
def entmax_jvp(x: Any, v: Any, *, where: Any = None, temperature: Any = 1.0, alpha: Any = 1.5) -> Truth:
    """An answer that is NaN moves by NaN, whether its entry takes part or not."""
    truth = entmax_vjp(x, v, where=where, temperature=temperature, alpha=alpha)
    return Truth(num.where(take_apart(x, where, temperature).broken, NAN, truth.value), truth.scale, truth.gap)


def sparsemax(x: Any, *, where: Any = None, temperature: Any = 1.0) -> Truth:
    return entmax(x, where=where, temperature=temperature, alpha=2)


def sparsemax_vjp(x: Any, ct: Any, *, where: Any = None, temperature: Any = 1.0) -> Truth:
    return entmax_vjp(x, ct, where=where, temperature=temperature, alpha=2)


def sparsemax_jvp(x: Any, v: Any, *, where: Any = None, temperature: Any = 1.0) -> Truth:
    return entmax_jvp(x, v, where=where, temperature=temperature, alpha=2)


# --- cross-entropy ---------------------------------------------------------------------------------------------------


@dataclass
class Loss:
    row: Row
    loss: Number  # (rows, 1), dropped rows 0, sample weights applied
    size: Any
    weight: Number  # (rows, 1) what the mean divides by the sum of
    slope: Number  # (rows, n) ∂loss/∂z of each row
    slope_size: Any
    cap: Number  # ∂(capped logits)/∂logits


def _labels(x: Any, labels: Any, where: Any, ignore_index: int | None) -> tuple[Any, Number, Any, Any]:
    """Labels as distributions, where smoothing spreads its mass, and which rows are ignored, or of a label out of range."""
    rows, n = x.shape
    y = np.zeros(x.shape) if labels.ndim == 1 else labels
    ignored = np.zeros((rows, 1), bool)
    outside = np.zeros((rows, 1), bool)
    if labels.ndim == 1:
        ignored = (labels == ignore_index)[:, None] if ignore_index is not None else ignored
        outside = ((labels < 0) | (labels >= n))[:, None] & ~ignored
        for i, label in enumerate(labels):
            if not (ignored[i, 0] or outside[i, 0]):
                y[i, label] = 1.0
    takes = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    share = number(takes) / np.maximum(takes.sum(-1, keepdims=True), 1).astype(float)
    return y, share, ignored, outside


def _loss(
    x: Any, labels: Any, *, where: Any = None, temperature: Any = 1.0, label_smoothing: float = 0.0,
    class_weight: Any = None, sample_weight: Any = None, ignore_index: int | None = -100, z_loss: float = 0.0,
    softcap: float | None = None,
) -> Loss:  # fmt: skip
    rows, n = x.shape
    u, cap = number(x), number(np.ones(x.shape))
    if softcap is not None:
        z = number(np.clip(np.where(np.isfinite(x), x, 0.0), -1e6 * softcap, 1e6 * softcap)) / softcap
        t = num.where(np.isinf(x), np.sign(x), num.tanh(z))
        e = num.where(np.isinf(x), 0.0, num.exp(num.absolute(z) * -2.0))
        u, cap = t * softcap, e * 4.0 / ((e + 1.0) * (e + 1.0))  # the cap's slope is sech²
        u = num.where(np.isnan(x), NAN, u)
    row = take_apart(u, where, temperature)
    y, share, ignored, outside = _labels(x, labels, where, ignore_index)
    w = np.ones(n) if class_weight is None else class_weight
    s = np.ones((rows, 1)) if sample_weight is None else np.broadcast_to(sample_weight, (rows,))[:, None]
    q = (number(y) * (1.0 - label_smoothing) + share * label_smoothing) * w
    weight = num.total(number(y) * w)
    dropped = ignored | (s == 0) | ((weight.hi == 0) & ~outside)
    minus = num.where(row.part, row.log() - row.d, INF)
    finite = np.isfinite(minus.hi)
    terms = num.where(q.hi == 0, 0.0, num.where(finite, q * num.where(finite, minus, 0.0), minus))
    loss = num.total(terms)
    size = np.abs(loss.hi)
    slope, slope_size = _log_softmax_product(row, -q)
    if z_loss:
        m = row.m if softcap is None else num.total(num.where(row.first, u, 0.0))  # a capped maximum has more digits
        z = m / np.where(row.frozen, 1.0, row.t) + row.log()
        z = num.where(np.isfinite(row.m.hi), z, row.m)
        loss = loss + num.where(np.isfinite(z.hi), z * z * (weight * z_loss), INF)
        slope = slope + num.where(np.isfinite(z.hi), z * row.p() * (weight * (2 * z_loss)), 0.0)
        big = np.abs(row.m.hi) / np.where(row.frozen, 1.0, row.t) + row.log().hi
        size = size + z_loss * weight.hi * big * big
        slope_size = slope_size + row.p() * np.where(np.isfinite(big), 2 * z_loss * weight.hi * big, 0.0)
    loss = num.where(row.broken | outside, NAN, loss)
    slope = num.where(outside, NAN, _settle(row, slope))
    loss = num.where(dropped, 0.0, loss * s)
    slope = num.where(dropped, 0.0, slope * s)
    # a capped logit is rounded at the size of the cap, and the loss feels it by its slope
    felt = 0.0 if softcap is None else softcap * np.sum(np.abs(slope.hi), -1, keepdims=True)
    return Loss(
        row, loss, np.where(dropped, 0.0, size * s + felt), num.where(dropped, 0.0, weight * s), slope,
        slope_size.hi * s, cap,
    )  # fmt: skip


def _side_by_side(column: Number) -> Number:
    return column.mapped(lambda a: a[:, 0][None])


def _divisor(loss: Loss, reduction: str, normalizer: Any) -> Number:
    """What each row's loss is divided by."""
    if reduction != "mean":
        return number(1.0)
    norm = num.total(_side_by_side(loss.weight)) if normalizer is None else number([[float(normalizer)]])
    return num.where(norm.hi == 0, 1.0, norm)


@quiet
def cross_entropy(x: Any, labels: Any, *, reduction: str = "mean", normalizer: Any = None, **options: Any) -> Truth:
    loss = _loss(x, labels, **options)
    scale = loss.size if options.get("z_loss") or options.get("softcap") else np.zeros_like(loss.size)
    if reduction == "none":
        return Truth(loss.loss, scale)
    norm = _divisor(loss, reduction, normalizer)
    value = num.total(_side_by_side(loss.loss)) / norm
    return Truth(value[0, 0], np.sum(scale) / norm.hi.max())


def _slopes(x: Any, labels: Any, reduction: str, normalizer: Any, options: dict[str, Any]) -> tuple[Number, Any, Any]:
    loss = _loss(x, labels, **options)
    norm = _divisor(loss, reduction, normalizer)
    t = np.where(loss.row.frozen, 1.0, loss.row.t)
    by = number(t) * norm
    softcap, where = options.get("softcap"), options.get("where")
    g = loss.slope * loss.cap / by
    g = g if where is None else num.where(where, g, 0.0)
    # the slope of the cap is an exponential of 2 x / softcap
    gap = loss.row.gap() + (
        0.0 if softcap is None else 2 * softcap + 4 * np.abs(np.where(np.isfinite(x), x, 0)) / softcap
    )
    if options.get("z_loss"):
        gap = gap + 2 * np.abs(loss.row.log().hi)
    return g, np.abs(loss.slope_size * loss.cap.hi / by.hi), gap


@quiet
def cross_entropy_vjp(
    x: Any, ct: Any, labels: Any, *, reduction: str = "mean", normalizer: Any = None, **options: Any
) -> Truth:
    g, size, gap = _slopes(x, labels, reduction, normalizer, options)
    ct = ct if reduction == "none" else np.reshape(ct, (1, 1))
    return Truth(num.where(g.hi == 0, 0.0, g * ct), size * np.abs(ct), gap)


@quiet
def cross_entropy_jvp(
    x: Any, v: Any, labels: Any, *, reduction: str = "mean", normalizer: Any = None, **options: Any
) -> Truth:
    g, size, gap = _slopes(x, labels, reduction, normalizer, options)
    terms = num.where(g.hi == 0, 0.0, g * v)
    value, size = num.total(terms), num.total(number(size * np.abs(v))).hi
    gap = np.max(gap, -1, keepdims=True)
    if reduction == "none":
        return Truth(value, size, gap)
    return Truth(num.total(_side_by_side(value))[0, 0], np.sum(size), np.max(gap))


# --- entropy, divergence, Fenchel-Young losses: rows and their slopes --------------------------------------------------


@dataclass
class Sloped:
    """Numbers of rows, and how they move with each array of logits."""

    value: Number  # (rows, 1)
    scale: Any
    slopes: list[Number]  # (rows, n), of each array
    sizes: list[Any]
    gap: Any


class Definition:
    """A function by its `Sloped` rows, which its value and both derivatives share."""

    def __init__(self, define: Any) -> None:
        self.define, self.known = quiet(define), {}

    def rows(self, x: Any, options: dict[str, Any]) -> Sloped:
        key = (id(x), *((k, id(v)) for k, v in sorted(options.items())))
        if key not in self.known:  # (what was given is kept, so that its id stays its own)
            self.known[key] = x, options, self.define(x, **options)
        return self.known[key][2]

    def value(self, x: Any, **options: Any) -> Truth:
        rows = self.rows(x, options)
        return Truth(rows.value, rows.scale, np.max(rows.gap, -1, keepdims=True, initial=0.0))

    @quiet
    def vjp(self, x: Any, ct: Any, **options: Any) -> Truth:
        """The gradients by each array, side by side."""
        rows = self.rows(x, options)
        g = [num.where(s.hi == 0, 0.0, s * ct) for s in rows.slopes]
        size = np.concatenate([np.abs(size * ct) for size in rows.sizes], -1)
        return Truth(_beside(g), size, np.concatenate([rows.gap] * len(g), -1))

    @quiet
    def jvp(self, x: Any, v: Any, **options: Any) -> Truth:
        """The tangents, from v as that of each array, side by side."""
        rows = self.rows(x, options)
        nan = np.isnan(rows.value.hi)  # moves by NaN, though one array be frozen
        dy = [num.where(nan, NAN, num.total(num.where(s.hi == 0, 0.0, s * v))) for s in rows.slopes]
        size = [np.sum(np.abs(size * v), -1, keepdims=True) for size in rows.sizes]
        return Truth(_beside(dy), np.concatenate(size, -1), np.max(rows.gap, -1, keepdims=True, initial=0.0))


def _beside(parts: list[Number]) -> Number:
    out = parts[0]
    for part in parts[1:]:
        out = num.concatenate(out, part)
    return out


def _by_scores(row: Row, g: Number, broken: Any, where: Any) -> Number:
    """∂/∂logits of ∂/∂z."""
    g = num.where(broken, NAN, num.where(row.frozen, 0.0, g / np.where(row.frozen, 1.0, row.t)))
    return g if where is None else num.where(where, g, 0.0)


def _entropy(x: Any, *, where: Any = None, temperature: Any = 1.0) -> Sloped:
    row = take_apart(x, where, temperature)
    p, d = row.p(), num.where(row.part, row.d, 0.0)
    h = num.where(row.broken, NAN, num.where(row.empty, 0.0, num.total(p * (row.log() - d))))
    mean = num.total(p * d)
    size = (p * (num.absolute(d) + num.absolute(mean))).hi
    return Sloped(h, 0.0, [_by_scores(row, p * (mean - d), row.broken, where)], [size / row.t], row.gap())


def _divergence(x: Any, beside: Any, *, where: Any = None, temperature: Any = 1.0) -> Sloped:
    a, b = take_apart(x, where, temperature), take_apart(beside, where, temperature)
    broken = a.broken | b.broken
    p, q = (num.where(broken, NAN, num.where(row.part, row.e / (row.r + 1.0), 0.0)) for row in (a, b))
    both, only_p = a.part & b.part, a.part & ~b.part
    g = num.where(both, num.where(both, a.d, 0.0) - num.where(both, b.d, 0.0), 0.0)
    # log Σ q e^g, to many digits where that is near 1: rows may differ by less than fifty
    change = num.where(both, b.e * num.expm1(g), a.e - b.e) / (b.r + 1.0)
    over = num.total(change)
    small = np.abs(over.hi) < 0.25
    log = num.where(small, num.log1p(num.where(small, over, 0.0)), a.log() - b.log())
    delta = num.where(both, g - log, 0.0)
    ratio = num.expm1(-delta)  # q / p - 1
    finite = num.total(num.where(both, p * (delta + ratio), num.where(b.part, q, 0.0)))
    infinite = only_p.any(-1, keepdims=True)
    kl = num.where(broken, NAN, num.where(infinite, INF, num.where(a.empty, 0.0, finite)))
    by_p = num.where(infinite, 0.0, p * (delta - finite))
    by_q = num.where(a.empty, 0.0, num.where(both, p * ratio, q - p))
    leading = num.absolute(num.total(num.where(a.first, delta, 0.0)))
    common = np.where(small, num.total(num.absolute(change)).hi, np.maximum(a.log().hi, b.log().hi))
    size_p = (p * (num.absolute(delta) + num.absolute(finite) + leading)).hi + p.hi * common
    size_q = np.minimum(p.hi, q.hi) * (np.abs(delta.hi) + common)
    slopes = [_by_scores(a, by_p, broken, where), _by_scores(b, by_q, broken, where)]
    return Sloped(kl, 0.0, slopes, [size_p / a.t, size_q / a.t], np.maximum(a.gap(), b.gap()))


def _fenchel_young(
    x: Any, labels: Any, *, where: Any = None, temperature: Any = 1.0, alpha: Any = 1.5, label_smoothing: float = 0.0,
    ignore_index: int | None = -100, reduction: str = "none",
) -> Sloped:  # fmt: skip
    """Σ φ(y) - φ(p) - φ'(p) (y - p), where φ'(p) is d - c + 1/alpha, with c from the row's first maximum."""
    a = _project(x, where, temperature, alpha)
    row, p = a.row, a.p
    y, share, ignored, outside = _labels(x, labels, where, ignore_index)
    y = number(y) * (1.0 - label_smoothing) + share * label_smoothing
    alpha = np.broadcast_to(np.asarray(alpha, float), (len(x), 1))
    s = number(alpha - 1)
    some = num.where(s.hi == 0, 1.0, s)

    def log(p: Number) -> Number:
        """(p^s - 1) / s"""
        here = num.where(p.hi > 0, p, 1.0)
        return num.where(p.hi > 0, num.where(s.hi == 0, num.log(here), (_power(here, s) - 1.0) / some), -1.0 / some)

    def phi(p: Number) -> Number:
        return num.where(p.hi > 0, p * num.where(p.hi > 0, log(p), 0.0) / number(alpha), 0.0)

    c = num.total(num.where(row.first, row.d - log(p), 0.0))
    d = num.where(row.part, row.d, 0.0)
    impossible = ((y.hi > 0) & ~row.part).any(-1, keepdims=True)
    loss = num.total(phi(y) - phi(p) - (d - c + 1.0 / number(alpha)) * (y - p))
    dropped = ignored | ((num.total(y).hi == 0) & ~outside)
    broken = row.broken | outside
    loss = num.where(dropped, 0.0, num.where(broken, NAN, num.where(impossible, INF, loss)))
    mass = num.total(a.weights)
    g = p - y + a.weights / num.where(mass.hi == 0, 1.0, mass) * (num.total(y) - 1.0)
    g = num.where(dropped, 0.0, _by_scores(row, g, broken, where))
    depth = np.maximum(np.abs(d.hi), np.abs(c.hi))
    scale = np.sum(np.where(y.hi + p.hi > 0, np.abs((y - p).hi) * depth, 0.0), -1, keepdims=True)
    return Sloped(loss, scale, [g], [(a.size + p.hi + y.hi) / row.t], row.gap())


ENTROPY, DIVERGENCE, FENCHEL_YOUNG = Definition(_entropy), Definition(_divergence), Definition(_fenchel_young)
SPARSEMAX_LOSS = Definition(lambda x, labels, **options: _fenchel_young(x, labels, alpha=2, **options))
