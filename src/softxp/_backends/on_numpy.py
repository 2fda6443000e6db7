"""numpy: the formula on the host, quiet whatever the caller's error state; ml_dtypes' bfloat16 included."""

from typing import Any

import numpy as np
from array_api_compat import numpy as compat

from .. import _formulas as F
from . import Backend
from ._namespace import blocked, careful

_in_blocks = blocked(np.add.reduce, np.reshape)


def total(x: Any, *, axis: Any, keepdims: bool = False) -> Any:
    """numpy adds pairwise along the axis that lies contiguous, one by one along any other."""
    if not isinstance(axis, tuple):
        axis = (axis,)
    if len(axis) == 1 and (x.strides[axis[0]] == x.itemsize or x.shape[axis[0]] <= 8):
        return np.add.reduce(x, axis[0], None, None, keepdims)
    return _in_blocks(x, axis=axis, keepdims=keepdims)


XP = careful(
    compat,
    sum=total,
    max=lambda x, *, axis, keepdims: np.maximum.reduce(x, axis, None, None, keepdims),
    astype=lambda x, dtype: np.asarray(x).astype(dtype, copy=False),
)
quiet = np.errstate(all="ignore")

_maximum, _add, _subtract, _exp, _divide = np.maximum.reduce, np.add.reduce, np.subtract, np.exp, np.divide
_f32, _f64, _ndarray = np.dtype(np.float32), np.dtype(np.float64), np.ndarray


@quiet
def _ratio(x: Any, axis: int) -> Any:
    m = _maximum(x, axis, None, None, True)
    d = _subtract(x, m)
    _exp(d, d)
    return _divide(d, _add(d, axis, None, None, True), d)


BACKEND = Backend(
    name="numpy",
    xp=XP,
    double=lambda x: True,
    look=lambda condition: bool(np.any(condition)),
    adopt=np.asarray,
    put=lambda value, like: np.asarray(value),
    arange=lambda n, dtype, like: np.arange(n, dtype=dtype),
    default_float=lambda: _f64,
    default_int=lambda: np.dtype(np.int64),
    guard=quiet,
)
