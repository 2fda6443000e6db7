"""Probabilities held against what came true: fit_temperature, perplexity, expected_calibration_error, reliability_curve."""

from math import inf, prod, sqrt
from typing import Any, NamedTuple

from . import _args as args
from . import _formulas as F
from . import _loss as L
from ._backends import find
from .core import cross_entropy

Axis = int | tuple[int, ...] | None


def _rows_and_labels(
    logits: Any, labels: Any, axis: Axis, where: Any, sample_weight: Any, ignore_index: int | None, dtype: Any = None
) -> tuple[Any, dict[str, Any], Any]:
    """The backend, what formulas here take, and the dtype of an answer."""
    backend = find(logits)
    x = args.array(backend, "logits", logits)
    axes = args.axes(axis, x.ndim)
    dtype, compute = args.dtypes(backend, x, dtype)
    labels, classes, ignore_index = args.labels(backend, labels, x, axes, ignore_index)
    if classes is None:  # distributions; who is right is asked by class all the same
        sizes = tuple(n if a in axes else 1 for a, n in enumerate(x.shape))
        classes, soft = backend.xp.reshape(backend.arange(prod(sizes), backend.default_int(x), x), sizes), True
    else:
        classes, soft = classes() if callable(classes) else classes, False
    values = dict(
        x=x,
        labels=labels,
        classes=classes,
        soft=soft,
        axis=axes,
        where=args.mask(backend, where, x),
        sample_weight=args.sample_weight(backend, sample_weight, x, axes),
        ignore_index=ignore_index,
        compute=compute,
    )
    return backend, values, dtype


def counted(xp, like, *, labels, classes, soft, axis, sample_weight, ignore_index, compute):
    """The targets, and how much each row counts."""
    t = L.targets(
        xp, like, labels, None if soft else classes, axis=axis, where=None, label_smoothing=0.0, class_weight=None,
        sample_weight=sample_weight, ignore_index=ignore_index, compute=compute,
    )  # fmt: skip
    zero = xp.zeros_like(t.weight)
    return t, xp.where(t.dropped, zero, zero + 1 if t.s is None else t.s)


# --- fit_temperature ---------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    d: Any  # (..., n) logits below their row's maximum, over the largest such distance; 0 for what takes no part
    part: Any  # (..., n) bool
    labelled: Any  # row: Σ y d
    weight: Any  # row: how much it counts, times Σ y


def problem(xp, x, *, where, axis, compute, **given):
    """The problem, its largest distance, and whether a row that counts has no finite loss, or a label that is no class."""
    u = F.masked(xp, x, where, compute)
    m = F.row_max(xp, u, axis)
    _, d, _ = F.distances(xp, u, m, 1.0, False)
    t, f = counted(xp, d, axis=axis, compute=compute, **given)
    zero, none, everything = xp.zeros_like(d), xp.zeros_like(f), tuple(range(x.ndim))
    part = (d > -F.INF) & (f > 0)
    broken = (m != m) if t.bad is None else (m != m) | t.bad
    out = F.total(xp, xp.where((d == -F.INF) & (t.q != 0), zero + 1, zero), axis) > 0
    bad = xp.sum(xp.where((broken | out) & ~t.dropped, none + 1, none), axis=everything)
    d = xp.where(part, d, zero)
    size = xp.max(-d, axis=everything, keepdims=True)
    d = d / xp.where(size > 0, size, xp.ones_like(size))
    return Problem(d, part, f * F.total(xp, t.q * d, axis), f * t.weight), size, bad


def slopes(xp, p, beta, axis):
    """First and second derivative of the summed loss by β: Σ E[d] - y d, and Σ Var[d], under softmax(β d)."""
    zero, everything = xp.zeros_like(p.d), tuple(range(p.d.ndim))
    e = xp.where(p.part, xp.exp(beta * p.d), zero)
    z = F.total(xp, e, axis)
    e = e / xp.where(z > 0, z, xp.ones_like(z))
    mean = F.total(xp, e * p.d, axis)
    off = p.d - mean
    first = xp.sum(p.weight * mean - p.labelled, axis=everything)
    return first, xp.sum(p.weight * F.total(xp, e * off * off, axis), axis=everything)


def minimizer(slope: Any, eps: float) -> float:
    """The β > 0 at which an increasing function is 0, from its value and slope there: Newton's steps, kept in a bracket."""
    first, second = slope(0.0)
    if second == 0:  # every row is constant: one β is as good as another
        return 1.0
    if first >= 0:
        return 0.0
    low, high, beta = 0.0, inf, -first / second
    for _ in range(200):
        first, second = slope(beta)
        if first == 0:
            break
        low, high = (beta, high) if first < 0 else (low, beta)
        step = first / second if second > 0 else inf
        new = beta - step
        if not low < new < high:
            new = 4 * beta if high == inf else sqrt(low * high) if low else high / 4
        done = abs(new - beta) <= 4 * eps * beta
        beta = new
        if done:
            break
    return beta


def fit_temperature(
    logits: Any, labels: Any, /, *, axis: Axis = -1, where: Any = None, sample_weight: Any = None,
    ignore_index: int | None = -100,
) -> float:  # fmt: skip
    """The temperature at which logits of a trained classifier are calibrated best.

        T = argmin over T >= 0 of the mean of cross_entropy(logits, labels, temperature=T)

    Parameters
    ----------
    logits : array (..., n), real, of rows that the classifier was not trained on.
    labels, axis, where, sample_weight, ignore_index : as in cross_entropy.

    Returns
    -------
    float, for `temperature=` of any function here. 0.0 where every label that counts is a largest logit of its row, since
    the loss then falls for as long as T does; inf where the logits tell no more than chance, or mislead; 1.0 where all T
    are equal: no row counts, or all are constant.

    Raises
    ------
    ValueError : a row that counts holds NaN, a label that is no class, or one whose logit is -inf or masked: its loss is
        infinite at every T. TypeError : logits that are traced, since their sums are read on the host. Otherwise as
        cross_entropy.

    Notes
    -----
    The loss is convex in β = 1 / T. Newton's method, kept within a bracket, finds where its derivative is 0 to the last
    bits of the arithmetic (float64 where that is cheap, never below float32): some ten passes over the logits.

    scikit-learn's temperature scaling keeps β within [e⁻¹⁰, e¹⁰] and finds the same where the best β lies there.

    Source: Guo et al. 2017, arXiv:1706.04599.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> logits = np.asarray([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> T = softxp.fit_temperature(logits, np.asarray([0, 0, 1, 1]))  # 3 of 4 are right
    >>> bool(np.isclose(T, 4 / np.log(3), rtol=1e-15))
    True
    >>> softxp.softmax(logits[0], temperature=T).round(12)
    array([0.75, 0.25])
    """
    backend, values, _ = _rows_and_labels(logits, labels, axis, where, sample_weight, ignore_index)
    if prod(values["x"].shape) == 0:
        return 1.0
    values = {k: v.detach() if hasattr(v, "detach") else v for k, v in values.items()}  # nothing here is differentiated
    xp, axes = backend.xp, values["axis"]
    p, size, bad = backend.guard(problem)(xp, **values)
    if _read(bad):
        raise ValueError(
            "every row that counts needs a finite loss, got one with NaN, a label that is no class, or a label on a logit "
            "of -inf; drop it with ignore_index or a sample_weight of 0."
        )
    far = _read(xp.sum(size, axis=tuple(range(size.ndim))))
    if far == 0:
        return 1.0
    if _read(xp.sum(p.labelled, axis=tuple(range(p.labelled.ndim)))) == 0:
        return 0.0
    of = backend.guard(slopes)
    eps = 2.0**-52 if args.dtype_name(values["compute"]) == "float64" else 2.0**-23
    beta = minimizer(lambda beta: tuple(map(_read, of(xp, p, beta, axes))), eps)
    return far / beta if beta else inf


def _read(number: Any) -> float:
    try:
        return float(number)
    except Exception as error:
        raise TypeError(
            "fit_temperature reads sums of the logits on the host, which traced or lazy ones do not allow: "
            f"{type(error).__name__}; call it outside of jit, compile and vmap."
        ) from error


# --- perplexity --------------------------------------------------------------------------------------------------------


def perplexity(
    logits: Any, labels: Any, /, *, axis: Axis = -1, where: Any = None, temperature: Any = 1.0, sample_weight: Any = None,
    ignore_index: int | None = -100, softcap: float | None = None, dtype: Any = None,
) -> Any:  # fmt: skip
    """Exponential of the mean cross-entropy: among how many equal classes a guess would be as hard.

        exp(Σ_i s_i loss_i / Σ_i s_i)

    Parameters
    ----------
    logits, labels, axis, where, temperature, sample_weight, ignore_index, softcap, dtype : as in cross_entropy.

    Returns
    -------
    array (), in the dtype of cross_entropy's answer. 1 where no row counts.

    Raises
    ------
    IndexError, TypeError, ValueError : as cross_entropy.

    Notes
    -----
    The mean is not rounded to the dtype before it is raised. Differentiable on torch and JAX.

    Source: Jelinek et al. 1977, doi:10.1121/1.2016299.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> float(softxp.perplexity(np.zeros((3, 50)), np.asarray([0, 7, -100])).round(12))
    50.0
    """
    backend = find(logits)
    dtype, compute = args.dtypes(backend, args.array(backend, "logits", logits), dtype)
    loss = cross_entropy(
        logits, labels, axis=axis, where=where, temperature=temperature, sample_weight=sample_weight,
        ignore_index=ignore_index, softcap=softcap, dtype=compute,
    )  # fmt: skip
    return backend.guard(lambda xp: F.cast(xp, xp.exp(loss), dtype))(backend.xp)


# --- reliability -------------------------------------------------------------------------------------------------------


class Reliability(NamedTuple):
    """What a reliability diagram shows: arrays (bins,), 0 in bins that hold no row."""

    confidence: Any  # mean probability of the predicted class
    accuracy: Any  # share of rows whose prediction is right
    count: Any  # rows, or their summed sample weights


def binned(xp, x, *, bins, where, temperature, axis, classes, compute, **given):
    s = F.rows(xp, x, axis=axis, where=where, temperature=temperature, compute=compute)
    t, f = counted(xp, s.d, axis=axis, classes=classes, compute=compute, **given)
    zero = xp.zeros_like(f)
    confidence = xp.where(s.m == -F.INF, zero, 1 / (1 + s.r))
    if t.bad is not None:
        confidence = xp.where(t.bad, zero + F.NAN, confidence)
    # the first of the largest
    ids = F.cast(xp, classes, compute)
    first = -F.row_max(xp, xp.where(s.top, -ids, xp.zeros_like(s.d) - F.INF), axis)
    right = F.total(xp, xp.where(s.top & (ids == first), t.y, xp.zeros_like(s.d)), axis)

    def column(a):
        return xp.reshape(xp.where(t.dropped, zero, a), (-1, 1))

    confidence, right, f = column(confidence), column(right), column(f)
    bins = xp.reshape(bins, (1, -1))
    low, high = (F.cast(xp, edge, compute) / bins.shape[1] for edge in (bins, bins + 1))
    inside = ((confidence > low) | ((confidence == 0) & (low == 0))) & (confidence <= high)
    w = f * F.cast(xp, inside, compute)
    # a NaN belongs to all bins
    w = xp.where(confidence == confidence, w, xp.where(f == 0, xp.zeros_like(f), confidence))

    def summed(a):
        return xp.reshape(F.total(xp, a, (0,)), (-1,))

    c = xp.where(confidence == confidence, confidence, xp.zeros_like(confidence))
    count = summed(w)
    some = xp.where(count == 0, xp.ones_like(count), count)
    return Reliability(summed(w * c) / some, summed(w * right) / some, count)


def _curve(
    logits: Any, labels: Any, bins: int, axis: Axis, where: Any, temperature: Any, sample_weight: Any,
    ignore_index: int | None, dtype: Any,
) -> tuple[Any, Reliability, Any]:  # fmt: skip
    if not isinstance(bins, int) or isinstance(bins, bool) or bins < 1:
        raise ValueError(f"bins must be a positive int, got {bins!r}.")
    backend, values, dtype = _rows_and_labels(logits, labels, axis, where, sample_weight, ignore_index, dtype)
    x = values["x"]
    values["temperature"] = args.temperature(backend, temperature, x, values["axis"])
    values["bins"] = backend.arange(bins, backend.default_int(x), x)
    return backend, backend.guard(binned)(backend.xp, **values), dtype


def reliability_curve(
    logits: Any, labels: Any, /, *, bins: int = 15, axis: Axis = -1, where: Any = None, temperature: Any = 1.0,
    sample_weight: Any = None, ignore_index: int | None = -100, dtype: Any = None,
) -> Reliability:  # fmt: skip
    """Confidence and accuracy of predictions, bin by bin of their confidence: what a reliability diagram draws.

        bin b holds the rows with b / bins < max p_i <= (b + 1) / bins,   b = 0 ... bins - 1

    Parameters
    ----------
    logits, labels, axis, where, temperature, sample_weight, ignore_index : as in cross_entropy. A prediction beside a
        distribution is right to the extent of its probability.
    bins : how many, all equally wide.
    dtype : dtype of the answer, but for the counts. Default: that of the logits.

    Returns
    -------
    (confidence, accuracy, count), a named tuple of arrays (bins,): the mean probability of the predicted class, which is the
    first of the largest; how many of the predictions are right; and how many rows there are, or their summed weights. A bin
    without rows holds 0; dropped rows are in none; one with nothing in it is in the first, and wrong; one with NaN makes all
    NaN.

    Raises
    ------
    IndexError, TypeError, ValueError : as cross_entropy; bins that is no positive int.

    Notes
    -----
    Memory beside the arguments: some arrays of rows × bins.

    Source: Niculescu-Mizil & Caruana 2005, doi:10.1145/1102351.1102430; Guo et al. 2017, arXiv:1706.04599.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> logits = np.log(np.asarray([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]))
    >>> curve = softxp.reliability_curve(logits, np.asarray([0, 1, 1]), bins=4)
    >>> curve.confidence.round(3), curve.accuracy, curve.count
    (array([0.  , 0.  , 0.6 , 0.85]), array([0. , 0. , 1. , 0.5]), array([0., 0., 1., 2.]))
    """
    backend, curve, dtype = _curve(logits, labels, bins, axis, where, temperature, sample_weight, ignore_index, dtype)
    confidence, accuracy, count = curve
    share = backend.guard(F.cast)
    # 16 bits cannot count
    return Reliability(share(backend.xp, confidence, dtype), share(backend.xp, accuracy, dtype), count)


def expected_calibration_error(
    logits: Any, labels: Any, /, *, bins: int = 15, axis: Axis = -1, where: Any = None, temperature: Any = 1.0,
    sample_weight: Any = None, ignore_index: int | None = -100, dtype: Any = None,
) -> Any:  # fmt: skip
    """How far confidence is from accuracy, on average over bins of equal width.

        Σ_b count_b / Σ count · |accuracy_b - confidence_b|

    Parameters
    ----------
    logits, labels, bins, axis, where, temperature, sample_weight, ignore_index, dtype : as in reliability_curve, whose bins
        these are: each holds its upper edge.

    Returns
    -------
    array (). 0 where no row counts; NaN where one that counts holds NaN.

    Raises
    ------
    IndexError, TypeError, ValueError : as reliability_curve.

    Notes
    -----
    Not differentiable: a row that changes its bin makes a step.

    Source: Naeini, Cooper & Hauskrecht 2015, doi:10.1609/aaai.v29i1.9602; Guo et al. 2017, arXiv:1706.04599.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> logits = np.log(np.asarray([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]))
    >>> float(softxp.expected_calibration_error(logits, np.asarray([0, 1, 1]), bins=4).round(12))
    0.366666666667
    """
    backend, curve, dtype = _curve(logits, labels, bins, axis, where, temperature, sample_weight, ignore_index, dtype)

    def error(xp: Any) -> Any:
        count = xp.sum(curve.count, axis=0)
        gap = xp.sum(curve.count * xp.abs(curve.accuracy - curve.confidence), axis=0)
        return F.cast(xp, gap / xp.where(count == 0, xp.ones_like(count), count), dtype)

    return backend.guard(error)(backend.xp)
