"""Who is asked, and what: an implementation on a target in one dtype, and a question about the named rows.

Answers and truths are kept, since one call answers for every family of rows.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from . import inputs
from .cases import CASES, Case
from .implementations import Implementation
from .oracle import Truth
from .targets import Target, numpy_dtype
from .ulp import rounded

DERIVATIVES = ("vjp", "jvp")


@dataclass(frozen=True, eq=False)
class Subject:
    """Whom the tests speak to."""

    target: Target
    implementation: Implementation
    dtype: str

    @property
    def ours(self) -> bool:
        return self.implementation.name == "softxp"

    @property
    def library(self) -> str:
        """The target's name, and the implementation's unless it is softxp."""
        return self.target.name if self.ours else f"{self.target.name}:{self.implementation.name}"

    @property
    def xfail(self) -> Mapping[str, str]:
        """A target's expected failures are of softxp's answers on it."""
        return {**(self.target.xfail if self.ours else {}), **self.implementation.xfail}

    def __str__(self) -> str:
        return f"{self.library}-{self.dtype}"

    def needs(self, function: str, **options: Any) -> None:
        """Skip the test where the function, or an option of it, is not there to be asked."""
        if not self.implementation.takes(function, options):
            pytest.skip(f"{self.library} has no {function}({', '.join(f'{k}={v}' for k, v in options.items())})")

    # --- numpy's numbers to the library's, and back

    def give(self, value: Any, dtype: str | None = None) -> Any:
        """A numpy value as the library's: floats in the dtype under test. What is no array stays as it is."""
        if isinstance(value, np.ndarray):
            floats = value.dtype.kind == "f"
            return self.target.asarray(value.astype(numpy_dtype(dtype or self.dtype)) if floats else value)
        return value

    def take(self, value: Any) -> Any:
        """An answer as float64."""
        return np.asarray(self.target.asnumpy(value)).astype(np.float64)

    def bits(self, value: Any) -> bytes:
        """An answer to the last bit."""
        return np.ascontiguousarray(self.target.asnumpy(value)).tobytes()

    # --- questions: numpy arrays in, the library's arrays out

    def function(self, name: str) -> Any:
        return self.implementation.functions[name]

    def given(self, x: Any, options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arrays and the options of a call, as the library's."""
        options = {"axis": -1, **options}
        arrays = [x, *(options.pop(name) for name in ("labels", "beside") if name in options)]
        return [self.give(a) for a in arrays], {k: self.give(v) for k, v in options.items()}

    @contextmanager
    def untouched(self, arrays: list[Any], options: dict[str, Any]) -> Iterator[None]:
        """What a call is given keeps every bit."""
        given = {k: v for k, v in {**dict(enumerate(arrays)), **options}.items() if hasattr(v, "shape")}
        before = {k: self.bits(v) for k, v in given.items()}
        yield
        written = [str(k) for k, v in given.items() if self.bits(v) != before[k]]
        assert not written, f"{self}: the call wrote to what it was given, argument {', '.join(written)}"

    def value(self, name: str, x: Any, options: dict[str, Any]) -> Any:
        arrays, given = self.given(x, options)
        with self.untouched(arrays, given):
            y = self.target.call(self.function(name), arrays, given)
        if "dtype" not in options:
            self.like(arrays[0], y[0] if isinstance(y, tuple) else y)
        return y

    def like(self, x: Any, y: Any) -> None:
        """The answer's dtype, type and device are the input's."""
        assert y.dtype == x.dtype, f"{self}: {x.dtype} in, {y.dtype} out"
        assert isinstance(x, type(y)) or isinstance(y, np.generic), f"{self}: {type(x)} in, {type(y)} out"
        device = getattr(x, "device", None)
        assert callable(device) or getattr(y, "device", None) == device, f"{self}: {device} in, another device out"

    def derivative(self, kind: str, name: str, x: Any, options: dict[str, Any], v: Any, which: int = 0) -> Any:
        """The cotangent v pulled back to one array ("vjp"), or its tangent v pushed forward ("jvp")."""
        (arrays, given), v = self.given(x, options), self.give(np.asarray(v))
        with self.untouched([*arrays, v], given):
            y = self.moved(kind, name, arrays, given, v, which)
        self.like(arrays[0], y)
        if kind == "vjp":
            assert tuple(y.shape) == np.shape(x), (
                f"{self} {name}: a gradient of shape {tuple(y.shape)} for {np.shape(x)}"
            )
        return y

    def moved(self, kind: str, name: str, arrays: list[Any], options: dict[str, Any], v: Any, which: int) -> Any:
        """The same of arrays that are the library's already."""
        fn, theirs, rule = self.function(name), getattr(self.target, kind), getattr(self.implementation, kind)
        if theirs is None:
            rest = {k: o for k, o in options.items() if k != "return_sign"}  # closed forms are of the logarithm alone
            by = () if which == 0 else (which,)
            return self.target.call(lambda *a: rule(fn, a[:-1], rest, a[-1], *by), [*arrays, v], {})
        if which == 0:
            return theirs(fn, arrays, options, v)

        # the array in question first, as a library's autograd is asked
        def turned(a: Any, *rest: Any, **how: Any) -> Any:
            return fn(*rest[:which], a, *rest[which:], **how)

        return theirs(turned, [arrays[which], *arrays[:which], *arrays[which + 1 :]], options, v)

    def can(self, kind: str) -> bool:
        """Has it this derivative? A library's autograd is asked before an implementation's closed forms."""
        if kind not in self.implementation.derivatives:
            return False
        if self.target.vjp is not None or self.target.jvp is not None:
            return getattr(self.target, kind) is not None
        return getattr(self.implementation, kind) is not None


def subject_named(test: str, subjects: list[Subject]) -> Subject | None:
    """Whom a test is about, by its id: `test_rows[jax-jitted-float32-...]`. The longest name, as jax is how that begins."""
    for name in (str, lambda s: s.library):
        found = [s for s in subjects if f"[{name(s)}-" in test or f"[{name(s)}]" in test]
        if found:
            return max(found, key=lambda s: len(s.library))
    return None


@dataclass(frozen=True, eq=False)
class Question:
    """One variant of one function, about one family of the named rows (None: one answer for the whole batch)."""

    case: Case
    variant: str
    family: str | None

    def __str__(self) -> str:
        return f"{self.case.name}-{self.variant}-{self.family or inputs.ALL}"

    @property
    def cells(self) -> Any:
        """Which rows of the batch it is about."""
        return slice(None) if self.family is None else inputs.rows("float32").of(self.family)

    @property
    def names(self) -> list[str]:
        batch = inputs.rows("float32")
        return [n for n, f in zip(batch.names, batch.families, strict=True) if self.family in (None, f)]


def questions(kind: str) -> list[Question]:
    """All of a kind: "value", "vjp" or "jvp"."""
    return [
        Question(case, variant, family)
        for case in CASES.values()
        for variant in case.variants
        for family in ((None,) if case.lean or case.whole(variant) else inputs.ROW_FAMILIES)
        if not (kind in DERIVATIVES and family in case.unsure)
    ]


def direction(kind: str, case: Case, variant: str, dtype: str) -> Any:
    """The cotangent, or the tangent, that derivatives of the named rows are asked with."""
    x = inputs.rows(dtype).x
    if kind == "jvp":
        return rounded(np.random.default_rng(19).standard_normal(x.shape), dtype)
    shape = () if case.whole(variant) else (len(x),) if case.reduces else x.shape
    return rounded(np.random.default_rng(17).uniform(0.5, 2.0, shape), dtype)


def answer(subject: Subject, kind: str, q: Question) -> tuple[Any, Any]:
    """(answer, sign or None) for the question's rows, as float64."""
    found = _batch(subject, kind, q.case, q.variant)
    if not isinstance(found, Exception):
        return tuple(part if part is None or part.ndim == 0 else part[q.cells] for part in found)  # type: ignore[return-value]
    if q.family is None:
        raise found
    # a row that the library refuses is held against its family, not against everybody's
    return _ask(subject, kind, q.case, q.variant, q.cells)


@lru_cache(maxsize=8)
def _batch(subject: Subject, kind: str, case: Case, variant: str) -> Any:
    """The answer about all named rows, or the exception that came instead."""
    try:
        return _ask(subject, kind, case, variant, slice(None))
    except Exception as error:
        return error


def _ask(subject: Subject, kind: str, case: Case, variant: str, cells: Any) -> tuple[Any, Any]:
    x = inputs.rows(subject.dtype).x

    def chosen(value: Any) -> Any:
        return value[cells] if isinstance(value, np.ndarray) and value.ndim and len(value) == len(x) else value

    options = {k: chosen(v) for k, v in case.options(variant, subject.dtype).items()}
    if kind in DERIVATIVES:
        v = direction(kind, case, variant, subject.dtype)
        asked = range(2 if case.beside else 1)
        out = [subject.take(subject.derivative(kind, case.name, x[cells], options, chosen(v), i)) for i in asked]
        return (out[0] if len(out) == 1 else np.concatenate([o.reshape(len(x[cells]), -1) for o in out], -1)), None
    got = subject.value(case.name, x[cells], options)
    return (subject.take(got[0]), subject.take(got[1])) if isinstance(got, tuple) else (subject.take(got), None)


def truth(kind: str, case: Case, variant: str, dtype: str) -> Truth:
    x, options = inputs.rows(dtype).x, case.options(variant, dtype)
    if kind == "value":
        return case.truth(x, **options)
    return case.derivative(kind, x, direction(kind, case, variant, dtype), **options)
