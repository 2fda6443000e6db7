"""Where the rows of an array lie, from shapes and steps alone: the same for every library, in bytes or in numbers."""

from math import prod


def step(shape: tuple[int, ...], steps: tuple[int, ...]) -> int | None:
    """The one step of these axes taken together in C order, or None."""
    one, size = 0, 1
    for n, s in zip(reversed(shape), reversed(steps), strict=True):
        if n == 1:
            continue
        if size == 1:
            one = s
        elif s != one * size:
            return None
        size *= n
    return one


def spread(shape: tuple[int, ...], steps: tuple[int, ...], to: tuple[int, ...]) -> tuple[int, ...]:
    """The steps of an array that is broadcast to the shape `to`."""
    extra = len(to) - len(shape)
    return (0,) * extra + tuple(
        0 if n == 1 != m else s for n, s, m in zip(shape, steps, to[extra:], strict=True)
    )  # fmt: skip


def neighbours(shape: tuple[int, ...], axis: tuple[int, ...]) -> bool:
    """Are there axes, side by side, and numbers along them?"""
    return bool(axis) and axis[-1] - axis[0] < len(axis) and 0 not in shape


class Layout:
    """The rows of arrays of one shape along neighbouring axes: (outer, row, inner)."""

    __slots__ = ("first", "inner", "last", "n", "outer", "shape")

    def __init__(self, shape: tuple[int, ...], axis: tuple[int, ...]) -> None:
        self.shape, self.first, self.last = shape, axis[0], axis[-1] + 1
        self.outer, self.n, self.inner = (
            prod(shape[: self.first]), prod(shape[self.first : self.last]), prod(shape[self.last :])
        )  # fmt: skip

    def steps(self, steps: tuple[int, ...]) -> tuple[int, int, int] | None:
        """(outer, inner, along) of an array of this shape, or None where it does not lie in such steps."""
        parts = slice(0, self.first), slice(self.last, None), slice(self.first, self.last)
        outer, inner, along = (step(self.shape[part], steps[part]) for part in parts)
        if outer is None or inner is None or along is None:
            return None
        return outer, inner, along

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The rows' shape, size 1 along their axes."""
        return *self.shape[: self.first], *(1,) * (self.last - self.first), *self.shape[self.last :]
