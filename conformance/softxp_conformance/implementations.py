"""Whose functions are judged: softxp's own, and thin descriptions of its peers'.

A description renames arguments and nothing else. Its signatures say what is asked of it: a question with an option that
is not among a function's parameters, or not of its annotation, is left out. `axis: int` takes one axis and no tuple.

A stranger's is named `--implementation theirs.module:IMPLEMENTATION`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, Literal, get_args, get_origin

Functions = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True, eq=False)
class Implementation:
    """Functions by softxp's names, with softxp's signatures as far as they go."""

    name: str
    functions: Functions
    modules: tuple[str, ...] = ()  # the modules of the targets that it serves; empty: every target
    # derivatives for targets without an autograd: (fn, arrays, options, cotangent or tangent, by which array = 0)
    vjp: Callable[..., Any] | None = None
    jvp: Callable[..., Any] | None = None
    derivatives: tuple[str, ...] = ("vjp", "jvp")  # what can be asked, where the target has an autograd
    words: bool = False  # bad arguments are answered with softxp's sentences, not merely with an exception
    tight: bool = False  # held to the budgets of tight targets, beside the promise
    xfail: dict[str, str] = field(default_factory=dict)  # part of a test id -> reason, link

    def serves(self, module: str) -> bool:
        return not self.modules or module in self.modules

    def takes(self, function: str, options: Mapping[str, Any]) -> bool:
        """Can the function be asked with these options?"""
        if function not in self.functions:
            return False
        parameters = _parameters(self.functions[function])
        if any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
            return True
        return all(k in parameters and _fits(v, parameters[k].annotation) for k, v in options.items())


def _parameters(function: Callable[..., Any]) -> Mapping[str, Parameter]:
    try:
        return signature(function, eval_str=True).parameters
    except NameError:  # an annotation's name is imported for type checkers alone
        return signature(function).parameters
    except (TypeError, ValueError) as error:
        raise TypeError(f"{function!r} has no signature to read; wrap it in a def, with softxp's names.") from error


def _fits(value: Any, annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    return annotation not in (int, "int") or (isinstance(value, int) and not isinstance(value, bool))


# --- softxp ----------------------------------------------------------------------------------------------------------


def _softxp() -> Implementation:
    import softxp

    from .cases import CASES
    from .compositions import COMPOSITIONS

    def vjp(fn: Any, arrays: Any, options: Any, ct: Any, which: int = 0) -> Any:
        return softxp.vjp(fn, *arrays, **options)[1](ct)[which]

    def jvp(fn: Any, arrays: Any, options: Any, tangent: Any, which: int = 0) -> Any:
        tangents = tuple(tangent if i == which else None for i in range(len(arrays)))
        return softxp.jvp(fn, tuple(arrays), tangents, **options)[1]

    functions = {name: getattr(softxp, name) for name in (*CASES, *COMPOSITIONS) if hasattr(softxp, name)}
    return Implementation("softxp", functions, vjp=vjp, jvp=jvp, words=True, tight=True)


# --- peers -----------------------------------------------------------------------------------------------------------


def _scipy_special() -> Implementation:
    from scipy import special

    def logsumexp(x: Any, *, axis: Any = None, b: Any = None, keepdims: bool = False, return_sign: bool = False) -> Any:
        return special.logsumexp(x, axis=axis, b=b, keepdims=keepdims, return_sign=return_sign)

    def softmax(x: Any, *, axis: Any = -1) -> Any:
        return special.softmax(x, axis=axis)

    def log_softmax(x: Any, *, axis: Any = -1) -> Any:
        return special.log_softmax(x, axis=axis)

    functions = {"softmax": softmax, "log_softmax": log_softmax, "logsumexp": logsumexp}
    return Implementation("scipy.special", functions, modules=("numpy",))


def _torch_functional() -> Implementation:
    import torch
    from torch.nn import functional

    def softmax(x: Any, *, axis: int = -1, dtype: Any = None) -> Any:
        return functional.softmax(x, axis, dtype=dtype)

    def log_softmax(x: Any, *, axis: int = -1, dtype: Any = None) -> Any:
        return functional.log_softmax(x, axis, dtype=dtype)

    def logsumexp(x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
        return torch.logsumexp(x, tuple(range(x.ndim)) if axis is None else axis, keepdim=keepdims)

    def logcumsumexp(x: Any, *, axis: int = -1) -> Any:
        return torch.logcumsumexp(x, axis)

    def cross_entropy(
        logits: Any, labels: Any, *, axis: int = -1, label_smoothing: float = 0.0, class_weight: Any = None,
        ignore_index: int = -100, reduction: str = "mean",
    ) -> Any:  # fmt: skip
        def classes_second(a: Any) -> Any:
            return a.movedim(axis, 1) if a.ndim > 1 and a.shape == logits.shape else a

        return functional.cross_entropy(
            classes_second(logits), classes_second(labels), class_weight, ignore_index=ignore_index, reduction=reduction,
            label_smoothing=label_smoothing,
        )  # fmt: skip

    functions = {
        "softmax": softmax,
        "log_softmax": log_softmax,
        "logsumexp": logsumexp,
        "logcumsumexp": logcumsumexp,
        "cross_entropy": cross_entropy,
    }
    return Implementation("torch.nn.functional", functions, modules=("torch",))


def _jax_nn() -> Implementation:
    from jax import nn

    def softmax(x: Any, *, axis: Any = -1, where: Any = None) -> Any:
        return nn.softmax(x, axis, where=where)

    def log_softmax(x: Any, *, axis: Any = -1, where: Any = None) -> Any:
        return nn.log_softmax(x, axis, where=where)

    def logsumexp(
        x: Any, *, axis: Any = None, b: Any = None, where: Any = None, keepdims: bool = False, return_sign: bool = False
    ) -> Any:
        return nn.logsumexp(x, axis, b=b, where=where, keepdims=keepdims, return_sign=return_sign)

    def logmeanexp(x: Any, *, axis: Any = None, where: Any = None, keepdims: bool = False) -> Any:
        return nn.logmeanexp(x, axis, where=where, keepdims=keepdims)

    functions = {"softmax": softmax, "log_softmax": log_softmax, "logsumexp": logsumexp}
    if hasattr(nn, "logmeanexp"):
        functions["logmeanexp"] = logmeanexp
    return Implementation("jax.nn", functions, modules=("jax",))


def _optax() -> Implementation:
    import jax.numpy as jnp
    import optax

    def cross_entropy(logits: Any, labels: Any, *, axis: int = -1, reduction: Literal["none"] = "none") -> Any:
        if jnp.issubdtype(labels.dtype, jnp.integer):
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels, axis)
        return optax.softmax_cross_entropy(logits, labels, axis)

    return Implementation("optax", {"cross_entropy": cross_entropy}, modules=("jax",))


def _entmax() -> Implementation:
    import entmax

    def sparsemax(x: Any, *, axis: int = -1) -> Any:
        return entmax.sparsemax(x, dim=axis)

    def entmax15(x: Any, *, axis: int = -1) -> Any:
        return entmax.entmax15(x, dim=axis)

    return Implementation(
        "entmax", {"sparsemax": sparsemax, "entmax": entmax15}, modules=("torch",), derivatives=("vjp",)
    )


IMPLEMENTATIONS: dict[str, Callable[[], Implementation]] = {
    "softxp": _softxp,
    "scipy.special": _scipy_special,
    "torch.nn.functional": _torch_functional,
    "jax.nn": _jax_nn,
    "optax": _optax,
    "entmax": _entmax,
}
