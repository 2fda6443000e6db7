"""The mergeable state behind every function: log-sum-exp of rows that arrive in pieces."""

from typing import Any, NamedTuple

from . import _args as args
from . import _formulas as F
from ._backends import find

__all__ = ["LogSumExp"]


class LogSumExp(NamedTuple):
    """Log-sum-exp of what has been seen so far, one for each row.

        logsumexp = maximum + log1p(rest),   rest = Σ exp(x - maximum) over all but one maximum

    Plain arrays inside and a tuple itself, so it passes through jit, vmap and collectives, and pickles. Every method
    answers a new state. States merge in any order and grouping; peak memory is that of one chunk, so a row may be longer
    than memory.

    Attributes
    ----------
    maximum : array (...), the data's dtype. -inf for a row with nothing in it.
    rest : array (...), at least float32; float64 for float32 data where that is cheap.

    Notes
    -----
    Error of `logsumexp` and `softmax` in ulp: as the functions on the whole row.

    Source: Milakov & Gimelshein 2018, arXiv:1805.02867 (the online form, here with one maximum left out of the sum).

    Examples
    --------
    >>> import numpy as np
    >>> from softxp.streaming import LogSumExp
    >>> chunks = np.split(np.arange(12.0), 3)
    >>> state = LogSumExp.from_array(chunks[0])
    >>> for chunk in chunks[1:]:
    ...     state = state.update(chunk)
    >>> float(state.logsumexp())
    11.458669001155853
    >>> float(sum(state.softmax(chunk).sum() for chunk in chunks))
    1.0
    """

    maximum: Any
    rest: Any

    @classmethod
    def from_array(cls, x: Any, /, *, axis: int | tuple[int, ...] | None = -1, where: Any = None) -> "LogSumExp":
        """The state of x's rows along `axis`; False entries of `where` take no part.

        Raises TypeError and ValueError as softmax does.
        """
        backend = find(x)
        x = args.array(backend, "x", x)
        axis = args.axes(axis, x.ndim)
        _, compute = args.dtypes(backend, x, None)
        where = args.mask(backend, where, x)
        state = backend.state(x, axis=axis, where=where, compute=compute)
        if state is NotImplemented:
            s = backend.guard(F.rows)(backend.xp, x, axis=axis, where=where, compute=compute)
            state = s.m, s.r
        m, r = (F.drop(backend.xp, a, axis) for a in state)
        return cls(F.cast(backend.xp, m, x.dtype), r)

    def update(self, x: Any, /, *, axis: int | tuple[int, ...] | None = -1, where: Any = None) -> "LogSumExp":
        """The state after a further chunk, whose rows are this state's rows."""
        return self.merge(LogSumExp.from_array(x, axis=axis, where=where))

    def merge(self, other: "LogSumExp", /) -> "LogSumExp":
        """The state of both.

        Raises
        ------
        TypeError, ValueError : states of two libraries, devices, dtypes, or of different rows.
        """
        backend = find(self.maximum)
        if not isinstance(other, LogSumExp):
            raise TypeError(f"a state merges with another LogSumExp, got {type(other).__name__}; see from_array.")
        args.companion(backend, "the other state", other.maximum, self.maximum)
        for mine, theirs in zip(self, other, strict=True):
            if not args.same_shape(mine.shape, theirs.shape) or mine.dtype != theirs.dtype:
                raise ValueError(
                    f"states to merge must have the same rows and dtype: {tuple(mine.shape)} {mine.dtype} and "
                    f"{tuple(theirs.shape)} {theirs.dtype}; build both from chunks of one kind."
                )
        return LogSumExp(*backend.guard(F.merge)(backend.xp, self, other))

    def logsumexp(self, *, dtype: Any = None) -> Any:
        """Logarithm of the sum so far, (...), in the data's dtype unless `dtype` says otherwise; -inf for nothing."""
        backend = find(self.maximum)
        dtype, _ = args.dtypes(backend, self.maximum, dtype)

        def finish(xp: Any, m: Any, r: Any) -> Any:
            return F.cast(xp, F.cast(xp, m, r.dtype) + xp.log1p(r), dtype)

        return backend.guard(finish)(backend.xp, *self)

    def softmax(self, x: Any, /, *, axis: int | tuple[int, ...] | None = -1, where: Any = None) -> Any:
        """Softmax of a chunk's entries within the whole rows seen: exp(x - maximum) / (1 + rest).

        The chunk should be one of those seen; an entry above the maximum has probability above 1.
        """
        backend = find(x)
        x = args.array(backend, "x", x)
        axis = args.axes(axis, x.ndim)
        where = args.mask(backend, where, x)
        args.companion(backend, "the state", self.maximum, x)
        rows = args.row_shape(x, axis)
        if not args.same_shape(self.maximum.shape, rows):
            raise ValueError(f"the chunk's rows must be the state's, {tuple(self.maximum.shape)}, got {tuple(rows)}.")

        def share(xp: Any, x: Any, m: Any, r: Any) -> Any:
            exact = x.dtype == r.dtype
            m, r = F.keep(xp, F.cast(xp, m, r.dtype), axis), F.keep(xp, r, axis)
            _, _, e = F.spread(xp, F.masked(xp, x, where, r.dtype), m, 1.0, exact)
            return F.cast(xp, e / (1 + r), x.dtype)

        return backend.guard(share)(backend.xp, x, *self)
