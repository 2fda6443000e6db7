"""Numbers of fifty digits and any exponent, for whole arrays at once: mpmath's, which are gmpy2's where that is installed.

The same words as `double_double`, a hundred times slower, and eighteen digits more: the truth of short rows.

Source: the mpmath development team, mpmath, https://mpmath.org.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import mpmath
import numpy as np

from .double_double import DD

CONTEXT = mpmath.MPContext()  # ours: nobody else's precision changes
CONTEXT.dps = 50

_number = np.frompyfunc(CONTEXT.mpf, 1, 1)
_float = np.frompyfunc(float, 1, 1)


@contextmanager
def digits(n: int) -> Iterator[None]:
    """Compute with n decimal digits instead of fifty."""
    before, CONTEXT.dps = CONTEXT.dps, n
    try:
        yield
    finally:
        CONTEXT.dps = before


def _each(f: Any) -> Any:
    g = np.frompyfunc(f, 1, 1)
    return lambda x: MP(g(x.all))


class MP(DD):  # a subclass, so that Python asks its operators before those of DD
    """An array of mpmath's numbers. `hi` and `lo` are its two leading float64."""

    def __init__(self, numbers: Any) -> None:
        self.all = np.asarray(numbers, dtype=object)

    @cached_property
    def hi(self) -> Any:
        with np.errstate(all="ignore"):  # NaN among objects
            return np.asarray(_float(self.all), dtype=np.float64)

    @cached_property
    def lo(self) -> Any:
        with np.errstate(all="ignore"):
            rest = np.where(np.isfinite(self.hi), self.all - _number(self.hi), _number(0))
            return np.asarray(_float(rest), dtype=np.float64)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.all.shape

    def mapped(self, f: Callable[[Any], Any]) -> MP:
        return MP(f(self.all))

    def __neg__(self) -> MP:
        return MP(-self.all)

    def __add__(self, other: Any) -> MP:
        return MP(self.all + wide(other).all)

    def __sub__(self, other: Any) -> MP:
        return MP(self.all - wide(other).all)

    def __rsub__(self, other: Any) -> MP:
        return MP(wide(other).all - self.all)

    def __mul__(self, other: Any) -> MP:
        return MP(self.all * wide(other).all)

    def __truediv__(self, other: Any) -> MP:
        return _divided(self, wide(other))

    def __rtruediv__(self, other: Any) -> MP:
        return _divided(wide(other), self)

    __radd__, __rmul__ = __add__, __mul__

    def total(self) -> MP:
        if self.shape[-1] == 0:
            return MP(_number(np.zeros((*self.shape[:-1], 1))))
        return MP(np.sum(self.all, -1, keepdims=True))

    exp = _each(CONTEXT.exp)
    expm1 = _each(CONTEXT.expm1)
    log = _each(CONTEXT.log)
    log1p = _each(CONTEXT.log1p)
    tanh = _each(CONTEXT.tanh)
    sqrt = _each(CONTEXT.sqrt)


def _divided(a: MP, b: MP) -> MP:
    """a / b, and what IEEE arithmetic answers beside a divisor of 0, where mpmath raises."""
    zero = np.broadcast_to(b.hi == 0, np.broadcast_shapes(a.shape, b.shape)) & (b.all == 0)
    if not zero.any():
        return MP(a.all / b.all)
    whole = a.all / np.where(b.all == 0, _number(1), b.all)
    return MP(np.where(zero, _number(a.hi / b.hi), whole))


def wide(x: Any) -> MP:
    if isinstance(x, MP):
        return x
    return MP(_number(x.hi) + _number(x.lo)) if isinstance(x, DD) else MP(_number(np.asarray(x, dtype=np.float64)))
