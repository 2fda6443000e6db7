"""Rows that are read together, from memory to their exps: what most kernels begin with."""

from collections import namedtuple
from math import inf, nan

import numpy as np

from ._numba import apart, at, called, inlined, past
from .arithmetic import number
from .memory import (
    CAP,
    KEEP,
    LANES,
    MASK,
    SHORT,
    TILE,
    WAITS,
    WEIGHTS,
    M,
    N,
    R,
    X,
    Y,
    inner,
    load,
    load_row,
    mask,
    temperature,
    tiles,
    write_rows,
)
from .tiles import (
    corners,
    fours,
    join,
    lane_states,
    lane_times_all,
    ordinary,
    rest,
    state,
    state_in_place,
    times,
    weigh,
)

# Their exps are e[c * beside + i * step] for number i of row c: in scratch one row after the other, short rows side by side
# (then a loop over rows is a loop of vectors), or where the answer will be.
#
# raw: room as large, in pitch `width`; lanes: room for vectors with a number of each row; ms, ws: m and weight of each of
# their tiles, `count` apart; m, r: their states; log, d: log1p(r) and the distance of their label; factor: what they are
# finished with; x: a tile of one of them; p, q: a whole row in float64, with `keep`, which says that all exps stay in e
#
# ws holds a tile's r until `join` makes it the tile's weight (short rows: first their temperatures). raw holds bits on the
# way to memory, the errors of short rows' differences, or, where exps wait in the answer, the tile they are made in: never
# two at once, since bits that are not the arithmetic's own numbers never wait.
Block = namedtuple("Block", "e beside step raw width lanes ms ws count m r log d factor x p q keep")


@inlined
def pitch(n, keep):
    """From one row's exps to the next. 16 more than a row: rows a power of two apart would share the cache's sets."""
    return fours(n) if n <= SHORT else (n if keep else TILE) + 16


@inlined
def scratch(g, lanes, keeping):
    """Memory for a block of so many rows. With `keeping`, all exps of its rows stay there, if they are few."""
    n = g[N]
    keep = n <= TILE or (keeping and g[M] == 0 and lanes * n <= KEEP)
    width = pitch(n, keep)
    return np.empty(2 * lanes * width + 8 * LANES + lanes * (2 * tiles(n) + 5) + TILE + 2 * width), keep


@inlined
def block(kind, g, lanes, memory, keep):
    n = g[N]
    width, count = pitch(n, keep), tiles(n)
    e = memory.ctypes.data
    raw = e + 8 * lanes * width
    vectors = raw + 8 * lanes * width
    ms = vectors + 64 * LANES
    m = ms + 16 * lanes * count
    x = m + 40 * lanes
    p = x + 8 * TILE
    zero = number(kind, 0.0)
    beside, step = (1, lanes) if n <= SHORT else (width, 1)
    return Block(
        at(e, zero), beside, step, at(raw, zero), width, at(vectors, zero), at(ms, 1.0), at(ms + 8 * lanes * count, 1.0),
        count, at(m, 1.0), at(m + 8 * lanes, 1.0), at(m + 16 * lanes, 1.0), at(m + 24 * lanes, 1.0),
        at(m + 32 * lanes, 1.0), at(x, zero), at(p, 1.0), at(p + 8 * width, 1.0), keep,
    )  # fmt: skip


@inlined
def home(kind, g, row, b):
    """The block with room for the exps of its rows, from this one on: where exps wait in the answer, that."""
    if g[WAITS] == 0:
        return b
    e = past(at(g[Y], number(kind, 0.0)), inner(g, Y, row))
    beside, step = (b.beside, 1) if g[Y + 3] == 1 else (1, g[Y + 3])
    return Block(
        e, beside, step, b.raw, b.width, b.lanes, b.ms, b.ws, b.count, b.m, b.r, b.log, b.d, b.factor, b.x, b.p, b.q, True
    )  # fmt: skip


@called
def short_states(kind, g, f, row, rows, b):
    """m and r of short rows, and their exps."""
    apart()
    n = g[N]
    load(kind, g, f, row, rows, 0, n, b.e, 1, b.step, b.raw)
    for c in range(rows):
        b.ws[c] = temperature(g, f, row + c)
    if lane_states(kind, b.e, b.step, b.raw, b.lanes, rows, n, b.ws, b.m, b.r):
        for c in range(rows):
            if not ordinary(kind, b.m[c], b.ws[c]):
                load_row(kind, g, f, row + c, 0, n, b.x)
                s, ones = corners(kind, b.x, past(b.e, c), b.step, n, b.m[c], b.ws[c])
                b.r[c] = rest(s, ones)
    for c in range(rows):
        b.ws[c] = 1.0
        b.m[c] = b.m[c] if b.r[c] == b.r[c] else nan


@inlined
def states(kind, g, f, row, rows, first, last, b):
    """The state of these tiles of each of these long rows, and their exps."""
    plain = rows == 1 and b.beside != 1 and g[X + 3] == 1 and g[MASK] == 0 and f[CAP] == 0.0
    for k in range(first, last):
        begin = k * TILE
        n = min(TILE, g[N] - begin)
        e = b.raw if b.beside == 1 else past(b.e, begin if b.keep else 0)
        if plain:
            start = inner(g, X, row) + begin
            b.ms[k], b.ws[k] = state_in_place(kind, at(g[X], kind), start, e, n, temperature(g, f, row))
            continue
        load(kind, g, f, row, rows, begin, n, e, b.width, 1, b.raw)
        for c in range(rows):
            here = past(e, c * b.width)
            m, r = state(kind, here, here, n, temperature(g, f, row + c))
            b.ms[c * b.count + k], b.ws[c * b.count + k] = m, r
        if b.beside == 1:
            write_rows(kind, g, row, rows, begin, n, e, b.width, 1, b.raw)


@inlined
def settle(kind, g, f, row, rows, b):
    """m and r of these rows: given, or from all their tiles."""
    if g[M] != 0:
        for c in range(rows):
            b.m[c], b.r[c] = at(g[M], 1.0)[row + c], at(g[R], 1.0)[row + c]
    elif g[N] <= SHORT:
        short_states(kind, g, f, row, rows, b)
    else:
        states(kind, g, f, row, rows, 0, b.count, b)
        for c in range(rows):
            here = c * b.count
            b.m[c], b.r[c] = join(past(b.ms, here), past(b.ws, here), b.count, temperature(g, f, row + c))


@inlined
def exps_of(kind, g, f, row, rows, k, b):
    """Tile k of these rows as exps, and its weights: as they were left, or once more."""
    if g[WEIGHTS] != 0:
        for c in range(rows):
            b.ws[c * b.count + k] = at(g[WEIGHTS], 1.0)[(row + c) * b.count + k]
    elif g[M] != 0 or not b.keep:
        states(kind, g, f, row, rows, k, k + 1, b)
        for c in range(rows):
            here = c * b.count + k
            b.ws[here] = weigh(b.ms[here], b.m[c], temperature(g, f, row + c))
    return past(b.e, k * TILE * b.step if b.keep else 0)


@inlined
def share(b, c, k):
    """What the exps of a tile are multiplied with to be probabilities."""
    return b.ws[c * b.count + k] / (1.0 + b.r[c])


@inlined
def frozen(m, t):
    """A row whose derivative is 0. One with a NaN is not."""
    return m == m and (m - m != 0.0 or t == 0.0 or t == inf)


@inlined
def times_rows(kind, b, tile, rows, n):
    """A tile of these rows, each times its factor."""
    if b.beside == 1:
        lane_times_all(kind, tile, b.step, b.lanes, rows, n, b.factor)
    else:
        for c in range(rows):
            times(kind, past(tile, c * b.beside), n, b.factor[c])


@inlined
def hand_over(kind, g, row, rows, begin, n, tile, b):
    """A finished tile of these rows to the answer, if it is not there already."""
    if g[WAITS] == 0:
        write_rows(kind, g, row, rows, begin, n, tile, b.beside, b.step, b.raw)


@inlined
def mask_rows(kind, g, b, row, rows, begin, n, tile):
    """0 where the mask is False."""
    if g[MASK] != 0:
        for c in range(rows):
            mask(kind, g, row + c, begin, n, past(tile, c * b.beside), b.step, 0.0)
