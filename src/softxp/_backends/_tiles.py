"""How a call is cut into tiles of whole rows, whose temporaries stay in cache."""

from typing import Any

from .._op import is_array


def longest(shape: tuple[int, ...], axis: tuple[int, ...]) -> int | None:
    """The axis along which there are most rows; None where there is a single row."""
    cut = max(range(len(shape)), key=lambda a: (a not in axis) * shape[a], default=None)
    return None if cut is None or cut in axis or shape[cut] == 1 else cut


def pieces(n: int, step: int) -> list[slice]:
    return [slice(i, i + step) for i in range(0, n, step)]


def along(axis: int, piece: slice) -> tuple[slice, ...]:
    return (slice(None),) * axis + (piece,)


def part(values: dict[str, Any], ndim: int, cut: int, piece: slice) -> dict[str, Any]:
    """The values of a piece along one axis of arrays of `ndim` axes."""
    out = dict(values)
    for name, v in values.items():
        if is_array(v) and (a := cut - ndim + len(v.shape)) >= 0 and v.shape[a] != 1 and name != "normalizer":
            out[name] = v[along(a, piece)]
    return out
