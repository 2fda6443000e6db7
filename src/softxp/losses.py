"""Entropy, Kullback-Leibler divergence and distillation, straight from logits.

None of them is a difference of larger numbers: each row is a sum of terms that are at least 0,

    H(p)      = log1p(r) + Σ p_i (-d_i),     d = (x - max x) / temperature
    KL(p ‖ q) = Σ p_i (δ_i - 1 + e^-δ_i),    δ = log p - log q

the latter by Σ p = Σ q. So a confident row keeps the digits of its small entropy, and distributions that hardly differ
those of their small divergence.
"""

from typing import Any, Literal, NamedTuple

from . import _args as args
from . import _formulas as F
from . import _loss as L
from ._backends import call
from ._op import Op, record

Axis = int | tuple[int, ...] | None
INF, NAN = F.INF, F.NAN


# --- formulas: entropy -----------------------------------------------------------------------------------------------


def entropy_forward(xp, x, *, axis, where=None, temperature=1.0, keepdims, dtype, compute):
    s = F.rows(xp, x, axis=axis, where=where, temperature=temperature, compute=compute)
    d = xp.where(s.d == -INF, xp.zeros_like(s.d), s.d)  # 0 log 0 = 0
    h = xp.log1p(s.r) + F.total(xp, -d * s.e, axis) / (1 + s.r)
    return F.cast(xp, h if keepdims else F.drop(xp, h, axis), dtype)


def entropy_slopes(call, xp, x, axis, where, temperature, compute):
    """∂H/∂z_i = -p_i (log p_i + H) = p_i (Σ p d - d_i)."""
    p = call("softmax", x=x, axis=axis, where=where, temperature=temperature, dtype=compute, compute=compute)
    d, zero = apart(xp, x, axis, where, temperature, compute).d, xp.zeros_like(p)
    return (L.Slope("x", F.softmax_derivative(xp, p, xp.where(d == -INF, zero, -d), axis), temperature),)


def entropy_vjp(call, xp, ct, y, wanted, x, *, axis, where=None, temperature=1.0, keepdims, dtype, compute):
    slopes = entropy_slopes(call, xp, x, axis, where, temperature, compute)
    values = dict(x=x, axis=axis, where=where, temperature=temperature, compute=compute)
    ct = F.cast(xp, ct if keepdims else F.keep(xp, ct, axis), compute)
    return L.pull_slopes(xp, slopes, ct, None, wanted, values)


def entropy_jvp(call, xp, y, tangents, x, *, axis, where=None, temperature=1.0, keepdims, dtype, compute):
    slopes = entropy_slopes(call, xp, x, axis, where, temperature, compute)
    values = dict(x=x, axis=axis, where=where, temperature=temperature, compute=compute)
    dy = L.push_slopes(xp, slopes, None, tangents, values)
    return F.cast(xp, dy if keepdims else F.drop(xp, dy, axis), dtype)


# --- formulas: divergence --------------------------------------------------------------------------------------------


class Apart(NamedTuple):
    """Rows as in `F.Rows`, with the rounding error of d beside it."""

    m: Any
    r: Any
    d: Any
    e: Any
    error: Any  # 0 where the arithmetic is wider than x


def apart(xp, x, axis, where, temperature, compute):
    u = F.masked(xp, x, where, compute)
    m = F.row_max(xp, u, axis)
    top, d, error = F.distances(xp, u, m, temperature, x.dtype == compute)
    e = xp.exp(d)
    e = e if error is None else e + e * error
    return Apart(m, F.rest(xp, top, d, e, axis), d, e, xp.zeros_like(d) if error is None else error)


class Ratio(NamedTuple):
    """Two distributions p and q over one row."""

    delta: Any  # log p - log q where both have a share, else 0
    only_p: Any  # bool: p has a share, q none
    only_q: Any
    none: Any  # row: p has nothing in it
    sick: Any  # row: a NaN in either


def ratio(xp, a, b, axis):
    """log p - log q = g - log Σ q e^g, where g = d_p - d_q: from differences of the inputs, small where those are."""
    in_p, in_q, zero = a.d > -INF, b.d > -INF, xp.zeros_like(a.d)
    live = in_p & in_q
    g = (xp.where(live, a.d, zero) - xp.where(live, b.d, zero)) + (a.error - b.error)
    # Σ q expm1(g): exact where p and q are near each other, and there alone its logarithm is taken
    near = g <= 1
    over = xp.where(near, b.e * xp.expm1(xp.where(near, g, zero)), a.e - b.e)
    over = F.total(xp, xp.where(live, over, a.e - b.e), axis) / (1 + b.r)
    small = xp.abs(over) <= 0.25
    log = xp.where(small, xp.log1p(xp.where(small, over, xp.zeros_like(over))), xp.log1p(a.r) - xp.log1p(b.r))
    sick = (a.r != a.r) | (b.r != b.r)
    return Ratio(xp.where(live, g - log, zero), in_p & ~in_q, in_q & ~in_p, a.m == -INF, sick)


def divergence(xp, a, b, axis):
    """KL(p ‖ q) of each row, by terms of at least 0."""
    s, zero = ratio(xp, a, b, axis), xp.zeros_like(a.d)
    p, q, one = a.e / (1 + a.r), b.e / (1 + b.r), xp.zeros_like(a.d) + 1
    near, up = xp.abs(s.delta) <= 1, s.delta > 1
    w = xp.where(near, s.delta, zero)
    above, below = xp.where(up, s.delta, one), xp.where(near | up, -one, s.delta)
    far = xp.where(up, p * (above + xp.expm1(-above)), q * (below * xp.exp(below) - xp.expm1(below)))
    terms = xp.where(near, -p * F.chi(w) * w * w, far)
    terms = xp.where(s.only_p, zero + INF, xp.where(s.only_q, q, terms))
    kl = F.total(xp, terms, axis)
    return xp.where(s.sick, xp.full_like(kl, NAN), xp.where(s.none, xp.zeros_like(kl), kl))


def divergence_slopes(call, xp, names, x, q_logits, axis, where, temperature, compute, factor=1):
    """∂KL/∂z: p (δ - KL) of p's, q - p of q's. An infinite divergence moves with q alone, as an impossible label's loss."""
    how = dict(axis=axis, where=where, temperature=temperature, dtype=compute, compute=compute)
    p, q = call("softmax", x=x, **how), call("softmax", x=q_logits, **how)
    a, b = (apart(xp, each, axis, where, temperature, compute) for each in (x, q_logits))
    s, zero = ratio(xp, a, b, axis), xp.zeros_like(p)
    infinite = F.total(xp, F.cast(xp, s.only_p, compute), axis) > 0
    by_p = xp.where(infinite, zero, F.softmax_derivative(xp, p, s.delta, axis))
    # q - p = p expm1(-δ) = -q expm1(δ), the one that is at most 1
    up = s.delta > 0
    e = xp.expm1(xp.where(up, -s.delta, s.delta))
    by_q = xp.where(s.only_p, -p, xp.where(s.only_q, q, xp.where(up, p * e, -q * e)))
    by_q = xp.where(s.none, zero, by_q)
    by_p, by_q = (xp.where(s.sick, zero + NAN, each) for each in (by_p, by_q))
    return L.Slope(names[0], factor * by_p, temperature), L.Slope(names[1], factor * by_q, temperature)


def kl_forward(xp, x, q_logits, *, axis, where=None, temperature=1.0, dtype, compute):
    a, b = (apart(xp, each, axis, where, temperature, compute) for each in (x, q_logits))
    return F.cast(xp, F.drop(xp, divergence(xp, a, b, axis), axis), dtype)


def kl_vjp(call, xp, ct, y, wanted, x, q_logits, *, dtype, **values):
    slopes = divergence_slopes(call, xp, ("x", "q_logits"), x, q_logits, **values)
    ct, y = (F.cast(xp, F.keep(xp, each, values["axis"]), values["compute"]) for each in (ct, y))
    out = L.pull_slopes(xp, slopes, ct, None, wanted, dict(values, x=x, q_logits=q_logits))
    # an answer that is NaN moves by NaN, though one side be frozen
    nan = xp.where(y == y, xp.zeros_like(y), xp.full_like(y, NAN))
    nan = nan if values["where"] is None else xp.where(values["where"], nan, xp.zeros_like(nan))
    return {k: g if k == "temperature" else g + F.cast(xp, nan, g.dtype) for k, g in out.items()}


def kl_jvp(call, xp, y, tangents, x, q_logits, *, dtype, **values):
    slopes = divergence_slopes(call, xp, ("x", "q_logits"), x, q_logits, **values)
    dy = F.drop(xp, L.push_slopes(xp, slopes, None, tangents, dict(values, x=x, q_logits=q_logits)), values["axis"])
    return F.cast(xp, dy * xp.where(y == y, xp.ones_like(dy), xp.full_like(dy, NAN)), dtype)


# --- formulas: distillation ------------------------------------------------------------------------------------------


def soft_part(xp, x, teacher, axis, where, temperature, compute):
    """The temperature, NaN where it is none; and KL(teacher ‖ student) of each row."""
    a, b = (apart(xp, each, axis, where, temperature, compute) for each in (teacher, x))
    kl = divergence(xp, a, b, axis)
    t = temperature if isinstance(temperature, (int, float)) else F.cast(xp, temperature, compute)
    t = xp.zeros_like(kl) + t
    return xp.where((t > 0) & (t < INF), t, xp.full_like(t, NAN)), kl


def everyone(xp, like, sample_weight, compute):
    """Targets of rows without labels: each counts, by its sample weight."""
    one = xp.zeros_like(like) + 1
    s = None if sample_weight is None else F.cast(xp, sample_weight, compute)
    nobody = one == 0
    return L.Targets(None, None, None, None, one, s, None, nobody, nobody if s is None else nobody | (s == 0))


HARD: Any = dict(label_smoothing=0.0, z_loss=0.0, softcap=None)  # of the hard part, plain cross-entropy


def mixture(labels, alpha):
    """The weights of the soft and the hard part."""
    return (1.0, 0.0) if labels is None else (alpha, 1 - alpha)


def distillation_forward(
    xp, x, teacher, *, labels=None, classes=None, alpha, axis, where=None, temperature=1.0, sample_weight=None,
    ignore_index, reduction, normalizer=None, dtype, compute,
):  # fmt: skip
    soft, hard = mixture(labels, alpha)
    loss = 0
    if soft:
        t, kl = soft_part(xp, x, teacher, axis, where, temperature, compute)
        loss = soft * (t * (t * kl))
    if labels is None:
        counts = everyone(xp, loss, sample_weight, compute)
    else:
        counts, entropy = L.loss_rows(
            xp, x, labels, axis=axis, classes=classes, where=where, sample_weight=sample_weight,
            ignore_index=ignore_index, compute=compute, **HARD,
        )  # fmt: skip
        loss = loss + hard * entropy if hard else loss
    return F.cast(xp, L.reduce_rows(xp, counts, loss, normalizer, reduction, axis)[0], dtype)


def distillation_parts(call, xp, x, teacher, *, labels, alpha, **values):
    axis, where, temperature, compute = (values[k] for k in ("axis", "where", "temperature", "compute"))
    soft, hard = mixture(labels, alpha)
    loss, direct = 0, {}
    slopes: tuple[L.Slope, ...] = (L.Slope("teacher", xp.zeros_like(F.cast(xp, teacher, compute)), temperature),)
    if soft:
        t, kl = soft_part(xp, x, teacher, axis, where, temperature, compute)
        loss = soft * (t * (t * kl))
        slopes = divergence_slopes(
            call, xp, ("teacher", "x"), teacher, x, axis, where, temperature, compute, soft * t * t
        )
        direct["temperature"] = lambda: (2 * soft * t * kl, None)
    if labels is None:
        return L.parts_of(xp, everyone(xp, loss, values["sample_weight"], compute), loss, slopes, direct, **values)
    counts, entropy, slope, more = L.cross_entropy_by_rows(call, xp, x, labels, **dict(values, temperature=1.0))
    if hard:
        loss = loss + hard * entropy
        slopes = (*slopes, slope._replace(gz=hard * slope.gz))
    by_loss = more["labels"]

    def by_labels():
        dl, dw = by_loss()
        return hard * dl, dw

    return L.parts_of(xp, counts, loss, slopes, dict(direct, labels=by_labels), **values)


def distillation_vjp(call, xp, ct, y, wanted, x, teacher, **values):
    values = dict(values, x=x, teacher=teacher)
    return L.loss_vjp(xp, ct, distillation_parts(call, xp, **values), wanted, values)


def distillation_jvp(call, xp, y, tangents, x, teacher, **values):
    values = dict(values, x=x, teacher=teacher)
    return L.loss_jvp(xp, distillation_parts(call, xp, **values), tangents, values)


# --- entropy, kl_divergence, distillation_loss -----------------------------------------------------------------------


def _entropy_values(
    backend: Any, x: Any, axis: Axis, where: Any, temperature: Any, keepdims: bool, dtype: Any
) -> dict[str, Any]:
    values = args.of_map(backend, x, axis, where, temperature, dtype, "logits")
    return dict(values, keepdims=bool(keepdims))


ENTROPY = Op("entropy", _entropy_values, entropy_forward, entropy_vjp, entropy_jvp)


@record(ENTROPY)
def entropy(
    logits: Any, /, *, axis: Axis = -1, where: Any = None, temperature: Any = 1.0, keepdims: bool = False,
    dtype: Any = None,
) -> Any:  # fmt: skip
    """Shannon entropy of the softmax of logits, in nats.

        H = -Σ p_i log p_i = log1p(r) - Σ p_i d_i,   p = softmax(logits / T),   d = (logits - max) / T,   r as in logsumexp

    Parameters
    ----------
    logits : array (..., n), real. Integers become the library's default float first.
    axis : int, tuple of ints or None (all axes): what a row lies along.
    where : bool array that broadcasts to the logits. False entries take no part.
    temperature : number, or array that broadcasts to the logits with size 1 along `axis`; dimensionless, at least 0.
    keepdims : keep the summed axes with size 1.
    dtype : dtype of the answer. Default: that of the logits (of the default float for integers).

    Returns
    -------
    array without `axis`, on the device of the logits, from 0 to log(n). 0 for a row with nothing in it, log(k) for k entries
    of +inf; a NaN makes its own row NaN and no other. 0 log 0 = 0.

    Raises
    ------
    TypeError, ValueError : as softmax.

    Notes
    -----
    Error in ulp, on every backend: at most 1 in float16 and bfloat16, 12 in float32 and float64, near 0 too: both terms
    are at least 0. Derivative by the logits: p (Σ p d - d) / T; by temperature too. Rows with a +inf and rows at
    temperature 0 or inf have derivative 0.

    Source: Shannon 1948, doi:10.1002/j.1538-7305.1948.tb01338.x.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> softxp.entropy(np.log(np.asarray([[0.5, 0.25, 0.25], [1.0, 1.0, 1.0]]))).round(4)
    array([1.0397, 1.0986])
    >>> float(softxp.entropy(np.asarray([40.0, 0.0])))
    1.7418252446695514e-16
    """
    return call(ENTROPY, logits, axis, where, temperature, keepdims, dtype)


def _kl_values(
    backend: Any, x: Any, q_logits: Any, axis: Axis, where: Any, temperature: Any, dtype: Any
) -> dict[str, Any]:
    x = args.array(backend, "p_logits", x)
    q_logits, both = args.beside(backend, "q_logits", q_logits, x, "p_logits")
    values = args.of_map(backend, x, axis, where, temperature, both if dtype is None else dtype)
    return dict(values, q_logits=q_logits, compute=args.wider(backend, values["compute"], q_logits))


KL_DIVERGENCE = Op("kl_divergence", _kl_values, kl_forward, kl_vjp, kl_jvp, ("x", "q_logits"))


@record(KL_DIVERGENCE)
def kl_divergence(
    p_logits: Any, q_logits: Any, /, *, axis: Axis = -1, where: Any = None, temperature: Any = 1.0, dtype: Any = None
) -> Any:
    """Kullback-Leibler divergence of two softmaxes, from logits on both sides, in nats.

        KL(p ‖ q) = Σ p_i (log p_i - log q_i) = Σ p_i (δ_i - 1 + e^-δ_i)
        p = softmax(p_logits / T),   q = softmax(q_logits / T),   δ = log p - log q

    Parameters
    ----------
    p_logits, q_logits : arrays (..., n) of one shape, real. Integers become the library's default float first.
    axis : int, tuple of ints or None (all axes): what a row lies along.
    where : bool array that broadcasts to the logits. False entries take part on neither side.
    temperature : number, or array that broadcasts to the logits with size 1 along `axis`; of both, at least 0.
    dtype : dtype of the answer. Default: that which holds the numbers of both.

    Returns
    -------
    array without `axis`, on the device of the logits, at least 0. Exactly 0 for equal logits. inf where p gives a share to
    an entry to which q gives none (its q_logits are -inf, or there is a +inf elsewhere); an entry without a share in p adds
    nothing (0 log 0 = 0), so that a row with nothing in p gives 0. A NaN on either side makes its row NaN and no other.

    Raises
    ------
    TypeError : as softmax. ValueError : as softmax; logits of two shapes.

    Notes
    -----
    Error in ulp, on every backend: at most 1 in float16 and bfloat16, 12 in float32 and float64, for distributions that
    hardly differ too: no term is negative, and δ is made of differences of the inputs. Derivative by q_logits: (q - p) / T;
    by p_logits: p (δ - KL) / T, 0 where the divergence is infinite; by temperature too.

    Source: Kullback & Leibler 1951, doi:10.1214/aoms/1177729694.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> p, q = np.log(np.asarray([0.5, 0.25, 0.25])), np.log(np.asarray([0.25, 0.5, 0.25]))
    >>> float(softxp.kl_divergence(p, q).round(6))
    0.173287
    >>> float(softxp.kl_divergence(np.asarray([1e-9, 0.0]), np.asarray([0.0, 0.0])))
    1.25e-19
    """
    return call(KL_DIVERGENCE, p_logits, q_logits, axis, where, temperature, dtype)


def _distillation_values(
    backend: Any, x: Any, teacher: Any, temperature: Any, labels: Any, alpha: float, axis: Axis, where: Any,
    sample_weight: Any, ignore_index: int | None, reduction: str, normalizer: Any, dtype: Any,
) -> dict[str, Any]:  # fmt: skip
    x = args.array(backend, "student", x)
    teacher, _ = args.beside(backend, "teacher", teacher, x, "student")
    values = args.of_loss(
        backend, x, labels, axis, where, temperature, sample_weight, ignore_index, reduction, normalizer, dtype,
        name="student", limits=False,
    )  # fmt: skip
    alpha = args.number("alpha", alpha, 0, 1, "within [0, 1]")
    return dict(values, teacher=teacher, alpha=alpha, compute=args.wider(backend, values["compute"], teacher))


DISTILLATION_LOSS = Op(
    "distillation_loss",
    _distillation_values,
    distillation_forward,
    distillation_vjp,
    distillation_jvp,
    ("x", "teacher"),
)


@record(DISTILLATION_LOSS)
def distillation_loss(
    student: Any, teacher: Any, /, *, temperature: Any = 1.0, labels: Any = None, alpha: float = 0.5, axis: Axis = -1,
    where: Any = None, sample_weight: Any = None, ignore_index: int | None = -100,
    reduction: Literal["mean", "sum", "none"] = "mean", normalizer: Any = None, dtype: Any = None,
) -> Any:  # fmt: skip
    """A teacher's soft targets at a temperature, mixed with labels.

        loss_i = alpha T² KL(softmax(teacher_i / T) ‖ softmax(student_i / T))
                 + (1 - alpha) cross_entropy(student_i, labels_i)
        mean = Σ_i s_i loss_i / Σ_i s_i W_i,   W_i = Σ_c y_ic, which is 1 for integer labels and for none

    The labels' part is at temperature 1. Without labels the loss is T² KL alone, whatever alpha is. T² keeps the gradients
    of the soft part at one size whatever the temperature. Hinton, Vinyals & Dean take the cross-entropy with the soft
    targets where KL stands here: more by T² times the teacher's entropy, which the student's gradient does not see. KL is
    0 where the student has the teacher's distribution.

    Parameters
    ----------
    student, teacher : arrays (..., n) of one shape, logits. Integers become the library's default float first. Stop the
        teacher's gradient as your library does; it has one here.
    temperature : number, or array that broadcasts to the logits with size 1 along `axis`; above 0 and finite.
    labels : None, integers or distributions as in cross_entropy.
    alpha : number in [0, 1], the weight of the soft part beside labels.
    axis : int, tuple of ints or None (all axes): what the classes lie along.
    where : bool array that broadcasts to the logits. False classes take no part.
    sample_weight : number or array that broadcasts to the rows, s. 0 drops a row.
    ignore_index : label of rows to drop, with both their parts, or None. Integer labels alone.
    reduction : "mean"; "sum", Σ_i s_i loss_i; or "none", s_i loss_i.
    normalizer : number or array of one, at least 0: what the mean divides by in place of Σ s W.
    dtype : dtype of the answer. Default: that of the student (of the default float for integers).

    Returns
    -------
    array () or, with reduction="none", the logits' shape without `axis`. Dropped rows give exactly 0 whatever their logits
    hold; the mean of nothing is 0; inf where the student gives no share to an entry that has one in the teacher, or to the
    label.

    Raises
    ------
    IndexError, TypeError : as cross_entropy. ValueError : as cross_entropy; logits of two shapes; temperature 0, infinite,
        negative or NaN where its value can be read (NaN on those rows where it cannot).

    Notes
    -----
    Error in ulp as kl_divergence and cross_entropy: no term is negative. Gradient by the student of a row:
    alpha T (q - p) + (1 - alpha) (softmax(student) - y); by the teacher: alpha T p (δ - KL), as in kl_divergence; by
    temperature, soft labels, sample_weight and normalizer too. For large T the soft part tends to half the variance of
    student - teacher over the classes, and keeps its digits on the way.

    Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> student, teacher = np.asarray([[2.0, 1.0, 0.1]]), np.asarray([[3.0, 1.0, -1.0]])
    >>> float(softxp.distillation_loss(student, teacher, temperature=4.0).round(6))
    0.333854
    >>> float(softxp.distillation_loss(student, teacher, temperature=4.0, labels=np.asarray([0]), alpha=0.75).round(6))
    0.354648
    """
    return call(
        DISTILLATION_LOSS, student, teacher, temperature, labels, alpha, axis, where, sample_weight, ignore_index, reduction,
        normalizer, dtype,
    )  # fmt: skip
