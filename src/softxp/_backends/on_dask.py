"""Dask: lazy throughout; an axis split over chunks is folded with the row state and never gathered."""

from functools import partial, reduce
from typing import Any

import dask.array as da
import numpy as np
from array_api_compat.dask import array as compat

from .. import _formulas as F
from . import Backend
from ._namespace import careful
from ._numpy import XP as NP
from ._numpy import quiet


def _pack(m: Any, r: Any) -> Any:
    """A state as one array, which is all that a Dask reduction carries: m + i r."""
    state = np.empty(m.shape, dtype=np.result_type(m.dtype, np.complex64))
    state.real, state.imag = m, r
    return state


@quiet
def _of_chunk(x: Any, axis: Any, keepdims: bool, temperature: float, exact: bool) -> Any:
    rows = F.whole_rows(NP, x, _tuple(axis), temperature, exact)
    return _pack(rows.m, rows.r)


@quiet
def _of_states(states: Any, axis: Any, keepdims: bool, temperature: float) -> Any:
    for a in _tuple(axis):
        parts: list[Any] = [np.take(states, [i], axis=a) for i in range(states.shape[a])]
        merged = reduce(lambda s, t: F.merge(NP, s, t, temperature), [(p.real, p.imag) for p in parts])
        states = _pack(*merged)
    return states


def _tuple(axis: Any) -> tuple[int, ...]:
    return tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)


def _fold_rows(x: Any, axis: tuple[int, ...], temperature: float, exact: bool) -> tuple[Any, Any]:
    if not axis or any(x.shape[a] == 0 for a in axis):
        s = F.whole_rows(XP, x, axis, temperature, exact)
        return s.m, s.r
    states = da.reduction(
        x,
        chunk=partial(_of_chunk, temperature=temperature, exact=exact),
        combine=partial(_of_states, temperature=temperature),
        aggregate=partial(_of_states, temperature=temperature),
        axis=axis,
        keepdims=True,
        dtype=np.result_type(x.dtype, np.complex64),
        concatenate=True,
    )
    return da.real(states), da.imag(states)


def _sum_of_chunk(x: Any, axis: Any, keepdims: bool) -> Any:
    return NP.sum(x, axis=axis, keepdims=keepdims)


def _sum(x: Any, *, axis: Any, keepdims: bool = False) -> Any:
    return da.reduction(x, _sum_of_chunk, _sum_of_chunk, axis=axis, keepdims=keepdims, dtype=x.dtype)


def _max_of_chunk(x: Any, axis: Any, keepdims: bool) -> Any:
    return np.max(x, axis=axis, keepdims=keepdims, initial=-np.inf)  # a chunk may be empty, where da.max raises


def _max(x: Any, *, axis: Any, keepdims: bool = False) -> Any:
    return da.reduction(x, _max_of_chunk, _max_of_chunk, axis=axis, keepdims=keepdims, dtype=x.dtype)


def _expand_dims(x: Any, *, axis: int) -> Any:
    return x[
        (*(slice(None),) * (axis % (x.ndim + 1)), None)
    ]  # da.expand_dims reshapes, which sizes not known yet refuse


XP = careful(compat, sum=_sum, max=_max, fold_rows=_fold_rows, expand_dims=_expand_dims)

BACKEND = Backend(
    name="dask",
    xp=XP,
    double=lambda x: True,
    road="formula, lazy, the row state folded over chunks",
    put=lambda value, like: da.asarray(value),
    arange=lambda n, dtype, like: da.arange(n, dtype=dtype),
    default_float=lambda like: np.dtype(np.float64),
    default_int=lambda like: np.dtype(np.int64),
)
