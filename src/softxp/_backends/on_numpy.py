"""numpy on the host, quiet whatever the caller's error state: row kernels with Numba, the formula otherwise; ml_dtypes'
bfloat16 included.
"""

from collections.abc import Callable
from ctypes import addressof, c_char
from functools import partial
from typing import Any

import numpy as np

from .._op import OPS, Op
from . import Backend, _rows
from ._numpy import XP, in_row_blocks, quiet, tiled
from ._numpy import add as _add
from ._numpy import maximum as _maximum

_f16, _f32, _f64, _ndarray = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64), np.ndarray


# dtype -> dtype of its memory, for the kernels
_AS: dict[Any, Any] = {_f32: _f32, _f64: _f64, _f16: np.dtype(np.uint16)}


def _raw(a: Any) -> Any:
    a = np.asarray(a)
    memory = _AS.get(a.dtype)
    if memory is None:
        memory = _AS[a.dtype] = np.dtype(np.int16) if a.dtype.name == "bfloat16" else a.dtype
    if not memory.isnative or not a.flags.aligned:
        return None
    return a if memory is a.dtype else a.view(memory)


HOST = _rows.Host(
    raw=_raw,
    back=lambda a, dtype: a.view(dtype),
    numbers=lambda a: np.asarray(a).astype(np.float64),
    cast=lambda a, dtype: np.asarray(a).astype(dtype),
    double=_f64,
)


def _lift(op: Op, _: Any) -> Callable[[dict[str, Any]], Any]:
    forward, rows = op.forward, _rows.FORWARD.get(op.name)

    def serve(values: dict[str, Any]) -> Any:
        y = NotImplemented if rows is None else rows(HOST, **values)
        if y is NotImplemented:
            y = tiled(op, values)
        return forward(XP, **values) if y is NotImplemented else y

    return serve


# --- softmax of a few short rows that lie contiguous: what a call costs is what it costs here --------------------------

_kinds = {dtype: _rows.KINDS[_AS[dtype]] for dtype in (_f32, _f64, _f16)}


def _softmax(x: Any, axis: Any, where: Any, temperature: Any, dtype: Any) -> Any:
    """row kernel, or five passes (a few short rows)"""
    if (
        where is not None
        or dtype is not None
        or temperature.__class__ is not float
        or temperature != 1.0
        or x.__class__ is not _ndarray
        or axis.__class__ is not int
    ):
        return NotImplemented
    shape, kind, size = x.shape, _kinds.get(x.dtype), x.size
    if kind is None or not shape or not size or (axis != -1 and axis != len(shape) - 1):
        return NotImplemented
    kernels, n, flags = _rows.kernels(), shape[-1], x.flags
    if not flags.c_contiguous or not flags.aligned:
        return NotImplemented
    if not kernels:
        return NotImplemented if x.dtype is _f16 else in_row_blocks(_five_passes, x)
    if n > kernels.TILE or size > _rows.SHORT:
        return NotImplemented
    y: Any = np.empty(shape, x.dtype)
    if flags.writeable:
        start = addressof(c_char.from_buffer(x))
    else:
        start = x.ctypes.data
    kernels.short_softmax(kind, start, addressof(c_char.from_buffer(y)), size // n, n)
    return y


_SHORT = 64


@quiet
def _five_passes(x: Any) -> Any:
    """Without Numba. Rows of up to _SHORT numbers, where the calls cost more than the arithmetic, and float64 keep softmax's
    promise of 8 + |d| ulp; longer float32 rows are widened and rounded once.
    """
    wide = x.astype(_f64) if x.dtype is _f32 and x.shape[-1] > _SHORT else x
    y = np.subtract(wide, _maximum(wide, -1, None, None, True))
    np.exp(y, y)
    np.divide(y, _add(y, -1, None, None, True), y)
    y = y.astype(x.dtype, copy=False)
    # a row with an infinity, or with nothing in it, is NaN throughout: its first number tells, and the formula serves it
    first = y[..., 0]
    if not _add(first, None) < np.inf:
        bad = np.isnan(first)
        rows = x[bad]
        y[bad] = OPS["softmax"].forward(XP, rows, axis=(rows.ndim - 1,), dtype=x.dtype, compute=np.float64)
    return y


BACKEND = Backend(
    name="numpy",
    xp=XP,
    lift=_lift,
    kernels={"softmax": _softmax},
    pullbacks={name: partial(pull, HOST) for name, pull in _rows.PULLBACK.items()},
    rows=lambda x: True,
    sweeps={name: partial(sweep, HOST) for name, sweep in _rows.SWEEP.items()},
    state=partial(_rows.state, HOST),
    road="formula, of large arrays in tiles",
    roads=dict.fromkeys(_rows.FORWARD, "row kernels with Numba"),
    double=lambda x: True,
    look=lambda of, x: bool(np.any(of(x))),
    adopt=np.asarray,
    put=lambda value, like: np.asarray(value),
    arange=lambda n, dtype, like: np.arange(n, dtype=dtype),
    default_float=lambda like: _f64,
    default_int=lambda like: np.dtype(np.int64),
    guard=quiet,
)

XP.call = lambda name, **values: BACKEND.lifted[name](values)
XP.swept = lambda name, **values: BACKEND.sweeps[name](**values)
