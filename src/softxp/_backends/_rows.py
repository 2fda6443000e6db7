"""Calls whose arrays lie in the memory of the host, as work for the row kernels: who may go there, and in which pieces.

An array comes as numpy sees its memory, 16-bit floats as their bits; a backend's `Host` says how. Every function answers
NotImplemented for what the kernels do not take, and the formula serves it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _formulas as F
from .. import _loss as L
from . import _threads, _warm
from ._geometry import Layout, neighbours
from ._numpy import XP, quiet

SMALL = 1 << 18  # numbers for which a second thread is not worth its waking
SHORT = 1 << 14  # numbers that are served without a word to spare
PIECE = 1 << 17  # numbers in a piece of work, at least

_kernels: Any = None
_memory: Any = None


def kernels() -> Any:
    """The kernels' module; False without Numba, or where they are not wanted."""
    global _kernels, _memory
    if _kernels is None:
        try:
            from .._kernels import memory, rows
        except ImportError:
            _kernels = False
        else:
            _memory = memory
            _kernels = rows
    return _warm.wanted and _kernels


@dataclass(frozen=True, slots=True)
class Host:
    """How a library's arrays lie in memory."""

    raw: Callable[[Any], Any]  # array -> numpy array over its memory, 16-bit floats as bits; None where there is none
    back: Callable[[Any, Any], Any]  # (such an array over new memory, dtype) -> array of the library
    numbers: Callable[[Any], Any]  # array -> numpy array of float64, a copy or not
    cast: Callable[[Any, Any], Any]  # (numpy array of float64, dtype) -> array of the library
    double: Any  # the library's float64
    threads: Callable[[], int] = _threads.num_threads


# the bits of a float16 are uint16, those of a bfloat16 int16: the dtype of a raw array says the kind
KINDS = {np.dtype(kind): kind for kind in (np.uint16(0), np.int16(0), np.float32(0), np.float64(0))}


# --- geometry --------------------------------------------------------------------------------------------------------


class Rows(Layout):
    """The rows of one array, and the kernels' `g` and `f` for them."""

    __slots__ = ("f", "g", "held", "kind", "turned")

    def __init__(self, shape: tuple, axis: tuple[int, ...], kind: Any) -> None:
        super().__init__(shape, axis)
        self.kind, self.turned = kind, False
        self.g, self.f = np.zeros(_memory.SLOTS, np.int64), np.zeros(_memory.NUMBERS)
        self.g[_memory.INNER], self.g[_memory.N] = self.inner, self.n
        self.held: list[Any] = []  # what the addresses in g point to

    def view(self, slot: int, a: Any) -> bool:
        """Put an array of this shape, or one that broadcasts to it, into g. False where it does not lie in steps."""
        if a.shape != self.shape:
            a = np.broadcast_to(a, self.shape)
        steps = self.steps(a.strides)
        if steps is None:
            return False
        outer, inner, along = steps
        if slot == _memory.X and self.inner == 1 and abs(outer) < abs(along):  # a transposed matrix: rows side by side
            self.outer, self.inner, self.turned = 1, self.outer, True
            self.g[_memory.INNER] = self.inner
        if self.turned:
            outer, inner = 0, outer
        self.hold(slot, a)
        self.g[slot + 1 : slot + 4] = [step // a.itemsize for step in (outer, inner, along)]
        return True

    def mask(self, where: Any) -> None:
        if not self.view(_memory.MASK, where):
            self.view(_memory.MASK, np.ascontiguousarray(np.broadcast_to(where, self.shape)))

    def hold(self, slot: int, a: Any) -> Any:
        self.g[slot] = a.ctypes.data
        self.held.append(a)
        return a

    def vector(self, slot: int, a: Any = None, dtype: Any = np.float64) -> Any:
        """A number for each row, broadcast and in the order of the rows; new memory for them without `a`."""
        if a is None:
            return self.hold(slot, np.empty(self.outer * self.inner))
        return self.hold(slot, np.ascontiguousarray(np.broadcast_to(a, self.row_shape), dtype).reshape(-1))

    def temperature(self, t: Any) -> bool:
        """False for temperatures so near a limit that a loop of vectors would overflow or vanish."""
        high = 1e290 if self.kind.itemsize == 8 else 1e30
        if np.ndim(t):
            if not ((t == 0) | (t == np.inf) | ((1 / high < t) & (t < high))).all():
                return False
            self.vector(_memory.TEMPERATURE, t)
            return True
        self.f[_memory.T] = t
        return t == 0 or t == np.inf or 1 / high < t < high

    def whole(self) -> bool:
        """May a kernel hold whole rows?"""
        return self.n <= _memory.KEEP

    def waits(self, together: int) -> bool:
        """May exps wait for their factor in the answer? In long rows of the arithmetic, without steps."""
        g = self.g
        if not g[_memory.Y] or self.kind.dtype.kind != "f" or self.n <= _memory.SHORT:
            return False
        if together == 1:
            return g[_memory.Y + 3] == 1
        return _memory.side_by_side(g, _memory.Y) and g[_memory.Y + 2] == 1

    def run(self, kernel: Any, threads: int, split: bool = True) -> None:
        """The kernel over all rows: in blocks of rows, or in blocks of tiles where rows are few and long."""
        g, f, kind, rows, count = self.g, self.f, self.kind, self.outer * self.inner, -(-self.n // _memory.TILE)
        threads = min(threads, 1 + rows * self.n // SMALL)
        together = _memory.most(g, rows)
        g[_memory.WAITS] = kernel in (_kernels.softmax, _kernels.cross_entropy) and self.waits(together)
        if threads == 1:
            kernel(kind, g, f, 0, rows, 0, count)
        elif rows >= 3 * threads * together or not split or count < 8:
            block = max(1, min(-(-rows // threads), max(PIECE // self.n, rows // (8 * threads))))
            block = max(together, block - block % together) if rows >= threads * together else block
            pieces = [(kind, g, f, i, min(i + block, rows), 0, count) for i in range(0, rows, block)]
            _threads.share(kernel, pieces, threads)
        else:
            # a piece is never all of a row: row_states answers rows for that
            step = min(count - 1, max(1, PIECE // _memory.TILE // 4 // together, -(-count // (4 * threads))))
            cuts = [
                (i, min(i + together, rows), k, min(k + step, count))
                for i in range(0, rows, together)
                for k in range(0, count, step)
            ]
            tiles, joined = np.empty((2, rows, count)), np.empty((2, rows))
            inputs, outputs = (_memory.M, _memory.R), (_memory.OUT_M, _memory.OUT_R)
            part, whole = g.copy(), g.copy()
            part[[*outputs]] = whole[[*inputs]] = [a.ctypes.data for a in tiles]
            if g[_memory.WAITS]:
                whole[_memory.WEIGHTS] = tiles[1].ctypes.data
            _threads.share(_kernels.row_states, [(kind, part, f, *cut) for cut in cuts], threads)
            if kernel is not _kernels.row_states:
                whole[[*outputs]] = [a.ctypes.data for a in joined]
            _kernels.join_tiles(kind, whole, f, 0, rows, 0, count)
            if kernel is not _kernels.row_states:
                whole[[*inputs]] = whole[[*outputs]]
                _threads.share(kernel, [(kind, whole, f, *cut) for cut in cuts], threads)


def begin(host: Host, x: Any, axis: tuple[int, ...], where: Any = None, temperature: Any = 1.0) -> Any:
    """The rows of x, ready for a kernel that reads them; None where the kernels do not take them."""
    if not kernels() or not neighbours(x.shape, axis):
        return None
    raw = host.raw(x)
    if raw is None:
        return None
    rows = Rows(raw.shape, axis, KINDS[raw.dtype])
    if not rows.view(_memory.X, raw):
        return None
    if where is not None:
        where = host.raw(where)
        if where is None:
            return None
        rows.mask(where)
    if not isinstance(temperature, float):
        if host.raw(temperature) is None:
            return None
        temperature = host.numbers(temperature)
    return rows if rows.temperature(temperature) else None


def companion(rows: Rows, host: Host, slot: int, a: Any) -> bool:
    """Put a further array of x's dtype and shape beside it."""
    raw = host.raw(a)
    return raw is not None and raw.dtype == rows.held[0].dtype and rows.view(slot, raw)


def answer(rows: Rows, wide: bool = False) -> Any:
    """New memory in the order of x, float64 if it is to be `wide`."""
    y = np.empty_like(rows.held[0], np.float64 if wide else None, subok=False)
    rows.g[_memory.WIDE] = wide
    if not rows.view(_memory.Y, y):  # x overlaps itself
        y = np.empty(y.shape, y.dtype)
        rows.view(_memory.Y, y)
    return y


# --- calls -----------------------------------------------------------------------------------------------------------


def _softmax(
    host: Host, x: Any, *, axis: Any, where: Any = None, temperature: Any = 1.0, dtype: Any, compute: Any
) -> Any:
    return _map(host, "softmax", x, axis, where, temperature, dtype)


def _log_softmax(
    host: Host, x: Any, *, axis: Any, where: Any = None, temperature: Any = 1.0, dtype: Any, compute: Any
) -> Any:
    return _map(host, "log_softmax", x, axis, where, temperature, dtype)


def _map(host: Host, kernel: str, x: Any, axis: Any, where: Any, temperature: Any, dtype: Any) -> Any:
    rows = begin(host, x, axis, where, temperature) if dtype == x.dtype else None
    if rows is None:
        return NotImplemented
    y = answer(rows)
    rows.run(getattr(_kernels, kernel), host.threads())
    return host.back(y, dtype)


def sparse_rows(host: Host, x: Any, alpha: float, axis: Any, where: Any, temperature: Any) -> Any:
    rows = begin(host, x, axis, where, temperature)
    if rows is None or not rows.whole():
        return None
    rows.f[_memory.ALPHA] = alpha
    return rows


def _entmax(
    host: Host, x: Any, *, alpha: Any, axis: Any, where: Any = None, temperature: Any = 1.0, dtype: Any, compute: Any
) -> Any:
    if not isinstance(alpha, float):
        return NotImplemented
    if alpha == 1.0:
        return _map(host, "softmax", x, axis, where, temperature, dtype)
    wide = dtype != x.dtype
    rows = sparse_rows(host, x, alpha, axis, where, temperature) if not wide or dtype == host.double else None
    if rows is None:
        return NotImplemented
    y = answer(rows, wide)
    rows.run(_kernels.entmax, host.threads(), split=False)
    return host.back(y, dtype)


def states(rows: Rows, threads: int) -> tuple[Any, Any]:
    """m and r of each row, size 1 along its axes."""
    m, r = rows.vector(_memory.OUT_M), rows.vector(_memory.OUT_R)
    rows.run(_kernels.row_states, threads)
    return m.reshape(rows.row_shape), r.reshape(rows.row_shape)


def _logsumexp(
    host: Host,
    x: Any,
    *,
    axis: Any,
    b: Any = None,
    where: Any = None,
    keepdims: bool,
    return_sign: bool = False,
    dtype: Any,
    compute: Any,
) -> Any:
    rows = begin(host, x, axis, where) if b is None and not return_sign and dtype == x.dtype else None
    if rows is None:
        return NotImplemented
    m, r = states(rows, host.threads())
    lse = m + np.log1p(r)
    return host.cast(lse if keepdims else F.drop(np, lse, axis), dtype)


def state(host: Host, x: Any, *, axis: Any, where: Any, compute: Any) -> Any:
    """(m, r) with `axis` of size 1, for a state that goes on: float32's r is float64, to its last bit."""
    rows = begin(host, x, axis, where)
    if rows is None:
        return NotImplemented
    if type(rows.kind) is np.float32:
        rows.kind = np.uint32(0)
    m, r = states(rows, host.threads())
    return host.cast(m, x.dtype), host.cast(r, compute)


def _pull_map(kernel: str) -> Callable[..., Any]:
    def pull(
        host: Host, ct: Any, y: Any, wanted: Any, x: Any, *, axis: Any, where: Any = None, temperature: Any = 1.0,
        dtype: Any, compute: Any,
    ) -> Any:  # fmt: skip
        if wanted != ("x",) or dtype != x.dtype:
            return NotImplemented
        rows = begin(host, x, axis, where, temperature)
        if rows is None or not rows.whole() or not companion(rows, host, _memory.V, ct):
            return NotImplemented
        if kernel == "softmax_pullback" and rows.kind.itemsize > 2 and not companion(rows, host, _memory.P, y):
            return NotImplemented
        gradient = answer(rows)
        rows.run(getattr(_kernels, kernel), host.threads(), split=False)
        return {"x": host.back(gradient, x.dtype)}

    return pull


def _pull_entmax(
    host: Host, ct: Any, y: Any, wanted: Any, x: Any, *, alpha: Any, axis: Any, where: Any = None, temperature: Any = 1.0,
    dtype: Any, compute: Any,
) -> Any:  # fmt: skip
    if not isinstance(alpha, float):
        return NotImplemented
    if alpha == 1.0:
        how = dict(axis=axis, where=where, temperature=temperature, dtype=dtype, compute=compute)
        return PULLBACK["softmax"](host, ct, y, wanted, x, **how)
    rows = None
    if wanted == ("x",) and dtype == x.dtype:
        rows = sparse_rows(host, x, alpha, axis, where, temperature)
    if rows is None or not companion(rows, host, _memory.V, ct):
        return NotImplemented
    if rows.kind.itemsize > 2 and not companion(rows, host, _memory.P, y):
        return NotImplemented
    gradient = answer(rows)
    rows.run(_kernels.entmax_pullback, host.threads(), split=False)
    return {"x": host.back(gradient, x.dtype)}


def _pull_logsumexp(
    host: Host, ct: Any, y: Any, wanted: Any, x: Any, *, axis: Any, where: Any = None, keepdims: bool, b: Any = None,
    return_sign: bool = False, dtype: Any, compute: Any,
) -> Any:  # fmt: skip
    if wanted != ("x",) or b is not None or dtype != x.dtype:
        return NotImplemented
    rows = begin(host, x, axis, where)
    if rows is None or host.raw(ct) is None:
        return NotImplemented
    ct = host.numbers(ct)
    rows.vector(_memory.FACTOR, ct if keepdims else F.keep(np, ct, axis))
    gradient = answer(rows)
    rows.run(_kernels.softmax, host.threads())
    return {"x": host.back(gradient, x.dtype)}


# --- losses: a kernel gives each row's; what the rows come to is the formula's -------------------------------------------


class Loss:
    """One call of cross_entropy, or of entmax_loss: its rows, and the formula's `Targets` for them."""

    def __init__(self, host: Host, rows: Rows, targets: L.Targets, how: dict[str, Any], kernel: Any) -> None:
        self.host, self.rows, self.t, self.how, self.kernel = host, rows, targets, how, kernel

    @classmethod
    def begin(
        cls, host: Host, x: Any, labels: Any, *, axis: Any, classes: Any, where: Any, temperature: Any,
        label_smoothing: float, class_weight: Any = None, sample_weight: Any, ignore_index: Any, z_loss: float = 0.0,
        softcap: Any = None, alpha: Any = None, reduction: str, normalizer: Any, dtype: Any, compute: Any,
    ) -> Any:  # fmt: skip
        soft = classes is None or label_smoothing != 0
        sparse = alpha is not None  # a loss of entmax's: by a number, of integer labels alone
        if dtype != x.dtype or (sparse and (soft or not isinstance(alpha, float))):
            return None
        if sparse and alpha != 1.0:
            rows, kernel = sparse_rows(host, x, alpha, axis, where, temperature), "entmax_loss"
        else:
            rows = begin(host, x, axis, where, temperature)
            kernel = "soft_cross_entropy" if soft else "cross_entropy"
        given = [
            a for a in (labels, class_weight, sample_weight, normalizer) if a is not None and not isinstance(a, float)
        ]
        if rows is None or (soft and not rows.whole()) or any(host.raw(a) is None for a in given):
            return None
        rows.f[_memory.CAP], rows.f[_memory.SMOOTHING], rows.f[_memory.Z_LOSS] = (
            softcap or 0.0,
            label_smoothing,
            z_loss,
        )
        w = (
            None
            if class_weight is None
            else rows.hold(_memory.CLASS_WEIGHT, np.ascontiguousarray(host.numbers(class_weight).reshape(-1)))
        )
        ignored = None
        if classes is None:
            if not companion(rows, host, _memory.V, labels):
                return None
            weight = rows.vector(_memory.OUT_M)
            rows.run(_kernels.row_weights, host.threads(), split=False)
            weight, label = weight.reshape(rows.row_shape), np.zeros(1, np.int64)
        else:
            label = host.raw(labels)
            hits = None if ignore_index is None else label == ignore_index
            if hits is not None and hits.any():
                ignored, label = hits, np.where(hits, 0, label)
            if label.size and not 0 <= label.min() <= label.max() < rows.n:
                return None  # they were checked, and changed since
            weight = np.ones((1,) * label.ndim) if w is None else w[label]
        s = None if sample_weight is None else host.numbers(sample_weight)
        weightless = weight == 0 if ignored is None else (weight == 0) | ignored
        dropped = weightless if s is None else weightless | (s == 0)
        rows.vector(_memory.LABEL, np.where(dropped, -1, label) if dropped.any() else label, np.int64)
        if not isinstance(normalizer, (float, type(None))):
            normalizer = host.numbers(normalizer)
        targets = L.Targets(None, None, w, None, weight, s, None, weightless, dropped)
        how = dict(normalizer=normalizer, reduction=reduction, axis=axis)
        return cls(host, rows, targets, how, getattr(_kernels, kernel))

    def losses(self, factor: Any = None) -> tuple[Any, Any]:
        """All rows' losses; with `factor`, one for each row, their gradient too."""
        rows, loss, gradient = self.rows, self.rows.vector(_memory.LOSS), None
        if factor is not None:
            rows.vector(_memory.FACTOR, factor)
            gradient = answer(rows)
        rows.run(self.kernel, self.host.threads(), split=self.kernel is _kernels.cross_entropy)
        return loss.reshape(rows.row_shape), gradient

    def reduced(self, loss: Any) -> tuple[Any, Any, Any]:
        return L.reduce_rows(XP, self.t, loss, **self.how)

    def with_gradient(self, ct: Any) -> tuple[Any, Any]:
        """All rows' losses, and the gradient of ct · what they are reduced to, in one sweep."""
        t, norm = self.t, None
        if self.how["reduction"] == "mean":
            norm = L.denominator(XP, t, self.how["normalizer"], np.zeros(self.rows.row_shape))
            if not norm.all():  # the mean of nothing, or infinite
                norm = self.reduced(self.losses()[0])[2]
        alpha = L.row_cotangent(np, ct, norm, self.how["reduction"], self.how["axis"])
        return self.losses(alpha if t.s is None else alpha * t.s)


def _loss(host: Host, x: Any, labels: Any, **options: Any) -> Any:
    loss = Loss.begin(host, x, labels, **options)
    if loss is None:
        return NotImplemented
    return host.cast(loss.reduced(loss.losses()[0])[0], options["dtype"])


def _pull_loss(host: Host, ct: Any, y: Any, wanted: Any, x: Any, labels: Any, **options: Any) -> Any:
    loss = Loss.begin(host, x, labels, **options) if wanted == ("x",) and host.raw(ct) is not None else None
    if loss is None:
        return NotImplemented
    return {"x": host.back(loss.with_gradient(host.numbers(ct))[1], x.dtype)}


def _sweep_loss(host: Host, x: Any, labels: Any, **options: Any) -> Any:
    """The value, one number, and its gradient by the logits."""
    loss = Loss.begin(host, x, labels, **options) if options["reduction"] != "none" else None
    if loss is None:
        return NotImplemented
    losses, gradient = loss.with_gradient(np.asarray(1.0))
    return host.cast(loss.reduced(losses)[0], options["dtype"]), host.back(gradient, x.dtype)


_LOSSES = "cross_entropy", "sparsemax_loss", "entmax_loss"
FORWARD = {
    "softmax": _softmax, "log_softmax": _log_softmax, "logsumexp": quiet(_logsumexp), "sparsemax": quiet(_entmax),
    "entmax": quiet(_entmax), **dict.fromkeys(_LOSSES, quiet(_loss)),
}  # fmt: skip
PULLBACK = {
    "softmax": quiet(_pull_map("softmax_pullback")),
    "log_softmax": quiet(_pull_map("log_softmax_pullback")),
    "logsumexp": quiet(_pull_logsumexp),
    "sparsemax": quiet(_pull_entmax),
    "entmax": quiet(_pull_entmax),
    **dict.fromkeys(_LOSSES, quiet(_pull_loss)),
}
SWEEP = dict.fromkeys(_LOSSES, quiet(_sweep_loss))
