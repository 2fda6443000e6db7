"""Whole rows in float64, for kernels whose sums run over all of a row at once: n <= KEEP."""

import numpy as np

from ._numba import inlined, past, summing
from .arithmetic import number
from .block import exps_of, share
from .memory import TILE, N, mask, read_row, write_row
from .tiles import add, fill


@summing
def dot(a, b, n):
    s = 0.0
    for i in range(n):
        s += a[i] * b[i]
    return s


@summing
def sum_of(a, n):
    s = 0.0
    for i in range(n):
        s += a[i]
    return s


@summing
def sum_at(a, value, v, n):
    """How many of `a` are this value, and the sum of v there."""
    count = s = 0.0
    for i in range(n):
        count += 1.0 if a[i] == value else 0.0
        s += v[i] if a[i] == value else 0.0
    return count, s


@inlined
def total(a, n):
    s = c = 0.0
    for begin in range(0, n, TILE):
        s, c = add(s, c, sum_of(past(a, begin), min(TILE, n - begin)))
    return s + c


@inlined
def inner_product(a, b, n):
    s = c = 0.0
    for begin in range(0, n, TILE):
        s, c = add(s, c, dot(past(a, begin), past(b, begin), min(TILE, n - begin)))
    return s + c


@inlined
def total_but(a, i, n):
    """The sum of all but a[i], which does not cancel."""
    kept = a[i]
    a[i] = 0.0
    s = total(a, n)
    a[i] = kept
    return s


@inlined
def index_of(a, value, n):
    for i in range(n):
        if a[i] == value:
            return i
    return 0


@inlined
def read_whole(kind, g, view, row, b, out):
    """A whole row of a view, in float64."""
    for begin in range(0, g[N], TILE):
        n = min(TILE, g[N] - begin)
        read_row(kind, g, view, row, begin, n, b.x)
        for i in range(n):
            out[begin + i] = np.float64(b.x[i])


@inlined
def write_whole(kind, g, row, b, a, factor):
    """a · factor as a row of the answer, 0 where the mask is False."""
    for begin in range(0, g[N], TILE):
        n = min(TILE, g[N] - begin)
        for i in range(n):
            b.x[i] = number(kind, a[begin + i] * factor)
        mask(kind, g, row, begin, n, b.x, 1, 0.0)
        write_row(kind, g, row, begin, n, b.x)


@inlined
def write_zeros(kind, g, row, b):
    fill(kind, b.x, 1, min(TILE, g[N]))
    for begin in range(0, g[N], TILE):
        write_row(kind, g, row, begin, min(TILE, g[N] - begin), b.x)


@inlined
def probabilities(kind, g, f, row, b):
    """A whole settled row's probabilities, in float64."""
    for k in range(b.count):
        e, factor = exps_of(kind, g, f, row, 1, k, b), share(b, 0, k)
        for i in range(min(TILE, g[N] - k * TILE)):
            b.p[k * TILE + i] = np.float64(e[i]) * factor
