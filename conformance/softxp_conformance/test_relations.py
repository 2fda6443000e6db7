"""Relations between answers, which need no truth: for rows too long for one.

Each of two answers keeps the promise, so they are apart by twice of it at most.
"""

from typing import Any

import numpy as np
import pytest

from . import inputs
from .budgets import NARROW, PROMISE
from .cases import CASES
from .subject import Subject
from .ulp import unit

pytestmark = [pytest.mark.family("vocabulary"), pytest.mark.thorough]

N = 1_000_003  # a prime: no multiple of a block, a tile or a vector


def _row(subject: Subject) -> Any:
    return inputs.halves(N, subject.dtype)[None]


def _ask(subject: Subject, name: str, x: Any, **options: Any) -> Any:
    return subject.take(subject.value(name, x, options))


def _near(
    record: Any, subject: Subject, name: str, relation: str, a: Any, b: Any, *, times: float = 2.0, size: Any = 0.0,
    gap: Any = 0.0, more: Any = 0.0,
) -> None:  # fmt: skip
    """|a - b| within `times` the promise and `more`, in ulp of the largest of a, b and size."""
    dtype, kind = subject.dtype, CASES[name].kind
    promise = PROMISE[kind](dtype, gap) + more
    spacing = unit(np.maximum(np.maximum(np.abs(a), np.abs(b)), size), dtype, subject.target.lost(kind, "value", dtype))
    with np.errstate(invalid="ignore"):  # infinite answers are apart, as are NaN
        apart = np.nan_to_num(np.abs(a - b) / spacing, nan=np.inf)
    worst = float(np.max(apart / np.broadcast_to(promise, apart.shape)))
    record(function=name, kind="relation", family="vocabulary", what=relation, worst=float(np.max(apart)),
           mean=float(np.mean(apart)), promise=float(np.max(promise)) * times)  # fmt: skip
    assert worst <= times, f"{subject} {name}, {relation}: {worst:.3g} times the promise apart, at most {times:g}"


def _gap(x: Any) -> Any:
    return x.max(-1, keepdims=True) - x


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_shift(subject: Subject, name: str, record: Any) -> None:
    """A common offset changes nothing, or adds itself: x + 32 is exact."""
    subject.needs(name)
    x = _row(subject)
    moved = _ask(subject, name, x + 32) - (32 if name == "logsumexp" else 0)
    _near(record, subject, name, "shift", _ask(subject, name, x), moved,
          gap=_gap(x) if name == "softmax" else 0.0, size=64.0 if name == "logsumexp" else 0.0)  # fmt: skip


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_permutation(subject: Subject, name: str, record: Any) -> None:
    subject.needs(name)
    x = _row(subject)
    order = np.random.default_rng(29).permutation(N)
    y, permuted = _ask(subject, name, x), _ask(subject, name, x[:, order])
    _near(record, subject, name, "permutation", y if name == "logsumexp" else y[:, order], permuted,
          gap=_gap(x[:, order]) if name == "softmax" else 0.0)  # fmt: skip


@pytest.mark.about("logsumexp")
@pytest.mark.parametrize("pieces", [2, 101])
def test_chunk_and_merge(subject: Subject, pieces: int, record: Any) -> None:
    """logsumexp of the pieces' logsumexp."""
    subject.needs("logsumexp")
    x = _row(subject)
    parts = np.asarray([_ask(subject, "logsumexp", part)[0] for part in np.array_split(x, pieces, -1)])
    _near(record, subject, "logsumexp", f"{pieces} pieces merged", _ask(subject, "logsumexp", x),
          _ask(subject, "logsumexp", parts[None]), times=3.0)  # fmt: skip


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_temperature_scales(subject: Subject, name: str, record: Any) -> None:
    """T = 2 is half of x: exact."""
    subject.needs(name, temperature=2.0)
    x = _row(subject)
    _near(record, subject, name, "temperature", _ask(subject, name, x, temperature=2.0), _ask(subject, name, x / 2),
          gap=_gap(x) / 2 if name == "softmax" else 0.0)  # fmt: skip


@pytest.mark.about("softmax")
def test_softmax_is_exp_of_log_softmax(subject: Subject, record: Any) -> None:
    subject.needs("softmax")
    subject.needs("log_softmax")
    x = _row(subject)
    p, logp = _ask(subject, "softmax", x), _ask(subject, "log_softmax", x)
    # exp makes an error of log p, counted in ulp of log p, |log p| times as large in p
    _near(record, subject, "softmax", "exp of log_softmax", p, np.exp(logp), times=1.0,
          gap=_gap(x), more=2 * PROMISE["log"](subject.dtype, 0) * np.abs(logp) if subject.dtype not in NARROW else 0.0,
          size=0.0 if subject.dtype not in NARROW else 4 * np.abs(logp).max() * p)  # fmt: skip


@pytest.mark.about("softmax")
def test_softmax_sums_to_one(subject: Subject, record: Any) -> None:
    subject.needs("softmax")
    x = _row(subject)
    p = _ask(subject, "softmax", x)
    slack = PROMISE["map"](subject.dtype, _gap(x)) * unit(
        p, subject.dtype, subject.target.lost("map", "value", subject.dtype)
    )
    off = abs(float(np.sum(p)) - 1.0)
    record(function="softmax", kind="relation", family="vocabulary", what="sums to one", worst=off / np.sum(slack),
           mean=off / np.sum(slack), promise=1.0)  # fmt: skip
    assert off <= np.sum(slack), f"{subject} softmax sums to 1 {np.sum(p) - 1:+.3g}"


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "cross_entropy"])
def test_gradient_rows_sum_to_zero(subject: Subject, name: str, record: Any) -> None:
    """A common offset changes nothing, so the derivatives of a row sum to 0."""
    if not subject.can("vjp"):
        pytest.skip(f"{subject.library} has no vjp")
    subject.needs(name)
    dtype, x = subject.dtype, _row(subject)
    options = {"labels": np.asarray([2 * N // 3]), "reduction": "none"} if name == "cross_entropy" else {}
    ct = np.ones(1) if options else inputs.halves(N, dtype, seed=1)[None] / 8
    g = subject.take(subject.derivative("vjp", name, x, options, ct))
    # the terms that cancel in an entry: p (|v| + Σ p |v|), or |v| + p Σ |v|
    d = -_gap(x)
    p = np.exp(d) / np.sum(np.exp(d))
    v = np.abs(ct) if not options else np.zeros_like(x)
    size = p * (v + np.sum(p * v)) if name == "softmax" else v + p * (np.sum(v) if not options else 1.0)
    size = np.maximum(size, np.abs(g))
    slack = np.sum(
        PROMISE["gradient"](dtype, -d) * unit(size, dtype, subject.target.lost(CASES[name].kind, "vjp", dtype))
    )
    off = abs(float(np.sum(g)))
    record(function=name, kind="relation", family="vocabulary", what="gradient sums to zero", worst=off / slack,
           mean=off / slack, promise=1.0)  # fmt: skip
    assert off <= slack, f"{subject} {name}: the gradient of a row sums to {np.sum(g):.3g}, at most {slack:.3g}"
