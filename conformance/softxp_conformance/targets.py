"""The libraries under test, one record each, and how to speak to them.

A stranger's library needs no more than the first five fields: `Target("theirs", module="theirs", asarray=..., asnumpy=...,
dtypes=...)`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

import softxp

ALL = ("float16", "float32", "float64")


def numpy_dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _own_vjp(fn: Any, arrays: Any, options: Any, ct: Any) -> Any:
    return softxp.vjp(fn, *arrays, **options)[1](ct)[0]


def _own_jvp(fn: Any, arrays: Any, options: Any, tangent: Any) -> Any:
    return softxp.jvp(fn, tuple(arrays), (tangent, *[None] * (len(arrays) - 1)), **options)[1]


def _call(fn: Any, arrays: Any, options: Any) -> Any:
    return fn(*arrays, **options)


@dataclass(frozen=True)
class Target:
    """One library, on one device, used in one way."""

    name: str
    module: str  # what must import for the target to run
    asarray: Callable[[Any], Any] = np.asarray  # a numpy array, in its dtype -> an array of the library
    asnumpy: Callable[[Any], Any] = np.asarray
    dtypes: tuple[str, ...] = ALL
    call: Callable[[Any, Any, Any], Any] = _call  # (function, arrays, options) -> answer
    vjp: Callable[[Any, Any, Any, Any], Any] = _own_vjp  # (function, arrays, options, cotangent) -> by the first array
    jvp: Callable[[Any, Any, Any, Any], Any] = _own_jvp  # (function, arrays, options, tangent of the first array)
    context: Callable[[str], AbstractContextManager[Any]] = lambda dtype: nullcontext()
    second: Callable[[str, str, bool], bool] = lambda name, dtype, long: False  # the second bounds hold here too
    raises: bool = False  # labels can be read, so that one out of range is an IndexError
    flushes: bool = False  # the library turns subnormal numbers into 0
    autograd: bool = False  # derivatives come from the library's autograd, not from softxp.vjp and jvp
    only: tuple[str, ...] = ()  # patterns of the tests to run; empty: all
    xfail: dict[str, str] = field(default_factory=dict)  # part of a test id -> reason, link

    def give(self, value: Any, dtype: str) -> Any:
        """A numpy value as the library's: floats in the dtype under test."""
        if isinstance(value, np.ndarray):
            return self.asarray(value.astype(numpy_dtype(dtype)) if value.dtype.kind == "f" else value)
        return value

    def options(self, options: dict[str, Any], dtype: str) -> dict[str, Any]:
        return {k: self.give(v, dtype) for k, v in options.items()}

    def take(self, value: Any) -> Any:
        """An answer as float64."""
        return np.asarray(self.asnumpy(value)).astype(np.float64)


def _wider(name: str, dtype: str, long: bool) -> bool:
    """Arithmetic one step wider, or compensated; but softmax's derivative starts from its rounded answer."""
    return not (name == "softmax gradient" and dtype in ("float32", "float64"))


# --- numpy -----------------------------------------------------------------------------------------------------------


def _read_only(a: Any) -> Any:
    a = np.array(a)
    a.flags.writeable = False
    return a


def _numpy_second(name: str, dtype: str, long: bool) -> bool:
    # softmax of short rows and of float64 takes five plain passes
    return _wider(name, dtype, long) and not (
        name == "softmax" and (dtype == "float64" or (dtype == "float32" and not long))
    )


# --- torch -----------------------------------------------------------------------------------------------------------


def _torch_from(device: str) -> Callable[[Any], Any]:
    def from_numpy(a: Any) -> Any:
        import torch

        if a.dtype.name == "bfloat16":
            return torch.from_numpy(a.astype(np.float32)).to(torch.bfloat16).to(device)
        return torch.from_numpy(np.array(a)).to(device)

    return from_numpy


def _torch_to(t: Any) -> Any:
    import torch

    t = t.detach().cpu()
    return (t.float() if t.dtype is torch.bfloat16 else t).numpy()


def _torch_vjp(fn: Any, arrays: Any, options: Any, ct: Any) -> Any:
    import torch

    x = arrays[0].detach().clone().requires_grad_()
    y = fn(x, *arrays[1:], **options)
    return torch.autograd.grad(y[0] if isinstance(y, tuple) else y, x, ct)[0]


def _torch_jvp(fn: Any, arrays: Any, options: Any, tangent: Any) -> Any:
    import torch

    def f(x: Any) -> Any:
        y = fn(x, *arrays[1:], **options)
        return y[0] if isinstance(y, tuple) else y

    return torch.func.jvp(f, (arrays[0],), (tangent,))[1]


def _torch_second(name: str, dtype: str, long: bool) -> bool:
    # the native softmax serves short rows
    return _wider(name, dtype, long) and not (name == "softmax" and not long and dtype in ("float32", "float64"))


def _compiled(fn: Any, arrays: Any, options: Any) -> Any:
    import torch

    torch._dynamo.reset()
    return torch.compile(lambda *a: fn(*a, **options), fullgraph=True)(*arrays)


def _compiled_vjp(fn: Any, arrays: Any, options: Any, ct: Any) -> Any:
    import torch

    torch._dynamo.reset()
    x = arrays[0].detach().clone().requires_grad_()
    y = torch.compile(lambda *a: fn(*a, **options), fullgraph=True)(x, *arrays[1:])
    return torch.autograd.grad(y[0] if isinstance(y, tuple) else y, x, ct)[0]


# --- JAX -------------------------------------------------------------------------------------------------------------


def _jax_context(dtype: str) -> Any:
    jax = _module("jax")
    switch = jax.enable_x64 if hasattr(jax, "enable_x64") else _module("jax.experimental").enable_x64  # before jax 0.8
    return switch(dtype == "float64")


def _jax_from(a: Any) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(a)


def _first(fn: Any, arrays: Any, options: Any) -> Any:
    def f(x: Any) -> Any:
        y = fn(x, *arrays[1:], **options)
        return y[0] if isinstance(y, tuple) else y

    return f


def _jax_vjp(fn: Any, arrays: Any, options: Any, ct: Any) -> Any:
    import jax

    return jax.vjp(_first(fn, arrays, options), arrays[0])[1](ct)[0]


def _jax_jvp(fn: Any, arrays: Any, options: Any, tangent: Any) -> Any:
    import jax

    return jax.jvp(_first(fn, arrays, options), (arrays[0],), (tangent,))[1]


def _jitted(fn: Any, arrays: Any, options: Any) -> Any:
    import jax

    return jax.jit(lambda *a: fn(*a, **options))(*arrays)


def _jitted_vjp(fn: Any, arrays: Any, options: Any, ct: Any) -> Any:
    import jax

    return jax.jit(lambda x, c: jax.vjp(_first(fn, arrays, options), x)[1](c)[0])(arrays[0], ct)


def _jitted_jvp(fn: Any, arrays: Any, options: Any, tangent: Any) -> Any:
    import jax

    return jax.jit(lambda x, t: _jax_jvp(fn, (x, *arrays[1:]), options, t))(arrays[0], tangent)


# --- Dask ------------------------------------------------------------------------------------------------------------


def _dask_from(a: Any) -> Any:
    return _module("dask.array").from_array(a, chunks=tuple(max(1, -(-n // 3)) for n in a.shape))


def _dask_compute(a: Any) -> Any:
    with np.errstate(all="ignore"):  # Dask computes later, under the error state of that moment
        return a.compute(scheduler="synchronous")


def _lazily(act: Callable[..., Any]) -> Callable[..., Any]:
    """The call may build a graph and compute nothing of it."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a lazy array was computed")

    def run(*args: Any) -> Any:
        with _module("dask").config.set(scheduler=refuse):
            return act(*args)

    return run


# --- others ----------------------------------------------------------------------------------------------------------


def _module(name: str) -> Any:
    return import_module(name)


def _strict(device: str) -> Callable[[Any], Any]:
    def asarray(a: Any) -> Any:
        xp = _module("array_api_strict")
        if device == "no_x64":
            a = a.astype({"int64": np.int32}.get(a.dtype.name, a.dtype))
        return xp.asarray(a, device=xp.Device(device))

    return asarray


def _cupy_from(a: Any) -> Any:
    return _module("cupy").asarray(a)


TARGETS = {
    t.name: t
    for t in (
        Target("numpy", "numpy", second=_numpy_second, raises=True),
        Target(
            "numpy-read-only",
            "numpy",
            asarray=_read_only,
            second=_numpy_second,
            raises=True,
            only=("plain", "contract"),
        ),
        Target("numpy-bfloat16", "ml_dtypes", dtypes=("bfloat16",), second=_numpy_second, raises=True),
        Target(
            "array-api-strict",
            "array_api_strict",
            asarray=_strict("CPU_DEVICE"),
            asnumpy=lambda a: a._array,
            dtypes=("float32", "float64"),
            second=_wider,
            raises=True,
        ),
        Target(
            "array-api-strict-32",  # a device without 64-bit numbers
            "array_api_strict",
            asarray=_strict("no_x64"),
            asnumpy=lambda a: a._array,
            dtypes=("float32",),
            raises=True,
        ),
        Target(
            "torch",
            "torch",
            asarray=_torch_from("cpu"),
            asnumpy=_torch_to,
            dtypes=("float16", "bfloat16", "float32", "float64"),
            vjp=_torch_vjp,
            jvp=_torch_jvp,
            second=_torch_second,
            raises=True,
            autograd=True,
        ),
        Target(
            "torch-compiled",
            "torch",
            asarray=_torch_from("cpu"),
            asnumpy=_torch_to,
            dtypes=("bfloat16", "float32", "float64"),
            call=_compiled,
            vjp=_compiled_vjp,
            autograd=True,
            # a kernel is compiled for each test: some seconds
            only=(
                r"test_rows.*float32-\w+-(plain|T per row|integers, mean)",
                r"test_rows.*(bfloat16|float64)-(softmax|log_softmax)-plain",
                r"test_vjp.*float32-(softmax|log_softmax)-plain",
                r"test_vjp.*float32-.*integers, mean",
                "test_confident.*float32",
            ),
        ),
        Target(
            "torch-cuda",
            "torch",
            asarray=_torch_from("cuda"),
            asnumpy=_torch_to,
            dtypes=("float16", "bfloat16", "float32", "float64"),
            vjp=_torch_vjp,
            jvp=_torch_jvp,
            autograd=True,
        ),
        Target(
            "cupy",
            "cupy",
            asarray=_cupy_from,
            asnumpy=lambda a: _module("cupy").asnumpy(a),
        ),
        Target(
            "jax",
            "jax",
            asarray=_jax_from,
            dtypes=("float16", "bfloat16", "float32", "float64"),
            vjp=_jax_vjp,
            jvp=_jax_jvp,
            context=_jax_context,
            # XLA compiles each test, half a second or more: every value in every dtype, derivatives in the narrowest and
            # the widest, forward mode of every function
            only=(
                "test_rows",
                r"test_vjp.*(bfloat16|float64)-",
                r"test_vjp.*float32-.*(-plain|per row|masked)",
                r"test_jvp.*(bfloat16|float64)-.*(-plain|soft)\]",
                r"test_(axis|long).*(bfloat16|float64)",
                "test_confident",
                r"test_contract_.*(\[jax|bfloat16|float32)",
            ),
            flushes=True,
            autograd=True,
        ),
        Target(
            "jax-jitted",
            "jax",
            asarray=_jax_from,
            dtypes=("float16", "bfloat16", "float32", "float64"),
            call=_jitted,
            vjp=_jitted_vjp,
            jvp=_jitted_jvp,
            context=_jax_context,
            only=(r"test_(rows|vjp|jvp).*(bfloat16|float32)-.*(-plain|per row|masked|mean)\]", "test_confident"),
            flushes=True,
            autograd=True,
        ),
        Target(
            "dask",
            "dask.array",
            asarray=_dask_from,
            asnumpy=_dask_compute,
            # graphs of thousands of tasks: one narrow and one wide dtype, and forward mode of every function
            only=(
                r"test_(rows|axis|vjp|long).*(float32|float64)-(?!logcumsumexp)",
                r"test_rows.*float16-.*plain",
                r"test_(rows|vjp).*float32-logcumsumexp",
                r"test_jvp.*float32-.*(-plain|soft)\]",
                "contract",
            ),
            call=_lazily(_call),
            vjp=_lazily(_own_vjp),
            jvp=_lazily(_own_jvp),
            second=_wider,
        ),
        Target(
            "ndonnx",
            "ndonnx",
            asarray=lambda a: _module("ndonnx").asarray(a),
            asnumpy=lambda a: a.unwrap_numpy(),
            # its eager arrays run each operation as a graph of its own; what it is for is exported in tests/test_onnx.py
            only=(
                r"test_rows.*-(softmax|log_softmax|logsumexp)-(plain|T per row)",
                r"test_rows.*integers(, masked)?\]",
                r"test_vjp.*float32-(softmax|logsumexp)-plain",
                r"test_contract_(label|unsigned|errors|bool|int)",
            ),
            second=_wider,
        ),
    )
}
