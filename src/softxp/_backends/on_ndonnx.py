"""ndonnx: the formula as an ONNX graph. ONNX has no log1p or expm1, and the plain ones round small arguments away."""

from functools import partial
from typing import Any

import ndonnx as ndx

from . import Backend, numpy_uniform
from ._namespace import careful, expm1, log1p


def _like_slice(y: Any, x: Any, k: int) -> Any:
    """y, sorted, whose sizes ONNX has forgotten, with those of x; its first k."""
    return (y + ndx.zeros_like(x, dtype=y.dtype))[..., :k]


XP = careful(
    ndx,
    log1p=partial(log1p, ndx),
    expm1=partial(expm1, ndx),
    # TopK answers with the lower index first where entries are equal
    largest=lambda x, k: _like_slice(ndx.sort(x, axis=-1, descending=True), x, k),
    largest_at=lambda x, k: _like_slice(ndx.argsort(x, axis=-1, descending=True), x, k),
)
del XP.sort  # it wants sizes that are known already


def _uniform(rng: Any, shape: tuple, dtype: Any, like: Any) -> Any:
    try:
        like.unwrap_numpy()
    except ValueError:
        return NotImplemented  # numpy would draw once, into the graph
    return numpy_uniform(_put, ndx, rng, shape, dtype, like)


def _put(value: Any, like: Any) -> Any:
    return ndx.asarray(value)


BACKEND = Backend(
    name="ndonnx",
    xp=XP,
    double=lambda x: True,
    road="formula as an ONNX graph",
    put=_put,
    uniform=_uniform,
    arange=lambda n, dtype, like: ndx.arange(n, dtype=dtype),
    default_float=lambda like: ndx.float64,
    default_int=lambda like: ndx.int64,
)
