"""ndonnx: the formula as an ONNX graph. ONNX has no log1p or expm1, and the plain ones round small arguments away."""

from typing import Any

import ndonnx as ndx

from . import Backend
from ._namespace import careful


def log1p(x: Any) -> Any:
    """log(1 + x), by the rounding error of 1 + x (Goldberg 1991, doi:10.1145/103162.103163, theorem 4)."""
    u = 1 + x
    same = (u == 1) | (u == float("inf"))
    log = ndx.log(ndx.where(same, ndx.ones_like(u), u))
    return ndx.where(same, x, log * (x / ndx.where(same, ndx.ones_like(u), u - 1)))


def expm1(x: Any) -> Any:
    """exp(x) - 1, by the rounding error of exp(x) (Higham 2002, Accuracy and Stability, section 1.14.1)."""
    u = ndx.exp(x)
    v = u - 1
    near = (u == 1) | (v == -1) | (u == float("inf"))
    log = ndx.log(ndx.where(near, ndx.full_like(u, 2.0), u))
    return ndx.where(u == 1, x, ndx.where(near, v, v * (x / log)))


XP = careful(ndx, log1p=log1p, expm1=expm1)

BACKEND = Backend(
    name="ndonnx",
    xp=XP,
    double=lambda x: True,
    road="formula as an ONNX graph",
    put=lambda value, like: ndx.asarray(value),
    arange=lambda n, dtype, like: ndx.arange(n, dtype=dtype),
    default_float=lambda like: ndx.float64,
    default_int=lambda like: ndx.int64,
)
