"""pebble: a small array library that follows the array API standard, on a device with 32-bit numbers alone.

It stands for yours: softxp has never heard of it. Everything is array-api-strict's underneath, so that nothing beyond the
standard can slip in; what is pebble's own is the class, the device and the few dtypes.
"""

from typing import Any

import array_api_strict as _strict

DEVICE = "pebble:0"
DTYPES = ("bool", "int32", "float32")
_HOME = _strict.Device("no_x64")

__array_api_version__ = "2024.12"


class Array:
    """An array on a pebble."""

    __slots__ = ("_strict",)

    def __init__(self, inner: Any) -> None:
        self._strict = inner

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        import pebble

        return pebble

    dtype = property(lambda self: self._strict.dtype)
    shape = property(lambda self: self._strict.shape)
    ndim = property(lambda self: self._strict.ndim)
    size = property(lambda self: self._strict.size)
    T = property(lambda self: Array(self._strict.T))
    device = property(lambda self: DEVICE)

    def __getitem__(self, key: Any) -> "Array":
        keys = key if isinstance(key, tuple) else (key,)
        if any(isinstance(k, slice) and k.step is not None and k.step < 0 for k in keys):
            raise IndexError("pebble reads forwards: use pebble.flip")
        return Array(self._strict[_inner(key)])

    def __repr__(self) -> str:
        return f"pebble{self._strict}"


def _operator(name: str) -> Any:
    return lambda self, *other: _outer(getattr(self._strict, name)(*map(_inner, other)))


for _name in ("add", "sub", "mul", "truediv", "pow", "and", "or"):
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(Array, f"__r{_name}__", _operator(f"__r{_name}__"))
for _name in ("neg", "invert", "abs", "eq", "ne", "lt", "le", "gt", "ge", "bool", "float", "int"):
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))
Array.__hash__ = None  # type: ignore[assignment]


def _inner(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_inner, value))
    return value._strict if isinstance(value, Array) else value


def _outer(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_outer, value))
    return Array(value) if isinstance(value, type(_strict.zeros(1))) else value


def asarray(value: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Array:
    """From numbers, nested lists, numpy arrays or pebbles."""
    made = _strict.asarray(_inner(value), dtype=dtype, device=_HOME, copy=copy)
    if str(made.dtype).rpartition(".")[2] not in DTYPES:
        raise TypeError(f"a pebble holds {', '.join(DTYPES)}, got {made.dtype}; cast it first.")
    return Array(made)


def arange(start: Any, /, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None) -> Array:
    return Array(_strict.arange(start, stop, step, dtype=dtype or _strict.int32, device=_HOME))


def __array_namespace_info__() -> Any:
    return _strict.__array_namespace_info__()


def __getattr__(name: str) -> Any:
    """All else of the standard: array-api-strict's, on pebbles."""
    found = getattr(_strict, name)
    if not callable(found) or isinstance(found, type):
        return found

    def on_pebbles(*args: Any, **options: Any) -> Any:
        options.pop("device", None)
        return _outer(found(*map(_inner, args), **{k: _inner(v) for k, v in options.items()}))

    return on_pebbles
