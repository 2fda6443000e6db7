"""The libraries under test, one record each, and how to speak to them.

A stranger's library needs no more than the first five fields: `Target("theirs", module="theirs", asarray=..., asnumpy=...,
dtypes=...)`; docs/conformance.md walks through it. A second device is a second Target: `dataclasses.replace`.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from threading import RLock
from typing import Any

import numpy as np

from .budgets import NARROW
from .ulp import FORMATS

ALL = ("float16", "float32", "float64")


def numpy_dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _call(fn: Any, arrays: Any, options: Any) -> Any:
    return fn(*arrays, **options)


def _first(fn: Any, arrays: Any, options: Any) -> Any:
    """The function of its first array alone, and of its answers the first: what is differentiated."""

    def f(x: Any) -> Any:
        y = fn(x, *arrays[1:], **options)
        return y[0] if isinstance(y, tuple) else y

    return f


@dataclass(frozen=True, eq=False)
class Target:
    """One library, on one device, used in one way."""

    name: str
    module: str  # what must import for the target to run
    asarray: Callable[[Any], Any] = np.asarray  # a numpy array, in its dtype -> an array of the library
    asnumpy: Callable[[Any], Any] = np.asarray
    dtypes: tuple[str, ...] = ALL
    device: str = "cpu"
    xfail: Mapping[str, str] = field(default_factory=dict)  # part of a test id -> reason, link; strict
    # part of a test id -> why it is not asked: what the library says of itself, such as bits that depend on the batch
    stated: Mapping[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()  # patterns of the tests to run; empty: all
    # the same, of functions that are asked little (Case.lean)
    lean: tuple[str, ...] = (
        r"test_rows\[.*-(plain|.*float(32|64)-)", r"test_vjp\[.*-float(32|64)-", r"test_jvp\[.*-float64-.*-plain-",
        r"test_composed\[", r"test_composed_vjp\[.*-float(32|64)-", r"test_composed_jvp\[.*-float64-",
        r"test_contract_(dtype_device|default_axis|traced_once).*-(float32-)?\w+$",
    )  # fmt: skip

    # how it is used
    call: Callable[[Any, Any, Any], Any] = _call  # (function, arrays, options) -> answer
    context: Callable[[str], AbstractContextManager[Any]] = nullcontext  # around each test, given its dtype
    ready: Callable[[], Any] = lambda: None  # raises where the library imports and its device is not there
    # the library's own autograd: (function, arrays, options, cotangent or tangent of the first array). With neither,
    # derivatives are those that the implementation brings
    vjp: Callable[[Any, Any, Any, Any], Any] | None = None
    jvp: Callable[[Any, Any, Any, Any], Any] | None = None
    # (function, calls: a list of arrays, options) -> how often the function was traced, compiled or exported for them
    traces: Callable[[Any, Sequence[Any], Any], int] | None = None
    export: Callable[[Any, Any, Any], Any] | None = None  # (function, arrays, options) -> answer of the exported graph

    # what is known of it
    raises: bool = False  # labels can be read, so that one out of range is an IndexError
    quiet: bool = False  # softxp's arithmetic is shielded from numpy's warnings here, so one is an error
    lazy: bool = False  # `call` fails where the function computes an array
    flushes: tuple[str, ...] = ()  # dtypes in which the library turns subnormal numbers into 0
    steps_back: bool = True  # a slice may have a negative step

    # how closely it is held: see budgets.py
    tight: bool = False  # to the budgets, beside the promise
    # (function, kind, dtype, long) -> is the arithmetic a step wider than the dtype, or compensated?
    wide: Callable[[str, str, str, bool], bool] = lambda function, kind, dtype, long: False

    def __post_init__(self) -> None:
        for name in ("dtypes", "only", "lean", "flushes"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(each, str) for each in value):
                raise TypeError(f"Target.{name} must be a tuple of strings, got {value!r}.")
        unknown = [d for d in (*self.dtypes, *self.flushes) if d not in FORMATS]
        if unknown or not self.dtypes:
            raise ValueError(f"Target.dtypes must be some of {', '.join(FORMATS)}, got {self.dtypes!r}.")
        for name in ("xfail", "stated"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(
                    f"Target.{name} must be a dict, part of a test's id to the reason, got {getattr(self, name)!r}."
                )
        for name in ("only", "lean"):
            for pattern in getattr(self, name):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(
                        f"Target.{name} must hold regular expressions, got {pattern!r}: {error}."
                    ) from error

    def arithmetic(self, function: str, kind: str, dtype: str, long: bool) -> str:
        """Which lines of the budgets the target is held to. 16 bits are added in 32 everywhere."""
        return "wide" if dtype in NARROW or self.wide(function, kind, dtype, long) else "working"

    def lost(self, form: str, kind: str, dtype: str) -> int:
        """What flushing costs an answer, in smallest normals: an entry of a map itself, any other some of its terms."""
        return 0 if dtype not in self.flushes else 1 if (form, kind) == ("map", "value") else 32


def _always(function: str, kind: str, dtype: str, long: bool) -> bool:
    return True


# --- numpy -----------------------------------------------------------------------------------------------------------


def _read_only(a: Any) -> Any:
    a = np.array(a)
    a.flags.writeable = False
    return a


_FORMULA, _formula_users = RLock(), 0


@contextmanager
def _without_kernels(dtype: str) -> Any:
    """softxp's formula alone, for as long as anybody asks for it; what others compute does not change."""
    global _formula_users
    softxp = _module("softxp")
    with _FORMULA:
        _formula_users += 1
        softxp.use_kernels(False)
    try:
        yield
    finally:
        with _FORMULA:
            _formula_users -= 1
            softxp.use_kernels(_formula_users == 0)


_KERNELS, _kernel_users = RLock(), 0


@contextmanager
def _heard() -> Any:
    """The kernels on, and the warnings meanwhile."""
    softxp = _module("softxp")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", RuntimeWarning)
        softxp.use_kernels(True, device="cuda")
        try:
            yield said
        finally:
            softxp.use_kernels(False, device="cuda")


@contextmanager
def _with_cuda_kernels(dtype: str) -> Any:
    """softxp's CUDA kernels, which are off until somebody asks for them. Where they do not work softxp warns once, and its
    formula serves: that would conform, so it is a failure here.
    """
    global _kernel_users
    with _KERNELS:
        _kernel_users += 1
        # (a test's own threads: the kernels are on, and stay on for the others)
        inside: Any = _heard() if _kernel_users == 1 else nullcontext(())
    try:
        with inside as said:
            yield
    finally:
        with _KERNELS:
            _kernel_users -= 1
    for each in said:
        if "CUDA kernels do not work" in str(each.message):
            raise AssertionError(f"the formula answered for the kernels: {each.message}")


def _but_float32(function: str, kind: str, dtype: str, long: bool) -> bool:
    """softxp's row kernels compute float32 in float32, its roundings carried along; forward derivatives have no kernel."""
    return dtype != "float32" or kind == "jvp"


def _but_short_softmax(function: str, kind: str, dtype: str, long: bool) -> bool:
    """Without kernels softmax of short rows takes plain passes, here and on torch."""
    return not (function == "softmax" and kind == "value" and not long)


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
    return torch.autograd.grad(_first(fn, arrays, options)(x), x, ct)[0]


def _torch_jvp(fn: Any, arrays: Any, options: Any, tangent: Any) -> Any:
    import torch

    return torch.func.jvp(_first(fn, arrays, options), (arrays[0],), (tangent,))[1]


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


def _torch_traces(fn: Any, calls: Any, options: Any) -> int:
    import torch

    count = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal count
        count += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda *a: fn(*a, **options), fullgraph=True, backend=backend)
    for arrays in calls:
        compiled(*arrays)
    return count


def _torch_export(fn: Any, arrays: Any, options: Any) -> Any:
    import torch

    class Whole(torch.nn.Module):
        def forward(self, *a: Any) -> Any:
            return fn(*a, **options)

    return torch.export.export(Whole(), tuple(arrays)).module()(*arrays)


def _torch_cuda() -> None:
    if not _module("torch").cuda.is_available():
        raise ImportError("torch sees no CUDA device")


# --- JAX -------------------------------------------------------------------------------------------------------------


def _jax_context(dtype: str) -> Any:
    jax = _module("jax")
    switch = jax.enable_x64 if hasattr(jax, "enable_x64") else _module("jax.experimental").enable_x64  # before jax 0.8
    return switch(dtype == "float64")


def _jax_from(a: Any) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(a)


def _jax_vjp(fn: Any, arrays: Any, options: Any, ct: Any) -> Any:
    import jax

    return jax.vjp(_first(fn, arrays, options), arrays[0])[1](ct)[0]


def _jax_jvp(fn: Any, arrays: Any, options: Any, tangent: Any) -> Any:
    import jax

    return jax.jvp(_first(fn, arrays, options), (arrays[0],), (tangent,))[1]


def _jitted(fn: Any, arrays: Any, options: Any) -> Any:
    import jax

    moving = [i for i, a in enumerate(arrays) if hasattr(a, "dtype")]  # a plain number stays what it is

    def traced(*given: Any) -> Any:
        return fn(*(given[moving.index(i)] if i in moving else a for i, a in enumerate(arrays)), **options)

    return jax.jit(traced)(*(arrays[i] for i in moving))


def _jitted_vjp(fn: Any, arrays: Any, options: Any, ct: Any) -> Any:
    import jax

    return jax.jit(lambda x, c: jax.vjp(_first(fn, arrays, options), x)[1](c)[0])(arrays[0], ct)


def _jitted_jvp(fn: Any, arrays: Any, options: Any, tangent: Any) -> Any:
    import jax

    return jax.jit(lambda x, t: _jax_jvp(fn, (x, *arrays[1:]), options, t))(arrays[0], tangent)


def _jax_traces(fn: Any, calls: Any, options: Any) -> int:
    import jax

    count = 0

    def counted(*arrays: Any) -> Any:
        nonlocal count
        count += 1
        return fn(*arrays, **options)

    jitted = jax.jit(counted)
    for arrays in calls:
        jitted(*arrays)
    return count


def _jax_export(fn: Any, arrays: Any, options: Any) -> Any:
    import jax
    from jax import export

    return export.export(jax.jit(lambda *a: fn(*a, **options)))(*arrays).call(*arrays)


# --- Dask ------------------------------------------------------------------------------------------------------------


def _dask_from(a: Any) -> Any:
    return _module("dask.array").from_array(a, chunks=tuple(max(1, -(-n // 3)) for n in a.shape))


def _dask_compute(a: Any) -> Any:
    with np.errstate(all="ignore"):  # Dask computes later, under the error state of that moment
        return a.compute(scheduler="synchronous")


_DASK = RLock()  # its settings are the process's, not the thread's


def _lazily(fn: Any, arrays: Any, options: Any) -> Any:
    """The call may build a graph and compute nothing of it."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a lazy array was computed")

    with _DASK, _module("dask").config.set(scheduler=refuse):
        return fn(*arrays, **options)


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


def _ndonnx_export(fn: Any, arrays: Any, options: Any) -> Any:
    """The answer of onnxruntime, from a graph whose first size is left open."""
    import ndonnx as ndx
    import onnxruntime

    names = [f"a{i}" for i in range(len(arrays))]
    open_arrays = [ndx.argument(shape=("rows", *a.unwrap_numpy().shape[1:]), dtype=a.dtype) for a in arrays]
    model = ndx.build(dict(zip(names, open_arrays, strict=True)), {"y": fn(*open_arrays, **options)})
    run = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    used = {each.name for each in run.get_inputs()}
    feeds = {n: a.unwrap_numpy() for n, a in zip(names, arrays, strict=True) if n in used}
    return ndx.asarray(np.asarray(run.run(None, feeds)[0]))


NOTHING = (r"^$",)  # of lean functions: they go the same road there as elsewhere, or take too long
NATIVE = {
    f"same_bits_in_a_batch[torch-formula-{dtype}-softmax-all]": "a batch that holds an infinity, or an empty row, goes by "
    "another road than torch's own softmax"
    for dtype in FORMATS
}
# the formula's sums are the same on these: one long row of each kind tells
ONE_LENGTH = (r"^(?!test_long)", r"test_long.*50257-normal", r"test_long.*(vjp|jvp)\]")
OPEN_SCAN = "the scan asks for sizes of slices, which a graph with an open batch does not know (spox 0.18)"

NUMPY = Target("numpy", "numpy", raises=True, quiet=True, tight=True, wide=_but_float32)
STRICT = Target(
    "array-api-strict",
    "array_api_strict",
    asarray=_strict("CPU_DEVICE"),
    asnumpy=lambda a: a._array,
    dtypes=("float32", "float64"),
    only=ONE_LENGTH,
    raises=True,
    quiet=True,
    tight=True,
    wide=_always,
)
TORCH = Target(
    "torch",
    "torch",
    asarray=_torch_from("cpu"),
    asnumpy=_torch_to,
    dtypes=tuple(FORMATS),
    vjp=_torch_vjp,
    jvp=_torch_jvp,
    traces=_torch_traces,
    export=_torch_export,
    raises=True,
    steps_back=False,
    tight=True,
    wide=_but_float32,
)
TORCH_CUDA = replace(
    TORCH, name="torch-cuda", asarray=_torch_from("cuda"), device="cuda", ready=_torch_cuda, raises=False, tight=False
)
CUPY = Target(
    "cupy",
    "cupy",
    asarray=_cupy_from,
    asnumpy=lambda a: _module("cupy").asnumpy(a),
    device="cuda",
    ready=lambda: _module("cupy").cuda.runtime.getDeviceCount(),
)
JAX = Target(
    "jax",
    "jax",
    asarray=_jax_from,
    dtypes=tuple(FORMATS),
    context=_jax_context,
    vjp=_jax_vjp,
    jvp=_jax_jvp,
    traces=_jax_traces,
    export=_jax_export,
    # XLA compiles every question, half a second or more: every value in three dtypes, derivatives in float64, a few
    # variants of the rest; the contract and all lengths in float32, axes in the narrowest; and few running sums and halvings
    only=(
        r"^(?!test_(rows|vjp|jvp|contract.*-(b?float16|float64)-|axis.*-(float(16|32|64)-|.*cumsum)|long)\b|test_composed)",
        r"test_axis.*-bfloat16-logcumsumexp-0",
        r"test_rows.*(bfloat16|float32|float64)-(?!logcumsumexp|sparsemax|entmax)",
        r"test_rows.*(float32-(logcumsumexp|sparsemax|entmax)-(?!alpha=)|float64-\w+-plain-)",
        r"test_rows.*-float16-(?!logcumsumexp|sparsemax|entmax)\w+-(plain|where|T per row|weighted mean)-",
        r"test_vjp.*float64-(?!entmax-alpha|logcumsumexp-reverse|\w+-T=0.5)",
        r"test_vjp.*-(bfloat16|float16|float32)-(?!logcumsumexp)\w+-(plain|weighted mean)-",
        r"test_composed(_vjp)?\[.*float32-",
        r"test_jvp.*float64-\w+-(plain|where|T per row|weighted mean)-",
        r"test_long.*-float32-.*(--1|vjp|jvp)\]",
        r"test_long.*-(float16|float64)-(?!logcumsumexp).*(50257-normal|vjp)",
        r"test_long.*-bfloat16-(?!logcumsumexp).*50257-normal--1",
    ),
    lean=(
        r"test_vjp\[.*-float32-(kl_divergence|entmax_loss)-plain-",
        r"test_composed\[.*-float32-(distillation_loss-soft and hard|mask_logits-all|sample|topk_softmax-softmax)",
        r"test_composed_vjp\[.*-float32-.*grouped",
        r"test_composed_vjp\[.*-float64-(gumbel_softmax-hard|balance_loss)",
    ),
    stated={"same_bits_in_a_batch": "XLA compiles each shape anew, and may vectorise it otherwise"},
    flushes=("bfloat16", "float32", "float64"),
    tight=True,
)

TARGETS = {
    t.name: t
    for t in (
        NUMPY,
        replace(
            NUMPY, name="numpy-read-only", asarray=_read_only, lean=(r"test_(rows|vjp)\[.*-float32-.*-plain-",),
            only=(r"test_(rows|vjp).*-plain-", r"test_contract_(dtype|views|empty|errors)", r"test_composed\[.*float32-"),
        ),
        replace(NUMPY, name="numpy-bfloat16", module="ml_dtypes", dtypes=("bfloat16",)),
        # the road without Numba; softmax's five plain passes there keep the promise, and no closer bound
        replace(NUMPY, name="numpy-formula", context=_without_kernels, tight=False, lean=(r"test_composed\[.*-float32-",)),
        STRICT,
        # a device without 64-bit numbers
        replace(
            STRICT, name="array-api-strict-32", asarray=_strict("no_x64"), dtypes=("float32",),
            device="no_x64", wide=Target.wide,
            xfail={"-topk_softmax-": "its argsort answers in int64, which the device has not (array-api-strict 2.6)"},
        ),
        TORCH,
        replace(
            TORCH, name="torch-formula", context=_without_kernels, stated=NATIVE, wide=_but_short_softmax,
            lean=NOTHING,
            # the formula is asked everything on numpy; here torch's own softmax, and the formula under autograd
            only=(
                r"test_(rows|axis|contract|gap).*-softmax", r"test_vjp.*-(plain|weighted mean)-",
                r"test_composed.*float32-",
            ),
        ),
        replace(
            TORCH,
            name="torch-compiled",
            dtypes=("bfloat16", "float32", "float64"),
            call=_compiled,
            vjp=_compiled_vjp,
            jvp=None,  # torch.compile does not trace forward mode through an autograd.Function (torch 2.13)
            traces=None,
            export=None,
            tight=False,
            # a kernel is compiled for each question: some seconds
            lean=NOTHING,
            only=(
                r"test_rows.*float32-\w+-(plain|T per row|weighted mean)",
                r"test_rows.*(bfloat16|float64)-(softmax|log_softmax)-plain",
                r"test_vjp.*float32-(softmax|log_softmax)-plain",
                r"test_vjp.*float32-.*weighted mean",
                r"test_composed(_vjp)?\[.*float32-.*-plain\]",
            ),
        ),
        TORCH_CUDA,
        replace(TORCH_CUDA, name="torch-cuda-kernels", context=_with_cuda_kernels),
        CUPY,
        replace(CUPY, name="cupy-kernels", context=_with_cuda_kernels),
        JAX,
        replace(
            JAX, name="jax-jitted", call=_jitted, vjp=_jitted_vjp, jvp=_jitted_jvp, traces=None, export=None, stated={},
            lean=(r"test_composed\[.*-float32-sample",),
            only=(
                r"test_rows.*(bfloat16|float32)-.*-(plain|T per row|where|weighted mean)-",
                r"test_(vjp|jvp).*(bfloat16-.*-plain|float32-(?!entmax).*-(plain|T per row|weighted mean))-",
                r"test_composed_jvp\[.*float32-.*-plain\]",
            ),
        ),
        Target(
            "dask",
            "dask.array",
            asarray=_dask_from,
            asnumpy=_dask_compute,
            call=_lazily,
            lazy=True,
            lean=(r"test_rows\[.*-float32-.*-plain-", r"test_composed\[.*-float32-(?!distillation)"),
            # graphs of many tasks: values in two dtypes, reverse mode in one, a few variants of the rest; and few running
            # sums, whose graphs of small pieces take seconds to plan
            only=(
                r"^(?!test_(rows|vjp|jvp|long|drawn)\b|test_(contract_.*-float16|composed|contract_(threads|same).*(cumsum|sparse|ent))|test_axis.*-logcum)",
                r"test_axis.*-float32-logcumsumexp-(0|\(0, 2\))",
                r"test_(contract_same_bits|drawn)\b.*float32-(?!logcumsumexp|sparsemax|entmax)",
                r"test_long.*float32-(?!logcumsumexp)",
                r"test_long.*float(16|64)-(softmax|logsumexp|cross_entropy)-50257-normal",
                r"test_contract_same_bits_in.*float32-sparsemax",
                r"test_composed(_vjp)?\[.*float32-.*-plain\]",
                r"test_rows.*(float32|float64)-",
                r"test_rows.*float16-\w+-plain-",
                r"test_vjp.*float64-",
                r"test_(vjp|jvp).*float32-\w+-(plain|where|T per row|weighted mean)-",
            ),
            tight=True,
            wide=_always,
        ),
        Target(
            "ndonnx",
            "ndonnx",
            asarray=lambda a: _module("ndonnx").asarray(a),
            asnumpy=lambda a: a.unwrap_numpy(),
            export=_ndonnx_export,
            xfail={f"test_contract_export[ndonnx-{dtype}-logcumsumexp]": OPEN_SCAN for dtype in ALL},
            lean=(r"test_rows\[.*-float32-entropy-plain-", r"test_composed\[.*-float32-(mask_logits-all|sample|topk)"),
            # its eager arrays run every operation as a graph of its own: a few variants; what it is for is exported
            only=(
                r"test_rows.*-(?!logcumsumexp|sparsemax|entmax)\w+-(plain|where|T per row|weighted mean)-",
                r"test_(rows|contract_(dtype|export)).*float32-(sparsemax|entmax)(-plain|\])",
                r"test_vjp.*float32-(softmax|log_softmax|cross_entropy)-plain-",
                "test_gap",
                r"test_composed(_vjp)?\[.*float32-.*-plain\]",
                r"test_long.*float32-(softmax|logsumexp)-50257-normal",
                r"test_contract_(dtype|default|keepdims|empty|one_number|label|unsigned|errors|bool|int|export)(?!.*(sparse|ent)max)",
            ),
            tight=True,
            wide=_always,
        ),
    )
}  # fmt: skip
