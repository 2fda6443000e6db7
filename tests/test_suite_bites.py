"""The conformance suite must fail on wrong implementations, each by name."""

import numpy as np
import pytest

import softxp
from softxp_conformance import inputs, oracle
from softxp_conformance.cases import CASES
from softxp_conformance.compare import judge
from softxp_conformance.targets import TARGETS

NUMPY = TARGETS["numpy"]


def naive(x):
    with np.errstate(all="ignore"):
        e = np.exp(x)
        return e / e.sum(-1, keepdims=True)


def textbook_log(x):
    with np.errstate(all="ignore"):
        d = x - x.max(-1, keepdims=True)
        return d - np.log(np.exp(d).sum(-1, keepdims=True))


def in_half(x):
    with np.errstate(all="ignore"):
        return softxp.softmax(x.astype(np.float16)).astype(x.dtype)


WRONG = {
    "zeros": ("softmax", lambda x: np.zeros_like(x)),
    "uniform": ("softmax", lambda x: np.full_like(x, 1 / 17)),
    "wrong axis": ("softmax", lambda x: softxp.softmax(x, axis=0)),
    "no shift": ("softmax", naive),
    "float16 inside": ("softmax", in_half),
    "nine ulp off": ("softmax", lambda x: (softxp.softmax(x) * (1 + 2.0**-19)).astype(x.dtype)),
    "nan leaks": ("softmax", lambda x: softxp.softmax(x) + 0 * np.roll(softxp.softmax(x), 1, 0)),
    "log(1 + r)": ("log_softmax", textbook_log),
    "no maximum": ("logsumexp", lambda x: np.log(np.exp(np.clip(x, -80, 80)).sum(-1))),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values_are_caught(name):
    case, wrong = CASES[WRONG[name][0]], WRONG[name][1]
    names, x = inputs.rows("float32")
    with pytest.raises(AssertionError, match="ulp >"):
        judge(lambda **row: None, NUMPY, "float32", case, case.kind, name, wrong(x.astype("f4")), case.truth(x), names)


@pytest.mark.parametrize("name", ["zeros", "sign", "no temperature", "p - 1"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gradients_are_caught(name):
    case = CASES["cross_entropy"]
    names, x = inputs.rows("float32")
    labels = (5 * np.arange(len(x)) + 3) % 17
    ct = np.ones(len(x))
    _, pullback = softxp.vjp(softxp.cross_entropy, x.astype("f4"), labels, reduction="none", temperature=2.0)
    g, _ = pullback(ct.astype("f4"))
    wrong = {
        "zeros": g * 0,
        "sign": -g,
        "no temperature": 2 * g,
        "p - 1": ((softxp.softmax(x.astype("f4"), temperature=2.0) - np.eye(17, dtype="f4")[labels]) / 2).astype("f4"),
    }[name]
    truth = oracle.cross_entropy_vjp(x, ct[:, None], labels, reduction="none", temperature=2.0)
    judge(lambda **row: None, NUMPY, "float32", case, "gradient", "right", g, truth, names)
    with pytest.raises(AssertionError, match="ulp >"):
        judge(lambda **row: None, NUMPY, "float32", case, "gradient", name, wrong, truth, names)


def test_label_off_by_one_is_caught():
    case = CASES["cross_entropy"]
    names, x = inputs.rows("float32")
    labels = (5 * np.arange(len(x)) + 3) % 16
    got = softxp.cross_entropy(x.astype("f4"), labels + 1, reduction="none")
    with pytest.raises(AssertionError, match="ulp >"):
        judge(
            lambda **r: None,
            NUMPY,
            "float32",
            case,
            "log",
            "label",
            got,
            case.truth(x, labels=labels, reduction="none"),
            names,
        )
