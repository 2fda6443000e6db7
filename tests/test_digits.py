"""The mathematics apart from rounding: the formulas run on numbers of fifty digits."""

from types import SimpleNamespace

import mpmath
import numpy as np
import pytest

from softxp import _formulas as F

mpmath.mp.dps = 50
mpf = np.dtype(object)


def each(f):
    g = np.frompyfunc(f, 1, 1)
    return lambda x: np.asarray(g(x), dtype=object)


def number(x):
    return np.asarray(np.frompyfunc(mpmath.mpf, 1, 1)(x), dtype=object)


DIGITS = SimpleNamespace(
    float32="none",
    float64="none",
    astype=lambda x, dtype: number(np.where(x, 1, 0)) if x.dtype == bool else x,
    exp=each(mpmath.exp),
    log=each(mpmath.log),
    log1p=each(mpmath.log1p),
    expm1=each(mpmath.expm1),
    tanh=each(mpmath.tanh),
    isfinite=lambda x: np.frompyfunc(mpmath.isfinite, 1, 1)(x).astype(bool),
    full_like=lambda x, v: number(np.full(x.shape, v)),
    zeros_like=lambda x: number(np.zeros(x.shape)),
    ones_like=lambda x: number(np.ones(x.shape)),
    where=np.where,
    max=np.max,
    sum=np.sum,
    abs=np.abs,
    maximum=np.maximum,
    minimum=np.minimum,
    squeeze=np.squeeze,
    expand_dims=np.expand_dims,
)
X = np.random.default_rng(0).standard_normal((3, 6)) * 20
AXIS = dict(axis=(1,), dtype=mpf, compute=mpf)


def rows_of(x):
    return [[mpmath.mpf(float(v)) for v in row] for row in x]


def definition(x):
    return [[mpmath.exp(v) / mpmath.fsum(map(mpmath.exp, row)) for v in row] for row in rows_of(x)]


def near(got, want, digits=45):
    for a, b in zip(np.ravel(got), np.ravel(np.asarray(want, dtype=object)), strict=True):
        assert abs(a - b) <= mpmath.mpf(10) ** -digits * max(abs(b), mpmath.mpf(10) ** -60), (a, b)


pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy compares objects that hold nan


def test_softmax_by_its_definition():
    near(F.softmax(DIGITS, number(X), **AXIS), definition(X))


def test_log_softmax_and_logsumexp_by_their_definitions():
    near(F.log_softmax(DIGITS, number(X), **AXIS), [[mpmath.log(p) for p in row] for row in definition(X)], 40)
    want = [mpmath.log(mpmath.fsum(map(mpmath.exp, row))) for row in rows_of(X)]
    near(F.logsumexp(DIGITS, number(X), keepdims=False, **AXIS), want)


def test_temperature_by_its_definition():
    near(F.softmax(DIGITS, number(X), temperature=0.7, **AXIS), definition_at(X, mpmath.mpf(0.7)), 40)


def definition_at(x, t):
    return [[mpmath.exp(v / t) / mpmath.fsum(mpmath.exp(w / t) for w in row) for v in row] for row in rows_of(x)]


def test_two_errors_are_exact():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal(1000) * 10.0 ** rng.integers(-8, 8, 1000), rng.standard_normal(1000)
    d, e = F.two_difference(a, b)
    p = F.two_product_error(a, b, 134217729.0)
    for i in range(1000):
        m = mpmath.mpf
        assert m(d[i]) + m(e[i]) == m(a[i]) - m(b[i])
        assert m(a[i] * b[i]) + m(p[i]) == m(a[i]) * m(b[i])
