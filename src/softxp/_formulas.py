"""The mathematics of softxp, said once.

Every function takes the array namespace first and uses the array API standard alone, so the same lines run on any
library, on one chunk of a larger array, and on numbers of fifty digits. This file imports nothing of ours.

Everything stands on one row state, `(m, r)`: the maximum of a row, and the sum of `exp(x - m)` over all of the row but
*one* maximum. Then

    logsumexp = m + log1p(r)        log_softmax = (x - m) - log1p(r)        softmax = exp(x - m) / (1 + r)

and two states merge into one. Leaving that one maximum out of the sum is what keeps the tails: at [17, 0] the first entry
of log_softmax is -4.1e-8, which `log(1 + 4.1e-8)` rounds away in 32 bits.

Words used below: `axis` is a tuple of non-negative ints; a *row* is what lies along `axis`; arrays named after a
quantity of a row (m, r, count) keep `axis` with size 1. `compute` is the dtype of the arithmetic and `dtype` that of the
answer. A rule's `call(name, **values)` evaluates another function of this file as the backend differentiates it, so
that derivatives of derivatives are closed forms too.

No step here raises a floating-point flag for the corners (infinities, empty rows, temperature 0), no Python branch looks
at an array's values, and nothing is written in place.
"""

from typing import Any, NamedTuple

INF, NAN = float("inf"), float("nan")


# --- small words -----------------------------------------------------------------------------------------------------


def cast(xp, x, dtype):
    return x if x.dtype == dtype else xp.astype(x, dtype)


def total(xp, x, axis):
    return xp.sum(x, axis=axis, keepdims=True) if axis else x


def row_max(xp, x, axis):
    if not axis:
        return x
    if any(x.shape[a] == 0 for a in axis):  # an empty row has no maximum to ask for; its sum is 0
        return total(xp, x, axis) - INF
    return xp.max(x, axis=axis, keepdims=True)


def drop(xp, x, axis):
    """Remove the size-1 axes of a row quantity."""
    return xp.squeeze(x, axis=axis) if axis else x


def keep(xp, x, axis):
    """Put the size-1 axes of a row quantity back."""
    for a in axis:
        x = xp.expand_dims(x, axis=a)
    return x


def sum_like(xp, g, like):
    """Sum `g` over what broadcasting added to `like`: the adjoint of broadcasting, in like's shape and dtype."""
    extra = g.ndim - like.ndim
    axes = tuple(range(extra)) + tuple(
        extra + i for i, n in enumerate(like.shape) if n == 1 and g.shape[extra + i] != 1
    )
    if axes:
        g = xp.sum(g, axis=axes, keepdims=True)
    return cast(xp, xp.reshape(g, like.shape) if extra else g, like.dtype)


def number(xp, temperature, dtype):
    """A temperature given as a number, as the arithmetic will see it: beyond the range of 32 bits it is a limit."""
    if dtype == xp.float32 and not 1.2e-38 < temperature < 3.4e38:
        return 0.0 if temperature < 1 else INF
    return temperature


def masked(xp, x, where, compute):
    """x in the compute dtype, -inf where it takes no part."""
    x = cast(xp, x, compute)
    return x if where is None else xp.where(where, x, xp.full_like(x, -INF))


# --- error-free pieces: what rounding took away, kept as a second number ----------------------------------------------


def two_difference(a, b):
    """d, error with d + error == a - b exactly (Knuth 1969, The Art of Computer Programming, vol. 2, 4.2.2)."""
    d = a - b
    v = d - a
    return d, (a - (d - v)) - (b + v)


def two_product_error(a, b, splitter):
    """a * b - round(a * b), exactly (Dekker 1971, doi:10.1007/BF01397083)."""
    c = splitter * a
    ah = c - (c - a)
    c = splitter * b
    bh = c - (c - b)
    al, bl = a - ah, b - bh
    return ((ah * bh - a * b) + ah * bl + al * bh) + al * bl


def divide(xp, d, error, t):
    """(d + error) / t as a quotient and what is missing from it."""
    q = d / t
    if error is None:
        return q, None
    # exp of anything below -1e5 is 0: the clip only keeps the splitting from overflowing
    near = xp.maximum(q, xp.full_like(t, -1e5))
    splitter = 134217729.0 if d.dtype == xp.float64 else 4097.0
    error = ((xp.maximum(d, -1e5 * t) - near * t) - two_product_error(near, t, splitter) + error) / t
    return q, xp.where(xp.isfinite(error), error, xp.zeros_like(t))  # lost where the splitting itself overflows


def chi(w):
    """(1 - e^-w - w) / w² by its series, to the last bit for |w| <= 1."""
    y = 1
    for k in range(21, 2, -1):
        y = 1 - y * w / k
    return -y / 2


# --- the row state ---------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    m: Any  # maximum of each row; -inf for a row with nothing in it
    r: Any  # sum of exp(d) over all of the row but one maximum; 0 for a row with nothing in it
    top: Any  # bool: a maximum of its row
    d: Any  # (x - m) / temperature: exactly 0 at the top, -inf for what takes no part
    e: Any  # exp(d), with the rounding of d made good where the arithmetic is no wider than x


def rows(xp, x, *, axis, where=None, temperature=1.0, compute):
    exact = x.dtype == compute
    x = masked(xp, x, where, compute)
    fold = getattr(xp, "fold_rows", None)
    if fold is None or not isinstance(temperature, (int, float)):
        return whole_rows(xp, x, axis, temperature, exact)
    m, r = fold(x, axis, temperature, exact)  # a library whose arrays lie in pieces folds the state over them
    return Rows(m, r, *spread(xp, x, m, temperature, exact))


def whole_rows(xp, x, axis, temperature, exact):
    m = row_max(xp, x, axis)
    top, d, e = spread(xp, x, m, temperature, exact)
    return Rows(m, rest(xp, top, d, e, axis), top, d, e)


def spread(xp, x, m, temperature, exact):
    """top, d and e of `Rows`, from x and its rows' maximum."""
    top, d, error = distances(xp, x, m, temperature, exact)
    e = xp.exp(d)
    return top, d, e if error is None else e + e * error


def distances(xp, x, m, temperature, exact):
    """top and d of `Rows`, and what rounding took from d (None where the arithmetic is wider than x)."""
    low, zero = xp.full_like(m, -INF), xp.zeros_like(m)
    centre = xp.where(xp.isfinite(m), m, zero)  # -inf - (-inf) is nan: a row with nothing in it shifts by 0
    # beside +inf all else is -inf; beside nan all is nan
    ceiling = xp.where(m == INF, low, xp.where(m == m, -low, m))
    peak = xp.where(m == -INF, zero + NAN, m)  # a row with nothing in it has no top

    t, flat, hard = None, None, m == INF  # the divisor; where temperature is +inf; where the top is set, not computed
    if isinstance(temperature, (int, float)):
        temperature = number(xp, temperature, m.dtype)
    if not isinstance(temperature, (int, float)):
        t = cast(xp, temperature, m.dtype)
        flat = t == INF
        frozen = xp.where(m == m, low, m)  # temperature 0: the top alone remains
        ceiling = xp.where(t > 0, ceiling, xp.where(t == 0, frozen, frozen + NAN))
        peak = xp.where(t >= 0, peak, zero + NAN)
        hard = hard | (t == 0)
        t = xp.where((t > 0) & ~flat, t, xp.ones_like(t))
    elif temperature == 0:
        ceiling, hard = xp.where(m == m, low, m), m == m
    elif temperature == INF:
        flat = m == m
    elif temperature != 1:
        t = xp.full_like(m, temperature)

    if exact:
        d, error = two_difference(xp.where(xp.isfinite(x), x, centre), centre)
        error = xp.where(xp.isfinite(error), error, zero)  # it is lost where the difference overflows
    else:
        d, error = x - centre, None
    if t is not None:
        d, error = divide(xp, d, error, t)
    if exact:
        d = xp.where(x == -INF, low, d)
    if flat is not None:
        d = xp.where(flat & (d > -INF), zero, d)
        error = None if error is None else xp.where(flat, zero, error)

    top = x == peak
    # an ordinary top is 0 by itself, which lets an autograd that differentiates these very lines see it move
    return top, xp.where(top & hard, zero, xp.minimum(d, ceiling)), error


def rest(xp, top, d, e, axis):
    """r: the sum of e over all but one maximum. A maximum adds d, which is 0, where expm1(d) is meant."""
    count = total(xp, cast(xp, top, e.dtype), axis)
    return total(xp, xp.where(top, d, e), axis) + (xp.maximum(count, xp.ones_like(count)) - 1)


def merge(xp, a, b, temperature=1.0):
    """The state of two rows laid end to end, from their states (m, r). Associative, commutative."""
    (ma, ra), (mb, rb) = a, b
    m = xp.maximum(ma, mb)
    wide, exact = cast(xp, m, ra.dtype), ma.dtype == ra.dtype
    top_a, da, ea = spread(xp, cast(xp, ma, ra.dtype), wide, temperature, exact)
    top_b, db, eb = spread(xp, cast(xp, mb, ra.dtype), wide, temperature, exact)
    zero = xp.zeros_like(wide)
    left = ra + (1 + ra) * xp.where(top_a, da, zero) + (1 + rb) * eb
    right = rb + (1 + rb) * xp.where(top_b, db, zero) + (1 + ra) * ea
    return m, xp.where(ma >= mb, left, right)


# --- softmax, log_softmax --------------------------------------------------------------------------------------------


def softmax(xp, x, *, axis, where=None, temperature=1.0, dtype, compute):
    s = rows(xp, x, axis=axis, where=where, temperature=temperature, compute=compute)
    return cast(xp, s.e / (1 + s.r), dtype)


def log_softmax(xp, x, *, axis, where=None, temperature=1.0, dtype, compute):
    s = rows(xp, x, axis=axis, where=where, temperature=temperature, compute=compute)
    return cast(xp, s.d - xp.log1p(s.r), dtype)


def softmax_derivative(xp, p, v, axis, t=1.0):
    """(diag(p) - p pᵀ) v / t, its own transpose, written Sᵀ (diag(p) - p pᵀ) S so that a library that transposes these very
    lines keeps their care.

    S takes v's mean over the row's maxima away, and leaves exactly 0 at an entry with p > 1/2: a constant added to v
    changes nothing, and without this one the derivative would lose an entry of probability near 1, as softmax without its
    shift would lose the row. Sᵀ gives that entry minus the sum of the others.
    """
    top, lone, zero = p == row_max(xp, p, axis), p > 0.5, xp.zeros_like(v)
    count = total(xp, cast(xp, top, p.dtype), axis)
    count = xp.maximum(count, xp.ones_like(count))
    v = xp.where(lone, zero, v - total(xp, xp.where(top, v, zero), axis) / count)
    g = p * (v - total(xp, p * v, axis)) / t
    s = total(xp, xp.where(lone, zero, g), axis)
    return xp.where(lone, -s, g - xp.where(top, s / count, zero))


def both(call, xp, x, u, axis, where, temperature, compute):
    """log p and p of u's rows. exp(log p) will do for p where the arithmetic is wider than x."""
    options = dict(x=u, axis=axis, where=where, temperature=temperature, dtype=compute, compute=compute)
    logp = call("log_softmax", **options)
    return logp, call("softmax", **options) if x.dtype == compute else xp.exp(logp)


def log_softmax_adjoint(xp, logp, p, ct, axis):
    """ct - p Σct. At an entry with p > 1/2, where that cancels: -expm1(log p) ct - p Σ(the other ct)."""
    lone = p > 0.5
    others = total(xp, xp.where(lone, xp.zeros_like(ct), ct), axis)
    others = xp.where(lone, others, total(xp, ct, axis) - ct)
    return -xp.expm1(logp) * ct - p * others


def softmax_vjp(call, xp, ct, y, wanted, x, *, axis, where=None, temperature=1.0, dtype, compute):
    how = dict(x=x, axis=axis, where=where, temperature=temperature)
    p = unrounded(call, xp, "softmax", y, compute, **how)
    gz = softmax_derivative(xp, p, cast(xp, ct, compute), axis)
    return to_inputs(xp, gz, None, wanted, x, None, axis, where, temperature, compute)


def softmax_jvp(call, xp, y, tangents, x, *, axis, where=None, temperature=1.0, dtype, compute):
    how = dict(x=x, axis=axis, where=where, temperature=temperature)
    p = unrounded(call, xp, "softmax", y, compute, **how)
    dz, t, _, frozen = from_inputs(xp, tangents, x, None, axis, where, temperature, compute)
    dy = softmax_derivative(xp, p, dz, axis, t)
    return cast(xp, xp.where(frozen, xp.zeros_like(dy), dy), dtype)


def unrounded(call, xp, name, y, compute, **values):
    """The answer itself, unless it was rounded to 16 bits: a derivative should not start from that."""
    if y.dtype in (xp.float32, xp.float64):
        return cast(xp, y, compute)
    return call(name, **values, dtype=compute, compute=compute)


def log_softmax_vjp(call, xp, ct, y, wanted, x, *, axis, where=None, temperature=1.0, dtype, compute):
    logp, p = both(call, xp, x, x, axis, where, temperature, compute)
    ct = cast(xp, ct, compute)
    ct = xp.where(logp == -INF, xp.zeros_like(ct), ct)  # log p is -inf there whatever x does nearby
    gz = log_softmax_adjoint(xp, logp, p, ct, axis)
    return to_inputs(xp, gz, None, wanted, x, None, axis, where, temperature, compute)


def log_softmax_jvp(call, xp, y, tangents, x, *, axis, where=None, temperature=1.0, dtype, compute):
    p = call("softmax", x=x, axis=axis, where=where, temperature=temperature, dtype=compute, compute=compute)
    dz, t, _, frozen = from_inputs(xp, tangents, x, None, axis, where, temperature, compute)
    zero = xp.zeros_like(dz)
    lone = p > 0.5  # beside it every dz counts from its own, as in softmax_derivative
    dz = xp.where(lone, zero, dz - total(xp, xp.where(lone, dz, zero), axis))
    dy = (dz - total(xp, p * dz, axis)) / t
    return cast(xp, xp.where(frozen | (y == -INF), zero, dy), dtype)


# --- between the inputs and z, the scores whose softmax is taken: z = softcap(x) / temperature, masked ----------------


def capped(xp, x, softcap, compute):
    x = cast(xp, x, compute)
    return x if softcap is None else softcap * xp.tanh(x / softcap)


def cap_slope(xp, x, softcap):
    """d softcap·tanh(x / softcap) / dx = sech²(x / softcap), without cancellation where tanh is near 1."""
    x = xp.where(x == x, x, xp.zeros_like(x))  # a row that counts and holds NaN is NaN without this factor's help
    e = xp.exp(-2 * xp.abs(x / softcap))
    return 4 * e / ((1 + e) * (1 + e))


def divisor(xp, m, temperature):
    """Temperature, 1 instead of its limits 0 and inf, and the rows whose derivative is 0 because it was one of them."""
    if isinstance(temperature, (int, float)):
        temperature = number(xp, temperature, m.dtype)
        return (temperature, m != m) if 0 < temperature < INF else (1.0, m == m)
    t = cast(xp, temperature, m.dtype)
    limit = (t == 0) | (t == INF)
    return xp.where(limit, xp.ones_like(t), t), limit


def scores(xp, x, softcap, axis, where, temperature, compute):
    """u = softcap(x) masked, its rows' maximum as a finite centre, the divisor, and which rows have derivative 0."""
    u = masked(xp, capped(xp, x, softcap, compute), where, compute)
    return u, *scale(xp, row_max(xp, u, axis), temperature)


def scale(xp, m, temperature):
    """Of rows with maximum m: a finite centre, the divisor, and which have derivative 0."""
    t, frozen = divisor(xp, m, temperature)
    frozen = (frozen & (m == m)) | (m == INF) | (m == -INF)
    return xp.where(xp.isfinite(m), m, xp.zeros_like(m)), t, frozen


def to_inputs(xp, gz, row_sum, wanted, x, softcap, axis, where, temperature, compute):
    """Pull a cotangent of z back to {x, temperature}. `row_sum`: Σ gz of each row where it is not 0 by construction."""
    of = scores(xp, x, softcap, axis, where, temperature, compute)
    return from_scores(xp, gz, row_sum, wanted, x, softcap, axis, where, temperature, compute, *of)


def from_scores(xp, gz, row_sum, wanted, x, softcap, axis, where, temperature, compute, u, centre, t, frozen):
    """`to_inputs`, given the scores."""
    zero = xp.zeros_like(gz)
    gz = xp.where(frozen, zero, gz)
    out = {}
    if "temperature" in wanted:
        # dz/dT = -u / T², split at the centre so that a large common offset does not drown the differences
        gt = gz * xp.where(gz == 0, zero, u - centre)
        gt = sum_like(xp, total(xp, gt, axis) / t / t, temperature)
        if row_sum is not None:
            gt = gt + sum_like(xp, xp.where(frozen, xp.zeros_like(row_sum), row_sum) * centre / t / t, temperature)
        out["temperature"] = -gt
    if "x" in wanted:
        gx = gz / t
        if softcap is not None:
            gx = gx * cap_slope(xp, cast(xp, x, compute), softcap)
        if where is not None:
            gx = xp.where(where, gx, zero)
        out["x"] = cast(xp, gx, x.dtype)
    return out


def from_inputs(xp, tangents, x, softcap, axis, where, temperature, compute):
    """Push tangents of {x, temperature} forward to z: t dz less a row constant, t, that constant, and the frozen rows.

    The caller divides by t when the differences within a row are taken: rounding before would show in them.
    """
    u, centre, t, frozen = scores(xp, x, softcap, axis, where, temperature, compute)
    zero = xp.zeros_like(u)
    dz, shift = zero, xp.zeros_like(centre)
    if "x" in tangents:
        dx = cast(xp, tangents["x"], compute)
        if softcap is not None:
            dx = dx * cap_slope(xp, cast(xp, x, compute), softcap)
        dz = dz + (dx if where is None else xp.where(where, dx, zero))
    if "temperature" in tangents:
        dt = cast(xp, tangents["temperature"], compute) / t
        dz = dz - xp.where(xp.isfinite(u), u - centre, zero) * dt
        shift = shift - centre * dt / t
    return dz, t, shift, frozen


# --- the largest of a row --------------------------------------------------------------------------------------------
# Of equal entries the first in the row counts as the larger, so that "the k largest" are exactly k.


def first_largest(xp, z, best, count):
    """Which entries of z are the `count` largest along the last axis. `best`: so many of z's largest or more, in descending
    order; `count`: a number, or one for each row, at least 1.
    """
    nowhere = xp.full_like(best, -INF)
    at = xp.cumulative_sum(xp.ones_like(best), axis=-1) == count
    last = (z.ndim - 1,)
    border = row_max(xp, xp.where(at, best, nowhere), last)
    level = cast(xp, z == border, z.dtype)
    room = count - total(xp, cast(xp, z > border, z.dtype), last)
    return (z > -INF) & ((z > border) | ((z == border) & (xp.cumulative_sum(level, axis=-1) <= room)))


def sound(xp, x, axis):
    """x with 0 throughout a row that holds NaN, which no order has a place for; and which rows do."""
    sick = total(xp, xp.where(x == x, xp.zeros_like(x), xp.ones_like(x)), axis) > 0
    return xp.where(sick, xp.zeros_like(x), x), sick


def among_largest(xp, u, k, axis):
    """Which entries of u are the k largest of their row; none of a row that holds NaN, and none at -inf."""
    z, sick = sound(xp, u, axis)
    there, again = axis_last(xp, u, axis, False)
    z = there(z)
    k = min(k, z.shape[-1]) if isinstance(z.shape[-1], int) else k
    chosen = again(first_largest(xp, z, xp.largest(z, k), k)) if k else u > INF
    return chosen & ~sick


# --- logsumexp, logmeanexp -------------------------------------------------------------------------------------------


def weighted(xp, x, b, axis, where, compute):
    """x - c + log|b|, -inf where b is 0; which entries count negative; and c, finite, one for each row.

    The common offset c goes first: beside an offset of 1e17 the logarithm of a factor would round away.
    """
    x, b = masked(xp, x, where, compute), cast(xp, b, compute)
    absent = b == 0
    x = xp.where(absent, xp.full_like(x, -INF), x)
    m = row_max(xp, x, axis)
    c = xp.where(xp.isfinite(m), m, xp.zeros_like(m))
    return x - c + xp.log(xp.where(absent, xp.ones_like(b), xp.abs(b))), b < 0, c


def negative_share(xp, e, r, negative, axis):
    """The share of the negative terms in Σ|b| exp(x); the sum itself is positive below one half."""
    return total(xp, xp.where(negative, e, xp.zeros_like(e)), axis) / (1 + r)


def logsumexp(xp, x, *, axis, b=None, where=None, keepdims, return_sign=False, dtype, compute):
    if b is None:
        s = rows(xp, x, axis=axis, where=where, compute=compute)
        lse = s.m + xp.log1p(s.r)
    else:
        z, negative, c = weighted(xp, x, b, axis, where, compute)
        s = rows(xp, z, axis=axis, compute=compute)
        share = negative_share(xp, s.e, s.r, negative, axis)
        # |1 - 2 share|, less 1, so that no negative term at all adds exactly 0
        less = xp.where(share <= 0.5, -2 * share, 2 * share - 2)
        nothing = less == -1
        log = xp.log1p(xp.where(nothing, xp.zeros_like(less), less))
        lse = c + (s.m + xp.log1p(s.r) + xp.where(nothing, xp.full_like(log, -INF), log))
        if not return_sign:
            lse = xp.where(share > 0.5, xp.full_like(lse, NAN), lse)
    return cast(xp, lse if keepdims else drop(xp, lse, axis), dtype)


def sumexp_sign(xp, x, *, axis, b=None, where=None, keepdims, dtype, compute):
    """Sign of Σ b exp(x): 1, -1, or 0 where the terms cancel or there are none."""
    if b is None:
        b = xp.ones_like(x)
    z, negative, _ = weighted(xp, x, b, axis, where, compute)
    s = rows(xp, z, axis=axis, compute=compute)
    sign = xp.sign(0.5 - negative_share(xp, s.e, s.r, negative, axis))
    sign = xp.where(s.m == -INF, xp.zeros_like(s.m), xp.where(s.m == s.m, sign, s.m))
    sign = xp.where((s.m == INF) & (sign == 0), sign + NAN, sign)  # inf - inf has none
    return cast(xp, sign if keepdims else drop(xp, sign, axis), dtype)


def logmeanexp(xp, x, *, axis, where=None, keepdims, dtype, compute):
    s = rows(xp, x, axis=axis, where=where, compute=compute)
    if where is None:
        count = total(xp, xp.ones_like(s.d), axis)
    else:
        count = total(xp, xp.where(where, xp.ones_like(s.d), xp.zeros_like(s.d)), axis)
    count = xp.maximum(count, xp.ones_like(count))
    mean = (1 + s.r) / count
    # near-equal entries: log(mean of exp(d)) = log1p(mean of expm1(d)), which does not round the mean to 1 first
    part = xp.expm1(s.d) if where is None else xp.where(where, xp.expm1(s.d), xp.zeros_like(s.d))
    # (not further from 1: XLA's log1p in float64 loses three digits between -0.45 and -0.3, jax 0.10)
    near = mean > 0.75
    log = xp.where(near, xp.log1p(xp.where(near, total(xp, part, axis) / count, xp.zeros_like(mean))), xp.log(mean))
    lme = s.m + log
    return cast(xp, lme if keepdims else drop(xp, lme, axis), dtype)


def exp_weights(xp, call, x, b, where, axis, compute):
    """∂logsumexp/∂x, which is softmax where no term is negative, and the rows whose derivative is 0."""
    if b is None:
        p = call("softmax", x=x, axis=axis, where=where, dtype=compute, compute=compute)
        m = row_max(xp, masked(xp, x, where, compute), axis)
        return p, (m == INF) | (m == -INF)
    z, negative, _ = weighted(xp, x, b, axis, where, compute)
    m = row_max(xp, z, axis)
    p = call("softmax", x=z, axis=axis, dtype=compute, compute=compute)
    left = 1 - 2 * total(xp, xp.where(negative, p, xp.zeros_like(p)), axis)
    frozen = (m == INF) | (m == -INF) | (left == 0)
    return xp.where(negative, -p, p) / xp.where(left == 0, xp.ones_like(left), left), frozen


def exp_weights_of_b(xp, call, x, b, where, axis, compute):
    """∂logsumexp/∂b = exp(x) / Σ b exp(x)."""
    x = masked(xp, x, where, compute)
    _, _, c = weighted(xp, x, b, axis, None, compute)
    options = dict(x=x - c, axis=axis, b=b, keepdims=True, dtype=compute, compute=compute)
    lse, sign = call("logsumexp", **options, return_sign=True), sumexp_sign(xp, **options)
    w = sign * xp.exp(x - c - lse)
    return xp.where((x == x) & xp.isfinite(lse), w, xp.zeros_like(w))  # a NaN that counts makes its row NaN through w


def logsumexp_vjp(call, xp, ct, y, wanted, x, *, axis, b=None, where=None, keepdims, return_sign=False, dtype, compute):
    ct = cast(xp, ct if keepdims else keep(xp, ct, axis), compute)
    w, frozen = exp_weights(xp, call, x, b, where, axis, compute)
    out, zero = {}, xp.zeros_like(w)
    if "x" in wanted:
        gx = xp.where(frozen, zero, ct * w)
        out["x"] = cast(xp, gx if where is None else xp.where(where, gx, zero), x.dtype)
    if "b" in wanted:
        gb = xp.where(frozen, zero, ct * exp_weights_of_b(xp, call, x, b, where, axis, compute))
        out["b"] = sum_like(xp, gb, b)
    return out


def logsumexp_jvp(call, xp, y, tangents, x, *, axis, b=None, where=None, keepdims, return_sign=False, dtype, compute):
    w, frozen = exp_weights(xp, call, x, b, where, axis, compute)
    zero = xp.zeros_like(w)
    w = w if where is None else xp.where(where, w, zero)
    dz = zero
    if "x" in tangents:
        dz = dz + w * cast(xp, tangents["x"], compute)
    if "b" in tangents:
        dz = dz + exp_weights_of_b(xp, call, x, b, where, axis, compute) * cast(xp, tangents["b"], compute)
    dy = total(xp, xp.where(frozen, zero, dz), axis)
    return cast(xp, dy if keepdims else drop(xp, dy, axis), dtype)


# --- logcumsumexp ----------------------------------------------------------------------------------------------------


def axis_last(xp, x, axis, reverse):
    """The axes of a row flattened into one, last, in the direction of the sum; and the way back."""
    shape = x.shape
    order = tuple(a for a in range(x.ndim) if a not in axis) + axis
    back = tuple(order.index(a) for a in range(x.ndim))
    turn = (lambda a: xp.flip(a, axis=-1)) if reverse else (lambda a: a)
    if len(axis) == 1:  # sizes that are not known yet cannot be reshaped
        return lambda a: turn(xp.permute_dims(a, order)), lambda a: xp.permute_dims(turn(a), back)
    moved = tuple(shape[a] for a in order)
    lead = x.ndim - len(axis)
    length = 1
    for n in moved[lead:]:
        length = length * n

    def there(a):
        return turn(xp.reshape(xp.permute_dims(a, order), (*moved[:lead], length)))

    def again(a):
        return xp.permute_dims(xp.reshape(turn(a), moved), back)

    return there, again


def scan(xp, join, state):
    """Every prefix of `state` (a tuple of arrays) along the last axis, joined in pairs: 2n joins, log2(n) deep."""
    n = state[0].shape[-1]
    if n < 2:
        return state
    half = n // 2

    def first(a, k):
        return a if a.shape[-1] == k else a[..., :k]

    even, odd = tuple(a[..., 0::2] for a in state), tuple(a[..., 1::2] for a in state)
    odd = scan(xp, join, join(tuple(first(a, half) for a in even), odd))
    if n > 2:
        later = join(tuple(first(a, (n - 1) // 2) for a in odd), tuple(a[..., 1:] for a in even))
        even = tuple(xp.concat([a[..., :1], b], axis=-1) for a, b in zip(even, later, strict=True))

    def weave(a, b):
        pairs = xp.reshape(xp.stack([first(a, half), b], axis=-1), (*b.shape[:-1], 2 * half))
        return pairs if n % 2 == 0 else xp.concat([pairs, a[..., half:]], axis=-1)

    return tuple(weave(a, b) for a, b in zip(even, odd, strict=True))


def prefix_states(xp, x, compute):
    """The state (m, r) of every prefix along the last axis."""
    return scan(xp, lambda a, b: merge(xp, a, b), (x, xp.zeros_like(cast(xp, x, compute))))


def logcumsumexp(xp, x, *, axis, reverse, dtype, compute):
    there, again = axis_last(xp, x, axis, reverse)
    m, r = prefix_states(xp, there(x), compute)
    return cast(xp, again(cast(xp, m, compute) + xp.log1p(r)), dtype)


def decaying_sum(xp, m, log, v):
    """D_i = v_i + exp(y_{i-1} - y_i) D_{i-1} along the last axis, for y = m + log that never decrease."""

    def join(left, right):
        return right[0], right[1], right[2] + left[2] * xp.exp((left[0] - right[0]) + (left[1] - right[1]))

    return scan(xp, join, (m, log, v))[2]


def prefix_terms(xp, x, axis, reverse, compute):
    """The way to the last axis and back; exp(x_j - y_j); y in two finite parts; and where it moves with x."""
    there, again = axis_last(xp, x, axis, reverse)
    x = there(x)
    m, r = prefix_states(xp, x, compute)
    x, m, log = cast(xp, x, compute), cast(xp, m, compute), xp.log1p(r)
    zero = xp.zeros_like(m)
    far = zero + 1e30
    live, broken = xp.isfinite(m), m != m
    p = xp.exp(xp.where(live & (x > -INF), (xp.where(live, x, zero) - xp.where(live, m, zero)) - log, zero - INF))
    p = xp.where(broken, m, p)
    m = xp.where(live | broken, m, xp.where(m > 0, far, -far))
    return there, again, p, m, xp.where(live, log, zero), live | broken


def logcumsumexp_vjp(call, xp, ct, y, wanted, x, *, axis, reverse, dtype, compute):
    there, again, p, m, log, live = prefix_terms(xp, x, axis, reverse, compute)
    ct = there(cast(xp, ct, compute))
    m, log, ct = (xp.flip(a, axis=-1) for a in (-m, -log, xp.where(live, ct, xp.zeros_like(ct))))
    after = xp.flip(decaying_sum(xp, m, log, ct), axis=-1)
    return {"x": cast(xp, again(p * after), x.dtype)}


def logcumsumexp_jvp(call, xp, y, tangents, x, *, axis, reverse, dtype, compute):
    there, again, p, m, log, live = prefix_terms(xp, x, axis, reverse, compute)
    zero = xp.zeros_like(p)
    dy = decaying_sum(xp, m, log, p * there(cast(xp, tangents["x"], compute)) if "x" in tangents else zero)
    return cast(xp, again(xp.where(live, dy, zero)), dtype)
