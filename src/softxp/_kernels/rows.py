"""Kernels over the rows of arrays in memory: the state, softmax, log_softmax, cross-entropy and three pullbacks.

Nothing here holds the GIL.

A row is read in tiles of 1024 numbers, into scratch that stays in cache, in the arithmetic of its *kind*. A tile's state is
`(m, r)`, its maximum and the sum of exp(x - m) over all of it but one maximum; its numbers become exp(x - m). The states are
joined in the order of the tiles, and each tile is finished by one factor. So the bits of a row depend on the row alone:
not on its neighbours, on the axis it lies along, or on who computes which tile.

What lies in memory, and the arithmetic, are a *kind*: see arithmetic.py.

Arrays come as addresses and strides in a vector of integers `g`, numbers in a vector of floats `f`: see the constants below.
A view is four integers: address, and the steps in elements between outer rows, between inner rows and along a row.
"""

import sys
from collections import namedtuple
from math import expm1, inf, log1p, nan
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from ._numba import EXACTLY, KERNELS, apart, at, called, fma, inlined, kernel, larger, past, put, summing, take
from .arithmetic import (
    BFLOAT,
    DOUBLE,
    HALF,
    SINGLE,
    apart_from,
    difference,
    exp_double,
    expm1_double,
    expo,
    narrow,
    near,
    number,
    quotient,
    reach,
    shifted,
    unit_shifted,
    wide,
)  # fmt: skip

TILE = 1024
RUN = 256  # numbers that are added in the arithmetic; their sums are added in float64
KEEP = 1 << 18  # numbers of scratch; longer rows are read again rather than kept
SHORT = 64  # numbers in a row up to which LANES rows are computed together, wherever they lie
WIDE = 64  # rows side by side that are read together, where all of their exps can be kept
LANES = 16  # rows that are read together otherwise: short ones, and a cache line of side by side

# g: views, then addresses of vectors (0 where there is none), then sizes
X, Y, MASK, V, P = 0, 4, 8, 12, 16  # input; answer; bool; cotangent or soft labels; given probabilities
# of rows, float64 but for LABEL: int64, -1 for a row that counts for nothing; M and R are given, OUT_M and OUT_R answered
TEMPERATURE, LABEL, FACTOR, LOSS, M, R, OUT_M, OUT_R = 20, 21, 22, 23, 24, 25, 26, 27
CLASS_WEIGHT = 28  # of classes, float64
INNER, N = 29, 30  # rows in one outer row; numbers in a row
SLOTS = 31
# f
T, CAP, SMOOTHING, Z_LOSS = 0, 1, 2, 3


# --- tiles: n numbers of one row, in scratch ---------------------------------------------------------------------------


@inlined
def read(kind, memory, start, step, e, n):
    if step == 1:
        for i in range(n):
            e[i] = wide(kind, memory[start + i])
    else:
        for i in range(n):
            e[i] = wide(kind, memory[start + i * step])


@inlined
def write(kind, memory, start, step, e, n):
    if step == 1:
        for i in range(n):
            memory[start + i] = narrow(kind, e[i])
    else:
        for i in range(n):
            memory[start + i * step] = narrow(kind, e[i])


@inlined
def cap(kind, e, n, softcap):
    """softcap · tanh(x / softcap), as -expm1(-2a) / (2 + expm1(-2a)) with the sign put back."""
    for i in range(n):
        v = np.float64(e[i]) / softcap
        u = expm1_double(larger(-2.0 * abs(v), -800.0))
        h = softcap * (-u / (2.0 + u))
        e[i] = number(kind, v if v != v else (-h if v < 0.0 else h))


@inlined
def cap_slope(x, softcap):
    e = exp_double(-2.0 * abs(x / softcap), 0.0)
    return 4.0 * e / ((1.0 + e) * (1.0 + e))


@inlined
def hide(memory, start, step, e, n, value):
    """`value` where the mask is False."""
    for i in range(n):
        e[i] = e[i] if memory[start + i * step] != 0 else value


@summing
def peak(kind, x, n):
    """The maximum, and how many are NaN."""
    m, none, one = number(kind, -inf), number(kind, 0.0), number(kind, 1.0)
    nans = none
    for i in range(n):
        m = larger(m, x[i])
        nans += none if x[i] == x[i] else one
    return m, nans


@inlined
def summit(kind, x, n):
    """The maximum in float64, NaN where one is NaN."""
    m, nans = peak(kind, x, n)
    return np.float64(m) if nans == number(kind, 0.0) else nan


@summing
def unit_exps(kind, x, e, n, m, low):
    apart()
    zero, one = number(kind, 0.0), number(kind, 1.0)
    total = ones = 0.0
    for begin in range(0, n, RUN):
        s = c = zero
        for i in range(begin, min(begin + RUN, n)):
            v = unit_shifted(kind, take(x, i), m, low, zero)
            put(e, i, v)
            s += zero if v == one else v
            c += one if v == one else zero
        total += np.float64(s)
        ones += np.float64(c)
    return total, ones


@summing
def exps(kind, x, e, n, m, t, low):
    apart()
    zero, one = number(kind, 0.0), number(kind, 1.0)
    total = ones = 0.0
    for begin in range(0, n, RUN):
        s = c = zero
        for i in range(begin, min(begin + RUN, n)):
            v = shifted(kind, take(x, i), m, t, low, zero)
            put(e, i, v)
            s += zero if v == one else v
            c += one if v == one else zero
        total += np.float64(s)
        ones += np.float64(c)
    return total, ones


@inlined
def corners(kind, x, e, n, m, t):
    """Any numbers' exps, one by one: where m is infinite or nearly, or t is 0 or inf."""
    s = c = 0.0
    for i in range(n):
        d, error = distance(np.float64(x[i]), m, t)
        v = exp_double(d, error)
        e[i] = number(kind, v)
        s += 0.0 if v == 1.0 else v
        c += 1.0 if v == 1.0 else 0.0
    return s, c


@inlined
def rest(s, ones):
    """r: the sum of all but one maximum. Here, where no sum may be taken in another order."""
    return s + (ones - 1.0) if ones > 0.0 else s


@inlined
def ordinary(kind, m, t):
    """May a loop of vectors take exp((x - m) / t)? Not where m is infinite or nearly, NaN, or t is 0 or inf."""
    return abs(m) * near(kind) < 32.0 * t and t < inf


@inlined
def lowest(kind, m, t):
    """What lies below this is as good as -inf, and its difference from m is finite."""
    return number(kind, m - reach(kind) * t - abs(m) * near(kind))


@inlined
def state(kind, x, e, n, t):
    """(m, r) of the tile x, and its exps exp((x - m) / t) into e, which may be x."""
    m = summit(kind, x, n)
    top = number(kind, m)
    if not ordinary(kind, m, t):
        s, ones = corners(kind, x, e, n, m, t)
    elif t == 1.0:
        s, ones = unit_exps(kind, x, e, n, top, lowest(kind, m, t))
    else:
        s, ones = exps(kind, x, e, n, top, number(kind, t), lowest(kind, m, t))
    return m, rest(s, ones)


@inlined
def distance(x, m, t):
    """(x - m) / t of one number x <= m, and what rounding took, in every corner."""
    if x != x or m != m:
        return nan, 0.0
    if x == -inf:
        return -inf, 0.0
    if m == inf or t == 0.0:
        return (0.0 if x == m else -inf), 0.0
    if t == inf:
        return 0.0, 0.0
    return quotient(x, m, t, 0.0)


@inlined
def weigh(mk, m, t):
    """exp((mk - m) / t): what a tile's numbers count for in their row."""
    if mk == m and mk > -inf:
        return 1.0
    d, error = distance(mk, m, t)
    return exp_double(d, error)


@inlined
def add(s, c, term):
    """Neumaier's sum: s + c is the sum so far."""
    total = s + term
    return total, c + ((s - total) + term if abs(s) >= abs(term) else (term - total) + s)


@inlined
def join(ms, rs, count, t):
    """The state of a row from its tiles'. The tiles' r become their weights."""
    if count == 1:
        r = rs[0]
        rs[0] = 1.0
        return (ms[0] if r == r else nan), r
    m, first = -inf, 0
    for k in range(count):
        if ms[k] > m:
            m, first = ms[k], k
    s = c = 0.0
    for k in range(count):
        w = weigh(ms[k], m, t)
        s, c = add(s, c, rs[k] if k == first else (1.0 + rs[k]) * w)
        rs[k] = w
    r = s + c if s - s == 0.0 else s
    return (m if r == r else nan), r


# --- rows that are read together ---------------------------------------------------------------------------------------

# e: their exps, each row `width` apart; error: of short rows' differences; ms, ws: m and weight of each of their tiles,
# `count` apart; m, r: their states; x: a tile of one of them; p, q: a whole row in float64, with `keep`, which says that
# all exps stay in e
Block = namedtuple("Block", "e error width ms ws count m r x p q keep")


@inlined
def inner(g, view, row):
    """Where a row of a view begins."""
    if g[INNER] == 1:
        return row * g[view + 1]
    return (row // g[INNER]) * g[view + 1] + (row % g[INNER]) * g[view + 2]


@inlined
def side_by_side(g, view):
    """Do rows lie nearer to one another than a row's own numbers?"""
    return g[INNER] > 1 and abs(g[view + 2]) < abs(g[view + 3])


@inlined
def most(g):
    """How many rows are read together: short ones, and those that lie side by side."""
    if side_by_side(g, X) and g[N] * WIDE <= KEEP:
        return WIDE
    return LANES if g[N] <= SHORT or side_by_side(g, X) else 1


@inlined
def together(g, row, stop):
    lanes = most(g)
    if lanes == 1:
        return 1
    return min(lanes, stop - row, g[INNER] - row % g[INNER]) if side_by_side(g, X) else min(lanes, stop - row)


@inlined
def tiles(n):
    return (n + TILE - 1) // TILE


@inlined
def pitch(n, keep):
    """From one row's exps to the next. 16 more than a row: rows a power of two apart would share the cache's sets."""
    return n if n <= SHORT else (n if keep else TILE) + 16


@inlined
def scratch(g, keeping):
    """Memory for a block. With `keeping`, all exps of its rows stay there, if they are few."""
    lanes, n = most(g), g[N]
    keep = n <= TILE or (keeping and g[M] == 0 and lanes * n <= KEEP)
    width = pitch(n, keep)
    return np.empty(2 * lanes * width + 2 * lanes * (tiles(n) + 1) + TILE + 2 * width), keep


@inlined
def block(kind, g, memory, keep):
    lanes, n = most(g), g[N]
    width, count = pitch(n, keep), tiles(n)
    e = memory.ctypes.data
    error = e + 8 * lanes * width
    ms = error + 8 * lanes * width
    m = ms + 16 * lanes * count
    x = m + 16 * lanes
    p = x + 8 * TILE
    zero = number(kind, 0.0)
    return Block(
        at(e, zero), at(error, zero), width, at(ms, 1.0), at(ms + 8 * lanes * count, 1.0), count,
        at(m, 1.0), at(m + 8 * lanes, 1.0), at(x, zero), at(p, 1.0), at(p + 8 * width, 1.0), keep,
    )  # fmt: skip


@inlined
def read_rows(kind, g, view, row, rows, begin, n, e, width):
    """n numbers of each of these rows."""
    memory, step = at(g[view], kind), g[view + 3]
    if rows > 1 and side_by_side(g, X) and side_by_side(g, view):
        start, beside = inner(g, view, row), g[view + 2]
        for i in range(n):
            here = start + (begin + i) * step
            for c in range(rows):
                e[c * width + i] = wide(kind, memory[here + c * beside])
    else:
        for c in range(rows):
            read(kind, memory, inner(g, view, row + c) + begin * step, step, past(e, c * width), n)


@inlined
def write_rows(kind, g, row, rows, begin, n, e, width):
    memory, step = at(g[Y], kind), g[Y + 3]
    if rows > 1 and side_by_side(g, X) and side_by_side(g, Y):
        start, beside = inner(g, Y, row), g[Y + 2]
        for i in range(n):
            here = start + (begin + i) * step
            for c in range(rows):
                memory[here + c * beside] = narrow(kind, e[c * width + i])
    else:
        for c in range(rows):
            write(kind, memory, inner(g, Y, row + c) + begin * step, step, past(e, c * width), n)


@inlined
def mask(kind, g, row, begin, n, e, value):
    if g[MASK] != 0:
        step = g[MASK + 3]
        hide(at(g[MASK], np.uint8(0)), inner(g, MASK, row) + begin * step, step, e, n, number(kind, value))


@inlined
def load(kind, g, f, row, rows, begin, n, e, width):
    """A tile of the scores of each of these rows: softcapped, masked."""
    read_rows(kind, g, X, row, rows, begin, n, e, width)
    if f[CAP] != 0.0 or g[MASK] != 0:
        for c in range(rows):
            if f[CAP] != 0.0:
                cap(kind, past(e, c * width), n, f[CAP])
            mask(kind, g, row + c, begin, n, past(e, c * width), -inf)


@inlined
def temperature(g, f, row):
    return at(g[TEMPERATURE], 1.0)[row] if g[TEMPERATURE] != 0 else f[T]


# Short rows take their exps together, in one loop over all of their numbers: (x - m) / t and its error first, row by row.


@inlined
def row_differences(kind, e, error, n, m, t):
    """In place of the numbers of a row."""
    top, low, by, zero = number(kind, m), lowest(kind, m, t), number(kind, t), number(kind, 0.0)
    if t == 1.0:
        for i in range(n):
            x = larger(e[i], low)
            d, error[i] = difference(x, top)
            e[i] = d
    else:
        for i in range(n):
            e[i], error[i] = apart_from(kind, e[i], top, by, low, zero)


@called
def exps_of_all(kind, e, error, n):
    apart()
    for i in range(n):
        e[i] = expo(kind, e[i], error[i])


@summing
def row_sums(kind, e, n):
    zero, one = number(kind, 0.0), number(kind, 1.0)
    s = ones = zero
    for i in range(n):
        s += zero if e[i] == one else e[i]
        ones += one if e[i] == one else zero
    return np.float64(s), np.float64(ones)


@inlined
def short_state(kind, e, error, n):
    """(m, r) of one short row at temperature 1, whose numbers become their exps; only m where it is not ordinary."""
    m, r = summit(kind, e, n), 0.0
    if ordinary(kind, m, 1.0):
        row_differences(kind, e, error, n, m, 1.0)
        exps_of_all(kind, e, error, n)
        s, ones = row_sums(kind, e, n)
        r = rest(s, ones)
    return m, r


@inlined
def short_states(kind, g, f, row, rows, b):
    """`states` of short rows: their numbers lie one row after the other in e."""
    n = g[N]
    load(kind, g, f, row, rows, 0, n, b.e, n)
    for c in range(rows):
        e, error = past(b.e, c * n), past(b.error, c * n)
        m, t = summit(kind, e, n), temperature(g, f, row + c)
        b.ms[c] = m
        if ordinary(kind, m, t):
            row_differences(kind, e, error, n, m, t)
        else:
            fill(kind, e, n)
            fill(kind, error, n)
    exps_of_all(kind, b.e, b.error, rows * n)
    for c in range(rows):
        e, m, t = past(b.e, c * n), b.ms[c], temperature(g, f, row + c)
        if ordinary(kind, m, t):
            s, ones = row_sums(kind, e, n)
        else:
            load(kind, g, f, row + c, 1, 0, n, e, n)
            s, ones = corners(kind, e, e, n, m, t)
        b.ws[c] = rest(s, ones)


def state_in_place(kind, memory, start, e, n, t):
    """The state of numbers that lie one after the other in memory, and their exps into e."""


@overload(state_in_place, jit_options=EXACTLY)
def _state_in_place(kind, memory, start, e, n, t):
    if kind in (SINGLE, DOUBLE):  # numbers of the arithmetic already
        return lambda kind, memory, start, e, n, t: state(kind, past(memory, start), e, n, t)

    def widened(kind, memory, start, e, n, t):
        read(kind, memory, start, 1, e, n)
        return state(kind, e, e, n, t)

    return widened


@inlined
def states(kind, g, f, row, rows, first, last, b):
    """The state of these tiles of each of these rows, and their exps."""
    if g[N] <= SHORT:
        short_states(kind, g, f, row, rows, b)
        return
    plain = rows == 1 and g[X + 3] == 1 and g[MASK] == 0 and f[CAP] == 0.0
    for k in range(first, last):
        begin = k * TILE
        n = min(TILE, g[N] - begin)
        e = past(b.e, begin if b.keep else 0)
        if plain:
            start = inner(g, X, row) + begin
            b.ms[k], b.ws[k] = state_in_place(kind, at(g[X], kind), start, e, n, temperature(g, f, row))
            continue
        load(kind, g, f, row, rows, begin, n, e, b.width)
        for c in range(rows):
            here = past(e, c * b.width)
            m, r = state(kind, here, here, n, temperature(g, f, row + c))
            b.ms[c * b.count + k], b.ws[c * b.count + k] = m, r


@inlined
def settle(kind, g, f, row, rows, b):
    """m and r of these rows: given, or from all their tiles."""
    if g[M] != 0:
        for c in range(rows):
            b.m[c], b.r[c] = at(g[M], 1.0)[row + c], at(g[R], 1.0)[row + c]
    else:
        states(kind, g, f, row, rows, 0, b.count, b)
        for c in range(rows):
            here = c * b.count
            b.m[c], b.r[c] = join(past(b.ms, here), past(b.ws, here), b.count, temperature(g, f, row + c))


@inlined
def exps_of(kind, g, f, row, rows, k, b):
    """Tile k of these rows as exps, and its weights: as `settle` left them, or once more."""
    if b.keep and g[M] == 0:
        return past(b.e, k * TILE)
    states(kind, g, f, row, rows, k, k + 1, b)
    for c in range(rows):
        here = c * b.count + k
        b.ws[here] = weigh(b.ms[here], b.m[c], temperature(g, f, row + c))
    return past(b.e, k * TILE if b.keep else 0)


@inlined
def share(b, c, k):
    """What the exps of a tile are multiplied with to be probabilities."""
    return b.ws[c * b.count + k] / (1.0 + b.r[c])


@inlined
def frozen(m, t):
    """A row whose derivative is 0. One with a NaN is not."""
    return m == m and (m - m != 0.0 or t == 0.0 or t == inf)


@inlined
def times(kind, e, n, factor):
    """e · factor, the factor's own rounding made good."""
    by = number(kind, factor)
    rest = number(kind, factor - np.float64(by))
    for i in range(n):
        e[i] = fma(e[i], by, e[i] * rest)


@inlined
def write_times(kind, memory, start, e, n, factor):
    by = number(kind, factor)
    rest = number(kind, factor - np.float64(by))
    for i in range(n):
        memory[start + i] = narrow(kind, fma(e[i], by, e[i] * rest))


@inlined
def fill(kind, e, n):
    for i in range(n):
        e[i] = number(kind, 0.0)


# --- kernels: (kind, g, f, first and last row, first and last tile) ------------------------------------------------------


@kernel
def row_states(kind, g, f, start, stop, first, last):
    """OUT_M and OUT_R of each row; of each of these tiles of each row, where they are not all."""
    memory, keep = scratch(g, False)
    b = block(kind, g, memory, keep)
    out_m, out_r = at(g[OUT_M], 1.0), at(g[OUT_R], 1.0)
    row = start
    while row < stop:
        rows = together(g, row, stop)
        if first == 0 and last == b.count:
            settle(kind, g, f, row, rows, b)
            for c in range(rows):
                out_m[row + c], out_r[row + c] = b.m[c], b.r[c]
        else:
            states(kind, g, f, row, rows, first, last, b)
            for c in range(rows):
                for k in range(first, last):
                    here = c * b.count + k
                    out_m[(row + c) * b.count + k], out_r[(row + c) * b.count + k] = b.ms[here], b.ws[here]
        row += rows
    memory[0] = 0.0  # the block is in use until here


@kernel
def join_tiles(kind, g, f, start, stop, first, last):
    """OUT_M and OUT_R of each row from the states of all its tiles, which are M and R."""
    count = tiles(g[N])
    for row in range(start, stop):
        ms, rs = past(at(g[M], 1.0), row * count), past(at(g[R], 1.0), row * count)
        m, r = join(ms, rs, count, temperature(g, f, row))
        at(g[OUT_M], 1.0)[row], at(g[OUT_R], 1.0)[row] = m, r


@kernel
def softmax(kind, g, f, start, stop, first, last):
    """Softmax of each row; with FACTOR, the row's derivative: times its factor, 0 where the row is frozen."""
    memory, keep = scratch(g, True)
    b = block(kind, g, memory, keep)
    row = start
    while row < stop:
        rows = together(g, row, stop)
        settle(kind, g, f, row, rows, b)
        for k in range(first, last):
            begin = k * TILE
            n = min(TILE, g[N] - begin)
            tile = exps_of(kind, g, f, row, rows, k, b)
            if rows == 1 and g[FACTOR] == 0 and g[Y + 3] == 1:
                write_times(kind, at(g[Y], kind), inner(g, Y, row) + begin, tile, n, share(b, 0, k))
                continue
            for c in range(rows):
                e, factor = past(tile, c * b.width), share(b, c, k)
                if g[FACTOR] == 0:
                    times(kind, e, n, factor)
                elif frozen(b.m[c], temperature(g, f, row + c)):
                    fill(kind, e, n)
                else:
                    times(kind, e, n, factor * at(g[FACTOR], 1.0)[row + c])
                    mask(kind, g, row + c, begin, n, e, 0.0)
            write_rows(kind, g, row, rows, begin, n, tile, b.width)
        row += rows
    memory[0] = 0.0


@kernel
def short_softmax(kind, x, y, rows, n):
    """Softmax of rows that lie one after the other at address x, into y; n <= TILE."""
    memory = np.empty(TILE)
    e, error = at(memory.ctypes.data, number(kind, 0.0)), at(memory.ctypes.data + 8 * SHORT, number(kind, 0.0))
    for row in range(rows):
        if n > SHORT:
            _, r = state_in_place(kind, at(x, kind), row * n, e, n, 1.0)
        else:
            read(kind, at(x, kind), row * n, 1, e, n)
            m, r = short_state(kind, e, error, n)
            if not ordinary(kind, m, 1.0):
                read(kind, at(x, kind), row * n, 1, e, n)
                s, ones = corners(kind, e, e, n, m, 1.0)
                r = rest(s, ones)
        write_times(kind, at(y, kind), row * n, e, n, 1.0 / (1.0 + r))
    memory[0] = 0.0


@inlined
def logs(kind, e, n, m, r, t):
    """(x - m) / t - log1p(r), in place."""
    if m - m != 0.0 or t == 0.0 or t == inf or r != r:
        for i in range(n):
            d, _ = distance(np.float64(e[i]), m, t)
            e[i] = number(kind, d - log1p(r))
        return
    top, log, by = number(kind, m), number(kind, log1p(r)), number(kind, t)
    if t == 1.0:
        for i in range(n):
            e[i] = (e[i] - top) - log
    else:
        for i in range(n):
            e[i] = (e[i] - top) / by - log


@kernel
def log_softmax(kind, g, f, start, stop, first, last):
    memory, keep = scratch(g, False)
    b = block(kind, g, memory, keep)
    row = start
    while row < stop:
        rows = together(g, row, stop)
        settle(kind, g, f, row, rows, b)
        for k in range(first, last):
            begin = k * TILE
            n = min(TILE, g[N] - begin)
            load(kind, g, f, row, rows, begin, n, b.e, b.width)
            for c in range(rows):
                logs(kind, past(b.e, c * b.width), n, b.m[c], b.r[c], temperature(g, f, row + c))
            write_rows(kind, g, row, rows, begin, n, b.e, b.width)
        row += rows
    memory[0] = 0.0


# --- kernels that hold whole rows: n <= KEEP -----------------------------------------------------------------------------
# They follow the lines of their formulas, which say why.


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
        read_rows(kind, g, view, row, 1, begin, n, b.x, 0)
        for i in range(n):
            out[begin + i] = np.float64(b.x[i])


@inlined
def write_whole(kind, g, row, b, a, factor):
    """a · factor as a row of the answer, 0 where the mask is False."""
    for begin in range(0, g[N], TILE):
        n = min(TILE, g[N] - begin)
        for i in range(n):
            b.x[i] = number(kind, a[begin + i] * factor)
        mask(kind, g, row, begin, n, b.x, 0.0)
        write_rows(kind, g, row, 1, begin, n, b.x, 0)


@inlined
def write_zeros(kind, g, row, b):
    fill(kind, b.x, min(TILE, g[N]))
    for begin in range(0, g[N], TILE):
        write_rows(kind, g, row, 1, begin, min(TILE, g[N] - begin), b.x, 0)


@inlined
def probabilities(kind, g, f, row, b):
    """A whole settled row's probabilities, in float64."""
    for k in range(b.count):
        e, factor = exps_of(kind, g, f, row, 1, k, b), share(b, 0, k)
        for i in range(min(TILE, g[N] - k * TILE)):
            b.p[k * TILE + i] = np.float64(e[i]) * factor


@kernel
def softmax_pullback(kind, g, f, start, stop, first, last):
    """Sᵀ (diag(p) - p pᵀ) S v / t of each row; p is P where it is given."""
    n = g[N]
    memory, keep = scratch(g, True)
    b = block(kind, g, memory, keep)
    for row in range(start, stop):
        t = temperature(g, f, row)
        settle(kind, g, f, row, 1, b)
        if frozen(b.m[0], t):
            write_zeros(kind, g, row, b)
            continue
        if g[P] != 0:
            read_whole(kind, g, P, row, b, b.p)
        else:
            probabilities(kind, g, f, row, b)
        read_whole(kind, g, V, row, b, b.q)
        p, v = b.p, b.q
        top, _ = peak(1.0, p, n)
        ties, mean = sum_at(p, top, v, n)
        mean /= max(ties, 1.0)
        for i in range(n):
            v[i] -= mean
        lone = index_of(p, top, n) if top > 0.5 else -1
        if lone >= 0:
            v[lone] = 0.0
        product = inner_product(p, v, n)
        for i in range(n):
            v[i] = p[i] * (v[i] - product)
        if lone >= 0:
            v[lone] = -total_but(v, lone, n)
        else:
            excess = total(v, n) / max(ties, 1.0)
            for i in range(n):
                v[i] -= excess if p[i] == top else 0.0
        write_whole(kind, g, row, b, v, 1.0 / t)
    memory[0] = 0.0


@kernel
def log_softmax_pullback(kind, g, f, start, stop, first, last):
    """(v - p Σ v) / t of each row."""
    n = g[N]
    memory, keep = scratch(g, True)
    b = block(kind, g, memory, keep)
    for row in range(start, stop):
        t = temperature(g, f, row)
        settle(kind, g, f, row, 1, b)
        if frozen(b.m[0], t):
            write_zeros(kind, g, row, b)
            continue
        probabilities(kind, g, f, row, b)
        read_whole(kind, g, V, row, b, b.q)
        p, v = b.p, b.q
        for begin in range(0, n, TILE):  # log p is -inf there whatever x does nearby
            size = min(TILE, n - begin)
            load(kind, g, f, row, 1, begin, size, b.x, 0)
            for i in range(size):
                v[begin + i] = 0.0 if np.float64(b.x[i]) == -inf else v[begin + i]
        all_v = total(v, n)
        lone = index_of(p, peak(1.0, p, n)[0], n) if b.r[0] < 1.0 else -1
        of_lone = 0.0
        if lone >= 0:
            of_lone = v[lone] * (b.r[0] / (1.0 + b.r[0])) - p[lone] * total_but(v, lone, n)
        for i in range(n):
            v[i] = (1.0 - p[i]) * v[i] - p[i] * (all_v - v[i])
        if lone >= 0:
            v[lone] = of_lone
        write_whole(kind, g, row, b, v, 1.0 / t)
    memory[0] = 0.0


# --- cross-entropy -----------------------------------------------------------------------------------------------------


@inlined
def score(kind, g, f, row, i, b):
    """One score of a row, softcapped and masked."""
    load(kind, g, f, row, 1, i, 1, b.x, 0)
    return np.float64(b.x[0])


@inlined
def slope(kind, g, f, row, begin, n, e, b):
    """e times the softcap's derivative."""
    read_rows(kind, g, X, row, 1, begin, n, b.x, 0)
    for i in range(n):
        e[i] = number(kind, np.float64(e[i]) * cap_slope(np.float64(b.x[i]), f[CAP]))


@inlined
def row_loss(f, log, weight, fit, m, t, count):
    """The loss of a row: Σq log1p(r) - Σ q d, and the z-loss; and what the z-loss adds to the factor of p."""
    loss, more = count * log - fit, 0.0
    if f[Z_LOSS] != 0.0:
        lse = m / t + log
        loss += f[Z_LOSS] * weight * lse * lse
        more = 2.0 * f[Z_LOSS] * weight * lse
    return loss, more


@inlined
def weight_at(g, label):
    return at(g[CLASS_WEIGHT], 1.0)[label] if g[CLASS_WEIGHT] != 0 else 1.0


@kernel
def cross_entropy(kind, g, f, start, stop, first, last):
    """LOSS of each row, before its weight, and with Y its gradient by X times FACTOR. Labels are integers, unsmoothed."""
    memory, keep = scratch(g, g[Y] != 0)
    b = block(kind, g, memory, keep)
    row = start
    while row < stop:
        rows = together(g, row, stop)
        settle(kind, g, f, row, rows, b)
        for c in range(rows):
            label = at(g[LABEL], 0)[row + c]
            loss = 0.0
            if 0 <= label < g[N]:
                t, m, log = temperature(g, f, row + c), b.m[c], log1p(b.r[c])
                q = weight_at(g, label)
                d, _ = distance(score(kind, g, f, row + c, label, b), m, t)
                loss, _ = row_loss(f, log, q, q * d, m, t, q)
            if first == 0:
                at(g[LOSS], 1.0)[row + c] = loss
        if g[Y] != 0:
            for k in range(first, last):
                begin = k * TILE
                n = min(TILE, g[N] - begin)
                tile = exps_of(kind, g, f, row, rows, k, b)
                for c in range(rows):
                    e, m, t = past(tile, c * b.width), b.m[c], temperature(g, f, row + c)
                    label = at(g[LABEL], 0)[row + c]
                    if label < 0 or frozen(m, t):
                        fill(kind, e, n)
                        continue
                    q = weight_at(g, label)
                    factor, log = at(g[FACTOR], 1.0)[row + c] / t, log1p(b.r[c])
                    _, more = row_loss(f, log, q, 0.0, m, t, q)
                    times(kind, e, n, share(b, c, k) * ((q + more) * factor))
                    if 0 <= label - begin < n:
                        d, _ = distance(score(kind, g, f, row + c, label, b), m, t)
                        p = exp_double(d - log, 0.0)
                        e[label - begin] = number(kind, (q * expm1(d - log) + more * p) * factor)
                    if f[CAP] != 0.0:
                        slope(kind, g, f, row + c, begin, n, e, b)
                    mask(kind, g, row + c, begin, n, e, 0.0)
                write_rows(kind, g, row, rows, begin, n, tile, b.width)
        row += rows
    memory[0] = 0.0


@inlined
def weight_of(g, y):
    """Σ w y of a row of labels."""
    return inner_product(y, at(g[CLASS_WEIGHT], 1.0), g[N]) if g[CLASS_WEIGHT] != 0 else total(y, g[N])


@kernel
def row_weights(kind, g, f, start, stop, first, last):
    """OUT_M: Σ w y of each row of soft labels."""
    memory, keep = scratch(g, True)
    b = block(kind, g, memory, keep)
    for row in range(start, stop):
        read_whole(kind, g, V, row, b, b.q)
        at(g[OUT_M], 1.0)[row] = weight_of(g, b.q)
    memory[0] = 0.0


@kernel
def soft_cross_entropy(kind, g, f, start, stop, first, last):
    """As `cross_entropy`, for labels that are distributions (V), or smoothed."""
    n, smoothing = g[N], f[SMOOTHING]
    memory, keep = scratch(g, True)
    b = block(kind, g, memory, keep)
    p, q = b.p, b.q
    for row in range(start, stop):
        label = at(g[LABEL], 0)[row]
        if label < 0:
            at(g[LOSS], 1.0)[row] = 0.0
            if g[Y] != 0:
                write_zeros(kind, g, row, b)
            continue
        t = temperature(g, f, row)
        settle(kind, g, f, row, 1, b)
        m, r = b.m[0], b.r[0]
        log = log1p(r)

        if g[V] != 0:
            read_whole(kind, g, V, row, b, q)
        else:
            fill(1.0, q, n)
            q[label] = 1.0
        weight = weight_of(g, q)
        if smoothing != 0.0:
            for i in range(n):
                p[i] = 1.0
            mask(1.0, g, row, 0, n, p, 0.0)
            even = smoothing / max(total(p, n), 1.0)
            for i in range(n):
                q[i] = (1.0 - smoothing) * q[i] + even * p[i]
        if g[CLASS_WEIGHT] != 0:
            classes = at(g[CLASS_WEIGHT], 1.0)
            for i in range(n):
                q[i] *= classes[i]

        fit = lost = 0.0
        for begin in range(0, n, TILE):
            size = min(TILE, n - begin)
            load(kind, g, f, row, 1, begin, size, b.x, 0)
            part = 0.0
            for i in range(size):
                if q[begin + i] != 0.0:
                    d, error = distance(np.float64(b.x[i]), m, t)
                    part += q[begin + i] * d
                    lost += q[begin + i] * error
            fit, lost = add(fit, lost, part)
        fit = fit + lost if fit - fit == 0.0 else fit
        all_q = total(q, n)
        loss, more = row_loss(f, log, weight, fit, m, t, all_q)
        at(g[LOSS], 1.0)[row] = loss if m == m else nan
        if g[Y] == 0:
            continue
        if frozen(m, t):
            write_zeros(kind, g, row, b)
            continue

        probabilities(kind, g, f, row, b)
        lone = index_of(p, peak(1.0, p, n)[0], n) if r < 1.0 else -1
        of_lone = 0.0
        if lone >= 0:
            of_lone = p[lone] * (total_but(q, lone, n) + more) - q[lone] * (r / (1.0 + r))
        for i in range(n):
            q[i] = p[i] * (all_q - q[i] + more) - (1.0 - p[i]) * q[i]
        if lone >= 0:
            q[lone] = of_lone
        if f[CAP] != 0.0:
            read_whole(kind, g, X, row, b, p)
            for i in range(n):
                q[i] *= cap_slope(p[i], f[CAP])
        write_whole(kind, g, row, b, q, at(g[FACTOR], 1.0)[row] / t)
    memory[0] = 0.0


# --- ahead of time -------------------------------------------------------------------------------------------------------

KINDS = {"float16": HALF, "bfloat16": BFLOAT, "float32": SINGLE, "float64": DOUBLE}


def compile_all(dtypes: Any, progress: bool) -> int:
    """Every kernel for each of these dtypes (all, if there are none); says which on standard error."""
    for name in dtypes:
        if name not in KINDS:
            raise ValueError(f"the kernels know {', '.join(KINDS)}, got {name!r}.")
    work = [(dtype, name) for dtype in dtypes or KINDS for name in KERNELS]
    size, vectors = types.int64, (types.int64[::1], types.float64[::1])
    for i, (dtype, name) in enumerate(work):
        if progress:
            print(f"softxp: compiling {i + 1} of {len(work)}: {name}, {dtype}", file=sys.stderr, flush=True)
        rest = (size,) * 4 if name == "short_softmax" else (*vectors, *(size,) * 4)
        KERNELS[name].compile((KINDS[dtype], *rest))
    return len(work)
