"""sparsemax and entmax: softmax's relatives, whose small probabilities are exactly 0.

One family, by the deformed exponential exp_s(u) = (1 + s u)₊^(1/s) with s = alpha - 1, which is exp at s = 0:

    p_i = exp_s(d_i - c),   d = (x - max x) / temperature,   c such that Σ p = 1

alpha 1 is softmax, 2 is sparsemax. In between and beyond, the larger alpha, the fewer entries have a share.
"""

from typing import Any

from . import _args as args
from . import _formulas as F
from ._backends import call, find
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
    best = -xp.sort(-xp.maximum(z, xp.full_like(z, -1.0)), axis=-1)  # nothing at -1 or below has a share
    k = xp.cumulative_sum(xp.ones_like(best), axis=-1)
    mean = xp.cumulative_sum(best, axis=-1) / k
    tau = (
        mean - root(xp, 1 - (xp.cumulative_sum(best * best, axis=-1) - k * mean * mean), k) if square else mean - 1 / k
    )
    count = F.total(xp, F.cast(xp, best > tau, z.dtype), last)
    at_last = k == xp.maximum(count, xp.ones_like(count))
    tau = F.total(xp, xp.where(at_last, tau, xp.zeros_like(tau)), last)
    # once more from the numbers above it, whose sums have not gone through the whole row one by one
    inside = z > tau
    zero = xp.zeros_like(z)
    k = F.total(xp, F.cast(xp, inside, z.dtype), last)
    k = xp.maximum(k, xp.ones_like(k))
    mean = F.total(xp, xp.where(inside, z, zero), last) / k
    off = xp.where(inside, z - mean, zero)
    tau = mean - (root(xp, 1 - F.total(xp, off * off, last), k) if square else 1 / k)
    return again(xp.maximum(z - tau, zero))


def root(xp, a, k):
    return xp.sqrt(xp.maximum(a, xp.zeros_like(a)) / k)


def deformed_log(xp, p, s):
    """(p^s - 1) / s, log p at s = 0."""
    log = xp.log(p)
    if is_number(s):
        return xp.expm1(s * log) / s if s else log
    return xp.where(s == 0, log, xp.expm1(s * log) / xp.where(s == 0, xp.ones_like(s), s))


def deformed_exp(xp, u, s):
    """(1 + s u)₊^(1/s), exp u at s = 0."""
    if is_number(s) and s == 0:
        return xp.exp(u)
    some = s if is_number(s) else xp.where(s == 0, xp.ones_like(s), s)
    y = some * u
    alive = y > -1
    y = xp.where(alive, y, xp.zeros_like(y))
    near = xp.maximum(y, xp.full_like(y, -0.25))  # beyond, some libraries' log1p is off by a hundred ulp
    log = xp.where(y == near, xp.log1p(near), xp.log(1 + y))
    e = xp.where(alive, xp.exp(log / some), xp.zeros_like(y))
    return e if is_number(s) else xp.where(s == 0, xp.exp(u), e)


def by_halving(xp, d, s, axis):
    """exp_s(d - c). The largest p is at least 1/n, so c lies between 0 and -log_s(1/n).

    Up to s = 1 the sum of exp_s(d - c) is convex in c, and Newton's steps from below never pass the root: a few then stand
    for many halvings. Beyond, its slope is infinite where an entry leaves, and halving alone is safe.
    """
    zero = xp.zeros_like(F.row_max(xp, d, axis))
    n = F.total(xp, F.cast(xp, d > -INF, d.dtype), axis)
    c, high = zero, -deformed_log(xp, 1 / xp.maximum(n, zero + 1), s) + zero
    d = xp.where(d > -INF, d, xp.full_like(d, -1e30))
    wide, convex = d.dtype == xp.float64, is_number(s) and s <= 1
    for _ in range(12 if convex else 54 if wide else 26):
        middle = (c + high) / 2
        more = F.total(xp, deformed_exp(xp, d - middle, s), axis) > 1
        c, high = xp.where(more, middle, c), xp.where(more, high, middle)
    for _ in range(8 if convex and wide else 6 if convex else 1):
        p = deformed_exp(xp, d - c, s)
        w = F.total(xp, support_weights(xp, p, 1 + s), axis)  # -∂Σp/∂c
        c = c + (F.total(xp, p, axis) - 1) / xp.where(w > 0, w, zero + 1)
    return deformed_exp(xp, d - c, s)


def entmax_forward(xp, x, *, alpha, axis, where=None, temperature=1.0, dtype, compute):
    if is_number(alpha) and alpha == 1:
        return F.softmax(xp, x, axis=axis, where=where, temperature=temperature, dtype=dtype, compute=compute)
    u = F.masked(xp, x, where, compute)
    m = F.row_max(xp, u, axis)
    _, d, _ = F.distances(xp, u, m, temperature, x.dtype == compute)
    sick = F.total(xp, F.cast(xp, d != d, compute), axis) > 0  # as every entry of the row would be in softmax
    if is_number(alpha) and alpha in (1.5, 2) and hasattr(xp, "sort"):
        z = (alpha - 1) * xp.where(sick, xp.zeros_like(d), d)
        above = by_sorting(xp, z, axis, alpha != 2) if axis else z + 1
        p = above if alpha == 2 else above * above
    else:
        s = excess(xp, alpha, compute)
        p = by_halving(xp, xp.where(sick, xp.zeros_like(d), d), s, axis)
        if not is_number(s):
            sick = sick | ~((s >= 0) & (s < INF))
    p = xp.where(m == -INF, xp.zeros_like(p), p)
    return F.cast(xp, xp.where(sick, xp.full_like(p, NAN), p), dtype)


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


def chi(w):
    """(1 - e^-w - w) / w² by its series, to the last bit for |w| <= 1/2."""
    y = 1
    for k in range(17, 2, -1):
        y = 1 - y * w / k
    return -y / 2


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
    close = some * log * log * chi(xp.where(near, w, xp.zeros_like(w)))
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


# --- sparsemax, entmax -----------------------------------------------------------------------------------------------


def _entmax_values(
    backend: Any, x: Any, alpha: Any, axis: Axis, where: Any, temperature: Any, dtype: Any
) -> dict[str, Any]:
    values = args.of_map(backend, find, x, axis, where, temperature, dtype)
    return dict(values, alpha=args.alpha(backend, find, alpha, values["x"], values["axis"]))


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
    Exact, by sorting. An entry's error is at most 8 ulp of the larger of |d| and |τ|, whose difference it is, and half an
    ulp of its own. Derivative: v less its mean over the support there, 0 elsewhere; where an entry sits on the edge of the
    support, that of the entry without a share. Rows with a +inf and rows at temperature 0 or inf have derivative 0.

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
    The numbers 1, 1.5 and 2 are exact (softmax; sorting); others, and arrays, are found by halving and Newton's method.
    Error as sparsemax, times p^(2 - alpha): beyond 2, entries near the edge of the support rise steeply. Derivative:
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
