"""The kernels: the state, softmax, log_softmax, their pullbacks; losses.py and sparse.py hold more. None holds the GIL.

A row is read in tiles of 1024 numbers, in the arithmetic of its *kind* (arithmetic.py). Each tile's exps are taken from its
own maximum; the tiles' states are joined in their order, and each tile is finished by one factor. So the bits of a row
depend on the row alone: not on its neighbours, on the axis it lies along, or on who computes which tile.
"""

import sys
from math import inf, log1p
from typing import Any

import numpy as np
from numba import types

from ._numba import KERNELS, apart, at, called, inlined, kernel, past, put, take
from .arithmetic import BFLOAT, DOUBLE, EXACT, HALF, SINGLE, far, number
from .block import block, exps_of, frozen, hand_over, home, mask_rows, scratch, settle, share, states, times_rows
from .losses import cross_entropy, row_weights, soft_cross_entropy  # noqa: F401, other kernels
from .memory import (
    FACTOR,
    LANES,
    OUT_M,
    OUT_R,
    SHORT,
    TILE,
    WAITS,
    M,
    N,
    P,
    R,
    V,
    Y,
    inner,
    load,
    load_row,
    most,
    read,
    temperature,
    tiles,
    together,
    turn_in,
    turn_out,
    write,
)
from .sparse import entmax, entmax_loss, entmax_pullback  # noqa: F401, and more
from .tiles import (
    corners,
    distance,
    fours,
    join,
    lane_states,
    lane_times_all,
    ordinary,
    peak,
    rest,
    state_in_place,
    write_times,
)
from .whole import (
    index_of,
    inner_product,
    probabilities,
    read_whole,
    sum_at,
    total,
    total_but,
    write_whole,
    write_zeros,
)


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
            states(kind, g, f, row, rows, first, last, home(kind, g, row, b))
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
    memory, keep = scratch(g, lanes, g[WAITS] == 0)
    b = block(kind, g, lanes, memory, keep)
    row = start
    while row < stop:
        rows = together(g, row, stop, lanes)
        h = home(kind, g, row, b)
        settle(kind, g, f, row, rows, h)
        for k in range(first, last):
            begin = k * TILE
            n = min(TILE, g[N] - begin)
            tile = exps_of(kind, g, f, row, rows, k, h)
            if g[WAITS] == 0 and rows == 1 and h.step == 1 and g[FACTOR] == 0 and g[Y + 3] == 1:
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
            hand_over(kind, g, row, rows, begin, n, tile, h)
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
        some, source, target = min(LANES, rows - row), past(at(x, kind), row * n), past(at(y, kind), row * n)
        if step == 1:
            read(kind, source, 0, 1, e, n)
        else:
            turn_in(kind, source, n, e, raw, step, n, some)
        for c in range(some):
            ts[c] = 1.0
        if lane_states(kind, e, step, raw, lanes, some, n, ts, m, r):
            for c in range(some):
                if not ordinary(kind, m[c], 1.0):
                    read(kind, source, c * n, 1, lanes, n)
                    s, ones = corners(kind, lanes, past(e, c), step, n, m[c], 1.0)
                    r[c] = rest(s, ones)
        for c in range(some):
            ts[c] = 1.0 / (1.0 + r[c])
        lane_times_all(kind, e, step, lanes, some, n, ts)
        if step == 1:
            write(kind, target, 0, 1, e, n)
        else:
            turn_out(kind, target, n, e, raw, step, some, n)
    memory[0] = 0.0


@called
def lane_logs(kind, e, rows, top, by, log):
    apart()
    for c in range(rows):
        put(e, c, (take(e, c) - take(top, c)) / take(by, c) - take(log, c))


@inlined
def no_numbers(kind, m, r, t):
    """Is there more to (x - m) / t - log1p(r) than this line?"""
    return not abs(m) < far(kind) or t == 0.0 or t == inf or r != r


@inlined
def odd_logs(kind, e, step, n, m, r, t):
    for i in range(n):
        d, _ = distance(np.float64(e[i * step]), m, t)
        e[i * step] = number(kind, d - log1p(r))


@inlined
def logs(kind, e, n, m, r, t):
    """(x - m) / t - log1p(r), in place."""
    top, log, by = number(kind, m), number(kind, log1p(r)), number(kind, t)
    if no_numbers(kind, m, r, t):
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
        if no_numbers(kind, m, r, t):
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
            hand_over(kind, g, row, rows, begin, n, b.e, b)
        row += rows
    memory[0] = 0.0


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


KINDS = {"float16": HALF, "bfloat16": BFLOAT, "float32": SINGLE, "float64": DOUBLE}


def compile_all(dtypes: Any, progress: bool) -> int:
    """Every kernel for each of these dtypes (all, if there are none); says which on standard error."""
    for name in dtypes:
        if name not in KINDS:
            raise ValueError(f"the kernels know {', '.join(KINDS)}, got {name!r}.")
    work = [(KINDS[dtype], dtype, name) for dtype in dtypes or KINDS for name in KERNELS]
    if not dtypes or "float32" in dtypes:
        work.append((EXACT, "float32 in float64", "row_states"))  # a state that goes on
    size, vectors = types.int64, (types.int64[::1], types.float64[::1])
    for i, (kind, dtype, name) in enumerate(work):
        if progress:
            print(f"softxp: compiling {i + 1} of {len(work)}: {name}, {dtype}", file=sys.stderr, flush=True)
        rest = (size,) * 4 if name == "short_softmax" else (*vectors, *(size,) * 4)
        KERNELS[name].compile((kind, *rest))
    return len(work)
