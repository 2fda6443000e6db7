"""numpy as formulas see it, 16-bit floats converted by their bits, and large arrays in tiles that threads share."""

from functools import reduce
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
from array_api_compat import numpy as compat

from .. import _formulas as F
from .. import _loss as L
from .._op import Op
from . import _threads, _tiles
from ._namespace import blocked, careful

TILE = 1 << 15  # numbers: a formula's temporaries stay in cache

quiet = np.errstate(all="ignore")
maximum: Any = np.maximum.reduce
add: Any = np.add.reduce
_in_blocks = blocked(add, np.reshape)


def total(x: Any, *, axis: Any, keepdims: bool = False) -> Any:
    """numpy adds pairwise along the axis that lies contiguous, one by one along any other."""
    if not isinstance(axis, tuple):
        axis = (axis,)
    if len(axis) == 1 and (x.strides[axis[0]] == x.itemsize or x.shape[axis[0]] <= 8):
        return add(x, axis[0], None, None, keepdims)
    return _in_blocks(x, axis=axis, keepdims=keepdims)


# --- 16-bit floats by their bits: numpy's own conversion takes up to 80 ns where the result is subnormal ----------------

_f16, _f32, _u16, _u32 = np.dtype(np.float16), np.dtype(np.float32), np.uint16, np.uint32
_MANY = 256  # numbers from which some passes over bits are cheaper


def widen(h: Any) -> Any:
    """float16 as float32: 13 places up, and the exponent put right by 2^112, which is exact for subnormal numbers too."""
    b = h.view(_u16).astype(_u32)
    magnitude = (b & _u32(0x7FFF)) << _u32(13)
    f = magnitude.view(np.float32) * np.float32(2.0**112)
    out = np.where(magnitude >= _u32(0x0F800000), magnitude | _u32(0x7F800000), f.view(_u32))
    return (out | ((b & _u32(0x8000)) << _u32(16))).view(np.float32)


def narrow(f: Any) -> Any:
    """float32 as float16, to nearest, ties to even."""
    b = f.view(_u32)
    a = b & _u32(0x7FFFFFFF)
    normal = (a + _u32(0xC8000FFF) + ((a >> _u32(13)) & _u32(1))) >> _u32(13)
    small = (a.view(np.float32) + np.float32(0.5)).view(_u32) - _u32(0x3F000000)  # a subnormal's digits end the sum's
    big = np.where(a > _u32(0x7F800000), _u32(0x7E00), _u32(0x7C00))
    h = np.where(a < _u32(0x38800000), small, np.where(a < _u32(0x47800000), normal, big))
    return (h | ((b >> _u32(16)) & _u32(0x8000))).astype(_u16).view(np.float16)


def astype(x: Any, dtype: Any) -> Any:
    x = np.asarray(x)
    if x.size >= _MANY and x.dtype is _f16 and dtype != x.dtype:
        return widen(x).astype(dtype, copy=False)
    if x.size >= _MANY and x.dtype is _f32 and dtype == _f16:
        return narrow(x)
    return x.astype(dtype, copy=False)


def add_product(c: Any, a: Any, b: Any) -> Any:
    """c + aᵀ b in place, some rows of c at a time: numpy's product has no room to add into."""
    step = max(1, (1 << 19) // max(1, b.shape[1]))
    for i in range(0, c.shape[0], step):
        c[i : i + step] += a[:, i : i + step].T @ b
    return c


def largest(x: Any, k: int) -> Any:
    n = x.shape[-1]
    part = x if 4 * k > n else np.partition(x, n - k, axis=-1)[..., n - k :]  # a few of many: no need to sort them all
    return np.sort(part, axis=-1)[..., ::-1][..., :k]


XP = careful(
    compat,
    add_product=add_product,
    largest=largest,
    largest_at=lambda x, k: np.argsort(-x, axis=-1, kind="stable")[..., :k],
    sum=total,
    max=lambda x, *, axis, keepdims: maximum(x, axis, None, None, keepdims),
    astype=astype,
    above=lambda a, b: bool(a > b),
)


# --- tiles -------------------------------------------------------------------------------------------------------------

LONG = 1 << 17  # rows longer than this are folded from pieces of it


def tiled(op: Op, values: dict[str, Any]) -> Any:
    """The formula over tiles, each in cache, in threads; NotImplemented for what is small or cannot be cut.

    How a row is cut depends on its length alone: its bits depend neither on its neighbours nor on the threads.
    """
    if op.name not in _SERVE or values["x"].size <= TILE:
        return NotImplemented
    x, axis = values["x"], values["axis"]
    cut = _tiles.longest(x.shape, axis)
    if cut is None:
        return _SERVE[op.name](op, values, 0, [slice(None)])
    return _SERVE[op.name](op, values, cut, _tiles.pieces(x.shape[cut], max(1, TILE * x.shape[cut] // x.size)))


def _part(values: dict[str, Any], cut: int, piece: slice) -> dict[str, Any]:
    return _tiles.part(values, values["x"].ndim, cut, piece)


def _each(task: Any, values: dict[str, Any], cut: int, pieces: list[slice], y: Any = None) -> Any:
    """task(values of the piece) for each, in threads: their answers in order, or put together in y along the cut."""
    out: list[Any] = [None] * len(pieces)

    @quiet  # numpy's error state is a thread's own
    def work(i: int) -> None:
        answer = task(_part(values, cut, pieces[i]))
        if y is None:
            out[i] = answer
        else:
            y[_tiles.along(cut, pieces[i])] = answer

    threads = min(_threads.num_threads(), 1 + values["x"].size // (8 * TILE))
    _threads.share(work, [(i,) for i in range(len(pieces))], threads)
    return out if y is None else y


_FOLDED = {"softmax", "log_softmax", "logsumexp"}


def _whole(op: Op, values: dict[str, Any]) -> Any:
    """A formula's answer for whole rows; long ones folded from the states of their pieces."""
    x, axis, temperature = values["x"], values["axis"], values.get("temperature", 1.0)
    plain = isinstance(temperature, float) and values.get("b") is None and op.name in _FOLDED
    n = prod(x.shape[a] for a in axis)
    if n <= LONG or len(axis) > 1 or not plain:
        return op.forward(XP, **values)
    (a,) = axis
    pieces = _tiles.pieces(n, LONG)

    def state(part: dict[str, Any]) -> tuple[Any, Any]:
        s = F.rows(
            XP, part["x"], axis=axis, where=part.get("where"), temperature=temperature, compute=part["compute"]
        )  # fmt: skip
        return s.m, s.r

    m, r = reduce(lambda one, two: F.merge(XP, one, two, temperature), _each(state, values, a, pieces))
    known = SimpleNamespace(**vars(XP), fold_rows=lambda *_: (m, r))
    if op.name == "logsumexp":
        return op.forward(known, **_part(values, a, slice(0, 1)))
    return _each(lambda part: op.forward(known, **part), values, a, pieces, np.empty(x.shape, values["dtype"]))


def in_row_blocks(f: Any, x: Any) -> Any:
    """f(x) of a contiguous array, tile by tile along its rows."""
    if x.size <= TILE:
        return f(x)
    rows = x.reshape(-1, x.shape[-1])
    pieces = _tiles.pieces(rows.shape[0], max(1, TILE // x.shape[-1]))
    return _each(lambda part: f(part["x"]), {"x": rows}, 0, pieces, np.empty(rows.shape, x.dtype)).reshape(x.shape)


def _map(op: Op, values: dict[str, Any], cut: int, pieces: list[slice]) -> Any:
    if len(pieces) == 1:
        return _whole(op, values)
    return _each(lambda part: _whole(op, part), values, cut, pieces, np.empty(values["x"].shape, values["dtype"]))


def _reduction(op: Op, values: dict[str, Any], cut: int, pieces: list[slice]) -> Any:
    if len(pieces) == 1:
        return _whole(op, values)
    parts = _each(lambda part: _whole(op, part), values, cut, pieces)
    return np.concatenate(parts, axis=cut if values.get("keepdims") else cut - sum(a < cut for a in values["axis"]))


def _loss(op: Op, values: dict[str, Any], cut: int, pieces: list[slice]) -> Any:
    how = {k: values[k] for k in ("normalizer", "reduction", "axis")}
    of_rows = {k: v for k, v in values.items() if k not in ("normalizer", "reduction", "dtype")}
    parts = _each(lambda part: L.loss_rows(XP, **part), of_rows, cut, pieces)
    weight, dropped, loss = (
        np.concatenate(each, axis=cut) for each in zip(*((t.weight, t.dropped, a) for t, a in parts), strict=True)
    )
    s = values["sample_weight"]
    s = None if s is None else s.astype(values["compute"], copy=False)
    t = L.Targets(None, None, None, None, weight, s, None, dropped, dropped)
    return L.reduce_rows(XP, t, loss, **how)[0].astype(values["dtype"], copy=False)


_SERVE = {
    "softmax": _map, "log_softmax": _map, "logsumexp": _reduction, "logmeanexp": _reduction, "cross_entropy": _loss,
    "sparsemax": _map, "entmax": _map, "entropy": _reduction, "kl_divergence": _reduction,
}  # fmt: skip
