"""Who computes what in a duel: the same function on the same data, by softxp and by each peer that is installed."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ml_dtypes
import numpy as np

import softxp

DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
FUNCTIONS = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy and gradient")
# rows and their length; the last axis, and the first with rows side by side
SHAPES = ((100_000, 32), (4096, 1000), (512, 50_257), (33, 131_072), (1, 4_194_304))

_value_and_grad = softxp.value_and_grad(softxp.cross_entropy)


def moved(function: str, size: int, itemsize: int) -> int:
    """Bytes that must cross the memory bus: x is read, and what is as large as x is written."""
    return size * itemsize * (1 if function in ("logsumexp", "cross_entropy") else 2)


def by_hand(function: str, x: Any, axis: int, labels: Any) -> Callable[[], Any]:
    """What people write with numpy."""

    def shifted() -> tuple[Any, Any]:
        d = x - x.max(axis=axis, keepdims=True)
        return d, np.exp(d)

    def softmax() -> Any:
        _, e = shifted()
        return e / e.sum(axis=axis, keepdims=True)

    def log_softmax() -> Any:
        d, e = shifted()
        return d - np.log(e.sum(axis=axis, keepdims=True))

    def logsumexp() -> Any:
        m = x.max(axis=axis, keepdims=True)
        return (m + np.log(np.exp(x - m).sum(axis=axis, keepdims=True))).squeeze(axis)

    def cross_entropy() -> Any:
        return -np.take_along_axis(log_softmax(), np.expand_dims(labels, axis), axis).mean()

    def both() -> Any:
        p = softmax()
        where = np.expand_dims(labels, axis)
        loss = -np.log(np.take_along_axis(p, where, axis)).mean()
        np.put_along_axis(p, where, np.take_along_axis(p, where, axis) - 1, axis)
        return loss, p / labels.size

    return dict(zip(FUNCTIONS, (softmax, log_softmax, logsumexp, cross_entropy, both), strict=True))[function]


def of_numpy(function: str, x: Any, axis: int, labels: Any) -> Callable[[], Any]:
    calls: dict[str, Callable[[], Any]] = {
        "softmax": lambda: softxp.softmax(x, axis=axis),
        "log_softmax": lambda: softxp.log_softmax(x, axis=axis),
        "logsumexp": lambda: softxp.logsumexp(x, axis=axis),
        "cross_entropy": lambda: softxp.cross_entropy(x, labels, axis=axis),
        "cross_entropy and gradient": lambda: _value_and_grad(x, labels, axis=axis),
    }
    return calls[function]


def tensor(x: Any) -> Any:
    import torch

    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def of_torch(function: str, t: Any, axis: int, labels: Any, lib: Any) -> Callable[[], Any]:
    """softxp's functions or torch's on torch tensors; the loss is a mean over rows."""
    import torch

    ours = lib is softxp
    if function == "softmax":
        return (lambda: softxp.softmax(t, axis=axis)) if ours else (lambda: torch.softmax(t, axis))
    if function == "log_softmax":
        return (lambda: softxp.log_softmax(t, axis=axis)) if ours else (lambda: torch.log_softmax(t, axis))
    if function == "logsumexp":
        return (lambda: softxp.logsumexp(t, axis=axis)) if ours else (lambda: torch.logsumexp(t, axis))
    entropy = torch.nn.functional.cross_entropy

    def loss(t: Any) -> Any:
        if ours:
            return softxp.cross_entropy(t, labels, axis=axis)
        return entropy(t, labels) if axis else entropy(t[None], labels[None])

    if function == "cross_entropy":
        return lambda: loss(t)
    x = t.clone().requires_grad_()

    def both() -> Any:
        x.grad = None
        value = loss(x)
        value.backward()
        return value

    return both


_compiled: dict[str, Any] = {}


def compiled(function: str, t: Any, axis: int, labels: Any) -> Callable[[], Any]:
    """torch.compile of torch's own; once for all sizes."""
    import torch

    entropy = torch.nn.functional.cross_entropy
    body = {
        "softmax": lambda t, axis: torch.softmax(t, axis),
        "log_softmax": lambda t, axis: torch.log_softmax(t, axis),
        "logsumexp": lambda t, axis: torch.logsumexp(t, axis),
    }
    if function in body:
        f = _compiled.setdefault(function, torch.compile(body[function], dynamic=True))
        return lambda: f(t, axis)
    f = _compiled.setdefault("loss", torch.compile(lambda t, labels: entropy(t, labels), dynamic=True))
    if function == "cross_entropy":
        return lambda: f(t, labels)
    x = t.clone().requires_grad_()

    def both() -> Any:
        x.grad = None
        value = f(x, labels)
        value.backward()
        return value

    return both


def of_jax(function: str, x: Any, axis: int, labels: Any) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    a, y = jnp.asarray(x), jnp.asarray(labels)

    def loss(a: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(a, axis), jnp.expand_dims(y, axis), axis).mean()

    f = jax.jit(
        {
            "softmax": lambda a: jax.nn.softmax(a, axis),
            "log_softmax": lambda a: jax.nn.log_softmax(a, axis),
            "logsumexp": lambda a: jax.nn.logsumexp(a, axis),
            "cross_entropy": loss,
            "cross_entropy and gradient": jax.value_and_grad(loss),
        }[function]
    )
    return lambda: jax.block_until_ready(f(a))


def contenders(
    function: str, dtype: str, shape: tuple[int, int], axis: int, peers: Any
) -> dict[str, Callable[[], Any]]:
    """name -> call, on the same data. axis 0: rows side by side."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, dtype=np.float32).astype(DTYPES[dtype])
    labels = rng.integers(0, shape[1], shape[0])
    if axis == 0:
        x = np.ascontiguousarray(x.T)
    out: dict[str, Callable[[], Any]] = {"copy": lambda: x.copy(), "softxp": of_numpy(function, x, axis, labels)}
    if "numpy" in peers and dtype != "bfloat16":
        out["numpy"] = by_hand(function, x, axis, labels)
    if "scipy" in peers and dtype != "bfloat16" and function in ("softmax", "log_softmax", "logsumexp"):
        with suppress(ImportError):
            from scipy import special

            f = getattr(special, function)
            out["scipy"] = lambda: f(x, axis=axis)
    if "torch" in peers:
        with suppress(ImportError):
            import torch

            t, y = tensor(x), torch.from_numpy(labels)
            out["softxp on torch"] = of_torch(function, t, axis, y, softxp)
            if axis or not function.startswith("cross"):
                out["torch"] = of_torch(function, t, axis, y, torch)
                if "compiled" in peers:
                    out["torch.compile"] = compiled(function, t, axis, y)
    if "jax" in peers:
        with suppress(ImportError):
            out["jax"] = of_jax(function, x, axis, labels)
    return out
