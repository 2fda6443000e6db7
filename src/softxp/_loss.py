"""What every loss of rows of logits stands on: labels as targets, what the rows come to, and derivatives by slopes; and
cross-entropy. Written as `_formulas` is, whose words are used here too.
"""

from typing import Any, NamedTuple

from . import _formulas as F


class Targets(NamedTuple):
    y: Any  # (..., n) the labels as distributions
    share: Any  # (..., n) or number: where label smoothing spreads its mass; None without smoothing
    w: Any  # class weights, aligned with the classes; None without
    q: Any  # (..., n) what multiplies -log p: smoothed, weighted labels
    weight: Any  # row: Σ_c w_c y_c, the weight of the row in a mean
    s: Any  # row: sample weight; None without
    bad: Any  # row: the label is outside the row; None for soft labels
    weightless: Any  # row: no sample weight can bring it back: ignored, or of no class weight
    dropped: Any  # row: counts for nothing: weightless, or of sample weight 0


def targets(
    xp, like, labels, classes, *, axis, where, label_smoothing, class_weight, sample_weight, ignore_index, compute
):
    """`like`: an array of the logits' shape. `classes`: class indices along the row or their maker; None for soft labels."""
    bad = ignored = None
    if classes is None:
        y = F.cast(xp, labels, compute)
    else:
        size = 1
        for a in axis:
            size = size * like.shape[a]
        y = F.cast(xp, labels == (classes() if callable(classes) else classes), compute)
        bad, ignored = outside(labels, size, ignore_index)
    w = None if class_weight is None else F.cast(xp, class_weight, compute)
    weight = F.total(xp, y if w is None else y * w, axis)
    q, share = y, None
    if label_smoothing:
        zero = xp.zeros_like(like)
        part = zero + 1 if where is None else xp.where(where, zero + 1, zero)
        count = F.total(xp, part, axis)
        share = part / xp.maximum(count, xp.ones_like(count))
        q = (1 - label_smoothing) * q + label_smoothing * share
    q = q if w is None else q * w
    s = None if sample_weight is None else F.cast(xp, sample_weight, compute)
    weightless, dropped = uncounted(weight, s, bad, ignored)
    return Targets(y, share, w, q, weight, s, bad, weightless, dropped)


def outside(labels, size, ignore_index):
    """Which integer labels are no class, and which are ignored."""
    bad = (labels < 0) | (labels >= size)
    ignored = None if ignore_index is None else labels == ignore_index
    return bad if ignored is None else bad & ~ignored, ignored


def uncounted(weight, s, bad, ignored):
    """`weightless` and `dropped` of Targets."""
    weightless = weight == 0
    if bad is not None:
        weightless = weightless & ~bad
    if ignored is not None:
        weightless = weightless | ignored
    return weightless, weightless if s is None else weightless | (s == 0)


def row_losses(xp, t, logp_part, lse, z_loss, axis):
    """Loss of each row before its sample weight. `logp_part`: -Σ q log p."""
    loss = logp_part if not z_loss else logp_part + z_loss * t.weight * lse * lse
    return loss if t.bad is None else xp.where(t.bad, xp.full_like(loss, F.NAN), loss)


def denominator(xp, t, normalizer, zero):
    """What "mean" divides by: Σ s weight of the rows that count, or the normalizer. `zero`: one for each row."""
    everything = tuple(range(zero.ndim))
    if normalizer is None:
        return F.total(xp, xp.where(t.dropped, zero, t.weight if t.s is None else t.s * t.weight), everything)
    one = F.total(xp, zero, everything)
    if isinstance(normalizer, (int, float)):
        return xp.full_like(one, normalizer)
    return xp.reshape(F.cast(xp, normalizer, one.dtype), one.shape)


def reduce_rows(xp, t, loss, normalizer, reduction, axis):
    """(Σ s loss) / (Σ s weight), or what `reduction` and `normalizer` ask for, with the numerator and denominator."""
    zero = xp.zeros_like(loss)
    a = xp.where(t.dropped, zero, loss if t.s is None else t.s * loss)
    if reduction == "none":
        return F.drop(xp, a, axis), a, None
    everything = tuple(range(loss.ndim))
    a = F.total(xp, a, everything)
    if reduction == "sum":
        return F.drop(xp, a, everything), a, None
    norm = divisor_of_mean(xp, a, denominator(xp, t, normalizer, zero))
    return F.drop(xp, a / norm, everything), a, norm


def divisor_of_mean(xp, a, norm):
    """The mean of nothing is 0, and stays so: dividing by inf says both to its derivatives."""
    return xp.where((a == 0) & (norm == 0), norm + F.INF, norm)


def row_cotangent(xp, ct, norm, reduction, axis):
    """The cotangent of each row's s · loss, from that of what they are reduced to; one number where it is all rows'."""
    if reduction == "none":
        return F.keep(xp, ct, axis)
    return ct / norm if reduction == "mean" else ct


def temper(m, temperature):
    return m if isinstance(temperature, (int, float)) and temperature == 1 else m / temperature


def loss_rows(
    xp, x, labels, *, axis, classes=None, where=None, temperature=1.0, label_smoothing, class_weight=None,
    sample_weight=None, ignore_index, z_loss, softcap, compute,
):  # fmt: skip
    """The targets, and the loss of each row before its sample weight."""
    u = x if softcap is None else F.capped(xp, x, softcap, compute)
    s = F.rows(xp, u, axis=axis, where=where, temperature=temperature, compute=compute)
    t = targets(
        xp, s.d, labels, classes, axis=axis, where=where, label_smoothing=label_smoothing,
        class_weight=class_weight, sample_weight=sample_weight, ignore_index=ignore_index, compute=compute,
    )  # fmt: skip
    log = xp.log1p(s.r)
    d = xp.where(t.q == 0, xp.zeros_like(s.d), s.d)  # 0 · -inf = 0
    loss = F.total(xp, t.q, axis) * log - F.total(xp, t.q * d, axis)
    lse = temper(s.m, temperature) + log if z_loss else None
    return t, row_losses(xp, t, loss, lse, z_loss, axis)


def cross_entropy(xp, x, labels, *, axis, reduction, normalizer=None, dtype, compute, **options):
    t, loss = loss_rows(xp, x, labels, axis=axis, compute=compute, **options)
    return F.cast(xp, reduce_rows(xp, t, loss, normalizer, reduction, axis)[0], dtype)


class Slope(NamedTuple):
    """How a row's loss moves with z, the scores that an array of logits gives at a temperature."""

    name: str  # of the logits, among the values of the call
    gz: Any  # (..., n) ∂loss/∂z
    temperature: Any
    row_sum: Any = None  # row: Σ gz where it is not 0
    softcap: Any = None


class Parts(NamedTuple):
    """A loss by its rows: what any derivative of it is made of."""

    t: Targets
    loss: Any  # row: before sample weights, finite where the row is dropped
    numerator: Any  # Σ s loss, and what it is divided by (None unless reduction is "mean")
    norm: Any
    slopes: tuple[Slope, ...]
    direct: dict[str, Any]  # array -> maker of ∂loss/∂array and ∂weight/∂array of each row, None where that is 0


def parts_of(xp, t, loss, slopes, direct, *, axis, reduction, normalizer, **_):
    loss = xp.where(t.dropped & ~xp.isfinite(loss), xp.zeros_like(loss), loss)
    _, numerator, norm = reduce_rows(xp, t, loss, normalizer, reduction, axis)
    return Parts(t, loss, numerator, norm, slopes, direct)


def pull_slopes(xp, slopes, f, dropped, wanted, values):
    """The cotangents of logits and temperature, from that of each row's loss."""
    out = {}
    for each in slopes:
        gz = f * each.gz
        gz = gz if dropped is None else xp.where(dropped, xp.zeros_like(gz), gz)
        row_sum = each.row_sum
        if row_sum is not None:
            row_sum = xp.where(dropped, xp.zeros_like(row_sum), f * row_sum)
        names = {"x"} if each.name in wanted else set()
        if "temperature" in wanted and not isinstance(each.temperature, (int, float)):
            names = names | {"temperature"}
        compute = values["compute"]
        x = F.cast(xp, values[each.name], compute)  # so that a sum of several is rounded once
        how = each.softcap, values["axis"], values["where"], each.temperature, compute
        u, centre, t, frozen = F.scores(xp, x, *how)
        if dropped is not None and not isinstance(t, float):
            t = xp.where(dropped, xp.ones_like(t), t)  # 0 / nan is nan
        got = F.from_scores(xp, gz, row_sum, names, x, *how, u, centre, t, frozen)
        for name, g in got.items():
            name = each.name if name == "x" else name
            out[name] = out[name] + g if name in out else g
    return {name: F.cast(xp, g, values[name].dtype) for name, g in out.items()}


def push_slopes(xp, slopes, dropped, tangents, values):
    """How each row's loss moves with logits and temperature; None where neither moves."""
    da = None
    for each in slopes:
        moved = {"x": tangents[each.name]} if each.name in tangents else {}
        if "temperature" in tangents and not isinstance(each.temperature, (int, float)):
            moved["temperature"] = tangents["temperature"]
        if not moved:
            continue
        axis = values["axis"]
        dz, divide_by, shift, still = F.from_inputs(
            xp, moved, values[each.name], each.softcap, axis, values["where"], each.temperature, values["compute"]
        )
        still = still if dropped is None else still | dropped
        # masked before the product: transposed, 0 · NaN would come back
        d = F.total(xp, xp.where(still, xp.zeros_like(each.gz), each.gz) * dz, axis)
        d = d / (divide_by if isinstance(divide_by, float) else xp.where(still, xp.ones_like(d), divide_by))
        if each.row_sum is not None:
            d = d + xp.where(still, xp.zeros_like(shift), each.row_sum) * shift
        da = d if da is None else da + d
    return da


def loss_vjp(xp, ct, parts, wanted, values):
    """The pullback of any loss that is reduced by `reduce_rows`."""
    t, axis, reduction = parts.t, values["axis"], values["reduction"]
    ct = F.cast(xp, ct, values["compute"])
    zero = xp.zeros_like(parts.loss)
    alpha = zero + row_cotangent(xp, ct, parts.norm, reduction, axis)
    beta = None  # the cotangent of each row's s · weight
    if reduction == "mean" and values["normalizer"] is None:
        beta = -alpha * (parts.numerator / parts.norm)
    f = alpha if t.s is None else alpha * t.s
    g = None if beta is None else beta if t.s is None else beta * t.s

    out = pull_slopes(xp, parts.slopes, f, t.dropped, wanted, values)
    for name in parts.direct:
        if name not in wanted:
            continue
        by_loss, by_weight = parts.direct[name]()
        ga = f * by_loss if g is None or by_weight is None else f * by_loss + g * by_weight
        ga = F.sum_like(xp, xp.where(t.dropped, xp.zeros_like(ga), ga), values[name])
        out[name] = out[name] + ga if name in out else ga
    if "sample_weight" in wanted:
        gs = alpha * parts.loss if beta is None else alpha * parts.loss + beta * t.weight
        gs = xp.where(t.weightless, zero, gs)
        out["sample_weight"] = F.sum_like(xp, gs, values["sample_weight"])
    if "normalizer" in wanted:
        gn = -ct * F.drop(xp, parts.numerator / (parts.norm * parts.norm), tuple(range(zero.ndim)))
        out["normalizer"] = F.sum_like(xp, gn, values["normalizer"])
    return out


def loss_jvp(xp, parts, tangents, values):
    """The tangent of any loss that is reduced by `reduce_rows`."""
    t, axis, reduction, compute = parts.t, values["axis"], values["reduction"], values["compute"]
    zero = xp.zeros_like(parts.loss)
    da = push_slopes(xp, parts.slopes, t.dropped, tangents, values)
    da, db = zero if da is None else da, zero
    for name in parts.direct:
        if name not in tangents:
            continue
        by_loss, by_weight = parts.direct[name]()
        v = F.cast(xp, tangents[name], compute)
        da = da + xp.where(t.dropped, zero, F.total(xp, by_loss * v, axis))
        if by_weight is not None:
            db = db + xp.where(t.dropped, zero, F.total(xp, by_weight * v, axis))
    if t.s is not None:
        da, db = t.s * da, t.s * db
    if "sample_weight" in tangents:
        ds = F.cast(xp, tangents["sample_weight"], compute)
        da = da + ds * xp.where(t.weightless, zero, parts.loss)
        db = db + ds * xp.where(t.weightless, zero, t.weight)
    if reduction == "none":
        return F.cast(xp, F.drop(xp, da, axis), values["dtype"])
    everything = tuple(range(zero.ndim))
    out = F.total(xp, da, everything)
    if reduction == "mean":
        ratio = parts.numerator / parts.norm
        if values["normalizer"] is None:
            out = out - ratio * F.total(xp, db, everything)
        elif "normalizer" in tangents:
            out = out - ratio * xp.reshape(F.cast(xp, tangents["normalizer"], compute), out.shape)
        out = out / parts.norm
    return F.cast(xp, F.drop(xp, out, everything), values["dtype"])


def cross_entropy_by_rows(
    call, xp, x, labels, *, z_loss=0.0, softcap=None, label_smoothing=0.0, class_weight=None, **values
):
    """Cross-entropy by its rows: the targets, the loss, its slope, and what else it moves with."""
    axis, where, temperature, compute = (values[k] for k in ("axis", "where", "temperature", "compute"))
    u = x if softcap is None else F.capped(xp, x, softcap, compute)
    logp, p = F.both(call, xp, x, u, axis, where, temperature, compute)
    t = targets(
        xp, logp, labels, values["classes"], axis=axis, where=where, label_smoothing=label_smoothing,
        class_weight=class_weight, sample_weight=values["sample_weight"], ignore_index=values["ignore_index"],
        compute=compute,
    )  # fmt: skip
    zero = xp.zeros_like(logp)
    gz = F.log_softmax_adjoint(xp, logp, p, -t.q, axis)
    dlse = dweight = lse = None  # the z-loss's: row: Σ gz, which only it makes other than 0; ∂loss/∂weight
    if z_loss:
        z = temper(F.cast(xp, u, compute), temperature)
        lse = call("logsumexp", x=z, axis=axis, where=where, keepdims=True, dtype=compute, compute=compute)
        dweight = z_loss * lse * lse
        dlse = 2 * z_loss * t.weight * lse
        gz = gz + dlse * p
    if t.bad is not None:
        gz = xp.where(t.bad, zero + F.NAN, gz)
    nothing = (logp == -F.INF) & (t.q == 0)
    loss = row_losses(xp, t, -F.total(xp, t.q * xp.where(nothing, zero, logp), axis), lse, z_loss, axis)

    def by_q(share, of_weight):
        # beside a factor of 0 neither an infinite nor a NaN derivative may appear, not even when transposed
        dq = share * -xp.where((logp == -F.INF) | t.dropped, zero, logp)
        return dq if dweight is None else dq + dweight * of_weight

    def by_labels():
        dy = by_q(1 - label_smoothing, 1)
        return (dy, zero + 1) if t.w is None else (dy * t.w, zero + t.w)

    def by_class_weight():
        return by_q(smoothed(t, label_smoothing), t.y), t.y

    return t, loss, Slope("x", gz, temperature, dlse, softcap), {"labels": by_labels, "class_weight": by_class_weight}


def loss_parts(call, xp, **values):
    t, loss, slope, direct = cross_entropy_by_rows(call, xp, **values)
    return parts_of(xp, t, loss, (slope,), direct, **values)


def smoothed(t, label_smoothing):
    return t.y if t.share is None else (1 - label_smoothing) * t.y + label_smoothing * t.share


def cross_entropy_vjp(call, xp, ct, y, wanted, **values):
    return loss_vjp(xp, ct, loss_parts(call, xp, **values), wanted, values)


def cross_entropy_jvp(call, xp, y, tangents, **values):
    return loss_jvp(xp, loss_parts(call, xp, **values), tangents, values)
