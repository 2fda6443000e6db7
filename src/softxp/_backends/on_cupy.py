"""cupy: the formula on CUDA, in the dtype's own width; sums on a GPU are trees already."""

from typing import Any

import cupy as cp
from array_api_compat import cupy

from . import Backend, numpy_uniform
from ._namespace import careful

compat: Any = cupy


def _put(value: Any, like: Any) -> Any:
    with like.device:
        return cp.asarray(value)


def _arange(n: int, dtype: Any, like: Any) -> Any:
    with like.device:
        return cp.arange(n, dtype=dtype)


def _uniform(rng: Any, shape: tuple, dtype: Any, like: Any) -> Any:
    with like.device:
        if isinstance(rng, cp.random.Generator):
            return rng.random(shape, dtype=dtype)
        if isinstance(rng, cp.random.RandomState):
            return rng.random_sample(shape, dtype=dtype)
    return numpy_uniform(_put, compat, rng, shape, dtype, like)


BACKEND = Backend(
    name="cupy",
    xp=careful(compat, sum=compat.sum),
    device=lambda x: x.device,
    put=_put,
    uniform=_uniform,
    arange=_arange,
    default_float=lambda like: cp.dtype("float64"),
    default_int=lambda like: cp.dtype("int64"),
)
