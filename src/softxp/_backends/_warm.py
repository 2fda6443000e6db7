"""The switch of the compiled kernels, and their compiling ahead of time. Imports no array library before it is asked to."""

import warnings
from threading import Lock

wanted = True  # the row kernels on the host
cuda = False  # the kernels on CUDA
cuda_closed = ""  # why they were turned off, once something was missing

_closing = Lock()


def use_kernels(on: bool, /, *, device: str = "cpu") -> None:
    """Whether compiled kernels may serve.

    The formula in array-API terms serves otherwise. Both keep the same promises (docs/accuracy.md). Turn the kernels off to
    compare, to find out where a difference comes from, or where compiling at first use is not welcome.

    Parameters
    ----------
    on : True or False. It holds for the whole process.
    device : "cpu", the row kernels for numpy arrays and torch's CPU tensors, where Numba is installed: on at the start. Or
        "cuda", the kernels for cupy arrays and torch's CUDA tensors, where the extra `cuda` is installed (`cuda12` for a
        driver of CUDA 12): off at the start, since no GPU has run them yet. Where something that they need is missing there
        is one warning, and the formula from then on; turning them on again tries again.

    Raises
    ------
    TypeError : neither True nor False. ValueError : another device.

    Examples
    --------
    >>> import softxp
    >>> softxp.use_kernels(False)
    >>> softxp.use_kernels(True)
    >>> softxp.use_kernels(False, device="cuda")
    """
    global wanted, cuda, cuda_closed
    if device not in ("cpu", "cuda"):
        raise ValueError(f'there are kernels for device "cpu" and "cuda", got {device!r}.')
    if not isinstance(on, bool):
        raise TypeError(f"use_kernels takes True or False, got {on!r}.")
    if device == "cpu":
        wanted = on
    else:
        cuda, cuda_closed = on, ""


def close_cuda(why: str) -> None:
    """Turn the CUDA kernels off for what they lack; who does it first says so."""
    global cuda, cuda_closed
    with _closing:
        first, cuda = cuda, False
        if first:
            cuda_closed = why
    if first:
        warnings.warn(
            f"softxp's CUDA kernels do not work here, and the formula serves from now on: {why}. They need an NVIDIA "
            "driver, cuda-bindings, and an NVRTC no newer than the driver: pip install 'softxp[cuda]', or 'softxp[cuda12]'.",
            RuntimeWarning,
            stacklevel=2,
        )


def state_of_cuda() -> str:
    """For the doctor."""
    from .._kernels.cuda import Unavailable, versions

    try:
        there = versions()
    except Unavailable as error:
        return f"not to be had, so the formula serves ({error}; pip install 'softxp[cuda]')"
    off = 'off until softxp.use_kernels(True, device="cuda"), since no GPU has run them yet'
    return f"{'on' if cuda else cuda_closed or off}; {there}"


def warmup(*dtypes: str, progress: bool = True) -> int:
    """Compile the row kernels now, rather than at each one's first use.

    Compiled kernels are kept on disk beside the package, or in the user's cache directory where that cannot be written
    (Numba's NUMBA_CACHE_DIR says another). Where nothing can be written they are compiled anew in each process.

    Parameters
    ----------
    dtypes : names out of float16, bfloat16, float32, float64. Default: all.
    progress : show a line for each kernel on standard error.

    Returns
    -------
    How many kernels are ready: 0 without Numba.

    Raises
    ------
    ValueError : a dtype that the kernels do not know.

    Examples
    --------
    >>> import softxp
    >>> softxp.warmup("float32", progress=False) in (0, 14)
    True
    """
    try:
        from .._kernels import rows
    except ImportError:
        return 0
    return rows.compile_all(dtypes, progress)
