"""Kernels of entmax (sparsemax is one) and of its losses, all in float64. They follow their formulas' lines, which say why.

Few numbers of a row have a share, and only these are looked at again: those that lie less than 1/(alpha - 1) below the
maximum are gathered, the threshold is found among them, and the rest of the answer is 0.
"""

from math import exp, expm1, inf, log, log1p, nan

import numpy as np

from ._numba import at, inlined, kernel, larger, past, summing
from .arithmetic import expo, log_double, near, number, wide
from .block import frozen
from .memory import (
    ALPHA,
    FACTOR,
    KEEP,
    LABEL,
    LOSS,
    TILE,
    WIDE,
    N,
    P,
    V,
    Y,
    inner,
    load,
    mask,
    most,
    temperature,
    together,
    write_row,
    write_rows,
)
from .tiles import add, distance, ordinary, summit

# --- the threshold: with s = alpha - 1, p = (z - a)₊^(1/s), where z is s d. Where s is near 0 that would be rounded about 1,
# and z is d, and p is (1 + s (z - a))^(1/s) ----------------------------------------------------------------------------

NEAR = 1.0 / 16.0


@inlined
def share_of(z, a, s):
    """p, and p^(2 - alpha)."""
    y = s * (z - a)
    o = 1.0 + y if s < NEAR else z - a
    short = y - (o - 1.0) if s < NEAR else 0.0
    alive = o > 0.0
    o = o if alive else 1.0
    p = expo(1.0, larger(log_double(o, short / o) / s, -800.0), 0.0)
    p = p if alive else 0.0
    return p, p / o


@summing
def line_sums(z, n, a):
    """Σ p and Σ p^(2 - alpha)."""
    total = slope = 0.0
    for i in range(n):
        o = z[i] - a
        total += o if o > 0.0 else 0.0
        slope += 1.0 if o > 0.0 else 0.0
    return total, slope


@summing
def square_sums(z, n, a):
    total = slope = 0.0
    for i in range(n):
        o = larger(z[i] - a, 0.0)
        total += o * o
        slope += o
    return total, slope


@summing
def power_sums(z, n, a, s, q):
    """`q`: the share of the largest numbers, where it is known better than by a; else 0."""
    total = slope = 0.0
    for i in range(n):
        p, w = share_of(z[i], a, s)
        total += q if q > 0.0 and z[i] == 0.0 else p
        slope += w
    return total, slope


@inlined
def excess(z, k, a, s, q):
    """Σ p - 1, and Σ p^(2 - alpha)."""
    total = more = slope = 0.0
    for begin in range(0, k, TILE):
        n = min(TILE, k - begin)
        if s == 1.0:
            part, part_slope = line_sums(past(z, begin), n, a)
        elif s == 0.5:
            part, part_slope = square_sums(past(z, begin), n, a)
        else:
            part, part_slope = power_sums(past(z, begin), n, a, s, q)
        total, more = add(total, more, part)
        slope += part_slope
    return (total - 1.0) + more, slope


@inlined
def by_newton(z, k, s):
    """a such that Σ p = 1, for s of at most 1.

    (Σ p)^s is then a norm of what lies above a, so it is convex in a, and nearly a line: Newton's steps from below never
    pass the root. Should they be slow, every other one becomes a halving.
    """
    least = -s * log(np.float64(k))  # the largest p is at least 1/k; this is log p^s of that
    a, high, unit = (0.0, -expm1(least) / s, 1.0 / s) if s < NEAR else (-1.0, -exp(least), 1.0)
    low = a
    for i in range(200):
        over, slope = excess(z, k, a, s, 0.0)
        low, high = (a, high) if over > 0.0 else (low, a)
        new = a - unit * (1.0 + over) * expm1(-s * log1p(over)) / slope
        if abs(over) < 2.0**-50:  # all that the sum can tell
            return new if over != 0.0 else a
        if not low < new < high or (i > 30 and i % 2 == 1):
            new = low + (high - low) / 2.0
            if new in (low, high):
                return new
        a = new
    return a


@inlined
def by_halving(z, k, s):
    """The same for s above 1, and q: the share of the largest numbers, which is (-a)^(1/s), and at least 1/k."""
    low, high = 1.0 / k, 1.0
    q = low
    for _ in range(80):  # until they are neighbours
        q = low + (high - low) / 2.0
        over, _ = excess(z, k, -(q**s), s, q)
        if over == 0.0 or q in (low, high):
            break
        low, high = (low, q) if over > 0.0 else (q, high)
    return -(q**s), q


@inlined
def support(kind, e, n, m, t, alpha, z, places):
    """The shares of a row into z, and their places: how many there are, and c, the threshold as a distance from m.

    A row with a NaN, which m is then too, has none.
    """
    s = alpha - 1.0
    by = 1.0 if s < NEAR else s
    k = 0
    if ordinary(kind, m, t):
        low = number(kind, m - t / s - abs(m) * near(kind))
        for i in range(n):
            if e[i] > low:
                z[k], places[k] = by * ((np.float64(e[i]) - m) / t), i
                k += 1
    elif m == m:
        for i in range(n):
            d, _ = distance(np.float64(e[i]), m, t)
            if s * d > -1.0:
                z[k], places[k] = by * d, i
                k += 1
    if k == 0:
        return 0, 0.0
    a, q = by_halving(z, k, s) if s > 1.0 else (by_newton(z, k, s), 0.0)
    found = 0
    for i in range(k):
        if s == 1.0:
            p = z[i] - a
        elif s == 0.5:
            p = larger(z[i] - a, 0.0) ** 2
        else:
            p, _ = share_of(z[i], a, s)
            p = q if q > 0.0 and z[i] == 0.0 else p
        if p > 0.0:
            z[found], places[found] = p, places[i]
            found += 1
    return found, a if s < NEAR else (1.0 + a) / s


# --- kernels ---------------------------------------------------------------------------------------------------------------


@inlined
def room(g, rows):
    """How many rows are read together, the pitch of their scores, and memory for these, for bits, z and places."""
    lanes = min(most(g, rows), max(1, KEEP // g[N]))
    width = g[N] + 16
    return lanes, width, np.empty(2 * lanes * width + 2 * g[N])


@inlined
def scratch(kind, g, lanes, width, memory):
    e = memory.ctypes.data
    raw = e + 8 * lanes * width
    z = raw + 8 * lanes * width
    return at(e, number(kind, 0.0)), at(raw, number(kind, 0.0)), at(z, 1.0), at(z + 8 * g[N], 0)


@inlined
def place(kind, e, step, n, k, z, places, empty):
    """These k numbers in their places of a row, `empty` elsewhere."""
    for i in range(n):
        e[i * step] = number(kind, empty)
    for i in range(k):
        e[places[i] * step] = number(kind, z[i])


@kernel
def entmax(kind, g, f, start, stop, first, last):
    n = g[N]
    lanes, width, memory = room(g, stop - start)
    e, raw, z, places = scratch(kind, g, lanes, width, memory)
    row = start
    while row < stop:
        rows = together(g, row, stop, lanes)
        load(kind, g, f, row, rows, 0, n, e, width, 1, raw)
        for c in range(rows):
            here = past(e, c * width)
            m = summit(kind, here, n)
            k, _ = support(kind, here, n, m, temperature(g, f, row + c), f[ALPHA], z, places)
            empty = 0.0 if m == m else nan
            if g[WIDE] == 0:
                place(kind, here, 1, n, k, z, places, empty)
            else:
                place(1.0, past(at(g[Y], 1.0), inner(g, Y, row + c)), g[Y + 3], n, k, z, places, empty)
        if g[WIDE] == 0:
            write_rows(kind, g, row, rows, 0, n, e, width, 1, raw)
        row += rows
    memory[0] = 0.0  # it is in use until here


@inlined
def given(kind, g, row, z, places):
    """`support` of a row whose answer is P."""
    p, step, k = past(at(g[P], kind), inner(g, P, row)), g[P + 3], 0
    for i in range(g[N]):
        if not wide(kind, p[i * step]) <= number(kind, 0.0):
            z[k], places[k] = np.float64(wide(kind, p[i * step])), i
            k += 1
    return k


@inlined
def weight(p, alpha):
    """p^(2 - alpha)."""
    return 1.0 if alpha == 2.0 else p**0.5 if alpha == 1.5 else p ** (2.0 - alpha)


@kernel
def entmax_pullback(kind, g, f, start, stop, first, last):
    """(diag(w) - w wᵀ / Σ w) v / t of each row with w = p^(2 - alpha); p is P where it is given."""
    n, alpha = g[N], f[ALPHA]
    _, width, memory = room(g, 1)
    e, raw, z, places = scratch(kind, g, 1, width, memory)
    for row in range(start, stop):
        t = temperature(g, f, row)
        load(kind, g, f, row, 1, 0, n, e, width, 1, raw)
        m = summit(kind, e, n)
        if m != m or frozen(m, t):
            put_row(kind, g, row, 0, e, z, places, 0.0 if m == m else nan)
            continue
        k = given(kind, g, row, z, places) if g[P] != 0 else support(kind, e, n, m, t, alpha, z, places)[0]
        v, step = past(at(g[V], kind), inner(g, V, row)), g[V + 3]
        all_w = mean = more_w = more = 0.0
        for i in range(k):
            w = weight(z[i], alpha)
            all_w, more_w = add(all_w, more_w, w)
            mean, more = add(mean, more, w * np.float64(wide(kind, v[places[i] * step])))
        mean = (mean + more) / (all_w + more_w) if mean - mean == 0.0 else mean / all_w
        for i in range(k):
            z[i] = weight(z[i], alpha) * (np.float64(wide(kind, v[places[i] * step])) - mean) / t
        put_row(kind, g, row, k, e, z, places, 0.0)
    memory[0] = 0.0


@inlined
def put_row(kind, g, row, k, e, z, places, empty):
    """These numbers in their places as a row of the answer, `empty` elsewhere, 0 where the mask is False."""
    place(kind, e, 1, g[N], k, z, places, empty)
    mask(kind, g, row, 0, g[N], e, 1, 0.0)
    write_row(kind, g, row, 0, g[N], e)


@inlined
def of_label(p, others, h, alpha):
    """φ(1) - φ(p) - φ'(p) (1 - p) at the label, whose p leaves `others` to the others, and its slack."""
    s = alpha - 1.0
    if p == 0.0:  # beyond the edge of the support, or too small for float64
        return -1.0 / alpha - h if s * h > 2.0**-10 - 1.0 else 1.0 / (alpha * s) + max(-1.0 / s - h, 0.0)
    if s == 1.0:
        return others * others / 2.0
    if s == 0.5:
        off = others / (1.0 + p**0.5)
        return off * off * (4.0 + 2.0 * p**0.5) / 3.0
    u = -log1p(-others) if others < 0.5 else -log(p)
    if alpha * u <= 1.0:
        return u * u * (s * chi(s * u) - alpha * chi(alpha * u))
    return halfway(u, s) - halfway(u, alpha)


@inlined
def halfway(u, c):
    return -expm1(-c * u) / c


@inlined
def chi(w):
    """(1 - e^-w - w) / w² by its series, to the last bit for |w| <= 1."""
    y = 1.0
    for k in range(21, 2, -1):
        y = 1.0 - y * w / k
    return -y / 2.0


@kernel
def entmax_loss(kind, g, f, start, stop, first, last):
    """LOSS of each row, before its weight, and with Y its gradient by X times FACTOR. Labels are integers, unsmoothed."""
    n, alpha = g[N], f[ALPHA]
    _, width, memory = room(g, 1)
    e, raw, z, places = scratch(kind, g, 1, width, memory)
    for row in range(start, stop):
        label, t = at(g[LABEL], 0)[row], temperature(g, f, row)
        if not 0 <= label < n:
            at(g[LOSS], 1.0)[row] = 0.0
            if g[Y] != 0:
                put_row(kind, g, row, 0, e, z, places, 0.0)
            continue
        load(kind, g, f, row, 1, 0, n, e, width, 1, raw)
        m = summit(kind, e, n)
        d, _ = distance(np.float64(e[label]), m, t)
        k, c = support(kind, e, n, m, t, alpha, z, places)
        p = others = more = loss = rest = 0.0
        for i in range(k):
            if places[i] == label:
                p = z[i]
            else:
                others, more = add(others, more, z[i])
                loss, rest = add(loss, rest, z[i] * z[i] / weight(z[i], alpha) / alpha)  # p^alpha / alpha
        others += more
        loss = (loss + rest) + of_label(p, others, d - c, alpha)
        loss = nan if m != m else inf if k == 0 else loss
        at(g[LOSS], 1.0)[row] = loss
        if g[Y] == 0:
            continue
        if m != m or frozen(m, t):
            put_row(kind, g, row, 0, e, z, places, 0.0 if m == m else nan)
            continue
        factor = at(g[FACTOR], 1.0)[row] / t
        for i in range(k):
            z[i] = factor * (z[i] if places[i] != label else 0.0 - others)
        if p == 0.0:
            z[k], places[k] = -factor, label
            k += 1
        put_row(kind, g, row, k, e, z, places, 0.0)
    memory[0] = 0.0
