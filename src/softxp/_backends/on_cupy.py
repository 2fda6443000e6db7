"""cupy: row kernels by NVRTC, once they are turned on; otherwise the formula, in the dtype's own width. Sums on a GPU are
trees already.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import cupy as cp
from array_api_compat import cupy

from .._op import Op
from . import Backend, _cuda, _warm, numpy_uniform
from ._namespace import careful

compat: Any = cupy


def _put(value: Any, like: Any) -> Any:
    with like.device:
        # (a number is filled in there, where a copy from the host would be waited for)
        return cp.full((), value) if isinstance(value, (int, float)) else cp.asarray(value)


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


XP = careful(compat, sum=compat.sum, least_rows=_cuda.least_rows)

# --- arrays as the CUDA kernels see them --------------------------------------------------------------------------------
# cupy's own RawModule would do without cuda.bindings. It would also be a second way to find NVRTC, to keep what was
# compiled, and to launch, with failures of its own. cupy works in the GPU's primary context, so one way serves both.

_here, _AMD = nullcontext(), bool(cp.cuda.runtime.is_hip)


def _guard(x: Any) -> Any:
    return _here if cp.cuda.runtime.getDevice() == x.device.id else x.device


DEVICE = _cuda.Device(
    xp=XP,
    kinds={  # an array has an instance for its dtype, a caller may give the class
        kind: name for name in ("float16", "float32", "float64") for kind in (cp.dtype(name), cp.dtype(name).type)
    },
    plain=lambda a: a.__class__ is cp.ndarray and not _AMD,
    gpu=lambda a: a.device.id,
    address=lambda a: a.data.ptr,
    steps=lambda a: tuple(step // a.itemsize for step in a.strides),
    like=lambda a, dtype: cp.empty_like(a, dtype=dtype),
    empty=lambda shape, dtype, like: cp.empty(shape, dtype=dtype),
    in_order=lambda a: a.flags.c_contiguous,
    together=cp.ascontiguousarray,
    stream=lambda gpu: cp.cuda.get_current_stream().ptr,
    guard=_guard,
)


def _lift(op: Op, _: Any) -> Callable[[dict[str, Any]], Any]:
    forward, rows = op.forward, _cuda.FORWARD.get(op.name)

    def serve(values: dict[str, Any]) -> Any:
        y = NotImplemented if rows is None else rows(DEVICE, **values)
        return forward(XP, **values) if y is NotImplemented else y

    return serve


BACKEND = Backend(
    name="cupy",
    xp=XP,
    lift=_lift,
    kernels=_cuda.kernels_of(DEVICE),
    pullbacks={name: partial(pull, DEVICE) for name, pull in _cuda.PULLBACK.items()},
    sweeps={name: partial(sweep, DEVICE) for name, sweep in _cuda.SWEEP.items()},
    state=lambda x, **how: _cuda.state(DEVICE, x=x, **how),
    rows=lambda x: _warm.cuda,
    serves=lambda name, x: _warm.cuda,
    roads=dict.fromkeys(_cuda.FORWARD, "row kernels by NVRTC where they are on"),
    device=lambda x: x.device,
    put=_put,
    uniform=_uniform,
    arange=_arange,
    default_float=lambda like: cp.dtype("float64"),
    default_int=lambda like: cp.dtype("int64"),
)

XP.call = lambda name, **values: BACKEND.lifted[name](values)
XP.swept = lambda name, **values: BACKEND.sweeps[name](**values)
