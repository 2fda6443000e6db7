"""The truth is true: held to closed forms, to itself at twice the digits, and its two arithmetics to each other."""

import mpmath
import numpy as np
import pytest

from softxp_conformance import inputs, precise
from softxp_conformance.cases import CASES
from softxp_conformance.double_double import DD
from softxp_conformance.many_digits import MP, digits
from softxp_conformance.subject import direction

M = mpmath.MPContext()
M.dps = 60
QUESTIONS = [(case, variant) for case in CASES.values() for variant in case.variants]
each = pytest.mark.parametrize("case,variant", QUESTIONS, ids=[f"{c}-{v}" for c, v in QUESTIONS])


def truths(case, variant, dtype):
    """Value and both derivatives about the named rows."""
    x, options = inputs.rows(dtype).x, case.options(variant, dtype)
    ct, tangent = (direction(kind, case, variant, dtype) for kind in ("vjp", "jvp"))
    return (
        case.truth(x, **options),
        case.vjp(x, ct[:, None] if ct.ndim == 1 else ct, **options),
        case.jvp(x, tangent, **options),
    )


def apart(a, b):
    """|a - b| of the larger of a and the terms that it is made of, entry by entry; the infinities and NaN must agree."""
    size = np.maximum(np.abs(a.value.hi), np.where(np.isfinite(a.scale), a.scale, 0))
    # beyond these, double-double has no second half left
    finite = np.isfinite(a.value.hi) & (size > 1e-290) & (size < 1e290)
    np.testing.assert_array_equal(np.isfinite(a.value.hi), np.isfinite(b.value.hi))
    with np.errstate(all="ignore"):
        far = np.abs((a.value.hi - b.value.hi) + (a.value.lo - b.value.lo)) / size
        np.testing.assert_array_equal(a.value.hi[~np.isfinite(a.value.hi)], b.value.hi[~np.isfinite(a.value.hi)])
    return float(np.max(far, where=finite, initial=0.0))


@each
def test_double_double_agrees_with_fifty_digits(case, variant, monkeypatch):
    short = truths(case, variant, "float64")
    monkeypatch.setattr(precise, "SHORT", 0)
    for fifty, thirty in zip(short, truths(case, variant, "float64"), strict=True):
        assert apart(fifty, thirty) < 1e-21  # float64 ends at 1e-16


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_fifty_digits_agree_with_a_hundred(case):
    variant = next(iter(case.variants))
    fifty = truths(case, variant, "float64")
    with digits(100):
        hundred = truths(case, variant, "float64")
    for a, b in zip(fifty, hundred, strict=True):
        assert apart(a, b) < 1e-31  # two float64 hold no more of either


def test_closed_forms():
    def of(name, x, **options):
        value = CASES[name].truth(np.asarray([x], dtype=float), **options).value
        return np.ravel(value.all)

    n = 17
    near(of("softmax", [0.3] * n), [1 / M.mpf(n)] * n)
    near(of("log_softmax", [0.3] * n), [-M.log(n)] * n)
    near(of("logsumexp", [0.0] * n), [M.log(n)])
    near(of("logmeanexp", [0.25] * n), [M.mpf("0.25")])
    near(of("logcumsumexp", [0.0] * n), [M.log(k + 1) for k in range(n)])
    near(of("log_softmax", [40.0, 0.0]), [-M.log1p(M.exp(-40)), -40 - M.log1p(M.exp(-40))])
    near(of("cross_entropy", [17.0, 0.0], labels=np.asarray([0]), reduction="none"), [M.log1p(M.exp(-17))])
    near(of("softmax", [1.0, 0.0], temperature=0.5), [1 / (1 + M.exp(-2)), M.exp(-2) / (1 + M.exp(-2))])
    near(of("sparsemax", [0.5, 0.25, -3.0]), [M.mpf(5) / 8, M.mpf(3) / 8, 0])
    near(of("sparsemax", [0.0] * n), [1 / M.mpf(n)] * n)
    near(of("entmax", [0.0] * n), [1 / M.mpf(n)] * n)
    root = (M.sqrt(2 - M.mpf("0.25")) - M.mpf("0.5")) / 2  # the smaller of s, s + 1/2 with s² + (s + 1/2)² = 1
    near(of("entmax", [1.0, 0.0, -9.0]), [(root + M.mpf("0.5")) ** 2, root**2, 0])


def near(got, want):
    for a, b in zip(got, want, strict=True):
        assert abs(M.mpf(a) - b) <= M.mpf(10) ** -45 * max(abs(b), 1), (a, b)


@pytest.mark.parametrize("name,f,x", [
    ("exp", M.exp, -np.logspace(-20, 2.8, 200)),
    ("expm1", M.expm1, -np.logspace(-20, 2.8, 200)),
    ("log", M.log, np.logspace(-300, 300, 200)),
    ("log1p", M.log1p, np.logspace(-300, 8, 200)),
    ("log1p", M.log1p, -np.logspace(-300, -0.3, 200)),
    ("sqrt", M.sqrt, np.logspace(-200, 8, 200)),
    ("tanh", M.tanh, np.logspace(-2, 1, 200)),
])  # fmt: skip
def test_functions_of_double_doubles(name, f, x):
    y = getattr(DD(x), name)()
    for v, hi, lo in zip(x.tolist(), y.hi.tolist(), y.lo.tolist(), strict=True):
        assert abs((M.mpf(hi) + M.mpf(lo)) / f(M.mpf(v)) - 1) < 1e-25


def test_where_the_two_meet_the_wider_wins():
    short, long = precise.number(np.ones(3)), DD(np.ones(3))
    assert isinstance(short, MP) and type(precise.number(np.ones(precise.SHORT + 1))) is DD
    for mixed in (
        short + long,
        long + short,
        long - short,
        long * short,
        long / short,
        precise.where(True, long, short),
    ):
        assert isinstance(mixed, MP)


def test_long_float64_rows_are_judged_in_seconds():
    x = inputs.long_row(262144, "float64", "normal")[None]
    truth = CASES["softmax"].truth(x)
    total = precise.total(truth.value)
    assert abs(total.hi[0, 0] - 1 + total.lo[0, 0]) < 1e-28
