"""The oracle's numbers: fifty digits for short rows, double-double for rows as long as vocabularies.

The oracle's formulas are written once, for either. `number` chooses by size, and where the two meet, the wider wins.
"""

from typing import Any

import numpy as np

from .double_double import DD
from .double_double import where as _where
from .many_digits import MP, wide

SHORT = 4096  # as many numbers as fifty digits are affordable for: a tenth of a second a question

Number = DD | MP


def number(x: Any) -> Number:
    """Float64 numbers, or numbers that are precise already, in the precision that their count affords."""
    if isinstance(x, MP):
        return x
    x = x if isinstance(x, DD) else DD(x)
    return wide(x) if x.hi.size <= SHORT else x


def where(condition: Any, a: Any, b: Any) -> Number:
    if isinstance(a, MP) or isinstance(b, MP):
        return MP(np.where(condition, wide(a).all, wide(b).all))
    return _where(condition, a, b)


def concatenate(a: Number, b: Number) -> Number:
    """b after a, along the last axis."""
    if isinstance(a, MP) or isinstance(b, MP):
        return MP(np.concatenate([wide(a).all, wide(b).all], -1))
    return DD(np.concatenate([a.hi, b.hi], -1), np.concatenate([a.lo, b.lo], -1))


def absolute(x: Number) -> Number:
    return where(x.hi < 0, -x, x)


def total(x: Number) -> Number:
    """Sum along the last axis, keeping it with size 1."""
    return x.total()


def cumulative(x: Number) -> Number:
    """Running sums along the last axis, doubled in reach until they span the row."""
    step = 1
    while step < x.shape[-1]:
        x = concatenate(x[..., :step], x[..., step:] + x[..., :-step])
        step *= 2
    return x


def exp(x: Number) -> Number:
    return x.exp()


def expm1(x: Number) -> Number:
    return x.expm1()


def log(x: Number) -> Number:
    return x.log()


def log1p(x: Number) -> Number:
    return x.log1p()


def tanh(x: Number) -> Number:
    return x.tanh()


def sqrt(x: Number) -> Number:
    return x.sqrt()
