"""A tile, up to 1024 numbers of a row in scratch: its state and its exps; and short rows, which are computed side by side.

A tile's state is `(m, r)`, its maximum and the sum of exp((x - m) / t) over all of it but one maximum.
"""

from math import inf, nan

import numpy as np
from numba.extending import overload

from ._numba import EXACTLY, apart, called, fma, inlined, larger, past, put, summing, take
from .arithmetic import (
    DOUBLE,
    SINGLE,
    apart_from,
    exp_double,
    expo,
    narrow,
    near,
    number,
    quotient,
    reach,
    two_parts,
)
from .memory import LANES, read

RUN = 256  # numbers that are added in the arithmetic; their sums are added in float64


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
def exps(kind, x, e, n, m, t, short, low):
    """The sum of all exps that are not 1, and how many are; at temperature 1, t and short are None."""
    apart()
    zero, one = number(kind, 0.0), number(kind, 1.0)
    total = ones = 0.0
    for begin in range(0, n, RUN):
        s = c = zero
        for i in range(begin, min(begin + RUN, n)):
            d, error = apart_from(kind, take(x, i), m, t, short, low, zero)
            v = expo(kind, d, error)
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
        s, ones = exps(kind, x, e, n, top, None, None, lowest(kind, m, t))
    else:
        by, more = two_parts(kind, t)
        s, ones = exps(kind, x, e, n, top, by, more / by, lowest(kind, m, t))
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
    d, error = quotient(x, m, t, 0.0, 0.0)
    return (d, error) if d - d == 0.0 else (x / t - m / t, 0.0)


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


@inlined
def fours(n):
    """Short rows are filled up to fours, with -inf."""
    return (n + 3) // 4 * 4


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
def lane_differences(kind, e, raw, rows, top, low, by, short, plain):
    """(x - m) / t of a number of each row in its place, its error to raw."""
    apart()
    zero = number(kind, 0.0)
    if plain:
        for c in range(rows):
            d, error = apart_from(kind, take(e, c), take(top, c), None, None, take(low, c), zero)
            put(e, c, d)
            put(raw, c, error)
    else:
        for c in range(rows):
            d, error = apart_from(kind, take(e, c), take(top, c), take(by, c), take(short, c), take(low, c), zero)
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
    short = past(lanes, 4 * LANES)
    plain, odd = True, False
    for c in range(rows):
        t = ts[c]
        m[c] = np.float64(top[c]) if nans[c] == number(kind, 0.0) else nan
        if ordinary(kind, m[c], t):
            low[c] = lowest(kind, m[c], t)
            by[c], more = two_parts(kind, t)
            short[c] = more / by[c]
            plain = plain and t == 1.0
        else:
            top[c] = low[c] = by[c] = short[c] = number(kind, 1.0)
            odd = True
    for i in range(fours(n)):
        lane_differences(kind, past(e, i * step), past(raw, i * step), rows, top, low, by, short, plain)
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
        by[c], more[c] = two_parts(kind, factors[c])
    for i in range(n):
        lane_times(kind, past(e, i * step), rows, by, more)


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
def times(kind, e, n, factor):
    """e · factor, the factor's own rounding made good."""
    by, more = two_parts(kind, factor)
    for i in range(n):
        e[i] = fma(e[i], by, e[i] * more)


@inlined
def write_times(kind, memory, start, e, n, factor):
    by, more = two_parts(kind, factor)
    for i in range(n):
        memory[start + i] = narrow(kind, fma(e[i], by, e[i] * more))


@inlined
def fill(kind, e, step, n):
    for i in range(n):
        e[i * step] = number(kind, 0.0)
