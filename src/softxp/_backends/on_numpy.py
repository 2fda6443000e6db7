"""numpy: the formula on the host, quiet whatever the caller's error state; ml_dtypes' bfloat16 included."""

from typing import Any

import numpy as np
from array_api_compat import numpy as compat

from . import Backend
from ._namespace import blocked, careful

_maximum: Any = np.maximum.reduce
_add: Any = np.add.reduce
_in_blocks = blocked(_add, np.reshape)


def total(x: Any, *, axis: Any, keepdims: bool = False) -> Any:
    """numpy adds pairwise along the axis that lies contiguous, one by one along any other."""
    if not isinstance(axis, tuple):
        axis = (axis,)
    if len(axis) == 1 and (x.strides[axis[0]] == x.itemsize or x.shape[axis[0]] <= 8):
        return _add(x, axis[0], None, None, keepdims)
    return _in_blocks(x, axis=axis, keepdims=keepdims)


XP = careful(
    compat,
    sum=total,
    max=lambda x, *, axis, keepdims: _maximum(x, axis, None, None, keepdims),
    astype=lambda x, dtype: np.asarray(x).astype(dtype, copy=False),
)
quiet = np.errstate(all="ignore")

# --- softmax of rows that lie contiguous -----------------------------------------------------------------------------
# Five passes and no more. Rows of up to _SHORT numbers, where the calls cost more than the arithmetic, and float64 keep
# softmax's promise of 8 + |d| ulp; longer float32 rows are widened and rounded once.

_SHORT = 64
_subtract, _exp, _divide = np.subtract, np.exp, np.divide
_f32, _f64, _ndarray = np.dtype(np.float32), np.dtype(np.float64), np.ndarray


@quiet
def _softmax(x: Any, axis: Any, where: Any, temperature: Any, dtype: Any) -> Any:
    """five passes (contiguous plain rows)"""
    if (
        where is not None
        or dtype is not None
        or temperature.__class__ is not float
        or temperature != 1.0
        or x.__class__ is not _ndarray
        or axis.__class__ is not int
    ):
        return NotImplemented
    shape, kind = x.shape, x.dtype
    if not shape or not shape[-1] or (axis != -1 and axis != len(shape) - 1):
        return NotImplemented
    scratch = narrow = None
    if kind is _f32:
        if shape[-1] > _SHORT:
            x, narrow = x.astype(_f64), kind
            scratch = x
    elif kind is not _f64:
        return NotImplemented
    # a row with an infinity, or with nothing in it, is NaN throughout: its first entry tells, and the formula serves it
    if len(shape) == 1:
        y = _subtract(x, _maximum(x), scratch)
        _exp(y, y)
        _divide(y, _add(y), y)
        first = y.item(0)
    elif x.strides[-1] == x.itemsize and x.size:
        y = _subtract(x, _maximum(x, -1, None, None, True), scratch)
        _exp(y, y)
        _divide(y, _add(y, -1, None, None, True), y)
        first = _add(y[..., 0], None)
    else:
        return NotImplemented
    if first != first:
        return NotImplemented
    return y if narrow is None else y.astype(narrow)


BACKEND = Backend(
    name="numpy",
    xp=XP,
    kernels={"softmax": _softmax},
    double=lambda x: True,
    look=lambda condition: bool(np.any(condition)),
    adopt=np.asarray,
    put=lambda value, like: np.asarray(value),
    arange=lambda n, dtype, like: np.arange(n, dtype=dtype),
    default_float=lambda like: _f64,
    default_int=lambda like: np.dtype(np.int64),
    guard=quiet,
)
