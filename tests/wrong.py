"""Implementations that are wrong on purpose, each in one way, for tests/test_suite_bites.py."""

import numpy as np

import softxp
from softxp_conformance.implementations import IMPLEMENTATIONS, Implementation

SOFTXP = IMPLEMENTATIONS["softxp"]()


def wrong(name, functions, **more):
    return Implementation(name, functions, **{"vjp": SOFTXP.vjp, "jvp": SOFTXP.jvp, "tight": True, **more})


def softmax(change):
    """softxp's softmax, and what is done to its answer, given x."""

    def changed(x, *, axis: int = -1, where=None, temperature=1.0):
        p = softxp.softmax(x, axis=axis, where=where, temperature=temperature)
        return np.asarray(change(np.asarray(x), p, axis)).astype(p.dtype)

    return {"softmax": changed}


def quietly(f):
    return np.errstate(all="ignore")(f)


RIGHT = wrong("right", dict(SOFTXP.functions))

# --- values


@quietly
def _no_shift(x, p, axis):
    e = np.exp(x)
    return e / e.sum(axis, keepdims=True)


@quietly
def _half_inside(x, p, axis):
    return softxp.softmax(x.astype(np.float16), axis=axis)


@quietly
def _sum_in_half(x, *, axis: int = -1):
    m = x.max(axis, keepdims=True)
    return np.asarray(np.squeeze(m, axis) + np.log(np.sum(np.exp(x - m), axis, dtype=np.float16)), dtype=x.dtype)


@quietly
def _textbook_log(x, *, axis: int = -1):
    d = x - x.max(axis, keepdims=True)
    return d - np.log(np.exp(d).sum(axis, keepdims=True))


@quietly
def _doubled_and_halved(x, *, axis: int = -1):
    y = softxp.logsumexp(x, axis=axis)
    return np.asarray((y + y) / 2, dtype=x.dtype)


def _leaks(x, p, axis):
    return p + 0 * np.roll(p, 1, 0) if p.ndim == 2 else p


def _three_ulp_more(x, p, axis):
    return p + 3 * np.spacing(p) if p.shape[axis] > 1000 else p


def _writes(x, *, axis: int = -1):
    y = softxp.softmax(x, axis=axis)
    if isinstance(x, np.ndarray) and x.flags.writeable:
        x -= 1
    return y


def _by_size(x, p, axis):
    return p if len(np.atleast_1d(x)) > 1 else np.nextafter(p, np.asarray(2, p.dtype))


ZEROS = wrong("zeros", softmax(lambda x, p, axis: 0 * p))
UNIFORM = wrong("uniform", softmax(lambda x, p, axis: np.full_like(p, 1 / max(p.shape[axis] if p.ndim else 1, 1))))
WRONG_AXIS = wrong("wrong axis", softmax(lambda x, p, axis: softxp.softmax(x, axis=0)))
NO_SHIFT = wrong("no shift", softmax(_no_shift))
HALF_INSIDE = wrong("float16 inside", softmax(_half_inside))
SUM_IN_HALF = wrong("sum in float16", {"logsumexp": _sum_in_half})
TEXTBOOK_LOG = wrong("log(1 + r)", {"log_softmax": _textbook_log})
OVERFLOWS = wrong("overflows", {"logsumexp": _doubled_and_halved})
LEAKS = wrong("NaN row leaks", softmax(_leaks))
THREE_ULP_MORE = wrong("3 ulp more on long rows", softmax(_three_ulp_more))
WRITES = wrong("in-place write", {"softmax": _writes})
BY_SIZE = wrong("bits by the batch", softmax(_by_size))

# --- losses


def _off_by_one(logits, labels, *, axis: int = -1, reduction="mean"):
    if np.issubdtype(labels.dtype, np.integer):
        labels = (labels + 1) % logits.shape[axis]
    return softxp.cross_entropy(logits, labels, axis=axis, reduction=reduction)


def _mean_over_ignored(logits, labels, *, axis: int = -1, reduction="mean", ignore_index: int = -100):
    loss = softxp.cross_entropy(logits, labels, axis=axis, reduction="none", ignore_index=ignore_index)
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


LABEL_OFF_BY_ONE = wrong("label off by one", {"cross_entropy": _off_by_one}, vjp=None, jvp=None)
MEAN_OVER_IGNORED = wrong("mean over ignored rows", {"cross_entropy": _mean_over_ignored}, vjp=None, jvp=None)

# --- derivatives


def _sign(fn, arrays, options, ct):
    return -SOFTXP.vjp(fn, arrays, options, ct)


def _no_temperature(fn, arrays, options, ct):
    g, t = SOFTXP.vjp(fn, arrays, options, ct), options.get("temperature", 1.0)
    return g * np.where((t > 0) & (np.asarray(t) < np.inf), t, 1).astype(g.dtype)


def _p_minus_one(fn, arrays, options, ct):
    """The textbook's p - y, which loses the digits of a p near 1."""
    x, labels = arrays
    p = softxp.softmax(x)
    return ((p - np.eye(p.shape[-1], dtype=p.dtype)[labels]) * np.asarray(ct)[..., None]).astype(p.dtype)


def plain_loss(logits, labels, *, axis: int = -1, reduction="mean"):
    return softxp.cross_entropy(logits, labels, axis=axis, reduction=reduction)


GRADIENT_SIGN = wrong("gradient's sign", {"softmax": softxp.softmax}, vjp=_sign)
NO_TEMPERATURE = wrong("no T in the gradient", {"softmax": softxp.softmax}, vjp=_no_temperature)
P_MINUS_ONE = wrong("p - 1", {"cross_entropy": plain_loss}, vjp=_p_minus_one, jvp=None)
