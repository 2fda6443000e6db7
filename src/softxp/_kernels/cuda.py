"""softrow.cu compiled by NVRTC and launched by the driver, both through cuda.bindings. Knows addresses and streams alone.

Compiled code is kept in memory and on disk, in SOFTXP_CACHE_DIR or else the user's cache directory, under a hash of all that
it is made of. A cache that cannot be read or written costs time and nothing else. What cannot be had at all is said by
`Unavailable`.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from threading import RLock
from typing import Any

OLDEST = 80  # compute capability: two bfloat16 are rounded by one instruction
STANDARD = "-std=c++17"


class Unavailable(Exception):
    """What is missing, or what went wrong."""


_lock = RLock()  # whoever compiles, loads, or meets a GPU for the first time
_gpus: dict[int, "Gpu"] = {}
_images: dict[tuple, bytes] = {}


# --- cuda.bindings -----------------------------------------------------------------------------------------------------


def bindings() -> tuple[Any, Any]:
    """Its driver and its nvrtc. The functions that are used here are the same in cuda.bindings 12 and 13."""
    try:
        from cuda.bindings import driver, nvrtc
    except Exception as error:  # not there, or there in part
        raise Unavailable(f"cuda.bindings cannot be imported ({type(error).__name__}: {error})") from error
    return driver, nvrtc


def ask(function: Any, *arguments: Any) -> Any:
    """What a function of cuda.bindings answers, once its error code was looked at."""
    try:
        error, *answer = function(*arguments)
    except Exception as error:  # the library behind it is found at its first call
        raise Unavailable(f"{function.__name__}: {type(error).__name__}: {error}".splitlines()[0]) from error
    if int(error):
        raise Unavailable(f"{function.__name__}: {getattr(error, 'name', error)}")
    return answer[0] if len(answer) == 1 else answer


# --- compiling ---------------------------------------------------------------------------------------------------------


@cache
def source() -> str:
    return files(__package__ or "").joinpath("softrow.cu").read_text("utf-8")


def target(capability: int, known: list[int]) -> str:
    """What to compile for: the GPU itself, or the newest before it that NVRTC knows, as PTX that the driver translates."""
    if capability < OLDEST:
        raise Unavailable(f"the GPU has compute capability {capability / 10}, and {OLDEST / 10} is needed")
    if capability in known:
        return f"sm_{capability}"
    older = [each for each in known if OLDEST <= each < capability]
    if not older:
        raise Unavailable(
            f"this NVRTC knows no GPU like one of compute capability {capability / 10}; it is too old, or too new"
        )
    return f"compute_{max(older)}"


def compile(nvrtc: Any, text: str, options: tuple[str, ...], architecture: str) -> bytes:
    """Machine code for sm_*, PTX for compute_*."""
    program = ask(nvrtc.nvrtcCreateProgram, text.encode(), b"softrow.cu", 0, [], [])
    try:
        given = [each.encode() for each in (f"--gpu-architecture={architecture}", STANDARD, *options)]
        try:
            ask(nvrtc.nvrtcCompileProgram, program, len(given), given)
        except Unavailable as error:
            raise Unavailable(f"{error}: {_log(nvrtc, program)}") from None
        kind = "CUBIN" if architecture.startswith("sm_") else "PTX"
        image = b" " * ask(getattr(nvrtc, f"nvrtcGet{kind}Size"), program)
        ask(getattr(nvrtc, f"nvrtcGet{kind}"), program, image)
        return image
    finally:
        with suppress(Unavailable):
            ask(nvrtc.nvrtcDestroyProgram, program)


def _log(nvrtc: Any, program: Any) -> str:
    with suppress(Unavailable):
        text = b" " * ask(nvrtc.nvrtcGetProgramLogSize, program)
        ask(nvrtc.nvrtcGetProgramLog, program, text)
        lines = [line for line in text.decode(errors="replace").strip("\0 \n").splitlines() if "error" in line]
        return " ".join(lines[:2])
    return ""


def image(nvrtc: Any, options: tuple[str, ...], architecture: str) -> bytes:
    """Compiled code: from memory, from disk, or from NVRTC."""
    with _lock:
        key = (options, architecture)
        found = _images.get(key)
        if found is None:
            version = ask(nvrtc.nvrtcVersion)
            made_of = "\0".join((source(), STANDARD, *options, architecture, repr(version)))
            folder = cache_folder()
            file = None if folder is None else folder / (hashlib.sha256(made_of.encode()).hexdigest()[:40] + ".cuda")
            found = None if file is None else kept(file)
            if found is None:
                found = compile(nvrtc, source(), options, architecture)
                if file is not None:
                    keep(file, found)
            _images[key] = found
        return found


# --- the cache on disk -------------------------------------------------------------------------------------------------


def cache_folder() -> Path | None:
    given = os.environ.get("SOFTXP_CACHE_DIR")
    if given:
        return Path(given)
    if sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local"))
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return folder / "softxp" if folder.is_absolute() else None  # a user without a home has none


def kept(file: Path) -> bytes | None:
    """What the file holds, if it is whole: it begins with the hash of the rest."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    checksum, found = content[:32], content[32:]
    return found if found and hashlib.sha256(found).digest() == checksum else None


def keep(file: Path, found: bytes) -> None:
    """Under another name first: who reads meanwhile finds all of it or nothing."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent)
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as new:
            new.write(hashlib.sha256(found).digest() + found)
        os.replace(name, file)
    except OSError:
        with suppress(OSError):
            os.unlink(name)


# --- a GPU ---------------------------------------------------------------------------------------------------------------


class Gpu:
    """One GPU, in its primary context: the one that every library uses."""

    def __init__(self, index: int) -> None:
        self.driver, self.nvrtc = driver, nvrtc = bindings()
        ask(driver.cuInit, 0)
        device, attribute = ask(driver.cuDeviceGet, index), driver.CUdevice_attribute
        major, minor, multiprocessors, shared = (
            ask(driver.cuDeviceGetAttribute, getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), device)
            for name in (
                "COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR", "MULTIPROCESSOR_COUNT",
                "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
            )
        )  # fmt: skip
        self.architecture = target(10 * major + minor, list(ask(nvrtc.nvrtcGetSupportedArchs)))
        capability = int(self.architecture.partition("_")[2])  # what the code may count on
        self.facts = multiprocessors, capability, shared  # as a plan wants them
        self.context = ask(driver.cuDevicePrimaryCtxRetain, device)
        self.context_number = int(self.context)
        self.kernels: dict[tuple[str, ...], Any] = {}
        self.modules: list[Any] = []

    def kernel(self, options: tuple[str, ...], shared: int) -> Any:
        """The kernel of a launch's options, ready to start with so many bytes of dynamic shared memory."""
        found = self.kernels.get(options)
        if found is None:
            with _lock:
                found = self.kernels.get(options)
                if found is None:
                    found = self.kernels[options] = self._load(image(self.nvrtc, options, self.architecture), shared)
        return found

    def _load(self, code: bytes, shared: int) -> Any:
        driver = self.driver
        with self.current():
            # a module may be loaded while a stream is captured into a graph, if the driver is told that it is meant so
            mode = ask(
                driver.cuThreadExchangeStreamCaptureMode, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
            )
            try:
                module = ask(driver.cuModuleLoadData, code)
                self.modules.append(module)
                function = ask(driver.cuModuleGetFunction, module, b"softrow")
                # the driver puts off loading until a function is asked for something: now, not at a launch that is captured
                of_function = driver.CUfunction_attribute
                ask(driver.cuFuncGetAttribute, of_function.CU_FUNC_ATTRIBUTE_NUM_REGS, function)
                if shared:
                    most = of_function.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                    ask(driver.cuFuncSetAttribute, function, most, shared)
                return function
            finally:
                ask(driver.cuThreadExchangeStreamCaptureMode, mode)

    @contextmanager
    def current(self) -> Iterator[None]:
        """A thread that has not used the GPU yet has no context, and one that used another GPU has that one's."""
        ask(self.driver.cuCtxPushCurrent, self.context)
        try:
            yield
        finally:
            ask(self.driver.cuCtxPopCurrent)

    def ready(self, launch: Any) -> tuple[Any, int, int, int]:
        """A launch of a plan, compiled."""
        return self.kernel(launch.options, launch.shared), launch.grid, launch.block, launch.shared

    def start(self, ready: Any, call: Any, stream: int) -> None:
        """Launches that are ready, in order, with `call` by value."""
        driver, arguments = self.driver, ((call,), (None,))
        if int(driver.cuCtxGetCurrent()[1]) != self.context_number:
            with self.current():
                return self.start(ready, call, stream)
        for kernel, grid, block, shared in ready:
            (error,) = driver.cuLaunchKernel(kernel, grid, 1, 1, block, 1, 1, shared, stream, arguments, 0)
            if error:
                raise Unavailable(f"cuLaunchKernel: {getattr(error, 'name', error)}")


def gpu(index: int) -> Gpu:
    """The GPU of that number, as CUDA counts them for this process."""
    found = _gpus.get(index)
    if found is None:
        with _lock:
            found = _gpus.get(index)
            if found is None:
                found = _gpus[index] = Gpu(index)
    return found


def versions() -> str:
    """NVRTC and driver in words. Raises Unavailable where one is missing."""
    driver, nvrtc = bindings()
    major, minor = ask(nvrtc.nvrtcVersion)
    ask(driver.cuInit, 0)
    version, count = ask(driver.cuDriverGetVersion), ask(driver.cuDeviceGetCount)
    found = ", ".join(gpu(index).architecture for index in range(count))
    return f"NVRTC {major}.{minor}, driver for CUDA {version // 1000}.{version % 1000 // 10}, GPUs: {found or 'none'}"
