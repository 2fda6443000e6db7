"""Mixtures of experts: topk_softmax, the gate; balance_loss and router_z_loss, which keep its load and logits in bounds."""

from math import prod
from typing import Any, Literal

from . import _args as args
from . import _formulas as F
from . import _loss as L
from ._backends import call, find
from ._op import OPS, Op, record

Axis = int | tuple[int, ...] | None
INF, NAN = F.INF, F.NAN


# --- formulas --------------------------------------------------------------------------------------------------------


def topk_indices_forward(xp, x, *, k, axis, where=None, integer, compute):
    """Where the k largest entries lie, the largest first; -1 where there is none, and throughout a row that holds NaN."""
    z, sick = F.sound(xp, F.masked(xp, x, where, compute), axis)
    there, again = F.axis_last(xp, z, axis, False)
    z = there(z)
    at = xp.astype(xp.largest_at(z, k), integer)
    at = again(xp.where(xp.largest(z, k) > -INF, at, xp.full_like(at, -1)))
    return xp.where(sick, xp.full_like(at, -1), at)


class Slots:
    """From a row's entries to its k slots, both along `axis`: `pick` takes entries into slots, `place` is its adjoint."""

    def __init__(self, xp, indices, entries, axis):
        (self.a,) = axis
        self.xp = xp
        self.here = xp.expand_dims(indices, axis=self.a + 1) == xp.expand_dims(entries, axis=self.a)

    def pick(self, x):
        x = self.xp.expand_dims(x, axis=self.a)
        found = self.xp.where(self.here, x, self.xp.zeros_like(x))
        return F.drop(self.xp, F.total(self.xp, found, (self.a + 1,)), (self.a + 1,))

    def place(self, y):
        y = self.xp.expand_dims(y, axis=self.a + 1)
        found = self.xp.where(self.here, y, self.xp.zeros_like(y))
        return F.drop(self.xp, F.total(self.xp, found, (self.a,)), (self.a,))


def slot_scores(xp, x, slots, indices, axis, where, compute):
    """The chosen logits: -inf in a slot without an expert, NaN throughout a row that holds NaN. And which rows do."""
    x = F.masked(xp, x, where, compute)
    chosen = slots.pick(x)
    sick = F.sound(xp, x, axis)[1]
    return xp.where(sick, xp.full_like(chosen, NAN), xp.where(indices < 0, xp.full_like(chosen, -INF), chosen)), sick


def topk_softmax_forward(
    xp, x, indices, entries, *, normalize, axis, where=None, temperature=1.0, dtype, compute
):  # fmt: skip
    slots = Slots(xp, indices, entries, axis)
    z, sick = slot_scores(xp, x, slots, indices, axis, where, compute)
    if normalize:
        return F.softmax(xp, z, axis=axis, temperature=temperature, dtype=dtype, compute=compute)
    p = F.softmax(xp, x, axis=axis, where=where, temperature=temperature, dtype=compute, compute=compute)
    return F.cast(xp, xp.where(sick, z, slots.pick(p)), dtype)


def topk_softmax_vjp(
    call, xp, ct, y, wanted, x, indices, entries, *, normalize, axis, where=None, temperature=1.0, dtype, compute
):  # fmt: skip
    slots = Slots(xp, indices, entries, axis)
    ct = F.cast(xp, ct, compute)
    if not normalize:
        how: Any = dict(axis=axis, where=where, temperature=temperature, dtype=compute, compute=compute)
        p = call("softmax", x=x, **how)
        return F.softmax_vjp(call, xp, slots.place(ct), p, wanted, x, **how)
    z, sick = slot_scores(xp, x, slots, indices, axis, where, compute)
    how = dict(axis=axis, temperature=temperature)
    p = F.unrounded(call, xp, "softmax", y, compute, x=z, **how)
    out = F.softmax_vjp(call, xp, ct, p, wanted, z, **how, dtype=compute, compute=compute)
    if "x" in wanted:
        gx = slots.place(out["x"])
        out["x"] = F.cast(xp, xp.where(sick, xp.full_like(gx, NAN), gx), x.dtype)
    return out


def topk_softmax_jvp(
    call, xp, y, tangents, x, indices, entries, *, normalize, axis, where=None, temperature=1.0, dtype, compute
):  # fmt: skip
    slots = Slots(xp, indices, entries, axis)
    if not normalize:
        how: Any = dict(axis=axis, where=where, temperature=temperature, dtype=compute, compute=compute)
        p = call("softmax", x=x, **how)
        return F.cast(xp, slots.pick(F.softmax_jvp(call, xp, p, tangents, x, **how)), dtype)
    z, _ = slot_scores(xp, x, slots, indices, axis, where, compute)
    how = dict(axis=axis, temperature=temperature)
    p = F.unrounded(call, xp, "softmax", y, compute, x=z, **how)
    if "x" in tangents:
        tangents = {**tangents, "x": slots.pick(F.cast(xp, tangents["x"], compute))}
    return F.cast(xp, F.softmax_jvp(call, xp, p, tangents, z, **how, dtype=compute, compute=compute), dtype)


def counted(xp, x, axis, where, sample_weight, compute):
    """`where` without the rows of weight 0; and each row's weight, 0 where nothing takes part.

    So a row that does not count is one with nothing in it, whatever it holds, in every derivative.
    """
    s = None
    if sample_weight is not None:
        s = F.cast(xp, sample_weight, compute)
        where = s != 0 if where is None else where & (s != 0)
    m = F.row_max(xp, F.masked(xp, x, where, compute), axis)
    one = xp.ones_like(m)
    return where, xp.where(m == -INF, xp.zeros_like(m), one if s is None else s * one)


class Load:
    """Of each expert, over the tokens that count: f, the fraction that chose it, and mean, its mean probability."""

    def __init__(self, xp, call, x, k, axis, where, temperature, sample_weight, compute):
        self.where, self.w = counted(xp, x, axis, where, sample_weight, compute)
        self.tokens = tuple(a for a in range(x.ndim) if a not in axis)
        self.experts = prod([x.shape[a] for a in axis])
        how = dict(axis=axis, where=self.where, temperature=temperature, dtype=compute, compute=compute)
        self.p = call("softmax", x=x, **how)
        chosen = F.among_largest(xp, F.masked(xp, x, self.where, compute), k, axis)
        self.chosen = F.cast(xp, chosen, compute)
        total = F.total(xp, self.w, self.tokens)
        self.total = xp.where(total == 0, total + INF, total)  # the mean of nothing is 0
        self.f = F.total(xp, self.w * self.chosen, self.tokens) / self.total
        self.mean = F.total(xp, self.w * self.p, self.tokens) / self.total
        self.loss = self.experts * F.total(xp, self.f * self.mean, axis)

    def by_probability(self):
        """∂loss/∂p: f does not move with the logits."""
        return self.experts * self.f * (self.w / self.total)

    def by_weight(self, xp, axis, sample_weight, compute):
        """∂loss/∂(sample weight), of which both means are fractions; 0 where nothing takes part or the weight is 0."""
        each = self.experts * F.total(xp, self.chosen * self.mean + self.f * self.p, axis)
        return xp.where(self.w == 0, xp.zeros_like(self.w), (each - 2 * self.loss) / self.total)


def balance_loss_forward(
    xp, x, *, k, axis, where=None, temperature=1.0, sample_weight=None, dtype, compute
):  # fmt: skip
    load = Load(xp, xp.call, x, k, axis, where, temperature, sample_weight, compute)
    return F.cast(xp, F.drop(xp, load.loss, tuple(range(x.ndim))), dtype)


def balance_loss_vjp(
    call, xp, ct, y, wanted, x, *, k, axis, where=None, temperature=1.0, sample_weight=None, dtype, compute
):  # fmt: skip
    load = Load(xp, call, x, k, axis, where, temperature, sample_weight, compute)
    ct = F.cast(xp, ct, compute)
    gz = F.softmax_derivative(xp, load.p, ct * load.by_probability(), axis)
    out = F.to_inputs(xp, gz, None, wanted, x, None, axis, load.where, temperature, compute)
    if "sample_weight" in wanted:
        out["sample_weight"] = F.sum_like(xp, ct * load.by_weight(xp, axis, sample_weight, compute), sample_weight)
    return out


def balance_loss_jvp(
    call, xp, y, tangents, x, *, k, axis, where=None, temperature=1.0, sample_weight=None, dtype, compute
):  # fmt: skip
    load = Load(xp, call, x, k, axis, where, temperature, sample_weight, compute)
    how: Any = dict(axis=axis, where=load.where, temperature=temperature, dtype=compute, compute=compute)
    moved = {k: v for k, v in tangents.items() if k != "sample_weight"}
    dy = load.by_probability() * F.softmax_jvp(call, xp, load.p, moved, x, **how)
    if "sample_weight" in tangents:
        ds = F.cast(xp, tangents["sample_weight"], compute) * load.by_weight(xp, axis, sample_weight, compute)
        dy = dy + ds / load.experts  # once for every expert that the sum runs over
    everything = tuple(range(x.ndim))
    return F.cast(xp, F.drop(xp, F.total(xp, dy, everything), everything), dtype)


def squares(xp, call, x, axis, where, sample_weight, compute):
    """logsumexp of each row that counts, 0 of the others; `where` and the weights as `counted` has them."""
    where, w = counted(xp, x, axis, where, sample_weight, compute)
    lse = call("logsumexp", x=x, axis=axis, where=where, keepdims=True, dtype=compute, compute=compute)
    return xp.where(lse == -INF, xp.zeros_like(lse), lse), where, w


def row_targets(xp, w, sample_weight, compute):
    """What the reduction of rows asks of labels: each row weighs 1, and s says how often it counts."""
    s = None if sample_weight is None else F.cast(xp, sample_weight, compute)
    return L.Targets(None, None, None, None, xp.ones_like(w), s, None, w == 0, w == 0)


def router_z_loss_forward(
    xp, x, *, axis, where=None, sample_weight=None, reduction, normalizer=None, dtype, compute
):  # fmt: skip
    lse, where, w = squares(xp, xp.call, x, axis, where, sample_weight, compute)
    t = row_targets(xp, w, sample_weight, compute)
    return F.cast(xp, L.reduce_rows(xp, t, lse * lse, normalizer, reduction, axis)[0], dtype)


def router_z_parts(call, xp, x, *, axis, where, sample_weight, compute, **values):
    """∂lse²/∂x = 2 lse softmax(x); and the values of the call as a loss has them."""
    lse, where, w = squares(xp, call, x, axis, where, sample_weight, compute)
    p = call("softmax", x=x, axis=axis, where=where, dtype=compute, compute=compute)
    values.update(x=x, axis=axis, where=where, sample_weight=sample_weight, compute=compute)
    slope = L.Slope("x", 2 * lse * p, 1.0, 2 * lse)
    t = row_targets(xp, w, sample_weight, compute)
    return L.parts_of(xp, t, lse * lse, (slope,), {}, **values), values


def router_z_loss_vjp(call, xp, ct, y, wanted, x, **values):
    parts, values = router_z_parts(call, xp, x, **values)
    return L.loss_vjp(xp, ct, parts, wanted, values)


def router_z_loss_jvp(call, xp, y, tangents, x, **values):
    parts, values = router_z_parts(call, xp, x, **values)
    return L.loss_jvp(xp, parts, tangents, values)


# --- topk_softmax ----------------------------------------------------------------------------------------------------


def _choices(backend: Any, x: Any, axis: tuple[int, ...], k: int) -> int:
    """k, checked against how many there are to choose from."""
    k, n = args.count("k", k), prod([x.shape[a] for a in axis])
    if args.known(n) and k > n:
        raise ValueError(f"k must be at most the number of experts, the size {n} of axis {axis}, got {k}.")
    return k


def _topk_values(
    backend: Any, logits: Any, k: int, normalize: bool, axis: Axis, where: Any, temperature: Any, dtype: Any
) -> dict[str, Any]:
    values = args.of_map(backend, logits, axis, where, temperature, dtype)
    x, axes = values["x"], values["axis"]
    if len(axes) != 1:
        raise ValueError(f"topk_softmax puts k choices along one axis of experts, got axis={axis} of shape {x.shape}.")
    how = dict(x=x, axis=axes, where=values["where"], compute=values["compute"])
    integer = backend.default_int(x)
    indices = backend.lifted["topk_indices"](dict(how, k=_choices(backend, x, axes, k), integer=integer))
    n = x.shape[axes[0]]
    entries = backend.xp.reshape(backend.arange(n, integer, x), tuple(n if a in axes else 1 for a in range(x.ndim)))
    return dict(values, indices=indices, entries=entries, normalize=bool(normalize))


OPS["topk_indices"] = Op("topk_indices", _topk_values, topk_indices_forward)
TOPK_SOFTMAX = Op("topk_softmax", _topk_values, topk_softmax_forward, topk_softmax_vjp, topk_softmax_jvp, ("x", "k"))


@record(TOPK_SOFTMAX)
def topk_softmax(
    logits: Any, k: int, /, *, normalize: bool = True, axis: Axis = -1, where: Any = None, temperature: Any = 1.0,
    dtype: Any = None,
) -> tuple[Any, Any]:  # fmt: skip
    """The gate of a mixture of experts: the k most probable, and their weights.

        i_1 ... i_k : the k largest logits, in descending order
        w_j = exp(x_{i_j} / T) / Σ_{l ≤ k} exp(x_{i_l} / T)        with normalize: softmax of the top k (Mixtral)
        w_j = softmax(x / T)_{i_j}                                  without: softmax, then the top k (Switch Transformer)

    Parameters
    ----------
    logits : array (..., n), real. Integers become the library's default float first.
    k : int within [1, n], static under jit.
    normalize : let the k weights have sum 1.
    axis : int: what the experts lie along.
    where : bool array that broadcasts to the logits. False experts are not chosen, and have no mass.
    temperature : number, or array that broadcasts to the logits with size 1 along `axis`; at least 0. It changes weights,
        never the choice.
    dtype : dtype of the weights. Default: that of the logits (of the default float for integers).

    Returns
    -------
    (weights, indices), both of the logits' shape with k along `axis`, weights in descending order; indices in the library's
    default integer. Of equal logits the first comes first. Where fewer than k experts take part, the slots left over have
    weight 0 and index -1; so have all slots of a row with nothing in it. A row that holds NaN has weights NaN, indices -1.

    Raises
    ------
    TypeError, ValueError : as softmax; k out of range; more than one axis.

    Notes
    -----
    Error as softmax. Derivative: through the weights, as softmax over the chosen logits or over all; the choice is constant.
    `softxp.vjp` and `softxp.jvp` are of the weights.

    Source: Shazeer et al. 2017, arXiv:1701.06538 (normalize=True); Fedus, Zoph & Shazeer 2022, arXiv:2101.03961
    (normalize=False, k = 1); Jiang et al. 2024, arXiv:2401.04088 (Mixtral).

    Examples
    --------
    >>> import numpy as np, softxp
    >>> logits = np.log(np.asarray([0.1, 0.4, 0.2, 0.3]))
    >>> weights, indices = softxp.topk_softmax(logits, 2)
    >>> weights.round(3), indices
    (array([0.571, 0.429]), array([1, 3]))
    >>> softxp.topk_softmax(logits, 2, normalize=False)[0].round(3)
    array([0.4, 0.3])
    """
    backend = find(logits)
    values = _topk_values(backend, logits, k, normalize, axis, where, temperature, dtype)
    return backend.lifted["topk_softmax"](values), values["indices"]


# --- balance_loss, router_z_loss -------------------------------------------------------------------------------------


def _balance_values(
    backend: Any, logits: Any, k: int, axis: Axis, where: Any, temperature: Any, sample_weight: Any, dtype: Any
) -> dict[str, Any]:
    values = args.of_map(backend, logits, axis, where, temperature, dtype)
    x, axes = values["x"], values["axis"]
    s = args.sample_weight(backend, sample_weight, x, axes)
    return dict(values, k=_choices(backend, x, axes, k), sample_weight=s)


def _z_values(
    backend: Any, logits: Any, axis: Axis, where: Any, sample_weight: Any, reduction: str, normalizer: Any, dtype: Any
) -> dict[str, Any]:
    values = args.of_map(backend, logits, axis, where, 1.0, dtype)
    del values["temperature"]
    x = values["x"]
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}.')
    s = args.sample_weight(backend, sample_weight, x, values["axis"])
    norm = args.normalizer(backend, normalizer, reduction, x)
    return dict(values, sample_weight=s, reduction=reduction, normalizer=norm)


BALANCE_LOSS = Op("balance_loss", _balance_values, balance_loss_forward, balance_loss_vjp, balance_loss_jvp, ("x", "k"))
ROUTER_Z_LOSS = Op("router_z_loss", _z_values, router_z_loss_forward, router_z_loss_vjp, router_z_loss_jvp)


@record(BALANCE_LOSS)
def balance_loss(
    logits: Any, k: int, /, *, axis: Axis = -1, where: Any = None, temperature: Any = 1.0, sample_weight: Any = None,
    dtype: Any = None,
) -> Any:  # fmt: skip
    """How unevenly a mixture of experts is loaded.

        loss = n Σ_e f_e P_e,   f_e = Σ_t s_t [e among the k largest of token t] / Σ_t s_t,   P_e = Σ_t s_t p_te / Σ_t s_t
        p_t = softmax(logits_t / temperature)

    Parameters
    ----------
    logits : array (..., n), real, of n experts for each token. Integers become the library's default float first.
    k : int within [1, n], how many experts each token goes to; static under jit.
    axis : int, tuple of ints or None (all axes): what the experts lie along.
    where : bool array that broadcasts to the logits. False experts take no part for that token. n counts them all the same.
    temperature : number, or array that broadcasts to the logits with size 1 along `axis`; at least 0.
    sample_weight : number or array that broadcasts to the tokens, s. 0 drops a token, as padding is to be.
    dtype : dtype of the answer. Default: that of the logits (of the default float for integers).

    Returns
    -------
    array (). f counts all k choices, so that Σ f = k and an even load gives k, for k = 1 that of Switch Transformer, 1;
    all tokens at the same k experts give up to n. Dropped tokens, and tokens with nothing in their row, count for nothing
    whatever their logits hold; with none that counts the loss is 0. A NaN that counts makes the loss NaN.

    Raises
    ------
    TypeError, ValueError : as softmax; k out of range.

    Notes
    -----
    The derivative by the logits flows through P alone: f is a count. By sample_weight and temperature too. Of equal logits
    the first is chosen, as in topk_softmax.

    Source: Fedus, Zoph & Shazeer 2022, arXiv:2101.03961, equations 4 to 6; for k > 1 as Mixtral's in transformers.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> float(softxp.balance_loss(np.asarray([[9.0, 0.0], [0.0, 9.0]]), 1).round(6))
    1.0
    >>> float(softxp.balance_loss(np.asarray([[9.0, 0.0], [9.0, 0.0]]), 1).round(3))
    2.0
    """
    return call(BALANCE_LOSS, logits, k, axis, where, temperature, sample_weight, dtype)


@record(ROUTER_Z_LOSS)
def router_z_loss(
    logits: Any, /, *, axis: Axis = -1, where: Any = None, sample_weight: Any = None,
    reduction: Literal["mean", "sum", "none"] = "mean", normalizer: Any = None, dtype: Any = None,
) -> Any:  # fmt: skip
    """Mean squared logsumexp, which keeps a router's logits small.

        loss = Σ_t s_t logsumexp(logits_t)² / Σ_t s_t

    Parameters
    ----------
    logits : array (..., n), real, of n experts for each token. Integers become the library's default float first.
    axis : int, tuple of ints or None (all axes): what the experts lie along.
    where : bool array that broadcasts to the logits. False experts take no part.
    sample_weight : number or array that broadcasts to the tokens, s. 0 drops a token, as padding is to be.
    reduction : "mean"; "sum", Σ_t s_t lse_t²; or "none", s_t lse_t².
    normalizer : number or array of one, at least 0: what the mean divides by in place of Σ s.
    dtype : dtype of the answer. Default: that of the logits (of the default float for integers).

    Returns
    -------
    array () or, with reduction="none", the logits' shape without `axis`. Dropped tokens, and tokens with nothing in their
    row, count for nothing whatever their logits hold; with none that counts the loss is 0. A +inf that counts gives inf.

    Raises
    ------
    TypeError, ValueError : as softmax; reduction or normalizer out of range.

    Notes
    -----
    Squares and sums are never below float32. In float16 a loss beyond 65504, a logsumexp of 256, is inf all the same: its
    gradient is right, and dtype=float32 tells the loss. Derivative: 2 s lse softmax(logits) / Σ s; by sample_weight and
    normalizer too.

    Source: Zoph et al. 2022, ST-MoE, arXiv:2202.08906, equation 5.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> logits = np.log(np.asarray([[1.0, 1.0], [2.0, 2.0]]))
    >>> float(softxp.router_z_loss(logits).round(6))
    1.201133
    >>> float(softxp.router_z_loss(logits, sample_weight=np.asarray([1.0, 0.0])).round(6))
    0.480453
    """
    return call(ROUTER_Z_LOSS, logits, axis, where, sample_weight, reduction, normalizer, dtype)
