"""Numbers of 106 bits as unevaluated sums of two float64, for whole arrays at once: about 32 digits.

Source: Dekker 1971, doi:10.1007/BF01397083; Hida, Li & Bailey 2001, doi:10.1109/ARITH.2001.930115.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# ln 2 to 160 bits
LN2 = (0.6931471805599453, 2.3190468138462996e-17, 5.707708438416212e-34)
CUT = 134217729.0  # 2^27 + 1


def _two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


def _two_product(a: Any, b: Any) -> tuple[Any, Any]:
    p = a * b
    c, d = CUT * a, CUT * b
    ah, bh = c - (c - a), d - (d - b)
    al, bl = a - ah, b - bh
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _finished(plain: Any, hi: Any, lo: Any) -> DD:
    """hi + lo, or the plain result where that is infinite or NaN."""
    ok = np.isfinite(plain)
    hi, lo = _two_sum(np.where(ok, hi, 0.0), np.where(ok & np.isfinite(lo), lo, 0.0))
    return DD(np.where(ok, hi, plain), lo)


class DD:
    """An array of double-doubles, hi + lo."""

    __slots__ = ("hi", "lo")
    __array_ufunc__ = None  # a numpy array on the left leaves the operator to us

    def __init__(self, hi: Any, lo: Any = 0.0) -> None:
        self.hi = np.asarray(hi, dtype=np.float64)
        lo = np.asarray(lo, dtype=np.float64)
        # beyond the range of the splitting, or at infinities, the leading part is all there is
        self.lo = np.where(np.isfinite(lo), lo, 0.0) + np.zeros_like(self.hi)

    def __neg__(self) -> DD:
        return DD(-self.hi, -self.lo)

    def __add__(self, other: Any) -> DD:
        other = _dd(other)
        s, e = _two_sum(self.hi, other.hi)
        t, f = _two_sum(self.lo, other.lo)
        plain = s
        s, e = _two_sum(s, e + t)
        return _finished(plain, s, e + f)

    def __sub__(self, other: Any) -> DD:
        return self + -_dd(other)

    def __rsub__(self, other: Any) -> DD:
        return _dd(other) - self

    def __mul__(self, other: Any) -> DD:
        other = _dd(other)
        p, e = _two_product(self.hi, other.hi)
        return _finished(p, p, e + (self.hi * other.lo + self.lo * other.hi))

    def __truediv__(self, other: Any) -> DD:
        other = _dd(other)
        q = plain = self.hi / other.hi
        r = self - other * q
        q2 = r.hi / other.hi
        r = r - other * q2
        return _finished(plain, *_two_sum(q, q2)) + np.where(np.isfinite(plain), r.hi / other.hi, 0.0)

    __radd__, __rmul__ = __add__, __mul__

    def __rtruediv__(self, other: Any) -> DD:
        return _dd(other) / self

    def __getitem__(self, key: Any) -> DD:
        return self.mapped(lambda part: part[key])

    def mapped(self, f: Callable[[Any], Any]) -> DD:
        """f, which moves numbers and changes none, on each part."""
        return DD(f(self.hi), f(self.lo))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.hi.shape

    def total(self) -> DD:
        """Sum along the last axis, keeping it with size 1: pairwise, so the error does not grow with the row."""
        x = self
        plain = np.sum(np.where(np.isfinite(x.hi), 0.0, x.hi), -1, keepdims=True)  # infinities and NaN add as they do
        if not np.isfinite(plain).all():
            return where(np.isfinite(plain), where(np.isfinite(x.hi), x, 0.0).total(), plain)
        if x.shape[-1] == 0:
            return DD(np.zeros((*x.shape[:-1], 1)))
        while (n := x.shape[-1]) > 1:
            half = n // 2
            y = x[..., :half] + x[..., half : 2 * half]
            if n % 2:
                y = DD(np.concatenate([y.hi, x.hi[..., -1:]], -1), np.concatenate([y.lo, x.lo[..., -1:]], -1))
            x = y
        return x

    def exp(self) -> DD:
        """exp of numbers up to 700; 0 from -800 on."""
        x = self
        near = DD(np.clip(np.where(np.isnan(x.hi), 0.0, x.hi), -800.0, 700.0), np.where(np.abs(x.hi) < 800, x.lo, 0.0))
        k = np.rint(near.hi / LN2[0])
        r = near - DD(*_two_product(k, LN2[0])) - DD(*_two_product(k, LN2[1])) - k * LN2[2]
        y = _expm1_small(r) + 1.0
        k = k.astype(np.int64)
        out = DD(np.ldexp(y.hi, k), np.ldexp(y.lo, k))
        return where(np.isnan(x.hi), np.nan, where(x.hi <= -800, 0.0, out))

    def expm1(self) -> DD:
        """exp(x) - 1, exact to relative 1e-25 however small x is."""
        small = np.abs(self.hi) < 0.3
        return where(small, _expm1_small(where(small, self, 0.0)), self.exp() - 1.0)

    def log(self) -> DD:
        """log of positive numbers, absolute error about 1e-32."""
        first = np.log(self.hi)
        t = self * DD(-first).exp() - 1.0
        return t - t * t * 0.5 + t * t * t / 3.0 + first

    def log1p(self) -> DD:
        """log(1 + r) for r > -1, exact to relative 1e-25 however small r is."""
        r = self
        series = r * (1.0 - r * (0.5 - r * (1 / _dd(3.0) - r * (0.25 - r * (0.2 - r * (1 / _dd(6.0)))))))
        tiny = np.abs(r.hi) < 1e-6
        return where(tiny, series, where(tiny, 1.0, r + 1.0).log())

    def tanh(self) -> DD:
        """tanh by exp(-2|x|); for |x| of ordinary size."""
        e = (where(self.hi < 0, -self, self) * -2.0).exp()
        t = (1.0 - e) / (e + 1.0)
        return where(self.hi < 0, -t, t)

    def sqrt(self) -> DD:
        """Square root of numbers of at least 0, by one Newton step."""
        first = np.sqrt(self.hi)
        return where(first == 0, 0.0, (self / np.where(first == 0, 1.0, first) + first) * 0.5)


def _dd(x: Any) -> DD:
    return x if isinstance(x, DD) else DD(x)


def where(condition: Any, a: Any, b: Any) -> DD:
    a, b = _dd(a), _dd(b)
    return DD(np.where(condition, a.hi, b.hi), np.where(condition, a.lo, b.lo))


def _expm1_small(r: DD) -> DD:
    """exp(r) - 1 for |r| up to 0.35."""
    r = r * (1 / 256)
    y = r * (1 / 3628800)
    for k in range(10, 1, -1):  # Taylor, highest term first
        y = (y + _dd(1.0) / float(np.prod(np.arange(1.0, k)))) * r
    for _ in range(8):
        y = y * 2.0 + y * y
    return y
