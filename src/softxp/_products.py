"""The mathematics of losses whose logits are products: in tiles, never whole.

A tile is the logits of some rows over some of the vocabulary. Where the vocabulary is whole, a tile is a call of
cross_entropy; where it is cut, each row's state is folded over it, and the tiles are made once more for the gradient.
Written as `_formulas` is: the namespace first, nothing in place, no branch that looks at an array's values.
"""

from math import prod
from typing import Any, NamedTuple

from . import _args as args
from . import _formulas as F
from . import _loss as L
from ._op import is_array

BUDGET = 1 << 25  # bytes of a tile and its gradient
FEW, MANY = 32, 256  # where not even so few rows fit beside the whole vocabulary, it is cut, and so many are taken


class Given(NamedTuple):
    """The arrays of one call as matrices, or those of a tile."""

    hidden: Any  # (rows, h)
    kernel: Any  # (vocabulary, h)
    bias: Any  # (vocabulary, 1) or None
    labels: Any  # (rows, 1), or (rows, vocabulary) where they are soft
    classes: Any  # (1, vocabulary), or their maker; None where labels are soft
    where: Any  # (rows or 1, vocabulary) or None
    temperature: Any  # (rows, 1) or number
    class_weight: Any  # (1, vocabulary) or None
    s: Any  # (rows, 1) or None: sample weights


BY_ROW = ("hidden", "labels", "where", "temperature", "s")
BY_CLASS = ("kernel", "bias")  # and, turned, those of the next line
BESIDE = ("labels", "classes", "where", "class_weight")


def matrices(xp, hidden, kernel, labels, *, bias, classes, where, temperature, class_weight, sample_weight):
    (n, h), lead = kernel.shape, hidden.shape[:-1]
    count = prod(lead) if all(args.known(k) for k in lead) else -1
    wide = xp.float64 if xp.float64 in (hidden.dtype, kernel.dtype) else xp.float32
    factor = xp.factors(hidden, kernel) or wide

    def rows(a):
        if not is_array(a):
            return a
        return xp.reshape(a if a.shape == (*lead, 1) else xp.broadcast_to(a, (*lead, 1)), (count, 1))

    def beside(a):
        if a is None or all(k == 1 for k in a.shape[:-1]):
            return a if a is None else xp.broadcast_to(xp.reshape(a, (1, a.shape[-1] if a.ndim else 1)), (1, n))
        return xp.reshape(xp.broadcast_to(a, (*lead, n)), (count, n))

    def ids():
        return xp.reshape(classes() if callable(classes) else classes, (1, n))

    return Given(
        hidden=F.cast(xp, xp.reshape(hidden, (count, h)), factor),
        kernel=F.cast(xp, kernel, factor),
        bias=None if bias is None else F.cast(xp, xp.reshape(bias, (n, 1)), wide),
        labels=xp.reshape(labels, (count, n)) if classes is None else rows(labels),
        classes=None if classes is None else ids if callable(classes) else ids(),
        where=beside(where),
        temperature=rows(temperature),
        class_weight=None if class_weight is None else xp.reshape(class_weight, (1, n)),
        s=rows(sample_weight),
    )


def over_rows(xp, g, size, step, carry, *more):
    """carry, outs = step(carry, the matrices of some rows, those rows of `more`), for all rows in turn."""
    n = g.hidden.shape[0]
    if size >= (n if args.known(n) else size):
        return step(carry, g, *more)
    names = [k for k in BY_ROW if is_array(getattr(g, k)) and getattr(g, k).shape[0] == n]

    def on(carry, *pieces):
        return step(carry, g._replace(**dict(zip(names, pieces, strict=False))), *pieces[len(names) :])

    return xp.in_chunks(on, carry, (*(getattr(g, k) for k in names), *more), size)


def over_vocabulary(xp, g, size, step, carry):
    """carry, outs = step(carry, the matrices of some classes), for the whole vocabulary in turn."""
    if callable(g.classes):
        g = g._replace(classes=g.classes())
    n = g.kernel.shape[0]
    names = [k for k in BY_CLASS if getattr(g, k) is not None]
    turned = [k for k in BESIDE if getattr(g, k) is not None and getattr(g, k).shape[1] == n]
    turned = [k for k in turned if k != "labels" or g.classes is None]

    def turn(a):
        return xp.permute_dims(a, (1, 0))

    def on(carry, *pieces):
        flat, back = pieces[: len(names)], [turn(a) for a in pieces[len(names) :]]
        return step(carry, g._replace(**dict(zip((*names, *turned), (*flat, *back), strict=True))))

    arrays = (*(getattr(g, k) for k in names), *(turn(getattr(g, k)) for k in turned))
    return xp.in_chunks(on, carry, arrays, size)


def logits(xp, g):
    z = xp.product(g.hidden, xp.permute_dims(g.kernel, (1, 0)))
    return z if g.bias is None else z + xp.permute_dims(g.bias, (1, 0))


def sums_like(xp, a):
    """Zeros to which products like the matrix a are added."""
    return xp.zeros_like(a, dtype=xp.float64 if a.dtype == xp.float64 else xp.float32)


def tile_size(xp, chunk_size, g):
    """Rows and classes of a tile. Tile and gradient fill the budget, or as much as a quarter of the kernel."""
    rows, (n, h), itemsize = g.hidden.shape[0], g.kernel.shape, 8 if "64" in str(g.kernel.dtype) else 4
    if chunk_size is None:
        fit = max(BUDGET, n * h * itemsize // 4) // (2 * itemsize)  # numbers
        whole = max(fit // max(1, n), xp.least_rows(g.kernel))
        chunk_size = (whole, n) if whole >= FEW else (MANY, fit // MANY)
    elif isinstance(chunk_size, int):
        chunk_size = (chunk_size, n)
    rows = rows if args.known(rows) else chunk_size[0]
    return max(1, min(chunk_size[0], rows)), max(1, min(chunk_size[1], n))


class State(NamedTuple):
    """What a row's loss is made of, for some of the vocabulary; states of disjoint parts merge. d = (z - m) / T."""

    m: Any  # the row's state, as in F.rows
    r: Any
    dot: Any  # Σ w y d
    mass: Any  # Σ w y
    even: Any  # Σ w d and Σ w over the classes that take part, where labels are smoothed, else 0
    even_mass: Any
    count: Any  # how many take part
    seen: Any  # how many classes there were


def label_terms(xp, g, like):
    """y and w of a tile, and which classes take part, as numbers."""
    classes = g.classes() if callable(g.classes) else g.classes
    y = F.cast(xp, g.labels if classes is None else g.labels == classes, like.dtype)
    one = xp.zeros_like(like) + 1
    part = one if g.where is None else xp.where(g.where, one, xp.zeros_like(one))
    return (y, part) if g.class_weight is None else (y * F.cast(xp, g.class_weight, like.dtype), part)


def weighted_part(xp, g, part):
    return part if g.class_weight is None else part * F.cast(xp, g.class_weight, part.dtype)


def dotted(xp, q, d):
    return F.total(xp, xp.where(q == 0, xp.zeros_like(d), q * d), (1,))  # 0 · -inf = 0


def tile_state(xp, g, *, softcap, label_smoothing, compute):
    z = logits(xp, g)
    u = z if softcap is None else F.capped(xp, z, softcap, compute)
    s = F.rows(xp, u, axis=(1,), where=g.where, temperature=g.temperature, compute=compute)
    y, part = label_terms(xp, g, s.d)
    zero = xp.zeros_like(s.r)
    even = even_mass = count = zero
    if label_smoothing:
        share = weighted_part(xp, g, part)
        even, even_mass, count = dotted(xp, share, s.d), F.total(xp, share, (1,)), F.total(xp, part, (1,))
    m, seen = F.cast(xp, s.m, compute), zero + g.kernel.shape[0]
    return State(m, s.r, dotted(xp, y, s.d), F.total(xp, y, (1,)), even, even_mass, count, seen)


def join(xp, a, b, temperature):
    m, r = F.merge(xp, (a.m, a.r), (b.m, b.r), temperature)
    (_, da, _), (_, db, _) = (F.distances(xp, x.m, m, temperature, True) for x in (a, b))

    def moved(dot, mass, d):
        return dot + mass * xp.where(mass == 0, xp.zeros_like(mass), d)

    return State(
        m, r,
        moved(a.dot, a.mass, da) + moved(b.dot, b.mass, db), a.mass + b.mass,
        moved(a.even, a.even_mass, da) + moved(b.even, b.even_mass, db), a.even_mass + b.even_mass,
        a.count + b.count, a.seen + b.seen,
    )  # fmt: skip


def nothing(xp, like):
    zero = xp.zeros_like(like)
    return State(zero - F.INF, *[zero] * 7)


def fold(xp, g, size, **how):
    """Each row's state, over the whole vocabulary."""
    zero = F.total(xp, F.cast(xp, g.hidden, how["compute"]), (1,)) * 0

    def block(state, part):
        _, more = over_rows(xp, part, size[0], lambda none, tile: (none, tile_state(xp, tile, **how)), ())
        return join(xp, state, State(*more), g.temperature), ()

    return over_vocabulary(xp, g, size[1], block, nothing(xp, zero))[0]


def mixed(xp, state, label_smoothing):
    """Σ q d and Σ q of each row, of the labels as smoothed, and what of it each class that takes part has."""
    if not label_smoothing:
        return state.dot, state.mass, None
    own, each = 1 - label_smoothing, label_smoothing / xp.maximum(state.count, xp.ones_like(state.count))
    return own * state.dot + each * state.even, own * state.mass + each * state.even_mass, each


def state_losses(xp, state, t, temperature, z_loss, label_smoothing):
    """Loss of each row before its sample weight."""
    dot, mass, _ = mixed(xp, state, label_smoothing)
    log = xp.log1p(state.r)
    lse = L.temper(state.m, temperature) + log if z_loss else None
    return L.row_losses(xp, t, mass * log - dot, lse, z_loss, (1,))


def tile_gradient(xp, g, state, f, bad, wanted, *, softcap, label_smoothing, z_loss, compute):
    """The gradient of Σ f loss by {x: the tile's logits, temperature}."""
    z = logits(xp, g)
    u = F.masked(xp, F.capped(xp, z, softcap, compute), g.where, compute)
    _, d, error = F.distances(xp, u, state.m, g.temperature, True)
    e = xp.exp(d)
    p = (e if error is None else e + e * error) / (1 + state.r)
    log = xp.log1p(state.r)
    y, part = label_terms(xp, g, u)
    _, mass, each = mixed(xp, state, label_smoothing)
    q = y if each is None else (1 - label_smoothing) * y + each * weighted_part(xp, g, part)
    gz = p * (mass - q) + q * xp.expm1(d - log)
    row_sum = None
    if z_loss:
        row_sum = 2 * z_loss * state.mass * (L.temper(state.m, g.temperature) + log)
        gz = gz + row_sum * p
        # of this tile alone
        row_sum = f * row_sum * F.total(xp, p, (1,))
    gz = xp.where(f == 0, xp.zeros_like(gz), f * gz)
    if bad is not None:
        gz = xp.where(bad, xp.zeros_like(gz) + F.NAN, gz)
    of = u, *F.scale(xp, state.m, g.temperature)
    return F.from_scores(xp, gz, row_sum, wanted, z, softcap, (1,), g.where, g.temperature, compute, *of)


# --- linear_cross_entropy ----------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """One call, with what of it is known before any logit is."""

    g: Given
    size: tuple[int, int]
    state: Any  # where the vocabulary is cut
    t: L.Targets  # the rows' weights and marks; nothing of the vocabulary's size
    reduction: str
    normalizer: Any
    how: dict[str, Any]  # what both kinds of tile take


def begin(
    xp, hidden, kernel, labels, *, chunk_size, reduction, normalizer, dtype, compute, label_smoothing, z_loss,
    ignore_index, softcap, state=None, vocabulary=None, **options,
):  # fmt: skip
    """`state`: the whole vocabulary's, where the kernel is a shard of it. Rows of another state are NaN."""
    g = matrices(xp, hidden, kernel, labels, **options)
    size = tile_size(xp, chunk_size, g)
    how = dict(
        label_smoothing=label_smoothing, z_loss=z_loss, ignore_index=ignore_index, softcap=softcap, compute=compute
    )
    n, bad, ignored = kernel.shape[0], None, None
    if g.classes is not None:
        bad, ignored = L.outside(g.labels, n if vocabulary is None else vocabulary, ignore_index)
    if state is not None:
        other = state.seen != vocabulary
        bad = other if bad is None else bad | other
    if state is None and size[1] < n:
        state = fold(xp, g, size, softcap=softcap, label_smoothing=label_smoothing, compute=compute)
    if state is not None:
        weight = state.mass
    else:
        weight = row_weights(xp, g, size[0], None if ignored is None else bad | ignored, compute)
    s = None if g.s is None else F.cast(xp, g.s, compute)
    t = L.Targets(None, None, None, None, weight, s, bad, *L.uncounted(weight, s, bad, ignored))
    return Call(g, size, state, t, reduction, normalizer, how)


def shard_state(xp, *, chunk_size, label_smoothing, softcap, compute, **values):
    g = of_values(xp, values)
    return fold(xp, g, tile_size(xp, chunk_size, g), softcap=softcap, label_smoothing=label_smoothing, compute=compute)


def of_values(xp, values):
    names = ("bias", "classes", "where", "temperature", "class_weight", "sample_weight")
    return matrices(
        xp, values["hidden"], values["kernel"], values["labels"], **{k: values[k] for k in names}
    )  # fmt: skip


def row_weights(xp, g, size, nowhere, compute):
    """Σ w y of each row."""
    if g.classes is None:

        def of(none, tile):
            y, w = F.cast(xp, tile.labels, compute), tile.class_weight
            return none, (F.total(xp, y if w is None else y * F.cast(xp, w, compute), (1,)),)

        return over_rows(xp, g, size, of, ())[1][0]
    if g.class_weight is None:
        return F.cast(xp, g.labels == g.labels, compute)
    n = g.class_weight.shape[1]
    inside = xp.where((g.labels < 0) | (g.labels >= n), xp.zeros_like(g.labels), g.labels)
    w = xp.take(xp.reshape(g.class_weight, (n,)), xp.reshape(inside, (-1,)), axis=0)
    w = F.cast(xp, xp.reshape(w, g.labels.shape), compute)
    return w if nowhere is None else xp.where(nowhere, xp.zeros_like(w), w)


def as_cross_entropy(g, z, reduction, s, how):
    """A tile of whole rows, as cross_entropy's values."""
    return dict(
        x=z, labels=g.labels, axis=(1,), classes=g.classes, where=g.where, temperature=g.temperature,
        class_weight=g.class_weight, sample_weight=s, reduction=reduction, normalizer=None, dtype=z.dtype, **how,
    )  # fmt: skip


def row_losses(xp, c):
    """Loss of each row before its sample weight."""
    if c.state is not None:
        return state_losses(xp, c.state, c.t, c.g.temperature, c.how["z_loss"], c.how["label_smoothing"])

    def of(none, tile):
        loss = xp.call("cross_entropy", **as_cross_entropy(tile, logits(xp, tile), "none", None, c.how))
        return none, (F.keep(xp, loss, (1,)),)

    return F.cast(xp, over_rows(xp, c.g, c.size[0], of, ())[1][0], c.how["compute"])


def linear_cross_entropy(xp, hidden, kernel, labels, *, dtype, **values):
    c = begin(xp, hidden, kernel, labels, dtype=dtype, **values)
    y = L.reduce_rows(xp, c.t, row_losses(xp, c), c.normalizer, c.reduction, (1,))[0]
    return F.cast(xp, y if c.reduction != "none" else xp.reshape(y, hidden.shape[:-1]), dtype)


def summed(call, xp, c, f, wanted):
    """Σ f loss and its gradient by {hidden, kernel, bias, temperature}, of the matrices."""
    g = c.g
    of_tile = ("x",) if {"hidden", "kernel", "bias"} & {*wanted} else ()
    of_tile = (*of_tile, "temperature") if "temperature" in wanted else of_tile
    zero = F.total(xp, xp.zeros_like(f), (0, 1))
    kept = "kernel" in wanted, "bias" in wanted
    start = tuple(sums_like(xp, a) if k else None for a, k in zip((g.kernel, g.bias), kept, strict=True))

    def parts(carry, tile, f, out):
        """What a tile's gradient adds to the kernel's and bias's, and the rows' own."""
        by_kernel, by_bias = carry
        gz = None if "x" not in out else F.cast(xp, out["x"], tile.kernel.dtype)
        if kept[0]:
            h = xp.where(
                f == 0, xp.zeros_like(tile.hidden), tile.hidden
            )  # dropped rows may hold anything: 0 · inf = nan
            by_kernel = xp.add_product(by_kernel, gz, h)
        if kept[1]:
            by_bias = by_bias + xp.permute_dims(F.total(xp, F.cast(xp, gz, by_bias.dtype), (0,)), (1, 0))
        rows = (xp.product(gz, tile.kernel),) if "hidden" in wanted else ()
        return (by_kernel, by_bias), (*rows, out["temperature"]) if "temperature" in out else rows

    if c.state is None:

        def whole(carry, tile, f):
            z = logits(xp, tile)
            how = as_cross_entropy(tile, z, "sum", f, c.how)
            value, out = cross_entropy_swept(call, xp, of_tile, how, tile.kernel.dtype)
            sums, rows = parts(carry[1:], tile, f, out)
            return (carry[0] + F.keep(xp, F.cast(xp, value, f.dtype), (0, 1)), *sums), rows

        (value, by_kernel, by_bias), rows = over_rows(xp, g, c.size[0], whole, (zero, *start), f)
    else:
        loss = row_losses(xp, c)
        value = F.total(xp, xp.where(f == 0, xp.zeros_like(f), f * loss), (0, 1))
        bad = None if c.t.bad is None else c.t.bad & ~c.t.dropped
        how = {k: v for k, v in c.how.items() if k != "ignore_index"}

        def block(sums, part):
            zeros = tuple(sums_like(xp, a) if k else None for a, k in zip((part.kernel, part.bias), kept, strict=True))

            def piece(carry, tile, f, bad, *state):
                return parts(carry, tile, f, tile_gradient(xp, tile, State(*state), f, bad, of_tile, **how))

            of_block, rows = over_rows(xp, part, c.size[0], piece, zeros, f, bad, *c.state)
            return tuple(a + b for a, b in zip(sums, rows, strict=True)), tuple(a for a in of_block if a is not None)

        empty = (sums_like(xp, g.hidden),) if "hidden" in wanted else ()
        empty = (*empty, xp.zeros_like(f)) if "temperature" in wanted else empty
        rows, blocks = over_vocabulary(xp, g, c.size[1], block, empty)
        blocks = list(blocks)
        by_kernel, by_bias = (blocks.pop(0) if k else None for k in kept)

    rows = list(rows)
    out = {"hidden": rows.pop(0)} if "hidden" in wanted else {}
    out.update({k: a for k, a in (("kernel", by_kernel), ("bias", by_bias)) if k in wanted})
    if "temperature" in wanted:
        out["temperature"] = rows.pop(0)
    return value, out


def cross_entropy_swept(call, xp, wanted, values, gradient):
    """The value, one number, and its gradient, which may come in the dtype `gradient` at once."""
    how = values if gradient == values["x"].dtype else dict(values, gradient=gradient)
    both = xp.swept("cross_entropy", **how) if wanted == ("x",) else NotImplemented
    if both is not NotImplemented:
        return both[0], {"x": both[1]}
    y = call("cross_entropy", **values)
    return y, L.cross_entropy_vjp(call, xp, xp.ones_like(y), y, wanted, **values)


MOVING = ("hidden", "kernel", "bias", "temperature")


def known_to_move(names):
    for name in names:
        if name not in MOVING:
            raise TypeError(
                f"linear_cross_entropy has derivatives by {', '.join(MOVING)}, asked for one by {name}; hold it constant, "
                "or use cross_entropy of the logits."
            )


def factors(xp, c, ct):
    """The cotangent of each row's loss, 0 for dropped rows, from that of the answer."""
    t, zero = c.t, xp.zeros_like(c.t.weight)
    norm = L.denominator(xp, t, c.normalizer, zero) if c.reduction == "mean" else None
    if c.reduction == "none":
        ct = xp.reshape(ct, zero.shape)
    f = zero + L.row_cotangent(xp, ct, norm, "sum" if norm is None else "mean", (1,))
    return xp.where(t.dropped, zero, f if t.s is None else f * t.s)


def derivative(call, xp, ct, wanted, *, dtype, **values):
    """The answer's Σ f loss for this cotangent, and the cotangents of the arrays."""
    known_to_move(wanted)
    c = begin(xp, dtype=dtype, **values)
    if ct is None:
        ct = F.total(xp, xp.zeros_like(c.t.weight), (0, 1)) + 1
    value, out = summed(call, xp, c, factors(xp, c, F.cast(xp, ct, c.how["compute"])), wanted)
    rows = (*values["hidden"].shape[:-1], 1)
    if "temperature" in out:
        out["temperature"] = F.sum_like(xp, xp.reshape(out["temperature"], rows), values["temperature"])
    return value, {k: xp.reshape(a, values[k].shape) for k, a in out.items()}


def linear_cross_entropy_sweep(call, xp, wanted, *, dtype, **values):
    value, out = derivative(call, xp, None, wanted, dtype=dtype, **values)
    value = F.cast(xp, F.drop(xp, value, (0, 1)), dtype)
    return value, {k: F.cast(xp, a, values[k].dtype) for k, a in out.items()}


def linear_cross_entropy_vjp(call, xp, ct, y, wanted, hidden, kernel, labels, **values):
    values.update(hidden=hidden, kernel=kernel, labels=labels)
    _, out = derivative(call, xp, ct, wanted, **values)
    return {k: F.cast(xp, a, values[k].dtype) for k, a in out.items()}


def linear_cross_entropy_jvp(call, xp, y, tangents, hidden, kernel, labels, *, dtype, **values):
    values = dict(values, hidden=hidden, kernel=kernel, labels=labels)
    if values["reduction"] == "none":
        return jvp_of_rows(call, xp, tangents, dtype=dtype, **values)
    # one number: its gradients cost what a backward does, and a library that transposes these lines for its reverse mode
    # keeps nothing else
    _, out = derivative(call, xp, None, tuple(tangents), dtype=dtype, **values)
    return F.cast(xp, along(xp, out, tangents, values["compute"]), dtype)


def along(xp, gradients, tangents, compute):
    """Σ gradient · tangent."""
    dy = 0
    for k, a in gradients.items():
        da = a * F.cast(xp, tangents[k], a.dtype)
        dy = dy + F.cast(xp, F.drop(xp, F.total(xp, da, tuple(range(a.ndim))), tuple(range(a.ndim))), compute)
    return dy


def jvp_of_rows(call, xp, tangents, *, dtype, **values):
    """Of s loss of each row, over tiles of whole rows."""
    known_to_move(tangents)
    c = begin(xp, dtype=dtype, **values)
    g, rows = c.g, (*values["hidden"].shape[:-1], 1)
    dh, dw, db = (
        F.cast(xp, xp.reshape(tangents[k], getattr(g, k).shape), g.kernel.dtype) if k in tangents else None
        for k in ("hidden", "kernel", "bias")
    )
    dt = tangents.get("temperature")
    dt = None if dt is None else xp.reshape(xp.broadcast_to(dt, rows), g.hidden[:, :1].shape)

    def of(none, tile, dh, dt):
        z = logits(xp, tile)
        dz = xp.zeros_like(z) if db is None else xp.zeros_like(z) + xp.permute_dims(db, (1, 0))
        if dh is not None:
            dz = dz + xp.product(dh, xp.permute_dims(tile.kernel, (1, 0)))
        if dw is not None:
            dz = dz + xp.product(tile.hidden, xp.permute_dims(dw, (1, 0)))
        how = as_cross_entropy(tile, z, "none", None, c.how)
        moved = {"x": dz} if dt is None else {"x": dz, "temperature": dt}
        return none, (F.keep(xp, L.cross_entropy_jvp(call, xp, call("cross_entropy", **how), moved, **how), (1,)),)

    dy = F.cast(xp, over_rows(xp, g, c.size[0], of, (), dh, dt)[1][0], c.how["compute"])
    dy = xp.where(c.t.dropped, xp.zeros_like(dy), dy if c.t.s is None else c.t.s * dy)
    return F.cast(xp, xp.reshape(dy, rows[:-1]), dtype)
