"""The truth, from the definitions, in double-double: 32 digits, for rows of any length.

Never imports softxp. Every function takes rows, float64 arrays (rows, n) that hold numbers already rounded to the dtype
under test, and answers a `Truth`. The corners are decided here row by row and in words, apart from any formula.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import double_double as dd
from .double_double import DD

INF, NAN = float("inf"), float("nan")
quiet = np.errstate(all="ignore")


@dataclass
class Truth:
    value: DD
    scale: Any = 0.0  # where terms of this size cancel to a smaller value, error is counted in ulp of their size
    gap: Any = 0.0  # |x - max| / T, which softmax's first bound grows with
    sign: Any = None


@dataclass
class Row:
    """Rows taken apart: who takes part in the softmax, and the pieces it is made of."""

    x: DD
    m: DD  # (rows, 1) maximum
    first: Any  # bool: one maximum of each row
    part: Any  # bool: entries with a share in the mass
    d: DD  # (x - m) / T; 0 where the mass is shared equally
    e: DD
    r: DD  # (rows, 1) sum of e but for one maximum
    frozen: Any  # (rows, 1) bool: the answer does not change with x
    broken: Any  # (rows, 1) bool: a NaN, or an invalid temperature
    empty: Any  # (rows, 1) bool
    t: Any

    def log(self) -> DD:
        return dd.log1p(self.r)

    def p(self) -> DD:
        p = dd.where(self.part, self.e / (self.r + 1.0), 0.0)
        return dd.where(self.broken, NAN, p)

    def not_p(self) -> DD:
        """1 - p, exact where p is near 1."""
        p = self.p()
        return dd.where(self.first, self.r / (self.r + 1.0), 1.0 - p)

    def logp(self) -> DD:
        value = dd.where(self.part, self.d - self.log(), -INF)
        return dd.where(self.broken, NAN, value)

    def gap(self) -> Any:
        return np.where(np.isfinite(self.d.hi), np.abs(self.d.hi), 0.0)


def take_apart(x: Any, where: Any = None, temperature: Any = 1.0) -> Row:
    x = x if isinstance(x, DD) else DD(x)
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
    pick = dd.total(dd.where(first, x, 0.0))
    finite = np.isfinite(x.hi) & part
    d = dd.where(finite, x, 0.0) - dd.where(np.isfinite(pick.hi), pick, 0.0)
    t = np.where((t > 0) & (t < INF), t, 1.0)
    far = np.abs(d.hi) > 1e290  # beyond what double-double can divide; its exponential is 0 anyway
    d = dd.where(far, d.hi / t, dd.where(far, 0.0, d) / t)
    d = dd.where(equal | first, 0.0, dd.where(part, d, -INF))
    e = dd.where(part, dd.exp(d), 0.0)
    r = dd.total(dd.where(first, 0.0, e))
    frozen = (equal | empty) & ~broken
    return Row(x, DD(m), first, part, d, e, r, frozen, broken, empty, given)


# --- values ----------------------------------------------------------------------------------------------------------


@quiet
def softmax(x: Any, *, where: Any = None, temperature: Any = 1.0) -> Truth:
    row = take_apart(x, where, temperature)
    return Truth(row.p(), gap=row.gap())


@quiet
def log_softmax(x: Any, *, where: Any = None, temperature: Any = 1.0) -> Truth:
    return Truth(take_apart(x, where, temperature).logp())


def _lse(row: Row) -> DD:
    value = dd.where(np.isfinite(row.m.hi), row.m + row.log(), row.m)
    return dd.where(row.broken, NAN, value)


@quiet
def logsumexp(x: Any, *, where: Any = None, b: Any = None, return_sign: bool = False) -> Truth:
    if b is None:
        row = take_apart(x, where)
        sign = np.where(row.broken, NAN, np.where(row.empty, 0.0, 1.0))
        return Truth(_lse(row), np.maximum(np.abs(row.m.hi), row.log().hi), sign=sign)
    b = np.broadcast_to(b, x.shape)
    where = (b != 0) if where is None else (b != 0) & where
    row = take_apart(x, where)
    terms = dd.where(row.part, row.e * b, 0.0)
    s, size = dd.total(terms), dd.total(dd.absolute(terms))
    sign = np.where(row.broken, NAN, np.where(row.empty, 0.0, np.sign(s.hi)))
    log = dd.where(s.hi == 0, -INF, dd.log(dd.where(s.hi == 0, 1.0, dd.absolute(s))))
    value = dd.where(row.empty, -INF, dd.where(np.isfinite(row.m.hi), row.m + log, row.m))
    value = dd.where(row.broken | ((sign < 0) & (not return_sign)), NAN, value)
    with np.errstate(all="ignore"):
        lost = size.hi / np.abs(s.hi)  # how much of the sum's precision the signs cancel
        widest = np.max(np.where(row.part, np.abs(np.log(np.abs(np.where(b == 0, 1, b)))), 0), -1, keepdims=True)
        widest = np.maximum(widest, np.max(np.where(row.part & np.isfinite(x), np.abs(x), 0), -1, keepdims=True))
    return Truth(value, (widest + np.abs(log.hi) + 1) * np.maximum(lost, 1), sign=sign)


@quiet
def logmeanexp(x: Any, *, where: Any = None) -> Truth:
    row = take_apart(x, where)
    count = np.broadcast_to(True if where is None else where, x.shape).sum(-1, keepdims=True)
    mean = (row.r + 1.0) / np.maximum(count, 1).astype(float)
    log = dd.log(mean)
    value = dd.where(np.isfinite(row.m.hi), row.m + log, row.m)
    return Truth(dd.where(row.broken, NAN, value), np.maximum(np.abs(row.m.hi), np.abs(log.hi)))


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
        return Truth(DD(y.hi.reshape(x.shape), y.lo.reshape(x.shape)), scale.reshape(x.shape))
    # long rows, all finite: running sums of exp(x - max), doubled in reach until they span the row
    z = x[:, ::-1] if reverse else x
    m = z.max(-1, keepdims=True)
    s, step = dd.exp(DD(z) - m), 1
    while step < z.shape[1]:
        reach = s[:, step:] + s[:, :-step]
        s = DD(np.concatenate([s.hi[:, :step], reach.hi], 1), np.concatenate([s.lo[:, :step], reach.lo], 1))
        step *= 2
    y = dd.log(s) + m
    return Truth(y[:, ::-1] if reverse else y, np.abs(m) + np.abs(dd.log(s).hi[:, :: -1 if reverse else 1]))


# --- derivatives: (cotangent or tangent) v -> product with the Jacobian or its transpose ------------------------------


def _settle(row: Row, g: DD, where: Any = None) -> DD:
    g = dd.where(row.frozen, 0.0, g)
    g = dd.where(row.broken, NAN, g)
    return g if where is None else dd.where(where, g, 0.0)


def _softmax_product(row: Row, v: Any) -> tuple[DD, DD]:
    """p (v - Σ p v), taking v at the first maximum as 0, and the size of its terms."""
    p = row.p()
    v = DD(v) - dd.total(dd.where(row.first, DD(v), 0.0))
    size = p * (dd.absolute(v) + dd.total(p * dd.absolute(v)))
    return p * (v - dd.total(p * v)), size


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
    return Truth(dd.where(take_apart(x, where, temperature).broken, NAN, truth.value), truth.scale, truth.gap)


@quiet
def log_softmax_vjp(x: Any, ct: Any, *, where: Any = None, temperature: Any = 1.0) -> Truth:
    row = take_apart(x, where, temperature)
    g, size = _log_softmax_product(row, dd.where(row.part, DD(ct), 0.0))
    t = np.where(row.frozen, 1.0, row.t)
    return Truth(_settle(row, g / t, where), (size / t).hi, row.gap())


def _log_softmax_product(row: Row, ct: DD) -> tuple[DD, DD]:
    """ct - p Σ ct = ct (1 - p) - p Σ(the others), and the size of its terms."""
    p, q = row.p(), row.not_p()

    def others(v: DD) -> DD:
        return dd.where(row.first, dd.total(dd.where(row.first, 0.0, v)), dd.total(v) - v)

    size = dd.absolute(ct)
    return ct * q - p * others(ct), size * q + p * others(size)


@quiet
def log_softmax_jvp(x: Any, v: Any, *, where: Any = None, temperature: Any = 1.0) -> Truth:
    row = take_apart(x, where, temperature)
    v = DD(v) - dd.total(dd.where(row.first, DD(v), 0.0))
    p, t = row.p(), np.where(row.frozen, 1.0, row.t)
    g = (v - dd.total(p * v)) / t
    size = (dd.absolute(v) + dd.total(p * dd.absolute(v))) / t
    return Truth(_settle(row, dd.where(row.part, g, 0.0)), size.hi, row.gap())


def _weights(x: Any, where: Any, b: Any) -> tuple[Row, DD, Any]:
    if b is None:
        row = take_apart(x, where)
        return row, row.p(), 1.0
    b = np.broadcast_to(b, x.shape)
    row = take_apart(x, (b != 0) if where is None else (b != 0) & where)
    terms = dd.where(row.part, row.e * b, 0.0)
    s = dd.total(terms)
    lost = dd.total(dd.absolute(terms)).hi / np.abs(s.hi)
    return row, dd.where(row.broken, NAN, terms / s), lost


@quiet
def logsumexp_vjp(x: Any, ct: Any, *, where: Any = None, b: Any = None, return_sign: bool = False) -> Truth:
    row, w, lost = _weights(x, where, b)
    size = np.abs(ct * w.hi)
    return Truth(_settle(row, w * ct, where), size * lost, row.gap() + (0 if b is None else np.abs(row.m.hi)))


@quiet
def logsumexp_jvp(x: Any, v: Any, *, where: Any = None, b: Any = None, return_sign: bool = False) -> Truth:
    row, w, lost = _weights(x, where, b)
    size = dd.total(dd.absolute(w * v)).hi
    gap = np.max(row.gap() + (0 if b is None else np.abs(row.m.hi)), -1, keepdims=True)
    return Truth(_settle(row, dd.total(w * v)), size * lost, gap)


logmeanexp_vjp, logmeanexp_jvp = logsumexp_vjp, logsumexp_jvp


def _prefix_weights(x: Any, reverse: bool) -> tuple[DD, Any]:
    row = _prefixes(x, reverse)
    n = x.shape[1]
    seen = np.tril(np.ones((n, n), bool))
    seen = np.tile(seen.T if reverse else seen, (x.shape[0], 1))
    p = dd.where(row.broken & seen, NAN, dd.where(row.frozen | ~seen, 0.0, row.p()))
    shape = (x.shape[0], n, n)  # [row, which prefix, which entry]
    gap = np.where(np.isfinite(x), x, 0)
    return DD(p.hi.reshape(shape), p.lo.reshape(shape)), np.max(gap, -1, keepdims=True) - np.min(gap, -1, keepdims=True)


@quiet
def logcumsumexp_vjp(x: Any, ct: Any, *, reverse: bool = False) -> Truth:
    p, gap = _prefix_weights(x, reverse)
    terms = DD(np.swapaxes(p.hi, 1, 2), np.swapaxes(p.lo, 1, 2)) * ct[:, None, :]
    return Truth(dd.total(terms)[..., 0], dd.total(dd.absolute(terms)).hi[..., 0], gap)


@quiet
def logcumsumexp_jvp(x: Any, v: Any, *, reverse: bool = False) -> Truth:
    p, gap = _prefix_weights(x, reverse)
    terms = p * v[:, None, :]
    return Truth(dd.total(terms)[..., 0], dd.total(dd.absolute(terms)).hi[..., 0], gap)


# --- cross-entropy ---------------------------------------------------------------------------------------------------


@dataclass
class Loss:
    row: Row
    q: DD  # what multiplies -log p
    loss: DD  # (rows, 1), dropped rows 0, sample weights applied
    size: Any
    weight: Any  # (rows, 1) what the mean divides by the sum of
    slope: DD  # (rows, n) ∂loss/∂z of each row
    slope_size: Any
    z: DD
    cap: DD  # ∂(capped logits)/∂logits


def _loss(
    x: Any, labels: Any, *, where: Any = None, temperature: Any = 1.0, label_smoothing: float = 0.0,
    class_weight: Any = None, sample_weight: Any = None, ignore_index: int | None = -100, z_loss: float = 0.0,
    softcap: float | None = None,
) -> Loss:  # fmt: skip
    rows, n = x.shape
    u, cap = DD(x), DD(np.ones(x.shape))
    if softcap is not None:
        t = dd.tanh(DD(np.clip(np.where(np.isinf(x), 0.0, x), -1e6 * softcap, 1e6 * softcap)) / softcap)
        t = dd.where(np.isinf(x), np.sign(x), t)
        u, cap = t * softcap, (1.0 - t) * (t + 1.0)
        u = dd.where(np.isnan(x), NAN, u)
    row = take_apart(u, where, temperature)
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
    w = np.ones(n) if class_weight is None else class_weight
    s = np.ones((rows, 1)) if sample_weight is None else np.broadcast_to(sample_weight, (rows,))[:, None]
    share = DD(takes.astype(float)) / np.maximum(takes.sum(-1, keepdims=True), 1).astype(float)
    q = (DD(y) * (1.0 - label_smoothing) + share * label_smoothing) * w
    weight = dd.total(DD(y) * w).hi
    dropped = ignored | (s == 0) | ((weight == 0) & ~outside)
    minus = dd.where(row.part, row.log() - row.d, INF)
    terms = dd.where(q.hi == 0, 0.0, DD(q.hi * minus.hi, 0.0))
    ok = (np.abs(minus.hi) < 1e290) & (q.hi != 0)
    terms = dd.where(ok, q * dd.where(ok, minus, 0.0), terms)
    loss = dd.total(terms)
    size = np.abs(loss.hi)
    slope, slope_size = _log_softmax_product(row, -q)
    if z_loss:
        z = DD(row.m.hi) / np.where(row.frozen, 1.0, row.t) + row.log() if softcap is None else None
        if z is None:
            m = dd.total(dd.where(row.first, u, 0.0))
            z = m / np.where(row.frozen, 1.0, row.t) + row.log()
        z = dd.where(np.isfinite(row.m.hi), z, row.m)
        loss = loss + dd.where(np.isfinite(z.hi), z * z * (z_loss * weight), INF)
        slope = slope + dd.where(np.isfinite(z.hi), z * row.p() * (2 * z_loss * weight), 0.0)
        big = np.abs(row.m.hi) / np.where(row.frozen, 1.0, row.t) + row.log().hi
        size = size + z_loss * weight * big * big
        slope_size = slope_size + row.p() * np.where(np.isfinite(big), 2 * z_loss * weight * big, 0.0)
    loss = dd.where(row.broken | outside, NAN, loss)
    slope = dd.where(outside, NAN, _settle(row, slope))
    loss = dd.where(dropped, 0.0, loss * s)
    slope = dd.where(dropped, 0.0, slope * s)
    widest = 0.0 if softcap is None else softcap
    return Loss(
        row, q, loss, np.where(dropped, 0.0, (size + 2 * widest) * s), np.where(dropped, 0.0, s * weight), slope,
        slope_size.hi * s, u, cap,
    )  # fmt: skip


def _reduced(loss: Loss, reduction: str, normalizer: Any) -> tuple[DD, Any]:
    """What each row's loss is divided by."""
    if reduction != "mean":
        return DD(1.0), 1.0
    norm = dd.total(DD(loss.weight[:, 0][None])) if normalizer is None else DD([[float(normalizer)]])
    return dd.where(norm.hi == 0, 1.0, norm), norm


@quiet
def cross_entropy(x: Any, labels: Any, *, reduction: str = "mean", normalizer: Any = None, **options: Any) -> Truth:
    loss = _loss(x, labels, **options)
    scale = loss.size if options.get("z_loss") or options.get("softcap") else np.zeros_like(loss.size)
    if reduction == "none":
        return Truth(loss.loss, scale)
    norm, _ = _reduced(loss, reduction, normalizer)
    value = dd.total(DD(loss.loss.hi[:, 0][None], loss.loss.lo[:, 0][None])) / norm
    return Truth(value[0, 0], np.sum(scale) / norm.hi.max())


def _slopes(x: Any, labels: Any, reduction: str, normalizer: Any, options: dict[str, Any]) -> tuple[DD, Any, Any]:
    loss = _loss(x, labels, **options)
    norm, _ = _reduced(loss, reduction, normalizer)
    t = np.where(loss.row.frozen, 1.0, loss.row.t)
    by = DD(t) * norm
    softcap, where = options.get("softcap"), options.get("where")
    g = loss.slope * loss.cap / by
    g = g if where is None else dd.where(where, g, 0.0)
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
    return Truth(dd.where(g.hi == 0, 0.0, g * ct), size * np.abs(ct), gap)


@quiet
def cross_entropy_jvp(
    x: Any, v: Any, labels: Any, *, reduction: str = "mean", normalizer: Any = None, **options: Any
) -> Truth:
    g, size, gap = _slopes(x, labels, reduction, normalizer, options)
    terms = dd.where(g.hi == 0, 0.0, g * v)
    value, size = dd.total(terms), dd.total(DD(size * np.abs(v))).hi
    gap = np.max(gap, -1, keepdims=True)
    if reduction == "none":
        return Truth(value, size, gap)
    return Truth(dd.total(DD(value.hi[:, 0][None], value.lo[:, 0][None]))[0, 0], np.sum(size), np.max(gap))
