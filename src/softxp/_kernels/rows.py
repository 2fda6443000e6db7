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
from math import inf, log1p, nan
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from ._numba import (
    EXACTLY,
    KERNELS,
    address,
    apart,
    at,
    called,
    fma,
    inlined,
    kernel,
    larger,
    past,
    put,
    shared,
    side,
    summing,
    take,
    turn,
)
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
SHORT = 64  # numbers in a row up to which LANES rows are computed side by side, wherever they lie
LANES = 64  # rows that are read together: short ones, and those that lie side by side

# g: views, then addresses of vectors (0 where there is none), then sizes
X, Y, MASK, V, P = 0, 4, 8, 12, 16  # input; answer; bool; cotangent or soft labels; given probabilities
# of rows, float64 but for LABEL: int64, -1 for a row that counts for nothing; M and R are given, OUT_M and OUT_R answered
TEMPERATURE, LABEL, FACTOR, LOSS, M, R, OUT_M, OUT_R = 20, 21, 22, 23, 24, 25, 26, 27
CLASS_WEIGHT = 28  # of classes, float64
WEIGHTS = 29  # of tiles, float64, beside M and R: the exps are in the answer already
INNER, N, WAITS = 30, 31, 32  # rows in one outer row; numbers in a row; may exps wait in the answer for their factor?
SLOTS = 33
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
def cap(kind, e, step, n, softcap):
    """softcap · tanh(x / softcap), as -expm1(-2a) / (2 + expm1(-2a)) with the sign put back."""
    for i in range(n):
        v = np.float64(e[i * step]) / softcap
        u = expm1_double(larger(-2.0 * abs(v), -800.0))
        h = softcap * (-u / (2.0 + u))
        e[i * step] = number(kind, v if v != v else (-h if v < 0.0 else h))


@inlined
def cap_slope(x, softcap):
    e = exp_double(-2.0 * abs(x / softcap), 0.0)
    return 4.0 * e / ((1.0 + e) * (1.0 + e))


@inlined
def hide(memory, start, step, e, e_step, n, value):
    """`value` where the mask is False."""
    for i in range(n):
        e[i * e_step] = e[i * e_step] if memory[start + i * step] != 0 else value


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
def corners(kind, x, e, step, n, m, t):
    """Any numbers' exps, one by one: where m is infinite or nearly, or t is 0 or inf."""
    s = c = 0.0
    for i in range(n):
        d, error = distance(np.float64(x[i]), m, t)
        v = exp_double(d, error)
        e[i * step] = number(kind, v)
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
        s, ones = corners(kind, x, e, 1, n, m, t)
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
# Their exps are e[c * beside + i * step] for number i of row c: in scratch one row after the other, short rows side by side
# (then a loop over rows is a loop of vectors), or where the answer will be.

# raw: room as large, in pitch `width`; lanes: room for vectors with a number of each row; ms, ws: m and weight of each of
# their tiles, `count` apart; m, r: their states; log, d: log1p(r) and the distance of their label; factor: what they are
# finished with; x: a tile of one of them; p, q: a whole row in float64, with `keep`, which says that all exps stay in e
Block = namedtuple("Block", "e beside step raw width lanes ms ws count m r log d factor x p q keep")


@inlined
def inner(g, view, row):
    """Where a row of a view begins."""
    if g[INNER] == 1:
        return row * g[view + 1]
    return (row // g[INNER]) * g[view + 1] + (row % g[INNER]) * g[view + 2]


@shared
def side_by_side(g, view):
    """Do rows lie nearer to one another than a row's own numbers?"""
    return g[INNER] > 1 and abs(g[view + 2]) < abs(g[view + 3])


@shared
def most(g, rows):
    """How many of so many rows are read together."""
    return min(LANES, rows) if g[N] <= SHORT or side_by_side(g, X) else 1


@inlined
def together(g, row, stop, lanes):
    """How many rows are read together from this one on. Long ones are one step apart, so that one loop may write them."""
    rows = min(lanes, stop - row)
    return rows if g[N] <= SHORT else min(rows, g[INNER] - row % g[INNER])


@inlined
def tiles(n):
    return (n + TILE - 1) // TILE


@inlined
def fours(n):
    """Short rows are filled up to fours, with -inf."""
    return (n + 3) // 4 * 4


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
def onto(kind, g, row, rows, b):
    """The block with the answer of these rows as room for their exps."""
    e, beside, step = past(at(g[Y], number(kind, 0.0)), inner(g, Y, row)), b.beside, b.step
    if g[Y + 3] != 1:
        beside, step = 1, g[Y + 3]
    return Block(
        e,
        beside,
        step,
        b.raw,
        b.width,
        b.lanes,
        b.ms,
        b.ws,
        b.count,
        b.m,
        b.r,
        b.log,
        b.d,
        b.factor,
        b.x,
        b.p,
        b.q,
        True,
    )


@inlined
def turned(source, source_step, target, target_step, across, down, in_order_of_target):
    """target[j * target_step + i] = source[i * source_step + j] for i < down, j < across.

    The side that lies in memory says the order: what is near there is touched at once."""
    s = side(source)
    last_i, last_j = down - down % s, across - across % s
    outer, inner_ = (last_j, last_i) if in_order_of_target else (last_i, last_j)
    for u in range(0, outer, s):
        for v in range(0, inner_, s):
            i, j = (v, u) if in_order_of_target else (u, v)
            turn(past(source, i * source_step + j), source_step, past(target, j * target_step + i), target_step)
    for i in range(down):
        for j in range(last_j if i < last_i else 0, across):
            target[j * target_step + i] = source[i * source_step + j]


def turn_in(kind, memory, source_step, e, raw, step, across, down):
    """`turned`, from memory into the arithmetic."""


@overload(turn_in, jit_options=EXACTLY)
def _turn_in(kind, memory, source_step, e, raw, step, across, down):
    if kind in (SINGLE, DOUBLE):
        return lambda kind, memory, source_step, e, raw, step, across, down: turned(
            memory, source_step, e, step, across, down, False
        )

    def through(kind, memory, source_step, e, raw, step, across, down):
        bits = at(address(raw), kind)
        turned(memory, source_step, bits, step, across, down, False)
        for j in range(across):
            read(kind, bits, j * step, 1, past(e, j * step), down)

    return through


def turn_out(kind, memory, target_step, e, raw, step, across, down):
    """`turned`, from the arithmetic into memory."""


@overload(turn_out, jit_options=EXACTLY)
def _turn_out(kind, memory, target_step, e, raw, step, across, down):
    if kind in (SINGLE, DOUBLE):
        return lambda kind, memory, target_step, e, raw, step, across, down: turned(
            e, step, memory, target_step, across, down, True
        )

    def through(kind, memory, target_step, e, raw, step, across, down):
        bits = at(address(raw), kind)
        for i in range(down):
            write(kind, bits, i * step, 1, past(e, i * step), across)
        turned(bits, step, memory, target_step, across, down, True)

    return through


@inlined
def run_of(g, row, c, rows):
    """How many of `rows` rows from row + c on are one step apart."""
    return rows - c if g[INNER] == 1 else min(rows - c, g[INNER] - (row + c) % g[INNER])


@inlined
def beside(g, view):
    return g[view + 1] if g[INNER] == 1 else g[view + 2]


@called
def read_rows(kind, g, view, row, rows, begin, n, e, e_beside, e_step, raw):
    """n numbers of each of these rows, to e[c * e_beside + i * e_step]."""
    apart()
    step, by = g[view + 3], beside(g, view)
    c = 0
    while c < rows:
        run = run_of(g, row, c, rows)
        memory, to = past(at(g[view], kind), inner(g, view, row + c) + begin * step), past(e, c * e_beside)
        room = past(raw, c * e_beside)
        if e_step == 1 and (run == 1 or by != 1):
            for k in range(run):
                read(kind, memory, k * by, step, past(to, k * e_beside), n)
        elif e_step == 1:
            turn_in(kind, memory, step, to, room, e_beside, run, n)
        elif step == 1:
            turn_in(kind, memory, by, to, room, e_step, n, run)
        else:
            for i in range(n):
                read(kind, memory, i * step, by, past(to, i * e_step), run)
        c += run


@called
def write_rows(kind, g, row, rows, begin, n, e, e_beside, e_step, raw):
    """The same into the answer."""
    apart()
    step, by = g[Y + 3], beside(g, Y)
    c = 0
    while c < rows:
        run = run_of(g, row, c, rows)
        memory, here = past(at(g[Y], kind), inner(g, Y, row + c) + begin * step), past(e, c * e_beside)
        room = past(raw, c * e_beside)
        if e_step == 1 and (run == 1 or by != 1):
            for k in range(run):
                write(kind, memory, k * by, step, past(here, k * e_beside), n)
        elif e_step == 1:
            turn_out(kind, memory, step, here, room, e_beside, n, run)
        elif step == 1:
            turn_out(kind, memory, by, here, room, e_step, run, n)
        else:
            for i in range(n):
                write(kind, memory, i * step, by, past(here, i * e_step), run)
        c += run


@inlined
def read_row(kind, g, view, row, begin, n, e):
    read(kind, at(g[view], kind), inner(g, view, row) + begin * g[view + 3], g[view + 3], e, n)


@inlined
def write_row(kind, g, row, begin, n, e):
    write(kind, at(g[Y], kind), inner(g, Y, row) + begin * g[Y + 3], g[Y + 3], e, n)


@inlined
def mask(kind, g, row, begin, n, e, e_step, value):
    if g[MASK] != 0:
        step = g[MASK + 3]
        hide(at(g[MASK], np.uint8(0)), inner(g, MASK, row) + begin * step, step, e, e_step, n, number(kind, value))


@inlined
def as_scores(kind, g, f, row, begin, n, e, step):
    """Softcapped, masked."""
    if f[CAP] != 0.0:
        cap(kind, e, step, n, f[CAP])
    mask(kind, g, row, begin, n, e, step, -inf)


@inlined
def load_row(kind, g, f, row, begin, n, e):
    """n scores of a row."""
    read_row(kind, g, X, row, begin, n, e)
    as_scores(kind, g, f, row, begin, n, e, 1)


@inlined
def load(kind, g, f, row, rows, begin, n, e, e_beside, e_step, raw):
    """n scores of each of these rows."""
    read_rows(kind, g, X, row, rows, begin, n, e, e_beside, e_step, raw)
    if f[CAP] != 0.0 or g[MASK] != 0:
        for c in range(rows):
            as_scores(kind, g, f, row + c, begin, n, past(e, c * e_beside), e_step)


@inlined
def temperature(g, f, row):
    return at(g[TEMPERATURE], 1.0)[row] if g[TEMPERATURE] != 0 else f[T]


# --- short rows, side by side: number i of row c is e[i * rows + c], and every loop is over rows ------------------------


@called
def four_peaks(kind, e, step, rows, top, nans):
    """Of four numbers of each row."""
    apart()
    none, one = number(kind, 0.0), number(kind, 1.0)
    for c in range(rows):
        x0, x1, x2, x3 = take(e, c), take(e, step + c), take(e, 2 * step + c), take(e, 3 * step + c)
        put(top, c, larger(take(top, c), larger(larger(x0, x1), larger(x2, x3))))
        nan_of = (none if x0 == x0 else one) + (none if x1 == x1 else one)
        put(nans, c, take(nans, c) + (nan_of + ((none if x2 == x2 else one) + (none if x3 == x3 else one))))


@called
def lane_differences(kind, e, raw, rows, top, low, by, plain):
    """(x - m) / t of a number of each row in its place, its error to raw."""
    apart()
    zero = number(kind, 0.0)
    if plain:
        for c in range(rows):
            d, error = difference(larger(take(e, c), take(low, c)), take(top, c))
            put(e, c, d)
            put(raw, c, error)
    else:
        for c in range(rows):
            d, error = apart_from(kind, take(e, c), take(top, c), take(by, c), take(low, c), zero)
            put(e, c, d)
            put(raw, c, error)


@called
def exps_of_all(kind, e, raw, n):
    apart()
    for i in range(n):
        put(e, i, expo(kind, take(e, i), take(raw, i)))


@called
def four_sums(kind, e, step, rows, s, ones):
    """Of four exps of each row: of those that are not 1, and of those that are."""
    apart()
    none, one = number(kind, 0.0), number(kind, 1.0)
    for c in range(rows):
        x0, x1, x2, x3 = take(e, c), take(e, step + c), take(e, 2 * step + c), take(e, 3 * step + c)
        one_of = (one if x0 == one else none) + (one if x1 == one else none)
        put(ones, c, take(ones, c) + (one_of + ((one if x2 == one else none) + (one if x3 == one else none))))
        a = (none if x0 == one else x0) + (none if x1 == one else x1)
        put(s, c, take(s, c) + (a + ((none if x2 == one else x2) + (none if x3 == one else x3))))


@called
def lane_times(kind, e, rows, by, more):
    apart()
    for c in range(rows):
        put(e, c, fma(take(e, c), take(by, c), take(e, c) * take(more, c)))


@inlined
def lane_fill(kind, lanes, rows, value):
    for c in range(rows):
        lanes[c] = number(kind, value)


@inlined
def lane_states(kind, e, step, raw, lanes, rows, n, ts, m, r):
    """m and r of each row in e, which becomes their exps. Is one not ordinary? Of that only m is right."""
    top, low, by, nans = lanes, past(lanes, LANES), past(lanes, 2 * LANES), past(lanes, 3 * LANES)
    lane_fill(kind, past(e, n * step), (fours(n) - n) * step, -inf)
    lane_fill(kind, top, rows, -inf)
    lane_fill(kind, nans, rows, 0.0)
    for i in range(0, n, 4):
        four_peaks(kind, past(e, i * step), step, rows, top, nans)
    plain, odd = True, False
    for c in range(rows):
        t = ts[c]
        m[c] = np.float64(top[c]) if nans[c] == number(kind, 0.0) else nan
        if ordinary(kind, m[c], t):
            low[c], by[c] = lowest(kind, m[c], t), number(kind, t)
            plain = plain and t == 1.0
        else:
            top[c] = low[c] = by[c] = number(kind, 1.0)
            odd = True
    for i in range(fours(n)):
        lane_differences(kind, past(e, i * step), past(raw, i * step), rows, top, low, by, plain)
    exps_of_all(kind, e, raw, fours(n) * step)
    s, ones = nans, past(lanes, 4 * LANES)
    lane_fill(kind, s, rows, 0.0)
    lane_fill(kind, ones, rows, 0.0)
    for i in range(0, n, 4):
        four_sums(kind, past(e, i * step), step, rows, s, ones)
    for c in range(rows):
        r[c] = rest(np.float64(s[c]), np.float64(ones[c]))
    return odd


@inlined
def lane_times_all(kind, e, step, lanes, rows, n, factors):
    """Each row times its factor, whose own rounding is made good."""
    by, more = lanes, past(lanes, LANES)
    for c in range(rows):
        by[c] = number(kind, factors[c])
        more[c] = number(kind, factors[c] - np.float64(by[c]))
    for i in range(n):
        lane_times(kind, past(e, i * step), rows, by, more)


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
    """The state of these tiles of each of these long rows, and their exps."""
    plain = rows == 1 and g[X + 3] == 1 and g[MASK] == 0 and f[CAP] == 0.0
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
def times(kind, e, n, factor):
    """e · factor, the factor's own rounding made good."""
    by = number(kind, factor)
    more = number(kind, factor - np.float64(by))
    for i in range(n):
        e[i] = fma(e[i], by, e[i] * more)


@inlined
def write_times(kind, memory, start, e, n, factor):
    by = number(kind, factor)
    more = number(kind, factor - np.float64(by))
    for i in range(n):
        memory[start + i] = narrow(kind, fma(e[i], by, e[i] * more))


@inlined
def times_rows(kind, b, tile, rows, n):
    """A tile of these rows, each times its factor."""
    if b.beside == 1:
        lane_times_all(kind, tile, b.step, b.lanes, rows, n, b.factor)
    else:
        for c in range(rows):
            times(kind, past(tile, c * b.beside), n, b.factor[c])


@inlined
def mask_rows(kind, g, b, row, rows, begin, n, tile):
    """0 where the mask is False."""
    if g[MASK] != 0:
        for c in range(rows):
            mask(kind, g, row + c, begin, n, past(tile, c * b.beside), b.step, 0.0)


@inlined
def fill(kind, e, step, n):
    for i in range(n):
        e[i * step] = number(kind, 0.0)


# --- kernels: (kind, g, f, first and last row, first and last tile) ------------------------------------------------------


@kernel
def row_states(kind, g, f, start, stop, first, last):
    """OUT_M and OUT_R of each row; of each of these tiles of each row, where they are not all: with Y, their exps there."""
    lanes = most(g, stop - start)
    memory, keep = scratch(g, lanes, False)
    b = block(kind, g, lanes, memory, keep)
    out_m, out_r = at(g[OUT_M], 1.0), at(g[OUT_R], 1.0)
    row = start
    while row < stop:
        rows = together(g, row, stop, lanes)
        if first == 0 and last == b.count:
            settle(kind, g, f, row, rows, b)
            for c in range(rows):
                out_m[row + c], out_r[row + c] = b.m[c], b.r[c]
        else:
            states(kind, g, f, row, rows, first, last, onto(kind, g, row, rows, b) if g[WAITS] != 0 else b)
            for c in range(rows):
                for k in range(first, last):
                    here = c * b.count + k
                    out_m[(row + c) * b.count + k], out_r[(row + c) * b.count + k] = b.ms[here], b.ws[here]
        row += rows
    memory[0] = 0.0  # the block is in use until here


@kernel
def join_tiles(kind, g, f, start, stop, first, last):
    """OUT_M and OUT_R of each row from the states of all its tiles, M and R; their weights to R."""
    count = tiles(g[N])
    for row in range(start, stop):
        ms, rs = past(at(g[M], 1.0), row * count), past(at(g[R], 1.0), row * count)
        m, r = join(ms, rs, count, temperature(g, f, row))
        at(g[OUT_M], 1.0)[row], at(g[OUT_R], 1.0)[row] = m, r


@kernel
def softmax(kind, g, f, start, stop, first, last):
    """Softmax of each row; with FACTOR, the row's derivative: times its factor, 0 where the row is frozen."""
    lanes = most(g, stop - start)
    memory, keep = scratch(g, lanes, True)
    b = block(kind, g, lanes, memory, keep)
    row = start
    while row < stop:
        rows = together(g, row, stop, lanes)
        there = g[WAITS] != 0
        h = onto(kind, g, row, rows, b) if there else b
        settle(kind, g, f, row, rows, h)
        for k in range(first, last):
            begin = k * TILE
            n = min(TILE, g[N] - begin)
            tile = exps_of(kind, g, f, row, rows, k, h)
            if not there and rows == 1 and g[FACTOR] == 0 and g[Y + 3] == 1:
                write_times(kind, at(g[Y], kind), inner(g, Y, row) + begin, tile, n, share(h, 0, k))
                continue
            for c in range(rows):
                h.factor[c] = share(h, c, k)
                if g[FACTOR] != 0:
                    fixed = frozen(h.m[c], temperature(g, f, row + c))
                    h.factor[c] = 0.0 if fixed else h.factor[c] * at(g[FACTOR], 1.0)[row + c]
            times_rows(kind, h, tile, rows, n)
            if g[FACTOR] != 0:
                mask_rows(kind, g, h, row, rows, begin, n, tile)
            if not there:
                write_rows(kind, g, row, rows, begin, n, tile, h.beside, h.step, h.raw)
        row += rows
    memory[0] = 0.0


@kernel
def short_softmax(kind, x, y, rows, n):
    """Softmax of rows that lie one after the other at address x, into y; n <= TILE."""
    step = min(LANES, rows)
    room = step * fours(n) if n <= SHORT else TILE
    memory = np.empty(2 * room + 8 * LANES)
    start = memory.ctypes.data
    zero, vectors = number(kind, 0.0), start + 16 * room
    e, raw, lanes = at(start, zero), at(start + 8 * room, zero), at(vectors, zero)
    m, r, ts = at(vectors + 40 * LANES, 1.0), at(vectors + 48 * LANES, 1.0), at(vectors + 56 * LANES, 1.0)
    if n > SHORT:
        for row in range(rows):
            _, r_of = state_in_place(kind, at(x, kind), row * n, e, n, 1.0)
            write_times(kind, at(y, kind), row * n, e, n, 1.0 / (1.0 + r_of))
        rows = 0
    for row in range(0, rows, LANES):
        together, source, target = min(LANES, rows - row), past(at(x, kind), row * n), past(at(y, kind), row * n)
        if step == 1:
            read(kind, source, 0, 1, e, n)
        else:
            turn_in(kind, source, n, e, raw, step, n, together)
        for c in range(together):
            ts[c] = 1.0
        if lane_states(kind, e, step, raw, lanes, together, n, ts, m, r):
            for c in range(together):
                if not ordinary(kind, m[c], 1.0):
                    read(kind, source, c * n, 1, lanes, n)
                    s, ones = corners(kind, lanes, past(e, c), step, n, m[c], 1.0)
                    r[c] = rest(s, ones)
        for c in range(together):
            ts[c] = 1.0 / (1.0 + r[c])
        lane_times_all(kind, e, step, lanes, together, n, ts)
        if step == 1:
            write(kind, target, 0, 1, e, n)
        else:
            turn_out(kind, target, n, e, raw, step, together, n)
    memory[0] = 0.0


@called
def lane_logs(kind, e, rows, top, by, log):
    apart()
    for c in range(rows):
        put(e, c, (take(e, c) - take(top, c)) / take(by, c) - take(log, c))


@inlined
def no_numbers(m, r, t):
    """Is there more to (x - m) / t - log1p(r) than this line?"""
    return m - m != 0.0 or t == 0.0 or t == inf or r != r


@inlined
def odd_logs(kind, e, step, n, m, r, t):
    for i in range(n):
        d, _ = distance(np.float64(e[i * step]), m, t)
        e[i * step] = number(kind, d - log1p(r))


@inlined
def logs(kind, e, n, m, r, t):
    """(x - m) / t - log1p(r), in place."""
    top, log, by = number(kind, m), number(kind, log1p(r)), number(kind, t)
    if no_numbers(m, r, t):
        odd_logs(kind, e, 1, n, m, r, t)
    elif t == 1.0:
        for i in range(n):
            e[i] = (e[i] - top) - log
    else:
        for i in range(n):
            e[i] = (e[i] - top) / by - log


@inlined
def short_logs(kind, g, f, row, rows, n, b):
    """`logs` of short rows."""
    top, by, log = b.lanes, past(b.lanes, LANES), past(b.lanes, 2 * LANES)
    for c in range(rows):
        m, r, t = b.m[c], b.r[c], temperature(g, f, row + c)
        if no_numbers(m, r, t):
            odd_logs(kind, past(b.e, c), b.step, n, m, r, t)
            top[c], by[c], log[c] = number(kind, 0.0), number(kind, 1.0), number(kind, 0.0)
        else:
            top[c], by[c], log[c] = number(kind, m), number(kind, t), number(kind, log1p(r))
    for i in range(n):
        lane_logs(kind, past(b.e, i * b.step), rows, top, by, log)


@kernel
def log_softmax(kind, g, f, start, stop, first, last):
    lanes = most(g, stop - start)
    memory, keep = scratch(g, lanes, False)
    b = block(kind, g, lanes, memory, keep)
    row = start
    while row < stop:
        rows = together(g, row, stop, lanes)
        settle(kind, g, f, row, rows, b)
        for k in range(first, last):
            begin = k * TILE
            n = min(TILE, g[N] - begin)
            load(kind, g, f, row, rows, begin, n, b.e, b.beside, b.step, b.raw)
            if g[N] <= SHORT:
                short_logs(kind, g, f, row, rows, n, b)
            else:
                for c in range(rows):
                    logs(kind, past(b.e, c * b.width), n, b.m[c], b.r[c], temperature(g, f, row + c))
            write_rows(kind, g, row, rows, begin, n, b.e, b.beside, b.step, b.raw)
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


@kernel
def softmax_pullback(kind, g, f, start, stop, first, last):
    """Sᵀ (diag(p) - p pᵀ) S v / t of each row; p is P where it is given."""
    n = g[N]
    memory, keep = scratch(g, 1, True)
    b = block(kind, g, 1, memory, keep)
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
    memory, keep = scratch(g, 1, True)
    b = block(kind, g, 1, memory, keep)
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
            load_row(kind, g, f, row, begin, size, b.x)
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
    b.x[0] = wide(kind, at(g[X], kind)[inner(g, X, row) + i * g[X + 3]])
    as_scores(kind, g, f, row, i, 1, b.x, 1)
    return np.float64(b.x[0])


@inlined
def slope(kind, g, f, row, begin, n, e, step, b):
    """e times the softcap's derivative."""
    read_row(kind, g, X, row, begin, n, b.x)
    for i in range(n):
        e[i * step] = number(kind, np.float64(e[i * step]) * cap_slope(np.float64(b.x[i]), f[CAP]))


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


@inlined
def label_distances(kind, g, f, row, rows, b):
    for c in range(rows):
        label = at(g[LABEL], 0)[row + c]
        b.log[c], b.d[c] = log1p(b.r[c]), 0.0
        if 0 <= label < g[N]:
            b.d[c], _ = distance(score(kind, g, f, row + c, label, b), b.m[c], temperature(g, f, row + c))


@inlined
def label_losses(g, f, row, rows, b):
    """LOSS of each of these rows."""
    for c in range(rows):
        label, loss = at(g[LABEL], 0)[row + c], 0.0
        if 0 <= label < g[N]:
            q = weight_at(g, label)
            loss, _ = row_loss(f, b.log[c], q, q * b.d[c], b.m[c], temperature(g, f, row + c), q)
        at(g[LOSS], 1.0)[row + c] = loss


@inlined
def label_gradients(kind, g, f, row, rows, k, n, tile, b):
    """From the exps of a tile of these rows to their gradient."""
    begin = k * TILE
    for c in range(rows):
        label, t = at(g[LABEL], 0)[row + c], temperature(g, f, row + c)
        b.factor[c] = 0.0
        if label >= 0 and not frozen(b.m[c], t):
            q = weight_at(g, label)
            _, more = row_loss(f, b.log[c], q, 0.0, b.m[c], t, q)
            b.factor[c] = share(b, c, k) * ((q + more) * (at(g[FACTOR], 1.0)[row + c] / t))
    times_rows(kind, b, tile, rows, n)
    for c in range(rows):
        e, label, t = past(tile, c * b.beside), at(g[LABEL], 0)[row + c], temperature(g, f, row + c)
        if label < 0 or frozen(b.m[c], t):
            fill(kind, e, b.step, n)
        elif 0 <= label - begin < n:
            logp, q, factor = b.d[c] - b.log[c], weight_at(g, label), at(g[FACTOR], 1.0)[row + c] / t
            _, more = row_loss(f, b.log[c], q, 0.0, b.m[c], t, q)
            less = expm1_double(larger(logp, -800.0)) if logp == logp else nan
            e[(label - begin) * b.step] = number(kind, (q * less + more * (1.0 + less)) * factor)
        if f[CAP] != 0.0:
            slope(kind, g, f, row + c, begin, n, e, b.step, b)
    mask_rows(kind, g, b, row, rows, begin, n, tile)


@kernel
def cross_entropy(kind, g, f, start, stop, first, last):
    """LOSS of each row, before its weight, and with Y its gradient by X times FACTOR. Labels are integers, unsmoothed."""
    lanes = most(g, stop - start)
    memory, keep = scratch(g, lanes, g[Y] != 0)
    b = block(kind, g, lanes, memory, keep)
    row = start
    while row < stop:
        rows = together(g, row, stop, lanes)
        there = g[WAITS] != 0
        h = onto(kind, g, row, rows, b) if there else b
        settle(kind, g, f, row, rows, h)
        label_distances(kind, g, f, row, rows, h)
        if first == 0:
            label_losses(g, f, row, rows, h)
        if g[Y] != 0:
            for k in range(first, last):
                n = min(TILE, g[N] - k * TILE)
                tile = exps_of(kind, g, f, row, rows, k, h)
                label_gradients(kind, g, f, row, rows, k, n, tile, h)
                if not there:
                    write_rows(kind, g, row, rows, k * TILE, n, tile, h.beside, h.step, h.raw)
        row += rows
    memory[0] = 0.0


@inlined
def weight_of(g, y):
    """Σ w y of a row of labels."""
    return inner_product(y, at(g[CLASS_WEIGHT], 1.0), g[N]) if g[CLASS_WEIGHT] != 0 else total(y, g[N])


@kernel
def row_weights(kind, g, f, start, stop, first, last):
    """OUT_M: Σ w y of each row of soft labels."""
    memory, keep = scratch(g, 1, True)
    b = block(kind, g, 1, memory, keep)
    for row in range(start, stop):
        read_whole(kind, g, V, row, b, b.q)
        at(g[OUT_M], 1.0)[row] = weight_of(g, b.q)
    memory[0] = 0.0


@kernel
def soft_cross_entropy(kind, g, f, start, stop, first, last):
    """As `cross_entropy`, for labels that are distributions (V), or smoothed."""
    n, smoothing = g[N], f[SMOOTHING]
    memory, keep = scratch(g, 1, True)
    b = block(kind, g, 1, memory, keep)
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
            fill(1.0, q, 1, n)
            q[label] = 1.0
        weight = weight_of(g, q)
        if smoothing != 0.0:
            for i in range(n):
                p[i] = 1.0
            mask(1.0, g, row, 0, n, p, 1, 0.0)
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
            load_row(kind, g, f, row, begin, size, b.x)
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
