"""Rows in memory: where their numbers lie, and the roads between there and scratch.

Arrays come as addresses and strides in a vector of integers `g`, numbers in a vector of floats `f`: see the constants below.
A view is four integers: address, and the steps in elements between outer rows, between inner rows and along a row.
"""

from math import inf

import numpy as np
from numba.extending import overload

from ._numba import EXACTLY, address, apart, at, called, inlined, larger, past, shared, side, turn
from .arithmetic import DOUBLE, SINGLE, exp_double, expm1_double, narrow, number, wide

TILE = 1024
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
WIDE = 33  # is the answer float64, whatever the input?
SLOTS = 34

# f
T, CAP, SMOOTHING, Z_LOSS, ALPHA = 0, 1, 2, 3, 4
NUMBERS = 5


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
    """n numbers of each of these rows, to e[c * e_beside + i * e_step]: row after row (e_step 1), or side by side."""
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
