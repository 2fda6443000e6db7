"""JAX: each record as a custom_jvp function under jit; reverse mode follows by transposition."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._op import OPS, Op, is_array
from . import Backend, numpy_uniform
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


XP = careful(
    jnp,
    sum=jnp.sum,
    in_chunks=_in_chunks,
    largest=lambda x, k: jax.lax.top_k(x, k)[0],
    largest_at=lambda x, k: jax.lax.top_k(x, k)[1],
)
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
    if rule is None:  # an integer's tangent is a zero of a dtype of its own
        whole = not jnp.issubdtype(y.dtype, jnp.floating)
        return y, np.zeros(y.shape, jax.dtypes.float0) if whole else jnp.zeros_like(y)
    return y, rule(_again, XP, y, moved, **arrays, **dict(options))


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


def _uniform(rng: Any, shape: tuple, dtype: Any, like: Any) -> Any:
    if not isinstance(rng, jax.Array):
        if isinstance(like, Tracer):
            return NotImplemented  # numpy would draw once, while the code is traced
        return numpy_uniform(_put, jnp, rng, shape, dtype, like)
    typed = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
    if not typed and rng.dtype != jnp.uint32:
        return NotImplemented
    if rng.ndim != (0 if typed else 1):
        raise ValueError(
            f"rng must be one JAX key, got an array of them, shape {rng.shape}; map over them with jax.vmap, or pass one."
        )
    return jax.random.uniform(rng, shape, dtype)


def _put(value: Any, like: Any) -> Any:
    return jnp.asarray(value)


BACKEND = Backend(
    name="jax",
    xp=XP,
    lift=_lift,
    double=_double,
    road="formula under jit, lifted into custom_jvp",
    put=_put,
    uniform=_uniform,
    arange=lambda n, dtype, like: jnp.arange(n, dtype=dtype),
)
