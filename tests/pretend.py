"""A GPU that is not there: cupy on numpy's memory, and cuda.bindings whose driver runs a launch by the formulas.

Arrays refuse to be looked at: whoever asks one for a number waits for the GPU. A launch gets nothing but the `Call`, by
value, so what the kernels would be told is what is computed. Everything else that they do, they do on a GPU.
"""

import ctypes
import sys
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock, local
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
from array_api_compat import numpy as compat

from softxp import _formulas as F
from softxp import _loss as L
from softxp._backends import _cuda, _warm, evaluate
from softxp._backends._numpy import XP
from softxp._kernels import cuda
from softxp._kernels import plan as P

DTYPES = {"Half": np.float16, "Bfloat": ml_dtypes.bfloat16, "float": np.float32, "double": np.float64}

# --- arrays ------------------------------------------------------------------------------------------------------------

current = local()  # the GPU and the streams of a thread


def here() -> int:
    return getattr(current, "gpu", 0)


class Device:
    def __init__(self, id: int) -> None:
        self.id = id

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> None:
        self.before, current.gpu = here(), self.id

    def __exit__(self, *_: Any) -> None:
        current.gpu = self.before


def _waits(self: Any, *_: Any, **__: Any) -> Any:
    raise AssertionError("a number of a device array was asked for: that waits for the GPU")


def _host(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_host(v) for v in value)
    return value.view(np.ndarray) if isinstance(value, ndarray) else value


def _wrap(value: Any, gpu: int) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_wrap(v, gpu) for v in value)
    if not isinstance(value, (np.ndarray, np.generic)):
        return value
    out = np.asarray(value).view(ndarray)
    out.gpu = gpu
    return out


class ndarray(np.ndarray):
    gpu = 0

    def __array_finalize__(self, of: Any) -> None:
        self.gpu = getattr(of, "gpu", here())

    def __array_ufunc__(self, ufunc: Any, method: str, *given: Any, **how: Any) -> Any:
        return _wrap(getattr(ufunc, method)(*_host(given), **how), self.gpu)

    def __array_function__(self, function: Any, types: Any, given: Any, how: Any) -> Any:
        return _wrap(function(*_host(given), **{k: _host(v) for k, v in how.items()}), self.gpu)

    def __getitem__(self, key: Any) -> Any:
        return _wrap(np.asarray(self.view(np.ndarray)[_host(key)]), self.gpu)

    __bool__ = __float__ = __int__ = __index__ = item = tolist = _waits

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)

    @property
    def device(self) -> Device:
        return Device(self.gpu)


ndarray.__module__ = "cupy"


def array(value: Any, **how: Any) -> Any:
    return _wrap(np.asarray(value, **how), here())


def poisoned(made: Any) -> Any:
    """New memory holds what nobody expects."""
    host = made.view(np.ndarray)
    if host.dtype.kind in "fV" or host.dtype == ml_dtypes.bfloat16:
        host[...] = np.nan
    else:
        host[...] = 0x2B
    return _wrap(host, here())


def _modules() -> dict[str, ModuleType]:
    """cupy, and its namespace in array_api_compat."""
    runtime = SimpleNamespace(is_hip=False, getDevice=here)
    streams = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=getattr(current, "stream", 7 + here())))
    made = {
        "ndarray": ndarray, "dtype": np.dtype, "asarray": array,
        "arange": lambda n, dtype=None: array(np.arange(n, dtype=dtype)),
        "full": lambda shape, value: array(np.full(shape, value)),
        "empty": lambda shape, dtype: poisoned(np.empty(shape, dtype)),
        "empty_like": lambda a, dtype: poisoned(np.empty_like(_host(a), dtype, subok=False)),
        "ascontiguousarray": lambda a: _wrap(np.ascontiguousarray(_host(a)).reshape(a.shape), a.gpu),
        "random": SimpleNamespace(Generator=type("Generator", (), {}), RandomState=type("RandomState", (), {})),
        "cuda": SimpleNamespace(runtime=runtime, get_current_stream=streams.get_current_stream, Device=Device),
        "asnumpy": lambda a: np.array(_host(a)),
    }  # fmt: skip
    cupy, wrapped = ModuleType("cupy"), ModuleType("array_api_compat.cupy")
    vars(cupy).update(made)
    vars(wrapped).update({k: v for k, v in vars(compat).items() if not k.startswith("__")})
    vars(wrapped).update({k: made[k] for k in ("asarray", "arange")})
    return {"cupy": cupy, "array_api_compat.cupy": wrapped}


# --- the driver, and NVRTC -----------------------------------------------------------------------------------------------


class Enum:
    def __getattr__(self, name: str) -> str:
        return name


class Driver:
    """cuda.bindings.driver: everything answers a tuple that begins with an error code. Notes what it is asked."""

    CUdevice_attribute = CUstreamCaptureMode = CUfunction_attribute = Enum()

    launch_error = 0  # what every launch answers

    def __init__(self, capability: tuple[int, int] = (9, 0), multiprocessors: int = 132) -> None:
        self.launches: list[SimpleNamespace] = []
        self.facts = {
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": capability[0],
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": capability[1],
            "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": multiprocessors,
            "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": P.ROOM,
        }
        self.loaded: list[bytes] = []
        self.shared: dict[Any, int] = {}  # bytes that functions may ask for
        self.execute = by_formulas
        self.thread = local()

    def stack(self) -> list[int]:
        if not hasattr(self.thread, "stack"):
            self.thread.stack = [0]
        return self.thread.stack

    def cuInit(self, flags: int) -> tuple:
        return (0,)

    def cuDriverGetVersion(self) -> tuple:
        return 0, 13000

    def cuDeviceGetCount(self) -> tuple:
        return 0, 2

    def cuDeviceGet(self, index: int) -> tuple:
        return 0, index

    def cuDeviceGetAttribute(self, attribute: str, device: int) -> tuple:
        return 0, self.facts[attribute]

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple:
        return 0, 1000 + device

    def cuCtxGetCurrent(self) -> tuple:
        return 0, self.stack()[-1]

    def cuCtxPushCurrent(self, context: int) -> tuple:
        self.stack().append(context)
        return (0,)

    def cuCtxPopCurrent(self) -> tuple:
        return 0, self.stack().pop()

    def cuThreadExchangeStreamCaptureMode(self, mode: str) -> tuple:
        before, self.thread.mode = getattr(self.thread, "mode", "GLOBAL"), mode
        return 0, before

    def cuModuleLoadData(self, image: bytes) -> tuple:
        assert self.thread.mode == "CU_STREAM_CAPTURE_MODE_RELAXED"
        self.loaded.append(image)
        return 0, (self.stack()[-1], image)

    def cuFuncSetAttribute(self, function: tuple, attribute: str, value: int) -> tuple:
        assert attribute == "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
        self.shared[function] = value
        return (0,)

    def cuModuleGetFunction(self, module: tuple, name: bytes) -> tuple:
        assert name == b"softrow"
        return 0, module

    def cuFuncGetAttribute(self, attribute: str, function: tuple) -> tuple:
        assert self.thread.mode == "CU_STREAM_CAPTURE_MODE_RELAXED"
        return 0, 32

    def cuLaunchKernel(self, kernel: tuple, *how: Any) -> tuple:
        grid, y, z, block, by, bz, shared, stream, ((call,), (kind,)), extra = how
        assert (y, z, by, bz, kind, extra) == (1, 1, 1, 1, None, 0)
        context, image = kernel
        if context != self.stack()[-1] or self.launch_error:
            return (self.launch_error or 201,)
        lines = tuple(line for line in image.decode().splitlines() if line.startswith("-D"))
        options = dict(line[2:].split("=") for line in lines)
        assert shared == int(options.get("SOFTROW_SHARED", 0)) == self.shared.get(kernel, 0)
        copy = P.Call.from_buffer_copy(call)
        self.launches.append(
            SimpleNamespace(
                operation=options["SOFTROW_OPERATION"].lower(),
                element=options["SOFTROW_ELEMENT"],
                answer=options["SOFTROW_ANSWER"],
                flags=int(options["SOFTROW_FLAGS"]) & ~P.STRIDED,
                part=options["SOFTROW_PART"],
                grid=grid,
                block=block,
                stream=stream,
                context=context,
                call=copy,
                options=lines,
            )
        )
        self.execute(self.launches[-1])
        return (0,)


class Nvrtc:
    """cuda.bindings.nvrtc: a compiled program is its options."""

    def __init__(self, known: tuple[int, ...] = (75, 80, 90)) -> None:
        self.known, self.compiled, self.lock = known, [], Lock()
        self.error = 0

    def nvrtcVersion(self) -> tuple:
        return 0, 0, 0  # which no NVRTC is: what is kept of this one, none finds

    def nvrtcGetSupportedArchs(self) -> tuple:
        return 0, list(self.known)

    def nvrtcCreateProgram(self, text: bytes, name: bytes, *headers: Any) -> tuple:
        assert b"softrow" in text
        assert headers == (0, [], [])
        return 0, [b""]

    def nvrtcCompileProgram(self, program: list, count: int, options: list[bytes]) -> tuple:
        assert count == len(options)
        with self.lock:
            self.compiled.append(tuple(o.decode() for o in options))
        program[0] = b"\n".join(options)
        return (self.error,)

    def nvrtcGetProgramLogSize(self, program: list) -> tuple:
        return 0, 30

    def nvrtcGetProgramLog(self, program: list, room: bytes) -> tuple:
        ctypes.memmove(ctypes.c_char_p(room), b"softrow.cu(1): error: bad line", 30)
        return (0,)

    def nvrtcGetCUBINSize(self, program: list) -> tuple:
        return 0, len(program[0])

    nvrtcGetPTXSize = nvrtcGetCUBINSize

    def nvrtcGetCUBIN(self, program: list, room: bytes) -> tuple:
        assert len(room) == len(program[0])
        ctypes.memmove(ctypes.c_char_p(room), program[0], len(room))
        return (0,)

    nvrtcGetPTX = nvrtcGetCUBIN

    def nvrtcDestroyProgram(self, program: list) -> tuple:
        return (0,)


# --- a launch, by the formulas ---------------------------------------------------------------------------------------------


def lying(address: int, steps: tuple[int, ...], shape: tuple[int, ...], dtype: Any) -> Any:
    size = np.dtype(dtype).itemsize
    strides = [step * size for step in steps]
    ends = [step * (n - 1) for step, n in zip(strides, shape, strict=True)]
    low, high = sum(min(0, e) for e in ends), sum(max(0, e) for e in ends) + size
    memory = (ctypes.c_char * (high - low)).from_address(address + low)
    return np.ndarray(shape, dtype, memory, -low, strides)


def viewed(view: P.View, shape: tuple[int, ...], dtype: Any) -> Any:
    assert view.address % np.dtype(dtype).itemsize == 0
    return lying(view.address, (view.outer, view.inner, view.along), shape, dtype)


def by_formulas(launch: SimpleNamespace) -> None:
    if launch.part == "FIRST":  # what it leaves in the workspace is the kernels' own affair
        return
    with np.errstate(all="ignore"):
        run = _sum if launch.operation in P.SUMS else _run
        run(launch.operation, DTYPES[launch.element], DTYPES[launch.answer], launch.flags, launch.call)


def number(given: P.Number) -> float:
    return float(lying(given.address, (0,), (1,), np.float64)[0]) if given.address else given.value


def _sum(operation: str, dtype: Any, answer: Any, flags: int, call: P.Call) -> None:
    def rows(given: P.Rows) -> Any:
        return lying(given.address, (given.step,), (call.rows,), np.float64)

    if flags & P.GIVEN:
        divisor = number(call.divisor)
    elif operation == "total" or flags & P.SOFT:
        divisor = float(np.sum(rows(call.weight)))
    else:
        alone = P.Call.from_buffer_copy(call)  # what cross-entropy of logits that are all 0 says
        zeros, kept = np.zeros((call.rows, call.n), dtype), np.empty((2, call.rows))
        alone.x, alone.inner = P.View(zeros.ctypes.data, call.n, 0, 1), 1
        alone.loss, alone.weight = (P.Rows(each.ctypes.data, 1) for each in kept)
        _run("loss", dtype, dtype, flags, alone)
        divisor = float(np.sum(kept[1]))
    if operation == "share":
        rows(P.Rows(call.m.address, 0))[0] = np.float64(number(call.factor)) / divisor if divisor else 0.0
        return
    loss = np.sum(rows(call.loss))
    lying(call.y.address, (0,), (1,), answer)[0] = 0.0 if loss == divisor == 0 else np.float64(loss) / divisor


def _run(operation: str, dtype: Any, of_answer: Any, flags: int, call: P.Call) -> None:
    rows, inner = call.rows, call.inner
    shape = (rows // inner, inner, call.n)
    of_rows = (*shape[:2], 1)
    axis, wide = (2,), np.dtype(np.float64)

    def quantity(number: P.Number) -> Any:
        if not number.address:
            return float(number.value)
        return lying(number.address, (number.step,), (rows,), wide).reshape(of_rows).copy()

    def put(target: P.Rows, values: Any) -> None:
        lying(target.address, (target.step,), (rows,), wide)[...] = values.reshape(-1)

    def answer(values: Any) -> None:
        viewed(call.y, values.shape, of_answer)[...] = values.astype(of_answer)

    x = viewed(call.x, shape, dtype).astype(wide)
    v = viewed(call.v, shape, dtype).astype(wide) if call.v.address else None
    where = viewed(call.mask, shape, bool).copy() if flags & P.MASK else None
    temperature = quantity(call.temperature) if flags & P.TEMPERATURE else 1.0
    how = dict(axis=axis, where=where)
    whole = dict(dtype=wide, compute=wide)

    def rule(name: str, **values: Any) -> Any:
        return evaluate(XP, name, **values)

    if operation == "softmax" and call.factor.address:
        ct = np.broadcast_to(quantity(call.factor), of_rows)
        answer(F.logsumexp_vjp(rule, XP, ct, None, ("x",), x, **how, keepdims=True, **whole)["x"])
    elif operation in ("softmax", "log_softmax"):
        answer(rule(operation, x=x, **how, temperature=temperature, **whole))
    elif operation == "logsumexp":
        answer(rule(operation, x=x, **how, keepdims=True, **whole))
    elif operation == "state":
        s = F.rows(XP, x, **how, compute=wide)
        put(call.m, s.m)
        put(call.r, s.r)
    elif operation in P.PULLBACKS:
        name = operation.removesuffix("_pullback")
        y = rule(name, x=x, **how, temperature=temperature, **whole)
        pull = getattr(F, f"{name}_vjp")
        answer(pull(rule, XP, v, y, ("x",), x, **how, temperature=temperature, **whole)["x"])
    else:
        soft = bool(flags & P.SOFT)
        labels = v
        if not soft:
            kind = np.dtype(f"{'u' if call.label_kind < 0 else ''}int{8 * abs(call.label_kind)}")
            labels = lying(call.label.address, (call.label.step,), (rows,), kind).reshape(of_rows).copy()
        weights = lying(call.class_weight, (1,), (call.n,), wide).copy() if flags & P.CLASS_WEIGHT else None
        sample = call.sample_weight
        values = dict(
            labels=labels, classes=None if soft else np.arange(call.n), temperature=temperature, class_weight=weights,
            label_smoothing=call.smoothing if flags & P.SMOOTHING else 0.0, sample_weight=np.asarray(quantity(sample)),
            ignore_index=call.ignore_index if call.ignore else None, z_loss=call.z_loss,
            softcap=call.softcap if flags & P.SOFTCAP else None, **how,
        )  # fmt: skip
        cotangent = number(call.cotangent)
        if call.cotangent.address and cotangent == 1:
            return
        t, loss = L.loss_rows(XP, x, compute=wide, **values)
        put(call.loss, np.broadcast_to(np.where(t.dropped, 0.0, t.s * loss), of_rows))
        put(call.weight, np.broadcast_to(np.where(t.dropped, 0.0, t.s * t.weight), of_rows))
        if operation == "loss_and_gradient":
            ct = cotangent * np.broadcast_to(quantity(call.factor), of_rows)[..., 0]
            more = dict(reduction="none", normalizer=None, **whole)
            answer(L.cross_entropy_vjp(rule, XP, ct, None, ("x",), x=x, **values, **more)["x"])


# --- put in place ----------------------------------------------------------------------------------------------------------


def bindings(driver: Any, nvrtc: Any) -> dict[str, ModuleType]:
    package, inner = ModuleType("cuda"), ModuleType("cuda.bindings")
    package.bindings, inner.driver, inner.nvrtc = inner, driver, nvrtc  # type: ignore[attr-defined]
    return {"cuda": package, "cuda.bindings": inner}


def forget() -> None:
    """What the process knows of GPUs."""
    cuda._gpus.clear()
    cuda._images.clear()
    backend = sys.modules.get("softxp._backends.on_cupy")
    if backend is not None:
        backend.DEVICE.ready.clear()
    torch = sys.modules.get("softxp._backends.on_torch")
    if torch is not None:
        torch.DEVICE.ready.clear()
    _warm.cuda, _warm.cuda_closed = False, ""


def stand_in(monkeypatch: Any) -> Any:
    """torch's CPU tensors go the way of a GPU's. torch's backend."""
    from softxp._backends import on_torch

    device = replace(on_torch.DEVICE, gpu=lambda t: 0, stream=lambda gpu: 5)
    monkeypatch.setattr(on_torch, "DEVICE", device)
    monkeypatch.setattr(on_torch, "CUDA", on_torch.CUDA._replace(host=device))
    monkeypatch.setattr(
        on_torch, "_road", lambda x: on_torch.CUDA if _warm.cuda and not on_torch._watched() else on_torch.NONE
    )

    def unfollowed(x: Any) -> bool:
        return not (on_torch._compiling() or on_torch._followed({"x": x})) and on_torch._road(x) is on_torch.CUDA

    for name, kernel in _cuda.kernels_of(device, unfollowed).items():
        monkeypatch.setitem(on_torch.BACKEND.kernels, name, kernel)
    return on_torch


@contextmanager
def gpu(driver: Any = None, nvrtc: Any = None) -> Any:
    """cupy, and two GPUs. Yields the driver and NVRTC; the kernels are on."""
    from softxp import _backends

    driver, nvrtc = driver or Driver(), nvrtc or Nvrtc()
    new = {**_modules(), **bindings(driver, nvrtc)}
    old = {name: sys.modules.get(name) for name in (*new, "softxp._backends.on_cupy")}
    sys.modules.update(new)
    sys.modules.pop("softxp._backends.on_cupy", None)
    forget()
    _warm.cuda = True
    try:
        yield SimpleNamespace(driver=driver, nvrtc=nvrtc, cupy=new["cupy"])
    finally:
        forget()
        _backends._BY_TYPE.pop(ndarray, None)
        for name, module in old.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
