"""attention and its merge: products, a softmax, and products again, over blocks of keys whose states merge."""

from math import prod
from typing import Any, NamedTuple

from . import _args as args
from . import _formulas as F
from ._backends import find
from ._op import Answer, Op, record
from .core import logsumexp, softmax

# --- formulas ----------------------------------------------------------------------------------------------------------
# A tile is the scores of some queries and some keys. Heads that share keys are a group: (..., heads, n, d) of queries is
# seen as (..., kv heads, group, n, d), so that keys and values are never repeated.
#
# A row's state is (m, r, o): the row state of _formulas, and the numerator o = Σ exp(s - m) v. States of disjoint keys
# merge. The answer keeps (o / (1 + r), m, r) side by side in one array, from which the backward makes each tile's weights
# again. Of these the rules take m to move as log-sum-exp does and r not at all: their sum m + log1p(r) moves as it should.

BUDGET = 1 << 22  # bytes of a tile of scores
LONG, SHORT = 2048, 256  # keys of a tile
MANY = 32  # queries, where as many fit beside LONG keys


class Given(NamedTuple):
    """The arrays of one call as laid out for products, or those of a tile."""

    q: Any  # (..., kv, group, queries, d), times scale
    k: Any  # (..., kv, keys, d)
    v: Any  # (..., kv, keys, dv)
    where: Any = None  # broadcast to the scores, (..., kv, group, queries, keys)
    bias: Any = None
    q_at: Any = None  # (queries, 1) and (1, keys): places in the sequence, where it is causal
    k_at: Any = None
    dq: Any = None  # tangents
    dk: Any = None
    dv: Any = None
    dbias: Any = None


BY_QUERY = {"q": -2, "where": -2, "bias": -2, "q_at": -2, "dq": -2, "dbias": -2}
BY_KEY = {"k": -2, "v": -2, "where": -1, "bias": -1, "k_at": -1, "dk": -2, "dv": -2, "dbias": -1}


def group_of(q, k):
    return q.shape[-3] // k.shape[-3]


def split_heads(xp, a, group):
    """(..., heads, n, w) as (..., kv, group, n, w)."""
    if group == 1:
        return xp.expand_dims(a, axis=a.ndim - 2)
    return xp.reshape(a, (*a.shape[:-3], a.shape[-3] // group, group, *a.shape[-2:]))


def join_heads(xp, a):
    if a.shape[-3] == 1:
        return xp.squeeze(a, axis=a.ndim - 3)
    return xp.reshape(a, (*a.shape[:-4], a.shape[-4] * a.shape[-3], *a.shape[-2:]))


def laid_out(xp, q, k, v, *, where, bias, q_at, k_at, scale, compute, tangents={}):  # noqa: B006 (read alone)
    group = group_of(q, k)

    def queries(a):
        return split_heads(xp, F.cast(xp, a, compute) * scale, group)

    def keys(a):
        return F.cast(xp, a, compute)

    def scores(a):
        while a.ndim < 3:
            a = xp.expand_dims(a, axis=0)
        return split_heads(xp, a, 1 if a.shape[-3] == 1 else group)

    def numbers(a):
        return scores(F.cast(xp, a, compute))

    moved = {"q": queries, "k": keys, "v": keys, "bias": numbers}
    return Given(
        queries(q), keys(k), keys(v), None if where is None else scores(where), None if bias is None else numbers(bias),
        q_at, k_at, **{f"d{name}": moved[name](a) for name, a in tangents.items()},
    )  # fmt: skip


def to_front(xp, a, axis):
    axis = axis % a.ndim
    return xp.permute_dims(a, (axis, *(i for i in range(a.ndim) if i != axis)))


def from_front(xp, a, axis):
    axis = axis % a.ndim
    return xp.permute_dims(a, (*range(1, axis + 1), 0, *range(axis + 1, a.ndim)))


def over(xp, g, axes, n, size, step, carry, outs, *more):
    """carry, outs = step(carry, a tile of g, its part of `more`) for all queries or keys in turn.

    `axes`: along which axis each array has them; `more` has them along -2. `outs`: along which the answers shall.
    """
    if not args.known(n) or size >= n:
        return step(carry, g, *more)
    names = [k for k, axis in axes.items() if getattr(g, k) is not None and getattr(g, k).shape[axis] == n]
    where = [axes[k] for k in names] + [-2] * len(more)
    arrays = [getattr(g, k) for k in names] + list(more)

    def on(carry, *pieces):
        pieces = [a if a is None else from_front(xp, a, axis) for a, axis in zip(pieces, where, strict=True)]
        tile = g._replace(**dict(zip(names, pieces, strict=False)))
        carry, out = step(carry, tile, *pieces[len(names) :])
        return carry, tuple(to_front(xp, a, axis) for a, axis in zip(out, outs, strict=True))

    fronts = tuple(a if a is None else to_front(xp, a, axis) for a, axis in zip(arrays, where, strict=True))
    carry, out = xp.in_chunks(on, carry, fronts, size)
    return carry, tuple(from_front(xp, a, axis) for a, axis in zip(out, outs, strict=True))


def tile_size(chunk_size, g):
    """Queries and keys of a tile: by the budget, unless the caller says."""
    *lead, queries, _ = g.q.shape
    keys = g.k.shape[-2]
    if not all(args.known(n) for n in (*lead, queries, keys)):
        return queries, keys
    if isinstance(chunk_size, tuple):
        return chunk_size
    if chunk_size is not None:
        return max(1, queries), chunk_size
    fit = BUDGET // (8 if "64" in str(g.q.dtype) else 4) // max(1, prod(lead))  # scores of each head
    long = LONG if g.q_at is None else LONG // 4  # a causal tile that nearly is a square leaves least to be masked
    wide = long if fit >= MANY * long else SHORT
    rows = max(1, min(queries, fit // max(1, min(keys, wide))))
    return rows, max(1, wide, fit // rows)


def product(xp, a, b):
    """a b, of rows of queries (..., kv, group, n, w) and what a group shares (..., kv, w, u)."""
    group, n, w = a.shape[-3:]
    if group == 1:
        return xp.expand_dims(xp.matmul(xp.squeeze(a, axis=a.ndim - 3), b), axis=a.ndim - 3)
    out = xp.matmul(xp.reshape(a, (*a.shape[:-3], group * n, w)), b)
    return xp.reshape(out, (*out.shape[:-2], group, n, b.shape[-1]))


def product_over_queries(xp, a, b):
    """aᵀ b, summed over the group and its queries: (..., kv, w, u)."""

    def flat(a):
        if a.shape[-3] == 1:
            return xp.squeeze(a, axis=a.ndim - 3)
        return xp.reshape(a, (*a.shape[:-3], a.shape[-3] * a.shape[-2], a.shape[-1]))

    return xp.matmul(turned(xp, flat(a)), flat(b))


def turned(xp, a):
    return xp.permute_dims(a, (*range(a.ndim - 2), a.ndim - 1, a.ndim - 2))


def largest(xp, dtype):
    return 1.7976931348623157e308 if dtype == xp.float64 else 3.4028234663852886e38


def hidden(xp, g):
    """Does causality leave nothing of the tile? Then it is passed over, where that can be known on the host now."""
    return g.q_at is not None and 0 not in causal_shape(g) and xp.above(g.k_at[0, 0], g.q_at[-1, 0])


def causal(xp, g):
    """Does causality leave anything out of the tile, as far as that can be known on the host now?"""
    return g.q_at is not None and (0 in causal_shape(g) or not xp.above(g.q_at[0, 0] + 1, g.k_at[0, -1]))


def causal_shape(g):
    return g.q_at.shape[0], g.k_at.shape[1]


def tile_scores(xp, g, softcap, slope=False):
    """Scores as the softmax sees them, and the slope of the cap where it is asked for."""
    s, cap = product(xp, g.q, turned(xp, g.k)), None
    if softcap is not None:
        cap = F.cap_slope(xp, s, softcap) if slope else None
        s = F.capped(xp, s, softcap, s.dtype)
    if g.bias is not None:
        s = s + g.bias
    part = g.where
    if causal(xp, g):
        seen = g.k_at <= g.q_at
        part = seen if part is None else part & seen
    one = g.q[..., :1]
    if part is not None:
        s = xp.where(part, s, xp.full_like(one, -F.INF))
    if g.bias is not None:
        # +inf is the largest number from here on, so that a row's infinities share its mass as ties do
        s = xp.minimum(s, xp.full_like(one, largest(xp, s.dtype)))
    return s, cap


def finite(xp, m):
    return xp.where(xp.isfinite(m), m, xp.zeros_like(m))


class State(NamedTuple):
    m: Any  # (..., kv, group, queries, 1): the row's state, as in F.rows
    r: Any
    o: Any  # (..., kv, group, queries, dv): Σ exp(s - m) v


def tile_state(xp, g, softcap):
    s, _ = tile_scores(xp, g, softcap)
    last = (s.ndim - 1,)
    m = F.row_max(xp, s, last)
    d = s - finite(xp, m)
    e = xp.exp(d)
    top = s == xp.where(m == -F.INF, xp.full_like(m, F.NAN), m)
    return State(m, F.rest(xp, top, d, e, last), product(xp, e, g.v))


def join(xp, a, b):
    m, r = F.merge(xp, a[:2], b[:2])
    c = finite(xp, m)
    return State(m, r, a.o * xp.exp(a.m - c) + b.o * xp.exp(b.m - c))


def fold(xp, g, size, softcap):
    """The state over all keys."""
    keys = g.k.shape[-2]
    if not args.known(keys) or size >= keys:
        return tile_state(xp, g, softcap)
    zero = xp.zeros_like(g.q[..., :1])
    nothing = State(zero - F.INF, zero, xp.zeros_like(product(xp, zero, g.v[..., :1, :])))

    def block(state, tile):
        if hidden(xp, tile):
            return state, ()
        return join(xp, State(*state), tile_state(xp, tile, softcap)), ()

    return State(*over(xp, g, BY_KEY, keys, size, block, nothing, ())[0])


def attention_forward(xp, q, k, v, *, softcap, chunk_size, dtype, return_lse, **given):
    g = laid_out(xp, q, k, v, **given)
    rows, size = tile_size(chunk_size, g)

    def queries(none, tile):
        m, r, o = fold(xp, tile, size, softcap)
        return none, (xp.concat([o / (1 + r), m, r], axis=-1),)

    return join_heads(xp, over(xp, g, BY_QUERY, q.shape[-2], rows, queries, (), (-2,))[1][0])


def parted(a, dv):
    """What lies side by side in the answer, or in a cotangent of it: out, m, r."""
    return a[..., :dv], a[..., dv : dv + 1], a[..., dv + 1 :]


def frozen(xp, m):
    """Rows whose weights do not change with the scores."""
    return (m == -F.INF) | (m == largest(xp, m.dtype))


def attention_vjp(call, xp, ct, y, wanted, q, k, v, *, softcap, chunk_size, dtype, return_lse, **given):
    g = laid_out(xp, q, k, v, **given)
    rows, size = tile_size(chunk_size, g)
    group, width, compute = group_of(q, k), v.shape[-1], given["compute"]
    out, m, r = parted(split_heads(xp, y, group), width)
    ct, by_m, _ = parted(split_heads(xp, F.cast(xp, ct, compute), group), width)
    less = xp.sum(ct * out, axis=-1, keepdims=True) - by_m  # what every entry's derivative of a row is less
    # a bias of one row of queries, or of one column, is summed on the way; otherwise its gradient is as large as itself
    wants = {name: name in wanted for name in ("q", "k", "v", "bias")}
    each_query = wants["bias"] and g.bias.shape[-2] != 1
    each_key = wants["bias"] and g.bias.shape[-1] != 1

    def zeros(a, want):
        return xp.zeros_like(a) if want else None

    def some(*pairs):
        return tuple(a for a, want in pairs if want)

    def of_tile(carry, tile, ct, less, m, r):
        dk, dv, db = carry
        if hidden(xp, tile):
            rows = [xp.zeros_like(tile.q)] if wants["q"] else []
            return carry, (*rows, xp.zeros_like(tile.bias)) if each_query else tuple(rows)
        s, slope = tile_scores(xp, tile, softcap, slope=True)
        p = xp.exp(s - finite(xp, m)) / (1 + r)
        if wants["v"]:
            dv = dv + F.sum_like(xp, product_over_queries(xp, p, ct), tile.v)
        rows = []
        if wants["q"] or wants["k"] or wants["bias"]:
            ds = p * (product(xp, ct, turned(xp, tile.v)) - less)
            ds = xp.where(frozen(xp, m), xp.zeros_like(m), ds)
            if wants["bias"]:
                of_bias = F.sum_like(xp, ds, tile.bias)
                db = db if each_query else db + of_bias
                rows = [of_bias] if each_query else []
            if slope is not None:
                ds = ds * slope
            if wants["k"]:
                # a query that sees nothing may hold anything: 0 · nan is nan
                live = xp.where(frozen(xp, m), xp.zeros_like(tile.q), tile.q)
                dk = dk + F.sum_like(xp, product_over_queries(xp, ds, live), tile.k)
            if wants["q"]:
                rows = [product(xp, ds, tile.k), *rows]
        return (dk, dv, db), tuple(rows)

    def of_keys(carry, part):
        dq, db = carry
        start = zeros(part.k, wants["k"]), zeros(part.v, wants["v"]), zeros(part.bias, wants["bias"] and not each_query)
        n = q.shape[-2]
        (dk, dv, more), outs = over(
            xp, part, BY_QUERY, n, rows, of_tile, start, (-2,) * (wants["q"] + each_query), ct, less, m, r
        )
        if wants["q"]:
            dq = dq + outs[0]
        if wants["bias"]:
            more = outs[-1] if each_query else more
            db = more if each_key else db + more
        return (dq, None if each_key else db), some((dk, wants["k"]), (dv, wants["v"]), (db, each_key))

    start = zeros(g.q, wants["q"]), zeros(g.bias, wants["bias"] and not each_key)
    axes = some((-2, wants["k"]), (-2, wants["v"]), (-1, each_key))
    (dq, db), outs = over(xp, g, BY_KEY, k.shape[-2], size, of_keys, start, axes)
    outs = list(outs)
    found = {}
    if wants["q"]:
        found["q"] = F.cast(xp, join_heads(xp, dq) * given["scale"], q.dtype)
    if wants["k"]:
        found["k"] = F.cast(xp, outs.pop(0), k.dtype)
    if wants["v"]:
        found["v"] = F.cast(xp, outs.pop(0), v.dtype)
    if wants["bias"]:
        bias = given["bias"]
        found["bias"] = F.cast(xp, xp.reshape(outs.pop(0) if each_key else db, bias.shape), bias.dtype)
    return found


def attention_jvp(call, xp, y, tangents, q, k, v, *, softcap, chunk_size, dtype, return_lse, **given):
    g = laid_out(xp, q, k, v, **given, tangents=tangents)
    rows, size = tile_size(chunk_size, g)
    width = v.shape[-1]
    out, m, r = parted(split_heads(xp, y, group_of(q, k)), width)

    def of_queries(none, part, out, m, r):
        still = frozen(xp, m)

        def of_tile(carry, tile):
            if hidden(xp, tile):
                return carry, ()
            dlse, dout = carry
            s, slope = tile_scores(xp, tile, softcap, slope=True)
            p = xp.exp(s - finite(xp, m)) / (1 + r)
            ds = None
            if tile.dq is not None:
                ds = product(xp, tile.dq, turned(xp, tile.k))
            if tile.dk is not None:
                by_k = product(xp, tile.q, turned(xp, tile.dk))
                ds = by_k if ds is None else ds + by_k
            if slope is not None and ds is not None:
                ds = ds * slope
            if tile.dbias is not None:
                ds = xp.zeros_like(s) + tile.dbias if ds is None else ds + tile.dbias
            if ds is not None:
                w = p * xp.where(still | (p == 0), xp.zeros_like(m), ds)
                dlse, dout = dlse + xp.sum(w, axis=-1, keepdims=True), dout + product(xp, w, tile.v)
            if tile.dv is not None:
                dout = dout + product(xp, p, tile.dv)
            return (dlse, dout), ()

        start = xp.zeros_like(m), xp.zeros_like(out)
        (dlse, dout), _ = over(xp, part, BY_KEY, k.shape[-2], size, of_tile, start, ())
        return none, (xp.concat([dout - dlse * out, dlse, xp.zeros_like(dlse)], axis=-1),)

    return join_heads(xp, over(xp, g, BY_QUERY, q.shape[-2], rows, of_queries, (), (-2,), out, m, r)[1][0])


# --- what the caller gets of the answer --------------------------------------------------------------------------------


def answer(xp, y, *, v, dtype, return_lse, **_):
    out, m, r = parted(y, v.shape[-1])
    out = F.cast(xp, out, dtype)
    if not return_lse:
        return out
    lse = xp.where(m == largest(xp, m.dtype), xp.full_like(m, F.INF), m + xp.log1p(r))
    return out, xp.squeeze(lse, axis=y.ndim - 1)


def answer_vjp(xp, ct, y, *, return_lse, **_):
    out, lse = ct if return_lse else (ct, None)
    zero = xp.zeros_like(y[..., :1])
    by_m = zero if lse is None else F.cast(xp, xp.expand_dims(lse, axis=y.ndim - 1), y.dtype)
    return xp.concat([F.cast(xp, out, y.dtype), by_m, zero], axis=-1)


def answer_jvp(xp, dy, *, v, dtype, return_lse, **_):
    out, dlse, _ = parted(dy, v.shape[-1])
    out = F.cast(xp, out, dtype)
    return (out, xp.squeeze(dlse, axis=dy.ndim - 1)) if return_lse else out


# --- attention ---------------------------------------------------------------------------------------------------------


def _fitting(q: Any, k: Any, v: Any) -> None:
    shapes = f"got shapes {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
    if min(q.ndim, k.ndim, v.ndim) < 3:
        raise ValueError(
            f"q, k and v must be (..., heads, length, d), {shapes}; put an axis of size 1 where there is one head."
        )
    if not args.same_shape(k.shape[-3:-1], v.shape[-3:-1]) or not args.same_shape(q.shape[-1:], k.shape[-1:]):
        raise ValueError(f"k and v must have one length and heads, and q and k one d, {shapes}.")
    heads, kv = q.shape[-3], k.shape[-3]
    if not (args.known(heads) and args.known(kv) and kv > 0 and heads % kv == 0):
        raise ValueError(f"the heads of q must be a multiple of those of k and v, {shapes}.")
    for name, a in (("k", k), ("v", v)):
        args.broadcastable(f"the axes of {name} before its heads", a.shape[:-3], q.shape[:-3], "those of q,")


def _values(
    backend: Any, q: Any, k: Any, v: Any, scale: Any, where: Any, bias: Any, causal: bool, softcap: Any, chunk_size: Any,
    return_lse: bool, dtype: Any,
) -> dict[str, Any]:  # fmt: skip
    q = args.array(backend, "q", q)
    k, v = (args.array(backend, name, args.companion(backend, name, a, q)) for name, a in (("k", k), ("v", v)))
    _fitting(q, k, v)
    scores = args.Shaped(q, (*q.shape[:-1], k.shape[-2]))
    if bias is not None:
        bias = args.array(backend, "bias", args.companion(backend, "bias", bias, q))
        args.broadcastable("bias", bias.shape, scores.shape, "the scores' shape (..., heads, queries, keys)")
    dtype, compute = args.dtypes(backend, q, dtype)
    wide = any(args.dtype_name(d) == "float64" for d in (q.dtype, k.dtype, v.dtype, dtype))
    values = dict(
        q=q,
        k=k,
        v=v,
        where=args.mask(backend, where, scores),
        bias=bias,
        q_at=None,
        k_at=None,
        scale=_scale(q.shape[-1]) if scale is None else args.number("scale", scale, -1.8e308, 1.8e308, "finite"),
        softcap=None if softcap is None else args.number("softcap", softcap, 5e-324, 1.8e308, "above 0 and finite"),
        chunk_size=args.chunks(chunk_size, "keys", "queries, keys"),
        return_lse=bool(return_lse),
        dtype=dtype,
        compute=compute if wide else backend.xp.float32,
    )
    if causal:
        queries, keys = q.shape[-2], k.shape[-2]
        if not (args.known(queries) and args.known(keys)):
            raise ValueError("causal needs to know how many queries and keys there are; give the mask as `where=`.")
        xp, kind = backend.xp, backend.default_int(q)
        values["q_at"] = xp.reshape(backend.arange(queries, kind, q) + (keys - queries), (queries, 1))
        values["k_at"] = xp.reshape(backend.arange(keys, kind, q), (1, keys))
    return values


def _scale(d: int) -> float:
    if not d:
        raise ValueError("q and k must have at least one number for each query and key, got d = 0.")
    return d**-0.5


ATTENTION = Op(
    "attention", _values, attention_forward, attention_vjp, attention_jvp, ("q", "k", "v"),
    answer=Answer(answer, answer_vjp, answer_jvp),
)  # fmt: skip


@record(ATTENTION)
def attention(
    q: Any, k: Any, v: Any, /, *, scale: float | None = None, where: Any = None, bias: Any = None, causal: bool = False,
    softcap: float | None = None, chunk_size: int | tuple[int, int] | None = None, return_lse: bool = False,
    dtype: Any = None,
) -> Any:  # fmt: skip
    """Scaled dot-product attention, whose scores are never there whole.

        out = softmax(s) v,   s = softcap · tanh(scale · q kᵀ / softcap) + bias, masked by `where` and `causal`

    Parameters
    ----------
    q : array (..., heads, queries, d), real. Integers become the library's default float first.
    k : array (..., kv heads, keys, d). heads is a multiple of kv heads: heads i·group to (i + 1)·group - 1 of q share
        head i of k and v. Axes before the heads broadcast to those of q.
    v : array (..., kv heads, keys, dv).
    scale : number. Default: 1 / √d.
    where : bool array that broadcasts to (..., heads, queries, keys). False keys take no part.
    bias : real array that broadcasts to (..., heads, queries, keys), added to the scores; -inf leaves a key out.
    causal : the last query sees all keys, the one before all but the last, and so on: query i sees the keys up to
        i + keys - queries. Counted from the end of the keys given: of a part of the keys, see merge_attention.
    softcap : number above 0 or None, the bound that tanh puts on the scaled products.
    chunk_size : keys of a tile of scores, or (queries, keys). By default a tile takes 4 MiB, more where that is not one
        query of each head and 256 keys.
    return_lse : answer (out, log-sum-exp of the scores) instead.
    dtype : dtype of out. Default: that of q (of the default float for integers).

    Returns
    -------
    array (..., heads, queries, dv), on the device of q; beside it, with `return_lse`, an array (..., heads, queries) in
    float32, or float64 where an array is. A query that sees no key gives 0, its log-sum-exp -inf. A NaN among a query's
    scores makes its own row NaN and no other. What `where` leaves out must still be finite in v, since 0 · inf is NaN.

    Raises
    ------
    TypeError, ValueError : as softmax; shapes that do not fit, options out of range.

    Notes
    -----
    Products and sums in 32 bits (64 for 64), so 16-bit arrays are widened once; out is rounded once. Memory beside the
    arguments and the answer: some tiles. The backward makes each tile's weights again from the answer and its log-sum-exp,
    which come from one pass whether or not `return_lse` asks for them. The error is that of the library's products, some ulp
    of the largest score, and of the largest value.

    Differentiable by q, k, v and bias; a gradient by a bias is as large as the bias. A query that sees no key has gradient
    0. Derivatives of derivatives hold the tiles.

    Heads stand before the length, as in torch; JAX's (length, heads, d) would be taken for other shapes without an error.
    With as many queries as keys, `causal` is that of torch and JAX. With fewer, as in decoding beside a cache, the
    queries are the last of the sequence here and in flash-attention; torch's is_causal and JAX's take them for the first.

    Source: Vaswani et al. 2017, arXiv:1706.03762; Rabe & Staats 2021, arXiv:2112.05682 (the fold over keys); Dao 2023,
    arXiv:2307.08691 (the backward from log-sum-exp); Ainslie et al. 2023, arXiv:2305.13245 (grouped heads).

    Examples
    --------
    >>> import numpy as np, softxp
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.normal(size=(4, 3, 8)), rng.normal(size=(2, 5, 8)), rng.normal(size=(2, 5, 6))
    >>> out, lse = softxp.attention(q, k, v, causal=True, return_lse=True)
    >>> out.shape, lse.shape
    ((4, 3, 6), (4, 3))
    >>> weights = softxp.softmax(q[3] @ k[1].T / 8**0.5)
    >>> bool(np.allclose(softxp.attention(q, k, v)[3], weights @ v[1]))
    True
    """
    backend = find(q)
    values = _values(backend, q, k, v, scale, where, bias, causal, softcap, chunk_size, return_lse, dtype)
    return backend.guard(answer)(backend.xp, backend.lifted["attention"](values), **values)


def merge_attention(*parts: tuple[Any, Any]) -> tuple[Any, Any]:
    """Attention over all keys, from that over disjoint parts of them.

        lse = log Σ_i exp(lse_i),   out = Σ_i exp(lse_i - lse) out_i

    Parameters
    ----------
    *parts : (out, lse) as `attention(..., return_lse=True)` answers them, of the same queries: out (..., queries, dv), lse
        (..., queries).

    Returns
    -------
    (out, lse), in the dtypes of the first part. A part that saw no key adds nothing; where none did, out is 0 and lse -inf.

    Raises
    ------
    ValueError : no part, or shapes that do not fit. TypeError : a part that is no pair of arrays; arrays of two libraries.

    Notes
    -----
    Merging is associative and commutative, and what it answers merges again. Parts of 16 bits were rounded before they
    came here: ask `attention` for dtype float32, and round what is merged. On torch and JAX the merge is differentiable by
    every part. `causal` counts from the end of the keys that a call is given: for a part of them, give those columns of the
    mask as `where=`.

    Source: Rabe & Staats 2021, arXiv:2112.05682.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.normal(size=(2, n, 8)) for n in (3, 10, 10))
    >>> left = softxp.attention(q, k[:, :4], v[:, :4], return_lse=True)
    >>> right = softxp.attention(q, k[:, 4:], v[:, 4:], return_lse=True)
    >>> out, lse = softxp.merge_attention(left, right)
    >>> bool(np.allclose(out, softxp.attention(q, k, v)))
    True
    """
    if not parts:
        raise ValueError("merge_attention needs at least one part, got none; give it (out, lse) pairs.")
    for i, part in enumerate(parts):
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise TypeError(
                f"every part must be a pair (out, lse), got {type(part).__name__} as number {i}; call attention with "
                "return_lse=True."
            )
    first, _ = parts[0]
    backend = find(first)
    outs, lses = [], []
    for i, (out, lse) in enumerate(parts):
        out = args.array(backend, "out", args.companion(backend, f"the out of part {i}", out, first))
        lse = args.array(backend, "lse", args.companion(backend, f"the lse of part {i}", lse, first))
        if not args.same_shape(out.shape, first.shape) or not args.same_shape(lse.shape, first.shape[:-1]):
            raise ValueError(
                f"parts must be of the same queries, out {tuple(first.shape)} and lse {tuple(first.shape[:-1])}, got "
                f"{tuple(out.shape)} and {tuple(lse.shape)} as number {i}."
            )
        outs.append(out)
        lses.append(lse)
    xp = backend.xp
    states = xp.stack([F.cast(xp, lse, lses[0].dtype) for lse in lses], axis=-1)
    lse, shares = logsumexp(states, axis=-1), softmax(states, axis=-1)

    def mixed(xp: Any, shares: Any) -> Any:
        y = None
        for i, out in enumerate(outs):
            w = shares[..., i : i + 1]
            term = xp.where(w == 0, xp.zeros_like(w), w * F.cast(xp, out, w.dtype))
            y = term if y is None else y + term
        return F.cast(xp, y, outs[0].dtype)

    return backend.guard(mixed)(xp, shares), lse
