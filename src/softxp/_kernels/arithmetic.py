"""The numbers of the kernels: what lies in memory, the arithmetic it is computed in, and exp.

A *kind* is a value whose type says what lies in memory, and with it the arithmetic:

    uint16   the bits of a float16      float32
    int16    the bits of a bfloat16     float32
    float32  a float32                  float32, with what differences, quotients and factors round away carried along
    uint32   the bits of a float32      float64: where the answer stays float64
    float64  a float64                  float64, with what differences and quotients round away carried along
"""

from math import nan

import numpy as np
from numba import types
from numba.extending import overload

from ._numba import EXACTLY, HALVES, bits, fma, from_half, inlined, larger, to_half

HALF, BFLOAT, SINGLE, EXACT, DOUBLE = types.uint16, types.int16, types.float32, types.uint32, types.float64
NARROW = (HALF, BFLOAT)
IN_32 = (HALF, BFLOAT, SINGLE)


# --- memory to arithmetic and back. The bodies of these names depend on the kind: see `overload` below each ------------


def number(kind, value):
    """A float64, rounded to the arithmetic."""


@overload(number, jit_options=EXACTLY)
def _number(kind, value):
    if kind in IN_32:
        return lambda kind, value: np.float32(value)
    return lambda kind, value: np.float64(value)


def reach(kind):
    """exp of less than minus this is 0."""


@overload(reach, jit_options=EXACTLY)
def _reach(kind):
    if kind in IN_32:
        return lambda kind: 106.0
    return lambda kind: 750.0


def near(kind):
    """Some ulp of 1."""


@overload(near, jit_options=EXACTLY)
def _near(kind):
    if kind in IN_32:
        return lambda kind: 2.0**-21
    return lambda kind: 2.0**-50


def far(kind):
    """A maximum beyond this may be further from its row than a number can say."""


@overload(far, jit_options=EXACTLY)
def _far(kind):
    if kind in IN_32:
        return lambda kind: 2.0**102
    return lambda kind: 2.0**970


def wide(kind, v):
    """An element of memory, in the arithmetic."""


_2_112, _EXPONENT, _LOW15 = np.float32(2.0**112), np.int32(0x7F800000), np.int32(0x7FFF)


@overload(wide, jit_options=EXACTLY)
def _wide(kind, v):
    if kind == HALF and HALVES:
        return lambda kind, v: from_half(v)
    if kind == HALF:

        def half(kind, v):
            h = np.int32(v)
            magnitude = np.int32(np.int32(h & _LOW15) << 13)
            f = bits(magnitude) * _2_112
            f = bits(np.int32(magnitude | _EXPONENT)) if magnitude >= np.int32(0x0F800000) else f
            return bits(np.int32(bits(f) | np.int32(np.int32(h >> 15) << 31)))

        return half
    if kind == BFLOAT:
        return lambda kind, v: bits(np.int32(np.int32(v) << 16))
    if kind == EXACT:
        return lambda kind, v: np.float64(bits(v))
    return lambda kind, v: v


def narrow(kind, y):
    """A number of the arithmetic as an element of memory, rounded to nearest, ties to even."""


@overload(narrow, jit_options=EXACTLY)
def _narrow(kind, y):
    if kind == HALF and HALVES:
        return lambda kind, y: to_half(y)
    if kind == HALF:

        def half(kind, y):
            b = bits(y)
            sign = np.int32(np.int32(b >> 16) & np.int32(0x8000))
            a = np.int32(b & np.int32(0x7FFFFFFF))
            normal = np.int32(np.int32(a + np.int32(-0x37FFF001) + np.int32(np.int32(a >> 13) & np.int32(1))) >> 13)
            # adding 1/2 leaves a subnormal's digits, rounded, at the end of the sum's
            small = np.int32(bits(bits(a) + np.float32(0.5)) - np.int32(0x3F000000))
            big = np.int32(0x7E00) if a > _EXPONENT else np.int32(0x7C00)
            h = small if a < np.int32(0x38800000) else (normal if a < np.int32(0x47800000) else big)
            return np.uint16(h | sign)

        return half
    if kind == BFLOAT:

        def bfloat(kind, y):
            b = bits(y)
            rounded = np.int32(np.int32(b + np.int32(0x7FFF) + np.int32(np.int32(b >> 16) & np.int32(1))) >> 16)
            return np.int16(rounded if y == y else np.int32(np.int32(b >> 16) | np.int32(0x40)))

        return bfloat
    return lambda kind, y: y


# --- exp of what is at most 0. exp(r) = 1 + r + r² q(r) on |r| <= log(2) / 2, q interpolated at Chebyshev's points -------

_f4, _i4 = np.float32, np.int32
_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10  # the first ends in 21 zeros: its multiples are exact

_LOG2E4, _ROUND4, _DOWN4 = _f4(1.4426950408889634), _f4(1.5 * 2.0**23 + 120.0), _f4(2.0**-120)
_HIGH4, _LOW4 = _f4(0.693359375), _f4(-0.00021219444005469057)
_A0, _A1, _A2, _A3, _A4, _A5 = (
    _f4(c) for c in (
        0.5000000013457727, 0.16666666681614256, 0.04166646500604005, 0.008333310934448869, 0.0013933641031986701,
        0.00019890980869750327,
    )
)  # to 2^-32  # fmt: skip

_C0, _C1, _C2, _C3, _C4, _C5, _C6, _C7, _C8, _C9, _C10 = (
    0.5, 0.1666666666666667, 0.04166666666666667, 0.008333333333326141, 0.0013888888888883752, 0.00019841269874800493,
    2.4801587325533363e-05, 2.7557255425746435e-06, 2.7557273661348637e-07, 2.510520637395701e-08, 2.0914679376583935e-09,
)  # to 2^-61  # fmt: skip


# 2^k is put together from bits, as 2^(k + 600) · 2^-600 (120 in float32), since 2^-1074 has no exponent of a normal number
# and k may be lower still. Adding the constant rounds to a whole number, k + 600 in the last bits.
_ROUND, _DOWN = 1.5 * 2.0**52 + 600.0, 2.0**-600


@inlined
def reduced(d, error):
    """exp(d + error) = 2^k (1 + u), for -1100 <= d <= 0: u, and k + 600 in the last bits."""
    shifted = fma(d, _LOG2E, _ROUND)
    k = shifted - _ROUND
    high = fma(-k, _LN2_HIGH, d)
    low = fma(-k, _LN2_LOW, error)
    r = high + low
    low = (high - r) + low
    r2 = r * r
    r4 = r2 * r2
    q = fma(fma(_C3, r, _C2), r2, fma(_C1, r, _C0))
    s = fma(fma(_C7, r, _C6), r2, fma(_C5, r, _C4))
    s = fma(fma(_C10, r2, fma(_C9, r, _C8)), r4, s)
    return r + fma(fma(s, r4, q), r2, low), shifted


@inlined
def exp_double(d, error):
    """exp(d + error) for any d <= 0; NaN for NaN."""
    if not d >= -800.0:
        return 0.0 if d == d else nan
    return expo(1.0, d, error)


@inlined
def expm1_double(d):
    """exp(d) - 1 for -1100 <= d <= 0."""
    u, shifted = reduced(d, 0.0)
    power = bits(0x3FF0000000000000 + (bits(shifted) << 52)) * _DOWN
    return u * power + (power - 1.0)


def expo(kind, d, error):
    """exp(d + error) in the arithmetic, for -1100 <= d <= 0 (-160 in float32)."""


@overload(expo, jit_options=EXACTLY)
def _expo(kind, d, error):
    if kind in IN_32:

        def single(kind, d, error):
            shifted = fma(d, _LOG2E4, _ROUND4)
            k = shifted - _ROUND4
            r = fma(-k, _LOW4, fma(-k, _HIGH4, d)) + error
            r2 = r * r
            q = fma(fma(_A5, r, _A4), r2, fma(_A3, r, _A2))
            u = _f4(1.0) + fma(q, r2 * r2, fma(fma(_A1, r, _A0), r2, r))
            return bits(_i4(bits(u) + _i4(bits(shifted) << 23))) * _DOWN4

        return single

    def double(kind, d, error):
        u, shifted = reduced(d, error)
        return bits(bits(1.0 + u) + (bits(shifted) << 52)) * _DOWN

    return double


# --- log: 2 atanh(f / (2 + f)) = 2 (s + s³/3 + s⁵/5 ...) for 1 + f in [√½, √2) ------------------------------------------

_ROOT_HALF, _WHOLE, _BIAS = 0x3FE6A09E667F3BCD, 0x4330000000000000, 2.0**52 + 1023.0


@inlined
def log_double(x, short):
    """log(x (1 + short)) for normal x > 0 and tiny `short`."""
    # (x's exponent counted from √½, kept positive: a shift and a conversion that vectors have)
    up = ((bits(x) - _ROOT_HALF + (1023 << 52)) >> 52) & 0x7FF
    k = bits(up | _WHOLE) - _BIAS
    f = bits(bits(x) - ((up - 1023) << 52)) - 1.0
    s = f / (2.0 + f)
    z = s * s
    q = fma(z, fma(z, fma(z, 1.0 / 21.0, 1.0 / 19.0), 1.0 / 17.0), 1.0 / 15.0)
    q = fma(z, fma(z, fma(z, fma(z, q, 1.0 / 13.0), 1.0 / 11.0), 1.0 / 9.0), 1.0 / 7.0)
    q = z * fma(z, fma(z, q, 1.0 / 5.0), 1.0 / 3.0)
    return fma(k, _LN2_HIGH, f - (s * f - (2.0 * s * q + fma(k, _LN2_LOW, short))))  # for 2 s is f - s f


@inlined
def difference(x, m):
    """x - m and what rounding took from it (Knuth's two-difference)."""
    d = x - m
    v = d - x
    return d, (x - (d - v)) - (m + v)


@inlined
def quotient(x, m, t, short, zero):
    """(x - m) / t' for t' = t (1 + short), and what rounding took from it; that is lost where the quotient overflows."""
    d, error = difference(x, m)
    q = d / t
    error = fma(-q, short, (fma(-q, t, d) + error) / t)
    return q, error if error - error == zero else zero


def apart_from(kind, x, m, t, short, low, zero):
    """(x - m) / t for x <= m, not NaN, and its error where it is kept; x - m where t is None.

    What lies below `low` counts as if it lay there.
    """


@overload(apart_from, jit_options=EXACTLY)
def _apart_from(kind, x, m, t, short, low, zero):
    inexact = kind in NARROW or kind == EXACT
    if t == types.none:
        if inexact:
            return lambda kind, x, m, t, short, low, zero: (larger(x, low) - m, zero)
        return lambda kind, x, m, t, short, low, zero: difference(larger(x, low), m)
    if inexact:
        return lambda kind, x, m, t, short, low, zero: ((larger(x, low) - m) / t, zero)
    return lambda kind, x, m, t, short, low, zero: quotient(larger(x, low), m, t, short, zero)


@inlined
def two_parts(kind, number_64):
    """A float64 in the arithmetic, and what rounding took from it."""
    by = number(kind, number_64)
    more = number(kind, number_64 - np.float64(by))
    return by, more if more - more == number(kind, 0.0) else number(kind, 0.0)
