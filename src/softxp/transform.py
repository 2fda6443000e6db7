"""Derivatives without an autograd: the closed forms that stand beside each function, for arrays of any library."""

from collections.abc import Callable
from functools import cached_property
from inspect import signature
from typing import Any

from . import _args as args
from ._backends import Backend, find
from ._op import OP_OF, Op, is_array

__all__ = ["jvp", "value_and_grad", "vjp"]


class _Call:
    """One call of a public function, with its arguments checked: value and derivatives by its positional arrays."""

    def __init__(self, fn: Any, arrays: tuple[Any, ...], options: dict[str, Any]) -> None:
        op = OP_OF.get(fn)
        if op is None or op.vjp is None:
            known = ", ".join(sorted(f.__name__ for f in OP_OF))
            raise TypeError(f"softxp has derivatives of its own functions ({known}), got {fn!r}.")
        if options.get("return_sign"):
            raise ValueError(
                "the sign has no derivative; call with return_sign=False, or take it from logsumexp itself."
            )
        bound = signature(fn).bind(*arrays, **options)
        bound.apply_defaults()
        self.op: Op = op
        self.backend: Backend = find(arrays[0])
        self.values = op.prepare(self.backend, *bound.arguments.values())
        # the positional arrays as the rules name them; integer labels have no derivative
        names = ("x", "labels")[: len(arrays)]
        floats = [args.dtype_name(self.values[n].dtype) in args.FLOATS for n in names]
        self.names = [n if ok else None for n, ok in zip(names, floats, strict=True)]

    @cached_property
    def y(self) -> Any:
        return self.backend.lifted[self.op.name](self.values)

    def again(self, name: str, **values: Any) -> Any:
        return self.backend.lifted[name](values)

    def cotangents(self, ct: Any) -> tuple[Any, ...]:
        wanted = tuple(n for n in self.names if n)
        fast = self.backend.pullbacks.get(self.op.name)
        out = NotImplemented if fast is None else fast(ct, self.y, wanted, **self.values)
        if out is NotImplemented:
            rule = self.backend.guard(self.op.vjp)
            out = rule(self.again, self.backend.xp, ct, self.y, wanted, **self.values)
        return tuple(out[n] if n else None for n in self.names)

    def tangent(self, tangents: dict[str, Any]) -> Any:
        rule = self.backend.guard(self.op.jvp)
        return rule(self.again, self.backend.xp, self.y, tangents, **self.values)

    def like(self, name: str, value: Any, model: Any) -> Any:
        if not is_array(value):
            value = self.backend.put(value, model)
        value = args.companion(self.backend, find, name, value, model)
        if not args.same_shape(value.shape, model.shape):
            raise ValueError(f"{name} needs shape {tuple(model.shape)}, got {tuple(value.shape)}.")
        return args.array(self.backend, name, value)


def vjp(fn: Callable[..., Any], /, *arrays: Any, **options: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """A function's value and its pullback (reverse mode).

        pullback(ct) = (ctᵀ ∂y/∂a for each positional array a)

    Parameters
    ----------
    fn : a function of softxp.
    *arrays : its positional arrays. **options : its keywords, held constant.

    Returns
    -------
    (y, pullback). pullback(ct), ct of y's shape, gives a tuple with one cotangent for each positional array, in its
    shape and dtype (the default float for integers); None for integer labels. Nothing more is computed before it is called.

    Raises
    ------
    TypeError : fn is not a function of softxp with a derivative. ValueError : ct is not of y's shape. Otherwise as fn.

    Notes
    -----
    The corners' derivatives are those of docs/semantics.md: 0, never NaN, for rows with nothing in them.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> y, pullback = softxp.vjp(softxp.logsumexp, np.asarray([0.0, 0.0]))
    >>> pullback(np.asarray(2.0))
    (array([1., 1.]),)
    """
    call = _Call(fn, arrays, options)
    return call.y, lambda ct: call.cotangents(call.like("the cotangent", ct, call.y))


def jvp(fn: Callable[..., Any], arrays: tuple[Any, ...], tangents: tuple[Any, ...], /, **options: Any) -> Any:
    """A function's value and its derivative along tangents (forward mode).

        dy = Σ_a ∂y/∂a · da

    Parameters
    ----------
    fn : a function of softxp.
    arrays : tuple of its positional arrays. tangents : one for each, of the array's shape, or None for no change.
    **options : its keywords, held constant.

    Returns
    -------
    (y, dy), both of y's shape and dtype.

    Raises
    ------
    TypeError : fn is not a function of softxp with a derivative, or a tangent of integer labels. ValueError : a
        tangent's shape or their number. Otherwise as fn.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> softxp.jvp(softxp.softmax, (np.asarray([0.0, 0.0]),), (np.asarray([1.0, 0.0]),))
    (array([0.5, 0.5]), array([ 0.25, -0.25]))
    """
    if len(arrays) != len(tangents):
        raise ValueError(f"jvp needs one tangent (or None) for each array, got {len(arrays)} and {len(tangents)}.")
    call = _Call(fn, tuple(arrays), options)
    given = {}
    for name, array, tangent in zip(call.names, arrays, tangents, strict=True):
        if tangent is None:
            continue
        if name is None:
            raise TypeError("integer labels have no tangent; give None for them.")
        given[name] = call.like("a tangent", tangent, array)
    return call.y, call.tangent(given)


def value_and_grad(fn: Callable[..., Any], /) -> Callable[..., tuple[Any, Any]]:
    """The function that answers `fn`'s value and its gradient by the first array.

    Parameters
    ----------
    fn : a function of softxp whose answer is one number, as cross_entropy's is.

    Returns
    -------
    callable(*arrays, **options) -> (y, gradient), the gradient in the first array's shape and dtype.

    Raises
    ------
    ValueError : the answer is not one number. Otherwise as `vjp`.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> loss, gradient = softxp.value_and_grad(softxp.cross_entropy)(np.asarray([[0.0, 0.0]]), np.asarray([1]))
    >>> gradient
    array([[ 0.5, -0.5]])
    """

    def value_and_gradient(*arrays: Any, **options: Any) -> tuple[Any, Any]:
        call = _Call(fn, arrays, options)
        sweep = call.backend.sweeps.get(call.op.name) if call.names[0] else None
        both = NotImplemented if sweep is None else sweep(**call.values)
        if both is not NotImplemented:
            return both
        if call.y.ndim:
            raise ValueError(
                f"value_and_grad needs an answer of one number, got shape {tuple(call.y.shape)}; use vjp with a cotangent, "
                "or a reduction."
            )
        return call.y, call.cotangents(call.backend.xp.ones_like(call.y))[0]

    return value_and_gradient
