"""The switch of the compiled kernels, and their compiling ahead of time. Imports nothing before it is asked to."""

wanted = True


def use_kernels(on: bool, /) -> None:
    """Whether compiled row kernels may serve numpy arrays and torch's CPU tensors, where Numba is installed.

    The formula in array-API terms serves otherwise. Both keep the same promises (docs/accuracy.md). Turn the kernels off to
    compare, to find out where a difference comes from, or where compiling at first use is not welcome.

    Parameters
    ----------
    on : True, as at the start, or False. It holds for the whole process.

    Examples
    --------
    >>> import softxp
    >>> softxp.use_kernels(False)
    >>> softxp.use_kernels(True)
    """
    global wanted
    wanted = bool(on)


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
