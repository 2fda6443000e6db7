"""softmax, log_softmax, logsumexp, logmeanexp, logcumsumexp and cross_entropy."""

from typing import Any, Literal

from . import _args as args
from . import _formulas as F
from . import _loss as L
from ._backends import call
from ._op import OPS, Op, record

Axis = int | tuple[int, ...] | None


def _map_values(backend: Any, x: Any, axis: Axis, where: Any, temperature: Any, dtype: Any) -> dict[str, Any]:
    return args.of_map(backend, x, axis, where, temperature, dtype)


def _reduction_values(
    backend: Any, x: Any, axis: Axis, b: Any, where: Any, keepdims: bool, dtype: Any
) -> dict[str, Any]:
    x = args.array(backend, "x", x)
    axis = args.axes(axis, x.ndim)
    dtype, compute = args.dtypes(backend, x, dtype)
    where = args.mask(backend, where, x)
    if b is not None:
        b = args.array(backend, "b", args.companion(backend, "b", b, x))
        args.broadcastable("b", b.shape, x.shape, "the array's shape")
    return dict(x=x, axis=axis, b=b, where=where, keepdims=bool(keepdims), dtype=dtype, compute=compute)


SOFTMAX = Op("softmax", _map_values, F.softmax, F.softmax_vjp, F.softmax_jvp)
LOG_SOFTMAX = Op("log_softmax", _map_values, F.log_softmax, F.log_softmax_vjp, F.log_softmax_jvp)


@record(SOFTMAX)
def softmax(x: Any, /, *, axis: Axis = -1, where: Any = None, temperature: Any = 1.0, dtype: Any = None) -> Any:
    """Probabilities in proportion to exponentials.

        p_i = exp((x_i - m) / T) / Σ_j exp((x_j - m) / T),   m = max x,   T = temperature

    Parameters
    ----------
    x : array (..., n), real. Integers become the library's default float first.
    axis : int, tuple of ints or None (all axes): what a row lies along.
    where : bool array that broadcasts to x. False entries take no part: they get 0.
    temperature : number, or array that broadcasts to x with size 1 along `axis` (one for each row); dimensionless,
        at least 0. At 0 the maxima share all the mass equally; at inf all entries above -inf do.
    dtype : dtype of the answer. Default: that of x (of the default float for integers).

    Returns
    -------
    array, shape and device of x. A row with nothing in it (all -inf, all masked) gives 0; entries of +inf share all the
    mass equally; a NaN makes its own row NaN and no other.

    Raises
    ------
    TypeError : x is no array, or bool, complex or object; arrays of two libraries.
    ValueError : `axis` out of range, shapes that do not broadcast, temperature negative or NaN where its value can be
        read on the host (NaN on those rows where it cannot), arrays on two devices.

    Notes
    -----
    Arithmetic is one step wider than x where that is cheap, never below float32, and the answer is rounded once. Error
    in ulp, on every backend: at most 1 in float16 and bfloat16, 8 + |x - m| / T in float32 and float64.
    Derivative: p * (v - Σ p v), symmetric; by temperature too. Rows with a +inf and rows at temperature 0 or inf have
    derivative 0.

    Source: Blanchard, Higham & Higham 2021, doi:10.1093/imanum/draa038 (the shifted form).

    Examples
    --------
    >>> import numpy as np, softxp
    >>> softxp.softmax(np.asarray([2.0, 1.2, 0.5, -0.3, -1.0, -2.0])).round(2)
    array([0.54, 0.24, 0.12, 0.05, 0.03, 0.01])
    >>> softxp.softmax(np.asarray([1.0, 3.0, 3.0]), temperature=0)
    array([0. , 0.5, 0.5])
    >>> softxp.softmax(np.asarray([1.0, 5.0, 1.0]), where=np.asarray([True, False, True]))
    array([0.5, 0. , 0.5])
    """
    return call(SOFTMAX, x, axis, where, temperature, dtype)


@record(LOG_SOFTMAX)
def log_softmax(x: Any, /, *, axis: Axis = -1, where: Any = None, temperature: Any = 1.0, dtype: Any = None) -> Any:
    """Logarithm of softmax, exact near 0 as well.

        log p_i = (x_i - m) / T - log1p(r),   m = max x,   r = Σ exp((x_j - m) / T) over all but one maximum

    Parameters
    ----------
    x : array (..., n), real. Integers become the library's default float first.
    axis : int, tuple of ints or None (all axes): what a row lies along.
    where : bool array that broadcasts to x. False entries take no part: they get -inf.
    temperature : number, or array that broadcasts to x with size 1 along `axis`; dimensionless, at least 0.
    dtype : dtype of the answer. Default: that of x (of the default float for integers).

    Returns
    -------
    array, shape and device of x. -inf throughout a row with nothing in it; -log(k) for k entries of +inf, -inf beside
    them; a NaN makes its own row NaN and no other.

    Raises
    ------
    TypeError, ValueError : as softmax.

    Notes
    -----
    Error in ulp, on every backend: at most 1 in float16 and bfloat16, 12 in float32 and float64, near 0 too, because r
    leaves one maximum out and is never rounded against 1. Derivative: v - Σ p v.

    Source: Blanchard, Higham & Higham 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> [f"{v:.5g}" for v in softxp.log_softmax(np.asarray([17.0, 0.0], dtype=np.float32))]
    ['-4.1399e-08', '-17']
    """
    return call(LOG_SOFTMAX, x, axis, where, temperature, dtype)


def _logsumexp_values(
    backend: Any, x: Any, axis: Axis, b: Any, where: Any, keepdims: bool, return_sign: bool, dtype: Any
) -> dict[str, Any]:
    values = _reduction_values(backend, x, axis, b, where, keepdims, dtype)
    return dict(values, return_sign=bool(return_sign))


LOGSUMEXP = Op("logsumexp", _logsumexp_values, F.logsumexp, F.logsumexp_vjp, F.logsumexp_jvp)
SUMEXP_SIGN = Op("sumexp_sign", _reduction_values, F.sumexp_sign)
OPS["sumexp_sign"] = SUMEXP_SIGN


@record(LOGSUMEXP)
def logsumexp(
    x: Any, /, *, axis: Axis = None, b: Any = None, where: Any = None, keepdims: bool = False,
    return_sign: bool = False, dtype: Any = None,
) -> Any:  # fmt: skip
    """Logarithm of a sum of exponentials.

        lse = log Σ_i b_i exp(x_i) = m + log1p(r),   m = max x,   r = Σ exp(x_i - m) over all but one maximum

    Parameters
    ----------
    x : array (..., n), real. Integers become the library's default float first.
    axis : int, tuple of ints or None (all axes): what is summed over.
    b : real array that broadcasts to x: a factor of each term, of any sign. A term with b = 0 takes no part.
    where : bool array that broadcasts to x. False entries take no part.
    keepdims : keep the summed axes with size 1.
    return_sign : answer (log |Σ|, sign of Σ) instead.
    dtype : dtype of the answer. Default: that of x (of the default float for integers).

    Returns
    -------
    array without `axis`, on the device of x. -inf for a row with nothing in it, inf where an entry is +inf, NaN where
    one is NaN. With b, NaN where the sum is negative, unless `return_sign` asks for its sign: 1, -1, or 0 where the
    terms cancel or there are none.

    Raises
    ------
    TypeError, ValueError : as softmax.

    Notes
    -----
    Error in ulp, on every backend: at most 1 in float16 and bfloat16, 8 in float32 and float64, of the larger of m and
    the logarithm where the two cancel. Derivative by x: softmax(x) (b-weighted: b exp(x) / Σ b exp(x)); by b:
    exp(x) / Σ b exp(x). Rows whose answer is infinite have derivative 0.

    Source: Blanchard, Higham & Higham 2021, doi:10.1093/imanum/draa038 (one maximum split off the sum).

    Examples
    --------
    >>> import numpy as np, softxp
    >>> float(softxp.logsumexp(np.asarray([-40.0, 0.0])))
    4.248354255291589e-18
    >>> softxp.logsumexp(np.zeros((2, 200_000), dtype=np.float16), axis=1)
    array([12.2, 12.2], dtype=float16)
    """
    y = call(LOGSUMEXP, x, axis, b, where, keepdims, return_sign, dtype)
    return (y, call(SUMEXP_SIGN, x, axis, b, where, keepdims, dtype)) if return_sign else y


def _logmeanexp_values(backend: Any, x: Any, axis: Axis, where: Any, keepdims: bool, dtype: Any) -> dict[str, Any]:
    values = _reduction_values(backend, x, axis, None, where, keepdims, dtype)
    del values["b"]
    return values


LOGMEANEXP = Op("logmeanexp", _logmeanexp_values, F.logmeanexp, F.logsumexp_vjp, F.logsumexp_jvp)


@record(LOGMEANEXP)
def logmeanexp(x: Any, /, *, axis: Axis = None, where: Any = None, keepdims: bool = False, dtype: Any = None) -> Any:
    """Logarithm of a mean of exponentials.

        lme = log((1 / k) Σ_i exp(x_i)),   k = how many entries take part

    Parameters
    ----------
    x : array (..., n), real. Integers become the library's default float first.
    axis : int, tuple of ints or None (all axes): what is averaged over.
    where : bool array that broadcasts to x. False entries take no part and are not counted; entries of -inf are.
    keepdims : keep the averaged axes with size 1.
    dtype : dtype of the answer. Default: that of x (of the default float for integers).

    Returns
    -------
    array without `axis`. -inf for a row with nothing in it; inf and NaN as in logsumexp.

    Raises
    ------
    TypeError, ValueError : as softmax.

    Notes
    -----
    Not `logsumexp(x) - log(k)`, which cancels: equal entries give themselves back exactly. Error and derivative as
    logsumexp.

    Source: Blanchard, Higham & Higham 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> float(softxp.logmeanexp(np.asarray([3.0, 3.0, 3.0])))
    3.0
    """
    return call(LOGMEANEXP, x, axis, where, keepdims, dtype)


def _logcumsumexp_values(backend: Any, x: Any, axis: Axis, reverse: bool, dtype: Any) -> dict[str, Any]:
    x = args.array(backend, "x", x)
    axis = args.axes(axis, x.ndim)
    dtype, compute = args.dtypes(backend, x, dtype)
    return dict(x=x, axis=axis, reverse=bool(reverse), dtype=dtype, compute=compute)


LOGCUMSUMEXP = Op("logcumsumexp", _logcumsumexp_values, F.logcumsumexp, F.logcumsumexp_vjp, F.logcumsumexp_jvp)


@record(LOGCUMSUMEXP)
def logcumsumexp(x: Any, /, *, axis: Axis = -1, reverse: bool = False, dtype: Any = None) -> Any:
    """Logarithm of the running sum of exponentials.

        y_i = log Σ_{j ≤ i} exp(x_j)        (j ≥ i with `reverse`)

    Parameters
    ----------
    x : array (..., n), real. Integers become the library's default float first.
    axis : int, tuple of ints or None (all axes). Several axes are run through in C order, the last the fastest.
    reverse : sum from the end.
    dtype : dtype of the answer. Default: that of x (of the default float for integers).

    Returns
    -------
    array, shape and device of x. -inf until the first entry above -inf; inf from the first +inf on; NaN from the first
    NaN on.

    Raises
    ------
    TypeError, ValueError : as softmax.

    Notes
    -----
    Prefixes are merged in pairs, log2(n) deep, so that the end of a long row is as exact as its beginning. Error in ulp
    as logsumexp. Derivative: ∂y_i / ∂x_j = exp(x_j - y_i) for j ≤ i.

    Source: Blelloch 1990, Prefix sums and their applications, CMU-CS-90-190.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> np.exp(softxp.logcumsumexp(np.log(np.asarray([1.0, 2.0, 3.0])))).round(12)
    array([1., 3., 6.])
    """
    return call(LOGCUMSUMEXP, x, axis, reverse, dtype)


def cross_entropy_values(
    backend: Any, logits: Any, labels: Any, axis: Axis, where: Any, temperature: Any, label_smoothing: float,
    class_weight: Any, sample_weight: Any, ignore_index: int | None, z_loss: float, softcap: float | None,
    reduction: str, normalizer: Any, dtype: Any,
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
    temperature = values["temperature"]
    z_loss = args.number("z_loss", z_loss, 0, float("inf"), "a finite number of at least 0")
    if z_loss and isinstance(temperature, float) and temperature in (0.0, float("inf")):
        raise ValueError(
            f"z_loss needs a temperature above 0 and below inf, where logsumexp is finite, got {temperature}."
        )
    return dict(
        values,
        label_smoothing=args.number("label_smoothing", label_smoothing, 0, 1, "within [0, 1]"),
        class_weight=args.class_weight(backend, class_weight, values["x"], values["axis"]),
        z_loss=z_loss,
        softcap=None
        if softcap is None
        else args.number("softcap", softcap, 5e-324, float("inf"), "above 0 and finite"),
    )


CROSS_ENTROPY = Op(
    "cross_entropy", cross_entropy_values, L.cross_entropy, L.cross_entropy_vjp, L.cross_entropy_jvp, ("x", "labels")
)


@record(CROSS_ENTROPY)
def cross_entropy(
    logits: Any, labels: Any, /, *, axis: Axis = -1, where: Any = None, temperature: Any = 1.0,
    label_smoothing: float = 0.0, class_weight: Any = None, sample_weight: Any = None, ignore_index: int | None = -100,
    z_loss: float = 0.0, softcap: float | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean", normalizer: Any = None, dtype: Any = None,
) -> Any:  # fmt: skip
    """Cross-entropy between labels and the softmax of logits.

        loss_i = -Σ_c w_c y'_ic log p_ic + z_loss · W_i · lse_i²,   p_i = softmax(z_i),   lse_i = logsumexp(z_i)
        z = softcap · tanh(logits / softcap) / temperature, masked by `where`
        y' = (1 - label_smoothing) y + label_smoothing / (classes that take part)
        W_i = Σ_c w_c y_ic
        mean = Σ_i s_i loss_i / Σ_i s_i W_i

    Parameters
    ----------
    logits : array (..., n), real. Integers become the library's default float first.
    labels : integers of the logits' shape without `axis`, the index of the class (several axes count in C order); or
        real floats shaped like the logits, a distribution y over the classes. The dtype decides, never the shape.
        numpy labels may stand beside the logits of any library.
    axis : int, tuple of ints or None (all axes): what the classes lie along.
    where : bool array that broadcasts to the logits. False classes take no part.
    temperature : number, or array that broadcasts to the logits with size 1 along `axis`; dimensionless, at least 0.
    label_smoothing : number in [0, 1], the part of each label spread over the classes that take part.
    class_weight : array (n,), w; sample_weight : number or array that broadcasts to the rows, s. 0 drops a row.
    ignore_index : label of rows to drop, or None. Integer labels alone.
    z_loss : number of at least 0, the factor of lse².
    softcap : number above 0 or None, the bound that tanh puts on the logits (-inf becomes -softcap).
    reduction : "mean"; "sum", Σ_i s_i loss_i; or "none", s_i loss_i.
    normalizer : number or array of one, at least 0: what the mean divides by in place of Σ s W.
    dtype : dtype of the answer. Default: that of the logits (of the default float for integers).

    Returns
    -------
    array () or, with reduction="none", the logits' shape without `axis`. Dropped rows (ignored, or of weight 0) give
    exactly 0 whatever their logits hold; the mean of nothing is 0; a label whose logit is -inf, or that `where` leaves
    out, gives inf; a label of 0 on such a logit adds nothing.

    Raises
    ------
    IndexError : an integer label outside [0, n) that is not ignore_index, where labels can be read on the host. On a
        device, lazy or traced, such a row is NaN.
    ValueError : shapes that do not fit, options out of range. TypeError : bool, complex or object arrays, two libraries.

    Notes
    -----
    Error in ulp, on every backend: at most 1 in float16 and bfloat16, 12 in float32 and float64, near 0 too.
    Gradient by the logits of a row: s (p Σ_c w_c y'_c - w y') / T, plus 2 z_loss s W lse p / T; the class of the label
    takes expm1(log p), not p - 1, and so keeps its last bits at p near 1. Dropped rows have gradient exactly 0.
    Differentiable too by soft labels, temperature, class_weight, sample_weight and normalizer.

    Source: Szegedy et al. 2016, doi:10.1109/CVPR.2016.308 (label smoothing); Chowdhery et al. 2023, PaLM, section 5
    (z-loss); Gemma Team 2024, arXiv:2408.00118 (softcap).

    Examples
    --------
    >>> import numpy as np, softxp
    >>> logits, labels = np.asarray([[2.0, 1.0, 0.1], [0.3, 0.2, 4.0]]), np.asarray([0, 2])
    >>> float(softxp.cross_entropy(logits, labels).round(6))
    0.231525
    >>> float(softxp.cross_entropy(np.asarray([40.0, 0.0]), 0))
    4.248354255291589e-18
    """
    return call(
        CROSS_ENTROPY, logits, labels, axis, where, temperature, label_smoothing, class_weight, sample_weight,
        ignore_index, z_loss, softcap, reduction, normalizer, dtype,
    )  # fmt: skip
