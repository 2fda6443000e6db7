"""JAX: each record as a custom_jvp function under jit; reverse mode follows by transposition."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._op import OPS, Op, is_array
from . import Backend
from ._namespace import careful, in_chunks

_few = in_chunks(jnp.concat)


def _in_chunks(step: Any, carry: Any, arrays: Any, size: int) -> Any:
    """One loop of XLA's, whose body is compiled once and whose tiles share their memory, also when it is transposed."""
    n = next(a.shape[0] for a in arrays if a is not None)
    if n < 3 * size:
        return _few(jax.checkpoint(step), carry, arrays, size)
    whole = n // size * size
    pieces = tuple(a if a is None else a[:whole].reshape(-1, size, *a.shape[1:]) for a in arrays)
    carry, outs = jax.lax.scan(jax.checkpoint(lambda c, p: step(c, *p)), carry, pieces)
    outs = tuple(a.reshape(whole, *a.shape[2:]) for a in outs)
    if whole == n:
        return carry, outs
    carry, last = step(carry, *(a if a is None else a[whole:] for a in arrays))
    return carry, tuple(jnp.concat([a, b]) for a, b in zip(outs, last, strict=True))


XP = careful(jnp, sum=jnp.sum, in_chunks=_in_chunks)
XP.call = lambda name, **values: _again(name, **values)


def _forward(name: str, options: tuple, arrays: dict[str, Any]) -> Any:
    return OPS[name].forward(XP, **arrays, **dict(options))


_apply: Any = jax.custom_jvp(_forward, nondiff_argnums=(0, 1))


def _rule(name: str, options: tuple, primals: Any, tangents: Any) -> Any:
    (arrays,), (given,) = primals, tangents
    moved = {
        k: t for k, t in given.items() if not isinstance(t, jax.custom_derivatives.SymbolicZero) and not _is_float0(t)
    }
    y, rule = _apply(name, options, arrays), OPS[name].jvp
    return y, jnp.zeros_like(y) if rule is None else rule(_again, XP, y, moved, **arrays, **dict(options))


def _is_float0(tangent: Any) -> bool:
    return getattr(tangent, "dtype", None) == jax.dtypes.float0


_apply.defjvp(_rule, symbolic_zeros=True)
_jitted = jax.jit(_apply, static_argnums=(0, 1))


def _again(name: str, **values: Any) -> Any:
    options = tuple(sorted((k, v) for k, v in values.items() if not is_array(v)))
    return _jitted(name, options, {k: v for k, v in values.items() if is_array(v)})


def _lift(op: Op, xp: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda values: _again(op.name, **values)


def _double(x: Any) -> bool:
    config: Any = jax.config
    return bool(config.jax_enable_x64) and jax.default_backend() == "cpu"


BACKEND = Backend(
    name="jax",
    xp=XP,
    lift=_lift,
    double=_double,
    road="formula under jit, lifted into custom_jvp",
    put=lambda value, like: jnp.asarray(value),
    arange=lambda n, dtype, like: jnp.arange(n, dtype=dtype),
)
