"""Derivatives without an autograd: the closed forms that stand beside each function, for arrays of any library."""

from collections.abc import Callable, Sequence
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
            known = ", ".join(sorted(f.__name__ for f, op in OP_OF.items() if op.vjp is not None))
            raise TypeError(
                f"softxp has derivatives of its own functions ({known}), got {fn!r}; options go into the call, as in "
                "value_and_grad(softxp.cross_entropy)(logits, labels, label_smoothing=0.1)."
            )
        if options.get("return_sign"):
            raise ValueError(
                "the sign has no derivative; call with return_sign=False, or take it from logsumexp itself."
            )
        bound = signature(fn).bind(*arrays, **options)
        bound.apply_defaults()
        self.op: Op = op
        self.backend: Backend = find(arrays[0])
        self.values = op.prepare(self.backend, *bound.arguments.values())
        self.given = bound.arguments  # the rules see weights laid out beside rows
        # the positional arrays as the rules name them, None for integer labels: they have no derivative
        self.names = [n if self.moves(n) else None for n in op.arrays[: len(arrays)]]
        self.positions = {public: i for i, public in enumerate(list(bound.arguments)[: len(arrays)])}

    def moves(self, name: str) -> bool:
        value: Any = self.values.get(name)
        return is_array(value) and args.dtype_name(value.dtype) in args.FLOATS

    def chosen(self, argnums: Any) -> list[str]:
        """The arrays that `argnums` means, as the rules name them."""
        out = []
        for a in argnums if isinstance(argnums, tuple) else (argnums,):
            try:
                at: Any = self.positions.get(a, a)
                name = at if isinstance(at, str) else self.names[at]
            except (IndexError, TypeError):
                raise ValueError(
                    f"argnums must be a position of the {len(self.names)} positional arrays, the name of an array, "
                    f"or a tuple of these, got {argnums!r}."
                ) from None
            if name is not None and (name not in self.values or (name == a and name not in self.given)):
                raise ValueError(f"{self.op.name} has no argument {a!r} that an array may be; see its keywords.")
            if name is None or not self.moves(name):
                raise TypeError(
                    f"there is a derivative by arrays of real floats alone, and argument {a!r} is not such an array in this "
                    "call. A number is constant: give an array of one, as numpy.asarray makes it."
                )
            out.append(name)
        return out

    def as_given(self, name: str, gradient: Any) -> Any:
        given: Any = self.given.get(name)
        if not is_array(given) or tuple(given.shape) == tuple(gradient.shape):
            return gradient
        return self.backend.xp.reshape(gradient, given.shape)

    def gradients(self, names: list[str]) -> tuple[Any, dict[str, Any]]:
        """The answer, which must be one number, and its gradients."""
        kernel = self.backend.sweeps.get(self.op.name) if names == ["x"] else None
        both = NotImplemented if kernel is None else kernel(**self.values)
        if both is not NotImplemented:
            return both[0], {"x": both[1]}
        if self.op.sweep is not None and self.values.get("reduction") != "none":
            return self.backend.guard(self.op.sweep)(self.again, self.backend.xp, tuple(names), **self.values)
        if self.y.ndim:
            got = self.answer[0] if isinstance(self.answer, tuple) else self.answer
            raise ValueError(
                f"value_and_grad needs an answer of one number, got shape {tuple(got.shape)}; use vjp with a cotangent, "
                "or a reduction."
            )
        return self.y, self.pulled(self.backend.xp.ones_like(self.y), tuple(names))

    @cached_property
    def y(self) -> Any:
        return self.backend.lifted[self.op.name](self.values)

    @cached_property
    def answer(self) -> Any:
        """What the caller gets."""
        of = self.op.answer
        return self.y if of is None else self.backend.guard(of.of)(self.backend.xp, self.y, **self.values)

    def again(self, name: str, **values: Any) -> Any:
        return self.backend.lifted[name](values)

    def pulled(self, ct: Any, wanted: tuple[str, ...]) -> dict[str, Any]:
        fast = self.backend.pullbacks.get(self.op.name)
        out = NotImplemented if fast is None else fast(ct, self.y, wanted, **self.values)
        if out is NotImplemented:
            rule = self.backend.guard(self.op.vjp)
            out = rule(self.again, self.backend.xp, ct, self.y, wanted, **self.values)
        return out

    def cotangents(self, ct: Any, names: Sequence[str | None]) -> tuple[Any, ...]:
        of = self.op.answer
        ct = self.like_answer(ct)
        if of is not None:
            ct = self.backend.guard(of.vjp)(self.backend.xp, ct, self.y, **self.values)
        out = self.pulled(ct, tuple(n for n in names if n))
        return tuple(self.as_given(n, out[n]) if n else None for n in names)

    def tangent(self, tangents: dict[str, Any]) -> Any:
        rule = self.backend.guard(self.op.jvp)
        dy, of = rule(self.again, self.backend.xp, self.y, tangents, **self.values), self.op.answer
        return dy if of is None else self.backend.guard(of.jvp)(self.backend.xp, dy, **self.values)

    def like_answer(self, ct: Any) -> Any:
        y = self.answer
        if not isinstance(y, tuple):
            return self.like("the cotangent", ct, y)
        if not isinstance(ct, tuple) or len(ct) != len(y):
            raise ValueError(f"the answer is {len(y)} arrays, and so must its cotangent be; got {type(ct).__name__}.")
        return tuple(self.like("the cotangent", c, a) for c, a in zip(ct, y, strict=True))

    def like(self, name: str, value: Any, model: Any) -> Any:
        if not is_array(value):
            value = self.backend.put(value, model)
        value = args.companion(self.backend, name, value, model)
        if not args.same_shape(value.shape, model.shape):
            raise ValueError(f"{name} needs shape {tuple(model.shape)}, got {tuple(value.shape)}.")
        return args.array(self.backend, name, value)


def vjp(
    fn: Callable[..., Any], /, *arrays: Any, argnums: Any = None, **options: Any
) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """A function's value and its pullback (reverse mode).

        pullback(ct) = (ctᵀ ∂y/∂a for each positional array a)

    Parameters
    ----------
    fn : a function of softxp.
    *arrays : its positional arrays. **options : its keywords.
    argnums : by which arrays, as in `value_and_grad`. Default: every positional one.

    Returns
    -------
    (y, pullback). pullback(ct), ct of y's shape, gives a tuple with one cotangent for each array asked for, in its shape
    and dtype (the default float for integers); None for integer labels. Where y is a pair, as attention's with return_lse,
    so is ct. Nothing more is computed before it is called.

    Raises
    ------
    TypeError : fn is not a function of softxp with a derivative. ValueError : ct is not of y's shape; argnums names no
        array. Otherwise as fn.

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
    names = call.names if argnums is None else call.chosen(argnums)
    return call.answer, lambda ct: call.cotangents(ct, names)


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
    if not isinstance(arrays, (tuple, list)) or not isinstance(tangents, (tuple, list)):
        raise TypeError("jvp takes a tuple of arrays and a tuple of tangents: jvp(fn, (x,), (dx,)).")
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
    return call.answer, call.tangent(given)


def value_and_grad(fn: Callable[..., Any], /, *, argnums: Any = 0) -> Callable[..., tuple[Any, Any]]:
    """The function that answers `fn`'s value and its gradient.

    Parameters
    ----------
    fn : a function of softxp whose answer is one number, as cross_entropy's is.
    argnums : by which array: a position among the positional arrays, or the name of any array ("logits", "temperature"); a
        tuple of them gives a tuple of gradients.

    Returns
    -------
    callable(*arrays, **options) -> (y, gradient), each gradient in its array's shape and dtype.

    Raises
    ------
    ValueError : the answer is not one number; argnums names no array. TypeError : a gradient by integers. As `vjp`.

    Examples
    --------
    >>> import numpy as np, softxp
    >>> loss, gradient = softxp.value_and_grad(softxp.cross_entropy)(np.asarray([[0.0, 0.0]]), np.asarray([1]))
    >>> gradient
    array([[ 0.5, -0.5]])
    >>> both = softxp.value_and_grad(softxp.cross_entropy, argnums=(0, "temperature"))
    >>> loss, (by_logits, by_temperature) = both(np.asarray([[1.0, 0.0]]), np.asarray([1]), temperature=np.asarray(0.5))
    >>> round(float(by_temperature), 3)
    -3.523
    """

    def value_and_gradient(*arrays: Any, **options: Any) -> tuple[Any, Any]:
        call = _Call(fn, arrays, options)
        names = call.chosen(argnums)
        y, out = call.gradients(names)
        found = [call.as_given(n, out[n]) for n in names]
        return y, tuple(found) if isinstance(argnums, tuple) else found[0]

    return value_and_gradient
