"""From logits to tokens: mask_logits, sample and gumbel_softmax."""

from typing import Any

from . import _args as args
from . import _formulas as F
from ._backends import call
from ._op import Op, record

Axis = int | tuple[int, ...] | None
INF, NAN = F.INF, F.NAN


# --- formulas --------------------------------------------------------------------------------------------------------


def of_rows(xp, temperature, m, axis):
    """A temperature laid out beside rows whose entries lie along a last axis; a number stays one."""
    if isinstance(temperature, (int, float)):
        return temperature
    return xp.expand_dims(F.drop(xp, F.cast(xp, temperature, m.dtype) + xp.zeros_like(m), axis), axis=-1)


def kept(xp, u, temperature, top_k, top_p, min_p, axis, exact):
    """Which entries stay, and which rows hold NaN. At least one entry stays of a row that has one.

    Every rule keeps the largest entries, so together they keep a number of them: of equal ones the first.
    """
    z, sick = F.sound(xp, u, axis)
    m = F.row_max(xp, z, axis)
    if not isinstance(temperature, (int, float)):
        sick = sick | ~(temperature >= 0)
    if top_k is top_p is None:
        if min_p is None:
            return z > -INF, sick
        return (z > -INF) & (F.spread(xp, z, m, temperature, exact)[2] >= min_p), sick
    if top_p is min_p is None:
        return F.among_largest(xp, u, top_k, axis), sick
    temperature = of_rows(xp, temperature, m, axis)
    there, again = F.axis_last(xp, z, axis, False)
    z = there(z)
    last, n = (z.ndim - 1,), z.shape[-1]
    if n == 0:
        return u > INF, sick
    best = xp.largest(z, n if top_k is None else min(top_k, n))
    e = F.spread(xp, best, best[..., :1], temperature, exact)[2]
    stays = best > -INF if min_p is None else e >= min_p
    if top_p is not None:
        # what comes before an entry is less than top_p: its own mass and all after it are more than the rest
        mass = xp.flip(xp.cumulative_sum(xp.flip(e, axis=-1), axis=-1), axis=-1)
        stays = stays & (mass > (1 - top_p) * mass[..., :1])
    count = F.total(xp, F.cast(xp, stays, z.dtype), last)
    return again(F.first_largest(xp, z, best, xp.maximum(count, xp.ones_like(count)))), sick


def mask_logits_forward(xp, x, *, axis, where=None, temperature=1.0, top_k, top_p, min_p, compute):
    u = F.masked(xp, x, where, compute)
    stays, sick = kept(xp, u, temperature, top_k, top_p, min_p, axis, x.dtype == compute)
    y = xp.where(stays, u, xp.full_like(u, -INF))
    return F.cast(xp, xp.where(sick, xp.full_like(u, NAN), y), x.dtype)


def mask_logits_vjp(call, xp, ct, y, wanted, x, *, temperature=1.0, **options):
    out = {"x": xp.where(y == -INF, xp.zeros_like(ct), ct)}
    if "temperature" in wanted:
        out["temperature"] = xp.zeros_like(temperature)
    return {name: out[name] for name in wanted}


def mask_logits_jvp(call, xp, y, tangents, x, **options):
    zero = xp.zeros_like(y)
    return xp.where(y == -INF, zero, tangents["x"]) if "x" in tangents else zero


def sample_forward(
    xp, x, uniforms, *, axis, where=None, temperature=1.0, top_k, top_p, min_p, integer, compute
):  # fmt: skip
    """The first entry where the running mass passes uniform · whole mass; the last with mass, if rounding lets none pass."""
    u = F.masked(xp, x, where, compute)
    exact = x.dtype == compute
    stays, sick = kept(xp, u, temperature, top_k, top_p, min_p, axis, exact)
    u = xp.where(stays, u, xp.full_like(u, -INF))
    m = F.row_max(xp, u, axis)
    _, _, e = F.spread(xp, u, m, temperature, exact)
    there, _ = F.axis_last(xp, u, axis, False)
    e = there(e)
    draw = xp.expand_dims(F.cast(xp, uniforms, compute), axis=-1)
    none = xp.expand_dims(F.drop(xp, sick | (m == -INF), axis), axis=-1) | (draw != draw)
    if e.shape[-1] == 0:
        return xp.astype(F.drop(xp, F.total(xp, e, (e.ndim - 1,)), (e.ndim - 1,)) - 1, integer)
    # at temperature 0 the maxima share the mass equally, and the first of them is meant
    t = of_rows(xp, temperature, m, axis)
    if not isinstance(t, (int, float)):
        draw = xp.where(t == 0, xp.zeros_like(draw), draw)
    elif F.number(xp, t, compute) == 0:
        draw = xp.zeros_like(draw)
    mass = xp.cumulative_sum(e, axis=-1)
    alive = e > 0  # a running sum that is not added one by one may seem to grow where nothing was added
    rank = xp.cumulative_sum(F.cast(xp, alive, compute), axis=-1)
    hit = alive & ((mass > draw * mass[..., -1:]) | (rank == rank[..., -1:]))
    before = xp.cumulative_sum(F.cast(xp, hit, compute), axis=-1) == 0
    last = (e.ndim - 1,)
    token = F.total(xp, F.cast(xp, before, compute), last)
    return xp.astype(F.drop(xp, xp.where(none, xp.full_like(token, -1), token), last), integer)


def noise(xp, uniforms, compute):
    """Gumbel's -log(-log u), of u kept from 0 and 1, where it is infinite; and which u were kept from them."""
    u = F.cast(xp, uniforms, compute)
    low, high = (2.0**-1022, 1 - 2.0**-53) if compute == xp.float64 else (2.0**-126, 1 - 2.0**-24)
    u = xp.where(u > low, u, xp.where(u == u, xp.full_like(u, low), u))
    inside = (u > low) & (u < high)
    u = xp.where(u < high, u, xp.where(u == u, xp.full_like(u, high), u))
    return u, -xp.log(-xp.log(u)), inside


def perturbed(xp, x, uniforms, axis, where, compute):
    """x less its row's maximum, plus noise; and the rows with an infinity, whose answer does not move with x.

    Without the maximum, a large common offset would round the noise away.
    """
    exact = x.dtype == compute
    x = F.masked(xp, x, where, compute)
    m = F.row_max(xp, x, axis)
    _, d, _ = F.distances(xp, x, m, 1.0, exact)
    return d + noise(xp, uniforms, compute)[1], m == INF


def one_hot(xp, z, axis, dtype):
    """1 at the first maximum of each row, 0 elsewhere; NaN throughout a row that holds NaN."""
    y = F.cast(xp, F.among_largest(xp, z, 1, axis), z.dtype)
    sick = F.sound(xp, z, axis)[1]
    return F.cast(xp, xp.where(sick, xp.full_like(y, NAN), y), dtype)


def gumbel_softmax_forward(xp, x, uniforms, *, hard, axis, where=None, temperature=1.0, dtype, compute):
    z, _ = perturbed(xp, x, uniforms, axis, where, compute)
    if hard:
        return one_hot(xp, z, axis, dtype)
    return F.softmax(xp, z, axis=axis, temperature=temperature, dtype=dtype, compute=compute)


def soft(call, xp, y, z, hard, axis, temperature, compute):
    """The soft answer, whatever was answered."""
    how = dict(x=z, axis=axis, temperature=temperature)
    if hard:
        return call("softmax", **how, dtype=compute, compute=compute)
    return F.unrounded(call, xp, "softmax", y, compute, **how)


def noise_slope(xp, uniforms, compute):
    """∂noise/∂u = -1 / (u log u); 0 where u was kept from 0 or 1."""
    u, _, inside = noise(xp, uniforms, compute)
    return xp.where(inside, -1 / (u * xp.log(u)), xp.zeros_like(u))


def gumbel_softmax_vjp(
    call, xp, ct, y, wanted, x, uniforms, *, hard, axis, where=None, temperature=1.0, dtype, compute
):
    z, frozen = perturbed(xp, x, uniforms, axis, where, compute)
    p = soft(call, xp, y, z, hard, axis, temperature, compute)
    ct = F.cast(xp, ct, compute)
    ct = xp.where(frozen, xp.zeros_like(ct), ct)
    g = F.softmax_vjp(
        call, xp, ct, p, {"x", *wanted}, z, axis=axis, temperature=temperature, dtype=compute, compute=compute
    )
    out = {"x": F.cast(xp, g["x"], x.dtype)}
    if "temperature" in wanted:
        out["temperature"] = g["temperature"]
    if "uniforms" in wanted:
        out["uniforms"] = F.cast(xp, g["x"] * noise_slope(xp, uniforms, compute), uniforms.dtype)
    return {name: out[name] for name in wanted}


def gumbel_softmax_jvp(
    call, xp, y, tangents, x, uniforms, *, hard, axis, where=None, temperature=1.0, dtype, compute
):  # fmt: skip
    z, frozen = perturbed(xp, x, uniforms, axis, where, compute)
    p = soft(call, xp, y, z, hard, axis, temperature, compute)
    dz = xp.zeros_like(z)
    if "x" in tangents:
        dz = dz + F.cast(xp, tangents["x"], compute)
    if "uniforms" in tangents:
        dz = dz + noise_slope(xp, uniforms, compute) * F.cast(xp, tangents["uniforms"], compute)
    moved = {"x": dz, **{k: v for k, v in tangents.items() if k == "temperature"}}
    dy = F.softmax_jvp(call, xp, p, moved, z, axis=axis, temperature=temperature, dtype=compute, compute=compute)
    return F.cast(xp, xp.where(frozen, xp.zeros_like(dy), dy), dtype)


# --- mask_logits, sample, gumbel_softmax -----------------------------------------------------------------------------


def _mask_values(
    backend: Any, logits: Any, temperature: Any, top_k: int | None, top_p: float | None, min_p: float | None, axis: Axis,
    where: Any,
) -> dict[str, Any]:  # fmt: skip
    values = args.of_map(backend, logits, axis, where, temperature, None)
    del values["dtype"]
    part = "within [0, 1]"
    top_k = None if top_k is None else args.count("top_k", top_k)
    top_p = None if top_p is None else args.number("top_p", top_p, 0, 1, part)
    min_p = None if min_p is None else args.number("min_p", min_p, 0, 1, part)
    # top_p 1 and min_p 0 keep all, whatever rounding makes of a sum
    return dict(values, top_k=top_k, top_p=None if top_p == 1 else top_p, min_p=None if min_p == 0 else min_p)


def _sample_values(backend: Any, logits: Any, rng: Any, *options: Any) -> dict[str, Any]:
    values = _mask_values(backend, logits, *options)
    x, shape = values["x"], args.row_shape(values["x"], values["axis"])
    uniforms = args.uniforms(backend, rng, shape, values["compute"], x)
    return dict(values, uniforms=uniforms, integer=backend.default_int(x))


def _gumbel_values(
    backend: Any, logits: Any, rng: Any, temperature: Any, hard: bool, axis: Axis, where: Any, dtype: Any
) -> dict[str, Any]:
    values = args.of_map(backend, logits, axis, where, temperature, dtype)
    x = values["x"]
    return dict(values, hard=bool(hard), uniforms=args.uniforms(backend, rng, tuple(x.shape), values["compute"], x))


MASK_LOGITS = Op("mask_logits", _mask_values, mask_logits_forward, mask_logits_vjp, mask_logits_jvp)
SAMPLE = Op("sample", _sample_values, sample_forward)
GUMBEL_SOFTMAX = Op(
    "gumbel_softmax", _gumbel_values, gumbel_softmax_forward, gumbel_softmax_vjp, gumbel_softmax_jvp, ("x", "uniforms")
)


@record(MASK_LOGITS)
def mask_logits(
    logits: Any, /, *, temperature: Any = 1.0, top_k: int | None = None, top_p: float | None = None,
    min_p: float | None = None, axis: Axis = -1, where: Any = None,
) -> Any:  # fmt: skip
    """Logits with -inf where a token is left out, by top-k, then top-p, then min-p.

        top-k : the k largest stay
        top-p : with p = softmax of what is left / temperature, the smallest set of largest entries whose mass reaches top_p
        min-p : entries with p_i >= min_p max p stay

    Parameters
    ----------
    logits : array (..., n), real. Integers become the library's default float first.
    temperature : number, or array that broadcasts to the logits with size 1 along `axis`; at least 0. The mass of top-p and
        min-p is taken at this temperature; the logits come back as they were, not divided by it.
    top_k : int of at least 1, static under jit. More than n keeps all.
    top_p, min_p : numbers in [0, 1], static under jit. top_p 1 and min_p 0 keep all.
    axis : int, tuple of ints or None (all axes): what a row lies along.
    where : bool array that broadcasts to the logits. False tokens are left out before all else.

    Returns
    -------
    array, shape, dtype and device of the logits. At least one token of a row stays, if it has any: its largest, of equal
    ones the first. A row with nothing in it is -inf throughout, a row that holds NaN is NaN throughout.

    Raises
    ------
    TypeError, ValueError : as softmax; top_k, top_p or min_p out of range.

    Notes
    -----
    Of equal logits at the border the first stay, so that exactly top_k remain and no more tokens than reach top_p.
    (Transformers' top-k keeps every logit that equals the k-th.) Where top_p is the sum of some probabilities, rounding
    decides. Arithmetic is never below float32. Derivative: 1 where a logit stays, 0 elsewhere.

    Source: Fan, Lewis & Dauphin 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2020, arXiv:1904.09751 (top-p); Nguyen et
    al. 2024, arXiv:2407.01082 (min-p).

    Examples
    --------
    >>> import numpy as np, softxp
    >>> logits = np.log(np.asarray([0.4, 0.3, 0.2, 0.1]))
    >>> softxp.softmax(softxp.mask_logits(logits, top_k=2)).round(3)
    array([0.571, 0.429, 0.   , 0.   ])
    >>> softxp.softmax(softxp.mask_logits(logits, top_p=0.8)).round(3)
    array([0.444, 0.333, 0.222, 0.   ])
    >>> softxp.mask_logits(np.asarray([1.0, 2.0, 2.0]), top_k=1)
    array([-inf,   2., -inf])
    """
    return call(MASK_LOGITS, logits, temperature, top_k, top_p, min_p, axis, where)


@record(SAMPLE)
def sample(
    logits: Any, rng: Any, /, *, temperature: Any = 1.0, top_k: int | None = None, top_p: float | None = None,
    min_p: float | None = None, axis: Axis = -1, where: Any = None,
) -> Any:  # fmt: skip
    """Indices drawn by the softmax of logits, after top-k, top-p and min-p.

        P(i) = softmax(mask_logits(logits, ...) / temperature)_i

    Parameters
    ----------
    logits : array (..., n), real. Integers become the library's default float first.
    rng : what draws one uniform number for each row. numpy's Generator for every library; torch.Generator on the logits'
        device; a JAX key, new or old; cupy's Generator or RandomState; or the uniforms themselves, an array in [0, 1) of the
        logits' library and of the shape of the answer. Code that is traced takes keys and uniforms alone.
    temperature : number, or array that broadcasts to the logits with size 1 along `axis`; at least 0. At 0 the answer is the
        first of the maxima, whatever is drawn.
    top_k, top_p, min_p : as in mask_logits.
    axis : int, tuple of ints or None (all axes): what a row lies along. Several count in C order.
    where : bool array that broadcasts to the logits. False tokens are never drawn.

    Returns
    -------
    integers of the library's default, the logits' shape without `axis`. -1 for a row with nothing in it, or that holds NaN.

    Raises
    ------
    TypeError : rng is none of these. ValueError : uniforms of another shape, or outside [0, 1) where that can be read; a
        generator of another device. Otherwise as mask_logits.

    Notes
    -----
    By inversion: the first token where the running sum of probabilities passes the uniform number. The same uniforms give
    the same tokens, and so does the same seed on one library. Two libraries draw the same uniforms of a seed of numpy's if
    their arithmetic has the same width: for float32 logits it is 64 bits in numpy and torch on the CPU, 32 in JAX. Sums are
    in float64 where that is cheap, else in float32, which resolves chances to about 1e-7. Entries of +inf share the draws
    equally. No derivative: see gumbel_softmax.

    Source: Devroye 1986, Non-uniform random variate generation, section III.2, doi:10.1007/978-1-4613-8643-8.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> logits = np.log(np.asarray([0.5, 0.3, 0.2]))
    >>> tokens = softxp.sample(np.broadcast_to(logits, (10_000, 3)), np.random.default_rng(0))
    >>> (np.bincount(tokens) / 10_000).round(2)
    array([0.5, 0.3, 0.2])
    >>> softxp.sample(np.asarray([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]]), np.random.default_rng(0), temperature=0)
    array([1, 0])
    >>> softxp.sample(np.broadcast_to(logits, (3, 3)), np.asarray([0.0, 0.6, 0.99]))
    array([0, 1, 2])
    """
    return call(SAMPLE, logits, rng, temperature, top_k, top_p, min_p, axis, where)


@record(GUMBEL_SOFTMAX)
def gumbel_softmax(
    logits: Any, rng: Any, /, *, temperature: Any = 1.0, hard: bool = False, axis: Axis = -1, where: Any = None,
    dtype: Any = None,
) -> Any:  # fmt: skip
    """A draw from softmax(logits) that has a derivative: the softmax of logits plus Gumbel noise.

        y = softmax((logits + g) / temperature),   g_i = -log(-log u_i)

    Parameters
    ----------
    logits : array (..., n), real. Integers become the library's default float first.
    rng : what draws a uniform number u for each logit: as in sample, given uniforms having the logits' shape.
    temperature : number, or array that broadcasts to the logits with size 1 along `axis`; at least 0. The lower, the closer
        to one-hot.
    hard : answer the one-hot draw itself, 1 at the first maximum of logits + g, with the derivative of the soft answer
        (straight-through).
    axis : int, tuple of ints or None (all axes): what a row lies along.
    where : bool array that broadcasts to the logits. False entries take no part: they get 0.
    dtype : dtype of the answer. Default: that of the logits (of the default float for integers).

    Returns
    -------
    array, shape and device of the logits. A row with nothing in it gives 0, hard or soft; of several entries of +inf one is
    drawn; a NaN makes its own row NaN and no other.

    Raises
    ------
    TypeError, ValueError : as softmax, and as sample for rng.

    Notes
    -----
    The largest of logits + g lies at i with probability softmax(logits)_i, at every temperature. u is kept from 0 and 1,
    so g is finite. The noise is added to the logits less their row's maximum, which a large common offset leaves as it is.
    Derivative by the logits: that of softmax, with the noise held; by temperature and given uniforms too.

    Source: Jang, Gu & Poole 2017, arXiv:1611.01144; Maddison, Mnih & Teh 2017, arXiv:1611.00712.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> logits, uniforms = np.asarray([1.0, 2.0, 0.5]), np.asarray([0.9, 0.2, 0.5])
    >>> softxp.gumbel_softmax(logits, uniforms, temperature=0.5).round(3)
    array([0.961, 0.03 , 0.008])
    >>> softxp.gumbel_softmax(logits, uniforms, temperature=0.5, hard=True)
    array([1., 0., 0.])
    """
    return call(GUMBEL_SOFTMAX, logits, rng, temperature, hard, axis, where, dtype)
