"""One function of softxp, as a record: what a backend needs to serve it and to differentiate it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What the caller gets of an answer that keeps more for its derivatives: an array, or a tuple of them."""

    of: Callable[..., Any]  # (xp, y, **values) -> what the caller gets
    vjp: Callable[..., Any]  # (xp, cotangent of that, y, **values) -> cotangent of y
    jvp: Callable[..., Any]  # (xp, tangent of y, **values) -> tangent of what the caller gets


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """A function and its two derivatives, all in array-API terms.

    A call's arguments, checked and put in order by `prepare`, are its *values*: arrays and plain Python options by name.
    """

    name: str
    prepare: Callable[..., dict[str, Any]]  # (backend, *what the caller gave) -> values
    forward: Callable[..., Any]  # (xp, **values) -> y
    vjp: Callable[..., dict[str, Any]] | None = None  # (call, xp, ct, y, wanted names, **values) -> {name: cotangent}
    jvp: Callable[..., Any] | None = None  # (call, xp, y, {name: tangent}, **values) -> dy
    arrays: tuple[str, ...] = ("x",)  # what `values` calls the public function's positional arrays
    # (call, xp, wanted names, **values) -> (y, {name: gradient}), y one number: where that is cheaper than y and then vjp
    sweep: Callable[..., Any] | None = None
    answer: Answer | None = None


_OPTIONS = int, float, str, tuple


def is_array(value: Any) -> bool:
    """Among a call's values what has a shape and a dtype is an array; the rest are options, fixed when code is traced."""
    if value is None or type(value) in _OPTIONS:  # which most are
        return False
    return not isinstance(value, (*_OPTIONS, type)) and hasattr(value, "shape") and hasattr(value, "dtype")


OPS: dict[str, Op] = {}  # by name: a rule calls other functions so
OP_OF: dict[Any, Op] = {}  # by public function: how `transform` finds a function's derivatives


def record(op: Op) -> Callable[[Any], Any]:
    """Decorator of a public function: this record says what it computes."""

    def bind(fn: Any) -> Any:
        OPS[op.name] = op
        OP_OF[fn] = op
        return fn

    return bind
