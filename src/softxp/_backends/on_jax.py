"""JAX: each record as a custom_jvp function under jit; reverse mode follows by transposition."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._op import OPS, Op, is_array
from . import Backend


def _forward(name: str, options: tuple, arrays: dict[str, Any]) -> Any:
    return OPS[name].forward(jnp, **arrays, **dict(options))


_apply: Any = jax.custom_jvp(_forward, nondiff_argnums=(0, 1))


def _rule(name: str, options: tuple, primals: Any, tangents: Any) -> Any:
    (arrays,), (given,) = primals, tangents
    moved = {
        k: t for k, t in given.items() if not isinstance(t, jax.custom_derivatives.SymbolicZero) and not _is_float0(t)
    }
    y, rule = _apply(name, options, arrays), OPS[name].jvp
    return y, jnp.zeros_like(y) if rule is None else rule(_again, jnp, y, moved, **arrays, **dict(options))


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
    xp=jnp,
    lift=_lift,
    double=_double,
    road="formula under jit, lifted into custom_jvp",
    put=lambda value, like: jnp.asarray(value),
    arange=lambda n, dtype, like: jnp.arange(n, dtype=dtype),
)
