"""A namespace whose sums are exact enough for long rows along any axis.

Libraries that add an axis one element after the other lose a digit for every hundred terms or so. Where we do not know
how a library adds, rows longer than a block are added block by block, and the blocks' sums likewise.

And log1p and expm1 for libraries whose own round small arguments away.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from .._op import OPS

BLOCK = 256


def blocked(add: Callable[..., Any], reshape: Callable[..., Any]) -> Callable[..., Any]:
    """`add(x, axis=..., keepdims=...)` along each axis in blocks."""

    def along(x: Any, axis: int) -> Any:
        n = x.shape[axis]
        if not isinstance(n, int) or n <= BLOCK:  # a size to be known later is not a number
            return add(x, axis=axis, keepdims=True)
        whole = n // BLOCK * BLOCK
        lead = (slice(None),) * axis
        blocks = reshape(x[(*lead, slice(0, whole), ...)], (*x.shape[:axis], n // BLOCK, BLOCK, *x.shape[axis + 1 :]))
        s = along(reshape(add(blocks, axis=axis + 1), (*x.shape[:axis], n // BLOCK, *x.shape[axis + 1 :])), axis)
        return s if whole == n else s + add(x[(*lead, slice(whole, n), ...)], axis=axis, keepdims=True)

    def total(x: Any, *, axis: Any, keepdims: bool = False) -> Any:
        axes = axis if isinstance(axis, tuple) else (axis,)
        for a in axes:
            x = along(x, a)
        return x if keepdims else reshape(x, tuple(n for a, n in enumerate(x.shape) if a not in axes))

    return total


def in_chunks(concat: Any) -> Callable[..., Any]:
    """The loop over pieces of arrays too long to serve at once. A library that traces code puts a loop of its own here."""

    def over(step: Callable[..., Any], carry: Any, arrays: tuple[Any, ...], size: int) -> tuple[Any, tuple[Any, ...]]:
        """carry, outs = step(carry, *pieces) for every `size` entries of the first axis of the arrays (None stays None):
        the last carry, and the outs laid end to end.
        """
        n = next(a.shape[0] for a in arrays if a is not None)
        outs = []
        for i in range(0, n, size) if n else (0,):
            pieces = arrays if size >= n else tuple(a if a is None else a[i : min(i + size, n), ...] for a in arrays)
            carry, out = step(carry, *pieces)
            outs.append(out)
        if len(outs) == 1:
            return carry, outs[0]
        return carry, tuple(concat(list(each), axis=0) for each in zip(*outs, strict=True))

    return over


def products(matmul: Any) -> dict[str, Callable[..., Any]]:
    """How matrices are multiplied in tiles. `factors`: the dtype of fewer bits in which a and b may be multiplied, with sums
    in 32 bits; None where they are multiplied in the dtype of the sums. `least_rows`: of a tile, where with fewer the sums,
    read and written by each tile, would cost more than the products.
    """
    return {
        "factors": lambda a, b: None,
        "product": matmul,  # of two matrices of the dtype that `factors` said
        # c + aᵀ b. A library that can puts it in place of c, which is nobody else's
        "add_product": lambda c, a, b: c + matmul(a.T, b),
        "least_rows": lambda kernel: 1,
    }


def descending(sort: Any, maximum: Any) -> Callable[[Any, Any], Any]:
    """(x, floor of each row) -> each row's numbers above the floor, the largest first, and then others that count as the
    floor. A library that finds the largest few faster than it sorts may leave others out.
    """
    return lambda x, floor: -sort(-maximum(x, floor), axis=-1)


def largest(sort: Any, argsort: Any) -> dict[str, Callable[[Any, int], Any]]:
    """The k largest entries along the last axis, in descending order, and where they lie: of equal ones the first."""
    return {
        "largest": lambda x, k: sort(x, axis=-1, descending=True)[..., :k],
        "largest_at": lambda x, k: argsort(x, axis=-1, descending=True, stable=True)[..., :k],
    }


# Every function that a formula may use: what a namespace must offer to be served.
USED = [
    "abs", "arange", "argmax", "asarray", "astype", "bool", "broadcast_to", "concat", "cumulative_sum", "exp",
    "expand_dims", "expm1", "flip", "float32", "float64", "full_like", "int64", "isfinite", "log", "log1p", "matmul",
    "max", "maximum", "minimum", "ones_like", "permute_dims", "reshape", "sign", "sort", "sqrt", "squeeze", "stack",
    "sum", "take", "tanh", "where", "zeros_like",
]  # fmt: skip


def careful(xp: Any, **instead: Any) -> SimpleNamespace:
    """The namespace as formulas see it: these functions, `sum` in blocks, and what the caller puts in their place."""
    names = {name: getattr(xp, name) for name in USED if hasattr(xp, name)}
    if "astype" not in names:  # older than the standard's 2022 edition
        names["astype"] = lambda x, dtype: x.astype(dtype)
    if "cumulative_sum" not in names:  # older than 2023.12; who sorts adds up along the way
        names.pop("sort", None)
    if hasattr(xp, "float16"):
        names["float16"] = xp.float16
    if hasattr(xp, "bfloat16"):
        names["bfloat16"] = xp.bfloat16
    names["sum"] = blocked(xp.sum, xp.reshape)
    names.update(largest(getattr(xp, "sort", None), getattr(xp, "argsort", None)))
    names["in_chunks"] = in_chunks(instead.get("concat", names.get("concat")))
    names.update(products(names.get("matmul")))
    names["above"] = lambda a, b: (
        False
    )  # a > b, of two numbers that can be read on the host now; False where they cannot
    if "sort" in names:
        names["descending"] = descending(instead.get("sort", names["sort"]), names["maximum"])
    space = SimpleNamespace(**{**names, **instead})
    # for formulas that stand on other functions of ours, where a library has a faster road to them
    space.call = lambda name, **values: OPS[name].forward(space, **values)
    space.swept = lambda name, **values: NotImplemented
    return space


def log1p(xp: Any, x: Any) -> Any:
    """log(1 + x), by the rounding error of 1 + x (Goldberg 1991, doi:10.1145/103162.103163, theorem 4)."""
    u = 1 + x
    same = (u == 1) | (u == float("inf"))
    log = xp.log(xp.where(same, xp.ones_like(u), u))
    return xp.where(same, x, log * (x / xp.where(same, xp.ones_like(u), u - 1)))


def expm1(xp: Any, x: Any) -> Any:
    """exp(x) - 1, by the rounding error of exp(x) (Higham 2002, Accuracy and Stability, section 1.14.1)."""
    u = xp.exp(x)
    v = u - 1
    near = (u == 1) | (v == -1) | (u == float("inf"))
    log = xp.log(xp.where(near, xp.full_like(u, 2.0), u))
    return xp.where(u == 1, x, xp.where(near, v, v * (x / log)))
