"""Derivatives, against the truth: reverse and forward, corners included."""

from typing import Any

import numpy as np
import pytest

from . import inputs
from .cases import CASES, Case
from .compare import judge
from .targets import Target
from .ulp import rounded

QUESTIONS = [(case, variant) for case in CASES.values() for variant in case.variants]
each = pytest.mark.parametrize("case,variant", QUESTIONS, ids=[f"{c.name}-{v}" for c, v in QUESTIONS])


def _parts(target: Target, dtype: str, case: Case, variant: str) -> tuple[Any, Any, Any, Any, Any]:
    names, x = inputs.rows(dtype)
    options = case.options(variant, x, dtype)
    given = dict(options)
    arrays = [x] if "labels" not in given else [x, given.pop("labels")]
    given.setdefault("axis", -1)
    if "b" in given and target.autograd is False:
        given.pop("return_sign", None)  # softxp.vjp differentiates the logarithm alone
        options = {k: v for k, v in options.items() if k != "return_sign"}
    return names, x, options, [target.give(a, dtype) for a in arrays], target.options(given, dtype)


@each
def test_vjp(target: Target, dtype: str, case: Case, variant: str, record: Any) -> None:
    names, x, options, arrays, given = _parts(target, dtype, case, variant)
    shape = x.shape
    if case.reduces:
        shape = (len(x),) if case.name != "cross_entropy" or options.get("reduction") == "none" else ()
    ct = rounded(np.random.default_rng(17).uniform(0.5, 2.0, shape), dtype)
    got = target.take(target.vjp(case.fn, arrays, given, target.give(np.asarray(ct), dtype)))
    truth = case.vjp(x, ct[:, None] if case.reduces and shape else ct, **options)
    judge(record, target, dtype, case, "gradient", f"vjp, {variant}", got, truth, names)


@each
def test_jvp(target: Target, dtype: str, case: Case, variant: str, record: Any) -> None:
    if target.name == "torch-compiled":
        pytest.skip("torch.compile does not trace forward mode through an autograd.Function (torch 2.13)")
    names, x, options, arrays, given = _parts(target, dtype, case, variant)
    tangent = rounded(np.random.default_rng(19).standard_normal(x.shape), dtype)
    got = target.take(target.jvp(case.fn, arrays, given, target.give(tangent, dtype)))
    judge(record, target, dtype, case, "gradient", f"jvp, {variant}", got, case.jvp(x, tangent, **options), names)


@pytest.mark.parametrize("label", ["top", "other"])
def test_confident_loss(target: Target, dtype: str, label: str, record: Any) -> None:
    """p = 0.999 and nearer to 1 still: the class of the label keeps its last bits in p - 1."""
    case = CASES["cross_entropy"]
    x = rounded(np.asarray([[6.9, 0.0], [12.0, 0.0], [17.0, 0.0], [40.0, 0.0]]), dtype)
    labels = np.full(4, 0 if label == "top" else 1)
    arrays = [target.give(x, dtype), target.give(labels, dtype)]
    ct = np.ones(4)
    got = target.take(target.vjp(case.fn, arrays, {"reduction": "none", "axis": -1}, target.give(ct, dtype)))
    judge(record, target, dtype, case, "gradient", f"confident, {label}", got,
          case.vjp(x, ct[:, None], labels, reduction="none"), None)  # fmt: skip


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.name != "logcumsumexp"], ids=str)
def test_long(target: Target, dtype: str, case: Case, record: Any) -> None:
    n = 50257
    x = inputs.long_row(n, dtype, "dominant")[None]
    options = {"labels": np.asarray([2 * n // 3]), "reduction": "none"} if case.name == "cross_entropy" else {}
    arrays = [target.give(a, dtype) for a in ([x] if not options else [x, options["labels"]])]
    given = {"axis": -1, **({"reduction": "none"} if options else {})}
    ct = rounded(np.random.default_rng(23).uniform(0.5, 2.0, (1,) if case.reduces else x.shape), dtype)
    got = target.take(target.vjp(case.fn, arrays, given, target.give(ct, dtype)))
    truth = case.vjp(x, ct[:, None] if case.reduces else ct, **options)
    judge(record, target, dtype, case, "gradient", f"vjp, dominant, {n}", got, truth, None, long=True)
