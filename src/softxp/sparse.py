"""sparsemax and entmax: softmax's relatives, whose small probabilities are exactly 0.

One family, by the deformed exponential exp_s(u) = (1 + s u)₊^(1/s) with s = alpha - 1, which is exp at s = 0:

    p_i = exp_s(d_i - c),   d = (x - max x) / temperature,   c such that Σ p = 1

alpha 1 is softmax, 2 is sparsemax. In between and beyond, the larger alpha, the fewer entries have a share.
"""

from typing import Any, Literal, NamedTuple

from . import _args as args
from . import _formulas as F
from . import _loss as L
from ._backends import call
from ._op import Op, record

Axis = int | tuple[int, ...] | None
INF, NAN = F.INF, F.NAN


# --- formulas --------------------------------------------------------------------------------------------------------


def is_number(alpha):
    return isinstance(alpha, (int, float))


def excess(xp, alpha, compute):
    """s = alpha - 1: a number, or one for each row."""
    return alpha - 1 if is_number(alpha) else F.cast(xp, alpha, compute) - 1


def by_sorting(xp, z, axis, square):
    """(z - τ)₊ with τ such that these, or their squares, have sum 1 in each row; z is at most 0, and 0 somewhere.

    The k largest numbers alone would have τ_k; τ is that of the last k whose number lies above its τ_k.
    """
    there, again = F.axis_last(xp, z, axis, False)
    z = there(z)
    last = (z.ndim - 1,)
    # nothing at -1 or below has a share; Newton's steps from there never pass τ, the sum being convex, and leave less to
    # sort
    floor = xp.zeros_like(F.total(xp, z, last)) - 1
    for _ in range(2 if square else 0):
        above = xp.maximum(z - floor, xp.zeros_like(floor))
        floor = floor + (F.total(xp, above * above, last) - 1) / (2 * xp.maximum(F.total(xp, above, last), -floor))
    best = xp.descending(z, floor) - floor  # so that whatever has no share adds 0 to the sums
    k = xp.cumulative_sum(xp.ones_like(best), axis=-1)
    mean = xp.cumulative_sum(best, axis=-1) / k
    tau = (
        mean - root(xp, 1 - (xp.cumulative_sum(best * best, axis=-1) - k * mean * mean), k) if square else mean - 1 / k
    )
    count = F.total(xp, F.cast(xp, best > tau, z.dtype), last)
    at_last = k == xp.maximum(count, xp.ones_like(count))
    tau = floor + F.total(xp, xp.where(at_last, tau, xp.zeros_like(tau)), last)
    # once more from the numbers above it, whose sums have not gone through the whole row one by one
    off, zero = z - tau, xp.zeros_like(tau)
    inside = off > 0
    k = xp.maximum(F.total(xp, F.cast(xp, inside, z.dtype), last), xp.ones_like(tau))
    mean = F.total(xp, xp.where(inside, off, zero), last) / k
    apart = xp.where(inside, off - mean, zero)
    more = mean - (root(xp, 1 - F.total(xp, apart * apart, last), k) if square else 1 / k)
    return again(xp.maximum(off - more, zero))


def root(xp, a, k):
    return xp.sqrt(xp.maximum(a, xp.zeros_like(a)) / k)


def deformed_log(xp, p, s):
    """(p^s - 1) / s, log p at s = 0."""
    log = xp.log(p)
    if is_number(s):
        return xp.expm1(s * log) / s if s else log
    return xp.where(s == 0, log, xp.expm1(s * log) / xp.where(s == 0, xp.ones_like(s), s))


NEAR = 1 / 16  # up to this s, exp_s is computed about 1; beyond, about the edge of the support: 1 + s u would cancel


def deformed_exp(xp, d, v, s):
    """exp_s(d - c), given c where s is near 0, and elsewhere the largest of them, (1 - s c)^(1/s)."""
    if is_number(s) and s == 0:
        return xp.exp(d - v)
    near, zero = s < NEAR, xp.zeros_like(v)
    some = s if is_number(s) else xp.where(s == 0, zero + 1, s)
    alive: Any = None
    log: Any = None
    if not is_number(s) or near:
        y = (s if is_number(s) else xp.where(near, s, zero)) * (d - v)
        alive = y > -1
        log = xp.log1p(xp.where(alive, y, xp.zeros_like(y)))
    if not is_number(s) or not near:
        edge = s * d + xp.exp(s * xp.log(v if is_number(s) else xp.where(near, zero + 1, v)))
        alive = edge > 0 if alive is None else xp.where(near, alive, edge > 0)
        of_edge = xp.log(xp.where(edge > 0, edge, xp.ones_like(edge)))
        log = of_edge if log is None else xp.where(near, log, of_edge)
    e = xp.where(alive, xp.exp(log / some), xp.zeros_like(log))
    if is_number(s):
        return e if near else xp.where(d == 0, v, e)
    e = xp.where((d == 0) & ~near, v, e)
    return xp.where(s == 0, xp.exp(xp.minimum(d - v, xp.zeros_like(d))), e)


def by_halving(xp, d, s, axis):
    """exp_s(d - c). The largest, q, is at least 1/n, so c lies between 0 and -log_s(1/n).

    Up to s = 1 the sum of exp_s(d - c) is convex in c and in q, and Newton's steps from where it is above 1 never pass the
    root: a few then stand for many halvings. Beyond, its slope is infinite where an entry leaves, and halving alone is safe.
    """
    zero = xp.zeros_like(F.row_max(xp, d, axis))
    near = zero < 1 if is_number(s) and s < NEAR else zero > 1 if is_number(s) else s < NEAR
    n = F.total(xp, F.cast(xp, d > -INF, d.dtype), axis)
    n = xp.maximum(n, zero + 1)
    v, end = xp.where(near, zero, zero + 1), xp.where(near, -deformed_log(xp, 1 / n, s), 1 / n)
    d = xp.where(d > -INF, d, xp.full_like(d, -1e30))
    wide, convex = d.dtype == xp.float64, is_number(s) and s <= 1
    for _ in range(12 if convex else 54 if wide else 26):
        middle = xp.where(near, (v + end) / 2, xp.sqrt(v * end))
        more = F.total(xp, deformed_exp(xp, d, middle, s), axis) > 1
        v, end = xp.where(more, middle, v), xp.where(more, end, middle)
    for _ in range(8 if convex and wide else 6 if convex else 1):
        p = deformed_exp(xp, d, v, s)
        over = F.total(xp, p, axis) - 1
        slope = F.total(xp, support_weights(xp, p / xp.where(near, zero + 1, v), 1 + s), axis)  # -∂Σp/∂c, ∂Σp/∂q
        v = v + xp.where(near, over, -over) / xp.where(slope > 0, slope, zero + 1)
    return deformed_exp(xp, d, v, s)


def entmax_forward(xp, x, *, alpha, axis, where=None, temperature=1.0, dtype, compute):
    if is_number(alpha) and alpha == 1:
        return F.softmax(xp, x, axis=axis, where=where, temperature=temperature, dtype=dtype, compute=compute)
    u = F.masked(xp, x, where, compute)
    m = F.row_max(xp, u, axis)
    _, d, _ = F.distances(xp, u, m, temperature, x.dtype == compute)
    # where a number is NaN all of its row is; and none is inf, so that a sum knows
    sick = F.total(xp, d, axis)
    sick = sick != sick
    if is_number(alpha) and alpha in (1.5, 2) and hasattr(xp, "descending"):
        z = d if alpha == 2 else d / 2
        above = by_sorting(xp, z, axis, alpha != 2) if axis else xp.maximum(z + 1, xp.zeros_like(z))
        p = above if alpha == 2 else above * above
    else:
        s = excess(xp, alpha, compute)
        p = by_halving(xp, d, s, axis)
        if not is_number(s):
            sick = sick | ~((s >= 0) & (s < INF))
    one = xp.ones_like(m)
    return F.cast(xp, p * xp.where(sick, one + NAN, one), dtype)


def support_weights(xp, p, alpha):
    """p^(2 - alpha) where p has a share: ∂p_i/∂x_i less its row's part. NaN stays."""
    inside = p > 0
    if is_number(alpha) and alpha == 1:
        return p
    if is_number(alpha) and alpha == 2:
        return xp.where(inside, xp.ones_like(p), p)
    some = xp.where(inside, p, xp.ones_like(p))
    if is_number(alpha) and alpha == 1.5:
        return xp.where(inside, xp.sqrt(some), p)
    return xp.where(inside, xp.exp((2 - (alpha if is_number(alpha) else F.cast(xp, alpha, p.dtype))) * xp.log(some)), p)


def shares(xp, w, axis):
    """w over its sum."""
    mass = F.total(xp, w, axis)
    return w / xp.where(mass == 0, xp.ones_like(mass), mass)


def jacobian_product(xp, p, v, alpha, axis, t=1.0):
    """(diag(w) - w wᵀ / Σ w) v / t with w = p^(2 - alpha); its own transpose."""
    if is_number(alpha) and alpha == 1:
        return F.softmax_derivative(xp, p, v, axis, t)
    w = support_weights(xp, p, alpha)
    return w * (v - F.total(xp, shares(xp, w, axis) * v, axis)) / t


def alpha_slope(xp, p, alpha, axis):
    """∂p/∂alpha: a_i - Σ a w_i / Σ w, where a_i = p_i log²p_i χ(s log p_i)."""
    s = excess(xp, alpha, p.dtype)
    s = F.total(xp, xp.zeros_like(p), axis) + s
    inside = p > 0
    some = xp.where(inside, p, xp.ones_like(p))
    log = xp.log(some)
    w = s * log
    near = xp.abs(w) <= 0.5
    ss = xp.where(near, xp.ones_like(w), s * s)
    far = -(xp.exp((1 - s) * log) - some + some * xp.where(near, xp.zeros_like(w), w)) / ss
    close = some * log * log * F.chi(xp.where(near, w, xp.zeros_like(w)))
    a = xp.where(inside, xp.where(near, close, far), p)
    return a - shares(xp, support_weights(xp, p, alpha), axis) * F.total(xp, a, axis)


def entmax_vjp(call, xp, ct, y, wanted, x, *, alpha, axis, where=None, temperature=1.0, dtype, compute):
    how = dict(x=x, alpha=alpha, axis=axis, where=where, temperature=temperature)
    p = F.unrounded(call, xp, "entmax", y, compute, **how)
    ct = F.cast(xp, ct, compute)
    gz = jacobian_product(xp, p, ct, alpha, axis)
    out = F.to_inputs(xp, gz, None, wanted, x, None, axis, where, temperature, compute)
    if "alpha" in wanted:
        ga = F.total(xp, ct * alpha_slope(xp, p, alpha, axis), axis)
        frozen = F.scores(xp, x, None, axis, where, temperature, compute)[3]
        ga = xp.where(frozen, xp.zeros_like(ga), ga)
        out["alpha"] = F.sum_like(xp, ga, alpha)
    return out


def entmax_jvp(call, xp, y, tangents, x, *, alpha, axis, where=None, temperature=1.0, dtype, compute):
    how = dict(x=x, alpha=alpha, axis=axis, where=where, temperature=temperature)
    p = F.unrounded(call, xp, "entmax", y, compute, **how)
    dz, t, _, frozen = F.from_inputs(xp, tangents, x, None, axis, where, temperature, compute)
    dy = jacobian_product(xp, p, dz, alpha, axis, t)
    if "alpha" in tangents:
        dy = dy + F.cast(xp, tangents["alpha"], compute) * alpha_slope(xp, p, alpha, axis)
    return F.cast(xp, xp.where(frozen, xp.zeros_like(dy), dy), dtype)


# --- formulas: their losses ------------------------------------------------------------------------------------------
# Fenchel-Young losses, with φ(p) = (p^alpha - p) / (alpha (alpha - 1)). At the answer d - c = φ'(p) up to a constant on
# the support, and less outside, by the slack of the entry. So the loss is a Bregman divergence and what labels have in the
# slack,
#
#     Σ φ(y) - φ(p) - φ'(p) (y - p) + Σ y slack
#
# no term of which is negative: a loss near 0 is not a difference of numbers near 1.


def halfway(xp, u, c):
    """(1 - e^(-c u)) / c, which is u at c = 0."""
    if is_number(c):
        return -xp.expm1(-c * u) / c if c else u
    return xp.where(c == 0, u, -xp.expm1(-c * u) / xp.where(c == 0, xp.ones_like(c), c))


def power(xp, log, alpha):
    """p^alpha of log p."""
    return xp.exp(log * alpha)


def bregman(xp, y, p, h, alpha):
    """φ(y) - φ(p) - φ'(p) (y - p), at least 0. NaN of p stays. `h`: see `height`."""
    if is_number(alpha) and alpha == 2:
        return (y - p) * (y - p) / 2
    if is_number(alpha) and alpha == 1.5:
        a, b = support_weights(xp, y, 1.5), support_weights(xp, p, 1.5)  # their roots
        off = (y - p) / xp.where(a + b == 0, xp.ones_like(a), a + b)  # a - b
        return off * off * (4 * a + 2 * b) / 3
    s = excess(xp, alpha, p.dtype)
    alpha = s + 1
    zero, one = xp.zeros_like(p), xp.ones_like(p)
    both = (y > 0) & (p > 0)
    log_y, log_p = xp.log(xp.where(y > 0, y, one)), xp.log(xp.where(p > 0, p, one))
    of_y, of_p = (xp.where(a > 0, power(xp, log, alpha), zero) for a, log in ((y, log_y), (p, log_p)))
    u = xp.where(both, log_y - log_p, zero)
    # with u = log y - log p both of y^alpha ∫_0^u e^-sv (1 - e^-v) dv and its mirror image; near 0 by series
    near = xp.abs(u) * alpha <= 1
    w = xp.where(near, u, zero)
    close = of_y * w * w * (s * F.chi(s * w) - alpha * F.chi(alpha * w))
    up, down = xp.maximum(u, zero), xp.maximum(-u, zero)
    far = xp.where(
        u > 0,
        of_y * (halfway(xp, up, s) - halfway(xp, up, alpha)),
        of_p * (halfway(xp, down, alpha) - xp.exp(-down) * halfway(xp, down, s)),
    )
    # a p of 0 that lies above the edge is too small for its dtype; 1/s is without end at s = 0, where there is no edge
    some = alpha * (s if is_number(s) and s else 1.0 if is_number(s) else xp.where(s == 0, xp.ones_like(s), s))
    tiny = xp.maximum(h, xp.full_like(h, -1e30)) * s > 2.0**-10 - 1
    alone = xp.where(tiny, y * ((deformed_log(xp, xp.where(y > 0, y, one), s) - 1) / alpha - h), of_y / some)
    out = xp.where(both, xp.where(near, close, far), xp.where(y > 0, alone, of_p / alpha))
    return xp.where(p == p, out, p)


def height(xp, p, d, alpha, axis):
    """d - c, which is φ'(p) on the support up to a constant, and lower outside. -inf where d is."""
    s, zero = excess(xp, alpha, p.dtype), xp.zeros_like(p)
    inside = p > 0
    log = deformed_log(xp, xp.where(inside, p, xp.ones_like(p)), s)
    # the same throughout the support; weighted by p its rounding hurts least
    c = F.total(xp, xp.where(inside, p * (xp.where(inside, d, zero) - log), zero), axis)
    return d - c


def slack(xp, h, s):
    """How far below the edge of the support an entry lies. At s = 0 there is no edge but -inf."""
    if is_number(s):
        low = -1 / s if s else -1e30
    else:
        low = xp.where(s == 0, xp.full_like(s, -1e30), -1 / xp.where(s == 0, xp.ones_like(s), s))
    return xp.maximum(low - h, xp.zeros_like(h))


class SparseRows(NamedTuple):
    t: L.Targets
    loss: Any  # row
    p: Any
    h: Any  # (..., n) `height`


def sparse_rows(
    xp, p, x, labels, *, alpha, axis, classes=None, where=None, temperature=1.0, label_smoothing=0.0, sample_weight=None,
    ignore_index, compute,
):  # fmt: skip
    """The targets and each row's loss, given p."""
    u = F.masked(xp, x, where, compute)
    m = F.row_max(xp, u, axis)
    _, d, _ = F.distances(xp, u, m, temperature, x.dtype == compute)
    t = L.targets(
        xp, d, labels, classes, axis=axis, where=where, label_smoothing=label_smoothing, class_weight=None,
        sample_weight=sample_weight, ignore_index=ignore_index, compute=compute,
    )  # fmt: skip
    h = height(xp, p, d, alpha, axis)
    below = xp.where(t.q == 0, xp.zeros_like(h), t.q * slack(xp, h, excess(xp, alpha, compute)))
    loss = F.total(xp, bregman(xp, t.q, p, h, alpha) + below, axis)
    return SparseRows(t, L.row_losses(xp, t, loss, None, 0.0, axis), p, h)


def entmax_loss_forward(xp, x, labels, *, reduction, normalizer=None, dtype, **options):
    how = {k: options[k] for k in ("alpha", "axis", "where", "temperature", "compute") if k in options}
    p = entmax_forward(xp, x, **how, dtype=how["compute"])
    of = sparse_rows(xp, p, x, labels, **options)
    return F.cast(xp, L.reduce_rows(xp, of.t, of.loss, normalizer, reduction, options["axis"])[0], dtype)


def omega_slope(xp, p, alpha):
    """∂φ(p)/∂alpha = -p (log²p ψ(w) ... ) with w = s log p; 0 at 0 and at 1."""
    s = excess(xp, alpha, p.dtype)
    inside = p > 0
    some = xp.where(inside, p, xp.ones_like(p))
    log = xp.log(some)
    w = s * log
    near = xp.abs(w) <= 0.5
    v, far = xp.where(near, w, xp.zeros_like(w)), xp.where(near, xp.ones_like(w), w)
    # expm1(w) / w, and its derivative
    e = xp.where(near, 1 - v * F.chi(-v), xp.expm1(far) / far)
    slope = xp.where(near, -xp.exp(v) * F.chi(v), (far * xp.exp(far) - xp.expm1(far)) / (far * far))
    return xp.where(inside, some * log * (log * slope - e / (1 + s)) / (1 + s), p)


def entmax_loss_parts(call, xp, x, labels, *, alpha, label_smoothing, **values):
    axis, where, temperature, compute = (values[k] for k in ("axis", "where", "temperature", "compute"))
    p = call(
        "entmax", x=x, alpha=alpha, axis=axis, where=where, temperature=temperature, dtype=compute, compute=compute
    )
    options = {k: values[k] for k in ("classes", "sample_weight", "ignore_index")}
    of = sparse_rows(
        xp, p, x, labels, alpha=alpha, axis=axis, where=where, temperature=temperature, label_smoothing=label_smoothing,
        compute=compute, **options,
    )  # fmt: skip
    t, y, zero = of.t, of.t.q, xp.zeros_like(p)
    gz = p - y
    if values["classes"] is None:  # by as much as labels are no distribution
        gz = gz + shares(xp, support_weights(xp, p, alpha), axis) * (F.total(xp, y, axis) - 1)
    if t.bad is not None:
        gz = xp.where(t.bad, zero + NAN, gz)

    def by_labels():
        s = excess(xp, alpha, compute)
        log = deformed_log(xp, xp.where(y > 0, y, xp.ones_like(y)), s)
        edge = (
            zero
            if is_number(s) and not s
            else zero
            - (1 / s if is_number(s) else xp.where(s == 0, xp.zeros_like(s), 1 / xp.where(s == 0, xp.ones_like(s), s)))
        )
        dy = xp.where(y > 0, log, edge) - xp.where(of.h == -INF, zero, of.h)
        return (1 - label_smoothing) * xp.where(t.dropped, zero, dy), zero + 1

    def by_alpha():
        return F.total(xp, omega_slope(xp, y, alpha) - omega_slope(xp, p, alpha), axis), None

    direct = {"labels": by_labels, "alpha": by_alpha}
    return L.parts_of(xp, t, of.loss, (L.Slope("x", gz, temperature),), direct, **values)


def entmax_loss_vjp(call, xp, ct, y, wanted, **values):
    return L.loss_vjp(xp, ct, entmax_loss_parts(call, xp, **values), wanted, values)


def entmax_loss_jvp(call, xp, y, tangents, **values):
    return L.loss_jvp(xp, entmax_loss_parts(call, xp, **values), tangents, values)


# --- sparsemax, entmax -----------------------------------------------------------------------------------------------


def _entmax_values(
    backend: Any, x: Any, alpha: Any, axis: Axis, where: Any, temperature: Any, dtype: Any
) -> dict[str, Any]:
    values = args.of_map(backend, x, axis, where, temperature, dtype)
    return dict(values, alpha=args.alpha(backend, alpha, values["x"], values["axis"]))


def _sparsemax_values(backend: Any, x: Any, axis: Axis, where: Any, temperature: Any, dtype: Any) -> dict[str, Any]:
    return _entmax_values(backend, x, 2.0, axis, where, temperature, dtype)


ENTMAX = Op("entmax", _entmax_values, entmax_forward, entmax_vjp, entmax_jvp)
SPARSEMAX = Op("sparsemax", _sparsemax_values, entmax_forward, entmax_vjp, entmax_jvp)


@record(SPARSEMAX)
def sparsemax(x: Any, /, *, axis: Axis = -1, where: Any = None, temperature: Any = 1.0, dtype: Any = None) -> Any:
    """Probabilities with exact zeros: the nearest point to x / temperature among all distributions.

        p_i = max(d_i - τ, 0),   d = (x - max x) / temperature,   τ such that Σ p = 1

    Parameters
    ----------
    x : array (..., n), real. Integers become the library's default float first.
    axis : int, tuple of ints or None (all axes): what a row lies along.
    where : bool array that broadcasts to x. False entries take no part: they get 0.
    temperature : number, or array that broadcasts to x with size 1 along `axis`; dimensionless, at least 0. The higher, the
        more entries have a share.
    dtype : dtype of the answer. Default: that of x (of the default float for integers).

    Returns
    -------
    array, shape and device of x. Rows with nothing in them, infinities and NaN as in softmax.

    Raises
    ------
    TypeError, ValueError : as softmax.

    Notes
    -----
    Exact: by sorting, or by steps that end. An entry's error is at most 8 ulp of the larger of |d| and |τ|, whose difference
    it is, and half an ulp of its own. Derivative: v less its mean over the support there, 0 elsewhere; where an entry sits
    on the edge of the support, that of the entry without a share. Rows with a +inf and rows at temperature 0 or inf have
    derivative 0.

    Source: Martins & Astudillo 2016, arXiv:1602.02068.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> softxp.sparsemax(np.asarray([2.0, 1.2, 0.5, -0.3]))
    array([0.9, 0.1, 0. , 0. ])
    >>> softxp.sparsemax(np.asarray([2.0, 1.2, 0.5, -0.3]), temperature=2.0).round(3)
    array([0.7, 0.3, 0. , 0. ])
    """
    return call(SPARSEMAX, x, axis, where, temperature, dtype)


@record(ENTMAX)
def entmax(
    x: Any, /, *, alpha: Any = 1.5, axis: Axis = -1, where: Any = None, temperature: Any = 1.0, dtype: Any = None
) -> Any:
    """The family between softmax (alpha = 1) and sparsemax (alpha = 2), and beyond.

        p_i = max((alpha - 1) d_i - τ, 0)^(1 / (alpha - 1)),   d = (x - max x) / temperature,   τ such that Σ p = 1

    Parameters
    ----------
    x : array (..., n), real. Integers become the library's default float first.
    alpha : number, or array that broadcasts to x with size 1 along `axis` (one for each row); at least 1 and finite. It may
        be learned: the derivative by it is there.
    axis : int, tuple of ints or None (all axes): what a row lies along.
    where : bool array that broadcasts to x. False entries take no part: they get 0.
    temperature : number, or array that broadcasts to x with size 1 along `axis`; dimensionless, at least 0.
    dtype : dtype of the answer. Default: that of x (of the default float for integers).

    Returns
    -------
    array, shape and device of x. Rows with nothing in them, infinities and NaN as in softmax.

    Raises
    ------
    TypeError : as softmax. ValueError : as softmax; alpha below 1, infinite or NaN where its value can be read on the host
        (NaN on those rows where it cannot).

    Notes
    -----
    The numbers 1, 1.5 and 2 are exact (softmax; as sparsemax); others, and arrays, are found by halving and Newton's method.
    Error as sparsemax, times p^(2 - alpha): beyond 2, entries near the edge of the support rise steeply, and beyond about 4
    a row whose mass lies at that edge may sum to less than 1, for no number of its dtype is the threshold. Derivative:
    w (v - Σ w v / Σ w) with w = p^(2 - alpha) on the support; by temperature and alpha too.

    Source: Peters, Niculae & Martins 2019, doi:10.18653/v1/P19-1146 (alpha 1.5; bisection); Correia, Niculae & Martins 2019,
    doi:10.18653/v1/D19-1223 (derivative by alpha).

    Examples
    --------
    >>> import numpy as np, softxp
    >>> x = np.asarray([2.0, 1.2, 0.5, -0.3])
    >>> softxp.entmax(x).round(3)
    array([0.762, 0.223, 0.015, 0.   ])
    >>> alphas = np.asarray([[1.0], [1.5], [2.0]])
    >>> softxp.entmax(np.stack([x, x, x]), alpha=alphas).round(3)
    array([[0.564, 0.253, 0.126, 0.057],
           [0.762, 0.223, 0.015, 0.   ],
           [0.9  , 0.1  , 0.   , 0.   ]])
    """
    return call(ENTMAX, x, alpha, axis, where, temperature, dtype)


# --- their losses ----------------------------------------------------------------------------------------------------


def _entmax_loss_values(
    backend: Any, logits: Any, labels: Any, alpha: Any, axis: Axis, where: Any, temperature: Any, label_smoothing: float,
    sample_weight: Any, ignore_index: int | None, reduction: str, normalizer: Any, dtype: Any,
) -> dict[str, Any]:  # fmt: skip
    values = args.of_loss(
        backend,
        logits,
        labels,
        axis,
        where,
        temperature,
        sample_weight,
        ignore_index,
        reduction,
        normalizer,
        dtype,
    )
    return dict(
        values,
        alpha=args.alpha(backend, alpha, values["x"], values["axis"]),
        label_smoothing=args.number("label_smoothing", label_smoothing, 0, 1, "within [0, 1]"),
    )


def _sparsemax_loss_values(backend: Any, logits: Any, labels: Any, *rest: Any) -> dict[str, Any]:
    return _entmax_loss_values(backend, logits, labels, 2.0, *rest)


_LOSS = (entmax_loss_forward, entmax_loss_vjp, entmax_loss_jvp, ("x", "labels"))
ENTMAX_LOSS = Op("entmax_loss", _entmax_loss_values, *_LOSS)
SPARSEMAX_LOSS = Op("sparsemax_loss", _sparsemax_loss_values, *_LOSS)


@record(SPARSEMAX_LOSS)
def sparsemax_loss(
    logits: Any, labels: Any, /, *, axis: Axis = -1, where: Any = None, temperature: Any = 1.0, label_smoothing: float = 0.0,
    sample_weight: Any = None, ignore_index: int | None = -100, reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: Any = None, dtype: Any = None,
) -> Any:  # fmt: skip
    """sparsemax's loss: entmax_loss at alpha = 2. It is exactly 0 where the label leads by temperature or more.

        loss_i = ½ Σ_c (y'_ic - p_ic)² + Σ_c y'_ic max(τ_i - d_ic, 0),   p, d and τ as in sparsemax

    Parameters, returns, raises : as entmax_loss.

    Notes
    -----
    Gradient by the logits of a row: s (p - y') / T.

    Source: Martins & Astudillo 2016, arXiv:1602.02068.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> softxp.sparsemax_loss(np.asarray([[2.0, 1.5, 0.1], [2.0, 0.5, 0.1]]), np.asarray([0, 0]), reduction="none")
    array([0.0625, 0.    ])
    """
    return call(
        SPARSEMAX_LOSS, logits, labels, axis, where, temperature, label_smoothing, sample_weight, ignore_index, reduction,
        normalizer, dtype,
    )  # fmt: skip


@record(ENTMAX_LOSS)
def entmax_loss(
    logits: Any, labels: Any, /, *, alpha: Any = 1.5, axis: Axis = -1, where: Any = None, temperature: Any = 1.0,
    label_smoothing: float = 0.0, sample_weight: Any = None, ignore_index: int | None = -100,
    reduction: Literal["mean", "sum", "none"] = "mean", normalizer: Any = None, dtype: Any = None,
) -> Any:  # fmt: skip
    """The Fenchel-Young loss whose gradient is entmax less the labels.

        loss_i = max_p (z_i·p - Ω(p)) + Ω(y'_i) - z_i·y'_i,   Ω(p) = Σ_c (p_c^alpha - p_c) / (alpha (alpha - 1))
               = Σ_c φ(y'_c) - φ(p_c) - φ'(p_c) (y'_c - p_c) + Σ_c y'_c slack_c,   p = entmax(z_i),   Ω(p) = Σ_c φ(p_c)
        z = logits / temperature, masked by `where`;  slack: by how much z lies below the edge of the support
        y' = (1 - label_smoothing) y + label_smoothing / (classes that take part)
        mean = Σ_i s_i loss_i / Σ_i s_i W_i,   W_i = Σ_c y_ic

    At alpha = 1 it is KL(y' ‖ softmax(z)): cross-entropy, less the entropy of soft labels.

    Parameters
    ----------
    logits : array (..., n), real. Integers become the library's default float first.
    labels : integers of the logits' shape without `axis`, or distributions shaped like the logits, as in cross_entropy.
    alpha : number, or array that broadcasts to the logits with size 1 along `axis`; at least 1 and finite. It may be
        learned.
    axis : int, tuple of ints or None (all axes): what the classes lie along.
    where : bool array that broadcasts to the logits. False classes take no part.
    temperature : number, or array that broadcasts to the logits with size 1 along `axis`; dimensionless, at least 0.
    label_smoothing : number in [0, 1], the part of each label spread over the classes that take part.
    sample_weight : number or array that broadcasts to the rows, s. 0 drops a row.
    ignore_index : label of rows to drop, or None. Integer labels alone.
    reduction : "mean"; "sum", Σ_i s_i loss_i; or "none", s_i loss_i.
    normalizer : number or array of one, at least 0: what the mean divides by in place of Σ s W.
    dtype : dtype of the answer. Default: that of the logits (of the default float for integers).

    Returns
    -------
    array () or, with reduction="none", the logits' shape without `axis`; at least 0. Exactly 0 where the label leads by
    temperature / (alpha - 1) or more. Dropped rows give exactly 0 whatever their logits hold; the mean of nothing is 0; a
    label whose logit is -inf, or that `where` leaves out, gives inf; a label of 0 on such a logit adds nothing.

    Raises
    ------
    IndexError, TypeError : as cross_entropy. ValueError : as cross_entropy and entmax.

    Notes
    -----
    Error in ulp, on every backend: at most 1 in float16 and bfloat16, 12 in float32 and float64, of Σ |y - p| |d| where the
    loss is smaller than that: no term is negative, but the threshold has a rounding of its own. Gradient by the logits of a
    row: s (p - y') / T; by temperature, alpha, soft labels, sample_weight and normalizer too. Where labels sum to more than
    1, or less, the rest is spread over the support, in proportion to p^(2 - alpha).

    Source: Blondel, Martins & Niculae 2020, JMLR 21(35) (Fenchel-Young losses); Peters, Niculae & Martins 2019,
    doi:10.18653/v1/P19-1146; Peters & Martins 2021, doi:10.18653/v1/2021.naacl-main.210 (label smoothing).

    Examples
    --------
    >>> import numpy as np, softxp
    >>> logits, labels = np.asarray([[2.0, 1.0, 0.1], [0.3, 0.2, 4.0]]), np.asarray([0, 2])
    >>> softxp.entmax_loss(logits, labels, reduction="none").round(6)
    array([0.061656, 0.      ])
    >>> loss, gradient = softxp.value_and_grad(softxp.entmax_loss)(logits, labels, reduction="sum")
    >>> gradient.round(3)
    array([[-0.169,  0.169,  0.   ],
           [ 0.   ,  0.   ,  0.   ]])
    """
    return call(
        ENTMAX_LOSS, logits, labels, alpha, axis, where, temperature, label_smoothing, sample_weight, ignore_index,
        reduction, normalizer, dtype,
    )  # fmt: skip
