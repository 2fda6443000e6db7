"""contrastive_loss: pairs told from all other pairs of a batch, whose similarities are never there whole."""

from typing import Any, Literal

from . import _args as args
from . import _formulas as F
from . import _products as P
from ._backends import call
from ._op import Op, is_array, record

# --- formulas ----------------------------------------------------------------------------------------------------------


def of_side(a, b, labels, classes, temperature, chunk_size, dtype, compute):
    """Row i of a, told from all rows of b, as linear_cross_entropy's values."""
    return dict(
        hidden=a, kernel=b, labels=labels, classes=classes, temperature=temperature, chunk_size=chunk_size, bias=None,
        where=None, class_weight=None, sample_weight=None, label_smoothing=0.0, z_loss=0.0, softcap=None, ignore_index=None,
        reduction="mean", normalizer=None, dtype=dtype, compute=compute,
    )  # fmt: skip


def sides(a, b, loss, **how) -> Any:
    """The calls whose mean the loss is, and what each calls a and b."""
    one = of_side(a, b, **how), {"a": "hidden", "b": "kernel"}
    return [one] if loss == "infonce" else [one, (of_side(b, a, **how), {"b": "hidden", "a": "kernel"})]


def value(xp, a, b, *, loss, bias, dtype, compute, **how):
    if loss == "siglip":
        return F.cast(xp, of_pairs(xp, (), a, b, bias=bias, compute=compute, **how)[0], dtype)
    values = [P.linear_cross_entropy(xp, **v) for v, _ in sides(a, b, loss, dtype=compute, compute=compute, **how)]
    return F.cast(xp, sum(values[1:], values[0]) / len(values), dtype)


def with_gradient(call, xp, wanted, a, b, *, loss, bias, dtype, compute, **how):
    """The loss, and its gradient, not yet rounded."""
    if loss == "siglip":
        return of_pairs(xp, wanted, a, b, bias=bias, compute=compute, **how)
    calls = sides(a, b, loss, dtype=compute, compute=compute, **how)
    total, out = 0, {}
    for values, names in calls:
        theirs = tuple(names.get(k, k) for k in wanted)
        y, gradients = P.derivative(call, xp, None, theirs, **values)
        total = total + F.drop(xp, y, (0, 1))
        for k, name in zip(wanted, theirs, strict=True):
            out[k] = out[k] + gradients[name] if k in out else gradients[name]
    return total / len(calls), {k: g / len(calls) for k, g in out.items()}


def of_pairs(xp, wanted, a, b, *, labels, classes, temperature, bias, chunk_size, compute):
    """Every pair asked for itself: is it one? A softmax over two classes, whose scores are 0 and z."""
    zero = F.total(xp, F.cast(xp, xp.zeros_like(a[:, :1]), compute), (0, 1))
    t, shift = (zero + (F.cast(xp, v, compute) if is_array(v) else v) for v in (temperature, bias))
    g = P.matrices(
        xp, a, b, labels, bias=None, classes=classes, where=None, temperature=1.0, class_weight=None, sample_weight=None
    )
    n, size = max(1, a.shape[0]), P.tile_size(xp, chunk_size, g)[0]
    by_b = P.sums_like(xp, g.kernel) if "b" in wanted else None

    def of(carry, tile):
        total, by_t, by_shift, by_b = carry
        s = F.cast(xp, P.logits(xp, tile), compute) / t
        pair = tile.labels == tile.classes
        z = xp.where(pair, -s - shift, s + shift)  # how much the answer is wrong
        e = xp.exp(-xp.abs(z))
        total = total + F.total(xp, xp.maximum(z, xp.zeros_like(z)) + xp.log1p(e), (0, 1)) / n
        if not wanted:
            return (total, by_t, by_shift, by_b), ()
        p = xp.where(z >= 0, 1 / (1 + e), e / (1 + e))
        gs = xp.where(pair, -p, p) / n
        by_t = by_t - F.total(xp, gs * s, (0, 1)) / t
        by_shift = by_shift + F.total(xp, gs, (0, 1))
        gs = F.cast(xp, gs / t, tile.kernel.dtype)
        if by_b is not None:
            by_b = xp.add_product(by_b, gs, tile.hidden)
        return (total, by_t, by_shift, by_b), (xp.product(gs, tile.kernel),) if "a" in wanted else ()

    (total, by_t, by_shift, by_b), rows = P.over_rows(xp, g, size, of, (zero, zero, zero, by_b))
    out = {"a": rows[0]} if rows else {}
    out.update(b=by_b, temperature=by_t, bias=by_shift)
    for name, like in (("temperature", temperature), ("bias", bias)):
        if name in wanted:
            out[name] = xp.reshape(out[name], like.shape)
    return F.drop(xp, total, (0, 1)), {k: out[k] for k in wanted}


def sweep(call, xp, wanted, a, b, *, dtype, **values):
    y, out = with_gradient(call, xp, wanted, a, b, dtype=dtype, **values)
    like = dict(values, a=a, b=b)
    return F.cast(xp, y, dtype), {k: F.cast(xp, g, like[k].dtype) for k, g in out.items()}


def vjp(call, xp, ct, y, wanted, a, b, **values):
    _, out = with_gradient(call, xp, wanted, a, b, **values)
    like = dict(values, a=a, b=b)
    return {k: F.cast(xp, F.cast(xp, ct, g.dtype) * g, like[k].dtype) for k, g in out.items()}


def jvp(call, xp, y, tangents, a, b, *, dtype, **values):
    _, out = with_gradient(call, xp, tuple(tangents), a, b, dtype=dtype, **values)
    return F.cast(xp, P.along(xp, out, tangents, values["compute"]), dtype)


# --- the call ----------------------------------------------------------------------------------------------------------


def _one(backend: Any, name: str, value: Any, like: Any, low: float, meaning: str) -> Any:
    """A Python number, or an array of one."""
    if not is_array(value):
        return args.number(name, value, low, float("inf"), meaning)
    value = args.array(backend, name, args.companion(backend, name, value, like))
    if any(n != 1 for n in value.shape):
        raise ValueError(f"{name} must be one number, got shape {tuple(value.shape)}.")
    if backend.look(lambda value: ~((value >= low) & (value < float("inf"))), value):
        raise ValueError(f"{name} must be {meaning}, got an array that is not.")
    return value


def _values(
    backend: Any, a: Any, b: Any, temperature: Any, loss: str, bias: Any, chunk_size: int | None, dtype: Any
) -> dict[str, Any]:
    a = args.array(backend, "a", a)
    b = args.array(backend, "b", args.companion(backend, "b", b, a))
    if a.ndim != 2 or b.ndim != 2 or not args.same_shape(a.shape, b.shape):
        raise ValueError(
            f"a and b must be matrices (pairs, h) of one shape, row i of the one belonging to row i of the other, got "
            f"{tuple(a.shape)} and {tuple(b.shape)}."
        )
    if loss not in ("infonce", "clip", "siglip"):
        raise ValueError(f'loss must be "infonce", "clip" or "siglip", got {loss!r}.')
    if bias is not None and loss != "siglip":
        raise ValueError(
            f'bias shifts the scores of loss="siglip" alone and changes no other, got loss={loss!r}; drop it.'
        )
    widest = b if args.dtype_name(b.dtype) == "float64" else a
    dtype, compute = args.dtypes(backend, widest, a.dtype if dtype is None else dtype)
    n, integer = a.shape[0], backend.default_int(a)
    return dict(
        a=a, b=b, loss=loss, dtype=dtype, compute=compute, chunk_size=args.chunks(chunk_size, "rows", "rows, pairs"),
        temperature=_one(backend, "temperature", temperature, a, 5e-324, "above 0 and finite"),
        bias=_one(backend, "bias", 0.0 if bias is None else bias, a, -1.8e308, "finite"),
        labels=backend.xp.reshape(backend.arange(n, integer, a), (n, 1)),
        classes=backend.xp.reshape(backend.arange(n, integer, a), (1, n)),
    )  # fmt: skip


CONTRASTIVE_LOSS = Op("contrastive_loss", _values, value, vjp, jvp, ("a", "b"), sweep)


@record(CONTRASTIVE_LOSS)
def contrastive_loss(
    a: Any, b: Any, /, *, temperature: Any = 1.0, loss: Literal["infonce", "clip", "siglip"] = "infonce", bias: Any = None,
    chunk_size: int | None = None, dtype: Any = None,
) -> Any:  # fmt: skip
    """Loss of pairs (a_i, b_i) that are to be told from all other pairs of the batch.

        s_ij = a_i · b_j / temperature
        infonce = mean_i cross_entropy(s_i·, i)                                  a_i finds its b_i
        clip    = (infonce(a, b) + infonce(b, a)) / 2                            and b_i its a_i
        siglip  = (1 / n) Σ_ij log(1 + exp(-y_ij (s_ij + bias))),   y_ij = 1 where i = j, else -1

    Parameters
    ----------
    a, b : arrays (n, h), real. Scale their rows to length 1 beforehand for cosines.
    temperature : number above 0, or array of one, which may be learned. A logit scale s is temperature=1 / s.
    loss : "infonce", "clip" or "siglip".
    bias : number, or array of one, which may be learned; for siglip alone, there 0 by default (its paper starts at -10).
    chunk_size : rows of a tile of similarities. By default as in linear_cross_entropy of a as hidden and b as kernel.
    dtype : dtype of the answer. Default: that of a.

    Returns
    -------
    array (). A pair whose products hold a NaN makes the loss NaN; no pairs at all give 0 (siglip too).

    Raises
    ------
    TypeError : bool, complex or object arrays, two libraries. ValueError : shapes that do not fit; a temperature or bias out
        of range where it can be read on the host; bias beside another loss.

    Notes
    -----
    Memory beside the arguments and gradients: one tile and its gradient; clip makes each similarity twice. Products in 32
    bits (64 for 64). Differentiable by a, b, temperature and bias; value and gradients in one sweep, as in
    linear_cross_entropy, whose accuracy it has.

    Source: van den Oord et al. 2018, arXiv:1807.03748 (InfoNCE); Radford et al. 2021, arXiv:2103.00020 (CLIP); Zhai et al.
    2023, arXiv:2303.15343 (SigLIP).

    Examples
    --------
    >>> import numpy as np, softxp
    >>> a = np.asarray([[1.0, 0.0], [0.0, 1.0]])
    >>> float(softxp.contrastive_loss(a, a, temperature=0.1).round(8))
    4.54e-05
    >>> float(softxp.contrastive_loss(a, a[::-1], temperature=0.1, loss="clip").round(4))
    10.0
    """
    return call(CONTRASTIVE_LOSS, a, b, temperature, loss, bias, chunk_size, dtype)
