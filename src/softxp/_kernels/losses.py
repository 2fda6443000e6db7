"""Kernels of cross-entropy: each row's loss, and with it the gradient. They follow their formulas' lines, which say why."""

from math import log1p, nan

import numpy as np

from ._numba import at, inlined, kernel, larger, past
from .arithmetic import expm1_double, number, wide
from .block import block, exps_of, frozen, hand_over, home, mask_rows, scratch, settle, share, times_rows
from .memory import (
    CAP,
    CLASS_WEIGHT,
    FACTOR,
    LABEL,
    LOSS,
    OUT_M,
    SMOOTHING,
    TILE,
    WAITS,
    Z_LOSS,
    N,
    V,
    X,
    Y,
    as_scores,
    cap_slope,
    inner,
    load_row,
    mask,
    most,
    read_row,
    temperature,
    together,
)
from .tiles import add, distance, fill, peak
from .whole import index_of, inner_product, probabilities, read_whole, total, total_but, write_whole, write_zeros


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
        if 0 <= label < g[N] and not frozen(b.m[c], t):
            q = weight_at(g, label)
            _, more = row_loss(f, b.log[c], q, 0.0, b.m[c], t, q)
            b.factor[c] = share(b, c, k) * ((q + more) * (at(g[FACTOR], 1.0)[row + c] / t))
    times_rows(kind, b, tile, rows, n)
    for c in range(rows):
        e, label, t = past(tile, c * b.beside), at(g[LABEL], 0)[row + c], temperature(g, f, row + c)
        if not 0 <= label < g[N] or frozen(b.m[c], t):
            fill(kind, e, b.step, n)
            continue
        if 0 <= label - begin < n:
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
    memory, keep = scratch(g, lanes, g[Y] != 0 and g[WAITS] == 0)
    b = block(kind, g, lanes, memory, keep)
    row = start
    while row < stop:
        rows = together(g, row, stop, lanes)
        h = home(kind, g, row, b)
        settle(kind, g, f, row, rows, h)
        label_distances(kind, g, f, row, rows, h)
        if first == 0:
            label_losses(g, f, row, rows, h)
        if g[Y] != 0:
            for k in range(first, last):
                n = min(TILE, g[N] - k * TILE)
                tile = exps_of(kind, g, f, row, rows, k, h)
                label_gradients(kind, g, f, row, rows, k, n, tile, h)
                hand_over(kind, g, row, rows, k * TILE, n, tile, h)
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
        if not 0 <= label < n:
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
