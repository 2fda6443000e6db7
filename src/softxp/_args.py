"""What callers give, checked and put in order: axes, dtypes, masks, temperatures, labels, and every error's sentence.

Shapes and dtypes are looked at, values only where the backend says that they can be read on the host now
(`backend.look`), so that lazy, traced and device arrays pass through untouched.
"""

from functools import partial
from math import prod
from numbers import Integral, Real
from operator import index
from typing import Any

FLOATS = ("float16", "bfloat16", "float32", "float64")
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")

_NAMES: dict[Any, str] = {}


def dtype_name(dtype: Any) -> str:
    """'float32' for that dtype of any library."""
    key = (type(dtype), dtype)  # dtypes of two libraries may be equal, or complain that they were compared
    name = _NAMES.get(key)
    if name is None:
        name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
        name = _NAMES[key] = name.rsplit(".", 1)[-1].lower()
    return name


def known(size: Any) -> bool:
    """Is this size of an axis a number already? Dask has nan, ONNX None, for the ones it will learn later."""
    return size is not None and size == size and not isinstance(size, str)


# --- arrays ----------------------------------------------------------------------------------------------------------


def array(backend: Any, name: str, x: Any) -> Any:
    """x as an array of real numbers of this backend, integers as the default float."""
    x = backend.adopt(x)
    kind = dtype_name(x.dtype)
    if kind in FLOATS:
        return x
    if kind in SIGNED or kind in UNSIGNED:
        return backend.xp.astype(x, backend.default_float(x))
    remedy = {
        "bool": "a mask of rows goes in as floats, mask.astype(float) (0 drops a row)"
        if name == "sample_weight"
        else "cast it to a float first; a mask goes in as `where=`",
        "complex64": "take the real part, or use a complex logsumexp elsewhere",
        "complex128": "take the real part, or use a complex logsumexp elsewhere",
        "object": "convert it to a numeric dtype first",
    }.get(kind, "cast it to float16, bfloat16, float32 or float64 first")
    raise TypeError(f"{name} must hold real numbers, got dtype {x.dtype}; {remedy}.")


def companion(backend: Any, name: str, value: Any, like: Any) -> Any:
    """A further array of the call, of the same library and device as `like`."""
    other = backend.find(value, name)
    if other is not backend:
        raise TypeError(
            f"all arrays of a call must come from one library: {name} is from {other.name}, the first from "
            f"{backend.name}; convert one of them."
        )
    value = backend.adopt(value)
    here, there = backend.device(like), backend.device(value)
    if here != there:
        raise ValueError(
            f"all arrays of a call must be on one device: {name} is on {there}, the first on {here}; move one of them."
        )
    return value


class Shaped:
    """Stands in for an array of another shape beside `array`, for checks that look at no number of it."""

    def __init__(self, array: Any, shape: tuple) -> None:
        self.array, self.shape, self.ndim = array, shape, len(shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array, name)


def broadcasts(shape: tuple, target: tuple) -> bool:
    return len(shape) <= len(target) and all(
        a == 1 or a == b or not (known(a) and known(b)) for a, b in zip(reversed(shape), reversed(target), strict=False)
    )


def broadcastable(name: str, shape: tuple, target: tuple, meaning: str) -> None:
    if not broadcasts(shape, target):
        raise ValueError(f"{name} must broadcast to {meaning} {tuple(target)}, got shape {tuple(shape)}.")


# --- options ---------------------------------------------------------------------------------------------------------


def axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """`axis` (an int, a tuple of them, or None for all) as a sorted tuple of non-negative ints."""
    if axis is None:
        return tuple(range(ndim))
    if ndim == 0 and axis in (-1, 0):  # a single number is a row of one
        return ()
    given = axis if isinstance(axis, tuple) else (axis,)
    out = []
    for a in given:
        try:
            a = index(a)
        except TypeError:
            raise TypeError(f"axis must be an int, a tuple of ints or None, got {axis!r}.") from None
        if not -ndim <= a < ndim:
            raise ValueError(f"axis must lie within [{-ndim}, {ndim}) for an array of {ndim} dimensions, got {axis}.")
        out.append(a % ndim)
    if len(set(out)) != len(out):
        raise ValueError(f"axis must name each axis once, got {axis}.")
    return tuple(sorted(out))


def dtypes(backend: Any, x: Any, dtype: Any) -> tuple[Any, Any]:
    """(dtype of the answer, dtype of the arithmetic): one step wider than both, 64 bits only where they are cheap."""
    if dtype is None:
        dtype = x.dtype
    name = dtype_name(dtype)
    if name not in FLOATS:
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype!r}.")
    names = (dtype_name(x.dtype), name)
    wide = "float64" in names or ("float32" in names and backend.double(x))
    if dtype is not x.dtype:
        dtype = getattr(backend.xp, name, dtype)
    return dtype, backend.xp.float64 if wide else backend.xp.float32


def beside(backend: Any, name: str, value: Any, x: Any, like: str) -> tuple[Any, Any]:
    """A second array of logits beside the first, x, called `like`; and the dtype that holds the numbers of both."""
    value = array(backend, name, companion(backend, name, value, x))
    if not same_shape(value.shape, x.shape):
        raise ValueError(
            f"{name} needs the shape of {like}, {tuple(x.shape)}, got {tuple(value.shape)}; broadcast it before the call."
        )
    if {dtype_name(x.dtype), dtype_name(value.dtype)} == {"float16", "bfloat16"}:
        return value, backend.xp.float32
    return value, max(x.dtype, value.dtype, key=lambda dtype: FLOATS.index(dtype_name(dtype)))


def wider(backend: Any, compute: Any, x: Any) -> Any:
    """The arithmetic that serves x too."""
    return compute if compute == backend.xp.float64 else dtypes(backend, x, None)[1]


def mask(backend: Any, where: Any, x: Any) -> Any:
    if where is None or where is True:
        return None
    if where is False:
        return backend.xp.reshape(backend.arange(1, backend.default_int(x), x) > 0, (1,) * x.ndim)
    where = companion(backend, "where", where, x)
    if dtype_name(where.dtype) not in ("bool", "bool_"):
        raise TypeError(f"where must be a bool array (True takes part), got dtype {where.dtype}; compare it first.")
    broadcastable("where", where.shape, x.shape, "the array's shape")
    return where


def temperature(backend: Any, t: Any, x: Any, axis: tuple[int, ...], limits: bool = True) -> Any:
    """A Python number, or an array with one value for each row. `limits`: 0 and inf are served too."""
    if not limits:
        return of_rows(
            backend, "temperature", t, x, axis, lambda t: (t > 0) & (t < float("inf")),
            "above 0 and finite", "an entry that is not",
        )  # fmt: skip
    return of_rows(
        backend, "temperature", t, x, axis, lambda t: t >= 0,
        "at least 0 (0 is the argmax limit, inf the uniform one)", "a negative or NaN entry",
    )  # fmt: skip


def alpha(backend: Any, a: Any, x: Any, axis: tuple[int, ...]) -> Any:
    return of_rows(
        backend, "alpha", a, x, axis, lambda a: (a >= 1) & (a < float("inf")),
        "at least 1 and finite (1 is softmax, 2 sparsemax)", "an entry below 1, infinite or NaN",
    )  # fmt: skip


def of_rows(
    backend: Any,
    name: str,
    value: Any,
    x: Any,
    axis: tuple[int, ...],
    valid: Any,
    meaning: str,
    otherwise: str,
) -> Any:
    """A Python number, or an array with one value for each row."""
    if isinstance(value, Real):
        value = float(value)
        if not valid(value):
            raise ValueError(f"{name} must be {meaning}, got {value}.")
        return value
    if not hasattr(value, "shape"):
        raise TypeError(f"{name} must be a number, or an array with one for each row, got {type(value).__name__}.")
    value = array(backend, name, companion(backend, name, value, x))
    extra = x.ndim - value.ndim
    if not broadcasts(value.shape, x.shape) or any(a >= extra and value.shape[a - extra] != 1 for a in axis):
        each = tuple(1 if a in axis else n for a, n in enumerate(x.shape))
        remedy = f"put a size-1 axis there: one for each row has shape {each}"
        if name == "temperature":
            remedy += ", and the entries of a row are yours to scale before the call"
        raise ValueError(
            f"{name} must be one number for each row: size 1 along axis {axis} of shape {tuple(x.shape)}, got shape "
            f"{tuple(value.shape)}; {remedy}."
        )
    if backend.look(lambda value: ~valid(value), value):
        raise ValueError(f"{name} must be {meaning}, got an array with {otherwise}.")
    return value


def of_map(
    backend: Any, x: Any, axis: Any, where: Any, temperature_: Any, dtype: Any, name: str = "x"
) -> dict[str, Any]:
    """The values of a function of whole rows: softmax and its relatives."""
    x = array(backend, name, x)
    axis = axes(axis, x.ndim)
    dtype, compute = dtypes(backend, x, dtype)
    where = mask(backend, where, x)
    t = temperature(backend, temperature_, x, axis)
    return dict(x=x, axis=axis, where=where, temperature=t, dtype=dtype, compute=compute)


def number(name: str, value: Any, low: float, high: float, meaning: str) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a Python number (static under jit), got {type(value).__name__}.")
    value = float(value)
    if not (low <= value <= high and value < float("inf")):
        raise ValueError(f"{name} must be {meaning}, got {value}.")
    return value


def count(name: str, value: Any, meaning: str = "an int of at least 1") -> int:
    try:
        whole = 0 if isinstance(value, bool) else index(value)
    except TypeError:
        raise TypeError(f"{name} must be {meaning} (static under jit), got {type(value).__name__}.") from None
    if whole < 1:
        raise ValueError(f"{name} must be {meaning}, got {value}.")
    return whole


def uniforms(backend: Any, rng: Any, shape: tuple, dtype: Any, x: Any) -> Any:
    """Numbers in [0, 1) of that shape: drawn from the generator `rng`, or given as such."""
    if not all(known(n) for n in shape):
        drawn = NotImplemented  # nothing to draw for sizes that come to be known later
    else:
        drawn = backend.uniform(rng, shape, dtype, x)
    if drawn is not NotImplemented:
        return drawn
    if not (hasattr(rng, "dtype") and hasattr(rng, "shape")):
        raise TypeError(
            "rng must be numpy's Generator, such as numpy.random.default_rng(0), a generator or key of "
            f"{backend.name}'s own, or an array of uniforms in [0, 1) of shape {tuple(shape)}, got {type(rng).__name__}; "
            "where code is traced, numpy's Generator cannot draw for each call."
        )
    u = companion(backend, "rng", rng, x)
    if dtype_name(u.dtype) not in FLOATS:
        raise TypeError(f"an array given as rng must hold uniforms, real floats in [0, 1), got dtype {u.dtype}.")
    if not same_shape(u.shape, shape):
        raise ValueError(f"uniforms given as rng need shape {tuple(shape)}, got {tuple(u.shape)}.")
    if backend.look(lambda u: ~((u >= 0) & (u < 1)), u):
        raise ValueError("uniforms given as rng must lie in [0, 1), got one outside.")
    return u


# --- losses: labels, weights, reduction ------------------------------------------------------------------------------


def of_loss(
    backend: Any, x: Any, labels_: Any, axis: Any, where: Any, temperature_: Any, sample_weight_: Any,
    ignore_index: Any, reduction: str, normalizer_: Any, dtype: Any, *, name: str = "logits", limits: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """The values that every loss of rows of logits has. Labels may be None where the function says so."""
    x = x if isinstance(x, Shaped) else array(backend, name, x)
    axis = axes(axis, x.ndim)
    dtype, compute = dtypes(backend, x, dtype)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}.')
    classes = None
    if labels_ is not None:
        labels_, classes, ignore_index = labels(backend, labels_, x, axis, ignore_index)
    return dict(
        x=x,
        labels=labels_,
        classes=classes,
        axis=axis,
        where=mask(backend, where, x),
        temperature=temperature(backend, temperature_, x, axis, limits),
        sample_weight=sample_weight(backend, sample_weight_, x, axis),
        ignore_index=ignore_index,
        reduction=reduction,
        normalizer=normalizer(backend, normalizer_, reduction, x),
        dtype=dtype,
        compute=compute,
    )


def chunks(chunk_size: Any, one: str, two: str) -> Any:
    """None, a positive int, or two of them."""
    if chunk_size is None:
        return None
    try:
        sizes = tuple(index(n) for n in (chunk_size if isinstance(chunk_size, tuple) else (chunk_size,)))
    except TypeError:
        sizes = ()
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise ValueError(f"chunk_size must be a positive int ({one}), two of them ({two}) or None, got {chunk_size!r}.")
    return sizes[0] if len(sizes) == 1 else sizes


def row_shape(x: Any, axis: tuple[int, ...]) -> tuple:
    return tuple(n for a, n in enumerate(x.shape) if a not in axis)


def row_layout(backend: Any, a: Any, x: Any, axis: tuple[int, ...]) -> Any:
    """An array that broadcasts to the rows, with size 1 where `axis` was."""
    xp, rows = backend.xp, x.ndim - len(axis)
    for _ in range(rows - a.ndim):
        a = xp.expand_dims(a, axis=0)
    for i in axis:
        a = xp.expand_dims(a, axis=i)
    return a


def labels(backend: Any, y: Any, x: Any, axis: tuple[int, ...], ignore_index: Any) -> tuple[Any, Any, Any]:
    """(labels laid out beside x, class indices or their maker, None for soft labels, the ignore_index that can occur)."""
    if ignore_index is not None:
        try:
            ignore_index = index(ignore_index)
        except TypeError:
            raise TypeError(f"ignore_index must be an int or None, got {ignore_index!r}.") from None
    shape = row_shape(x, axis)
    if isinstance(y, Integral) and not isinstance(y, bool):
        size = prod([x.shape[a] for a in axis])
        y = int(y)
        if not 0 <= y < size and y != ignore_index:
            raise IndexError(_outside(size, ignore_index))
        y = backend.put(y, x)
    home = backend.find(y, "labels")
    if home is not backend and home.name != "numpy":  # labels read from a file may stay in numpy beside any logits
        companion(backend, "labels", y, x)
    y = home.adopt(y) if home is not backend else companion(backend, "labels", y, x)
    kind = dtype_name(y.dtype)
    if kind in FLOATS:
        if not same_shape(y.shape, x.shape):
            raise ValueError(
                f"float labels are distributions and need the logits' shape {tuple(x.shape)}, got {tuple(y.shape)}; class "
                "indices go in as integers."
            )
        return (y if home is backend else backend.put(y, x)), None, None
    if kind not in SIGNED and kind not in UNSIGNED:
        raise TypeError(
            f"labels must be integers (class indices) or real floats (distributions), got dtype {y.dtype}; cast them."
        )
    if not same_shape(y.shape, shape):
        raise ValueError(
            f"integer labels need the logits' shape without axis, {tuple(shape)}, got {tuple(y.shape)}; class probabilities "
            "go in as floats shaped like the logits."
        )
    size = prod([x.shape[a] for a in axis])
    given = ignore_index
    y, ignore_index = widen(home, y, y, ignore_index)
    if home.look(partial(_bad_labels, size, ignore_index), y):
        raise IndexError(_outside(size, given))
    if home is not backend:
        # every label is known to fit by now; what is ignored must stay so in the other library's integers
        if ignore_index is not None:
            ignored = y == ignore_index
            y = home.xp.where(ignored, -1, home.xp.astype(home.xp.where(ignored, 0, y), home.xp.int64))
            ignore_index = -1
        y, ignore_index = widen(backend, backend.put(y, x), x, ignore_index)
    where = tuple(x.shape[a] if a in axis else 1 for a in range(x.ndim))

    def classes() -> Any:
        return backend.xp.reshape(backend.arange(size, y.dtype, x), where)

    # 8 bytes a class, which row kernels never look at: there, made when asked for
    return row_layout(backend, y, x, axis), classes if backend.rows(x) else classes(), ignore_index


def _bad_labels(size: int, ignore_index: int | None, y: Any) -> Any:
    bad = (y < 0) | (y >= size)
    return bad if ignore_index is None else bad & (y != ignore_index)


def _outside(size: int, ignore_index: int | None) -> str:
    extra = "" if ignore_index is None else f" or be ignore_index={ignore_index}"
    return f"labels must lie within [0, {size}){extra}; got one outside."


def widen(backend: Any, y: Any, like: Any, ignore_index: int | None) -> tuple[Any, int | None]:
    """Integer labels in a type where every label, the class count and ignore_index can be compared as numbers."""
    wide, kind = backend.default_int(like), dtype_name(y.dtype)
    bits = int(dtype_name(wide)[3:])
    if kind in UNSIGNED and ignore_index is not None and ignore_index < 0:
        ignore_index = None  # an unsigned label is never negative: 156 is not -100
    narrow = kind in SIGNED or int(kind[4:]) < bits or not backend.compares_uint64
    if narrow and kind != dtype_name(wide):
        y, kind = backend.xp.astype(y, wide), dtype_name(wide)
    bits = int(kind.lstrip("uint")) - (kind in SIGNED)
    if ignore_index is not None and not -(2**bits) <= ignore_index < 2**bits:
        ignore_index = None
    return y, ignore_index


def same_shape(a: tuple, b: tuple) -> bool:
    return len(a) == len(b) and all(m == n or not (known(m) and known(n)) for m, n in zip(a, b, strict=True))


def class_weight(backend: Any, w: Any, x: Any, axis: tuple[int, ...]) -> Any:
    if w is None:
        return None
    w = array(backend, "class_weight", companion(backend, "class_weight", w, x))
    sizes = tuple(x.shape[a] for a in axis)
    if not same_shape(w.shape, sizes):
        raise ValueError(f"class_weight needs one weight for each class, shape {sizes}, got {tuple(w.shape)}.")
    return backend.xp.reshape(w, tuple(x.shape[a] if a in axis else 1 for a in range(x.ndim)))


def sample_weight(backend: Any, w: Any, x: Any, axis: tuple[int, ...]) -> Any:
    if w is None:
        return None
    if isinstance(w, Real):
        w = backend.put(float(w), x)
    w = array(backend, "sample_weight", companion(backend, "sample_weight", w, x))
    broadcastable("sample_weight", w.shape, row_shape(x, axis), "the rows' shape")
    return row_layout(backend, w, x, axis)


def normalizer(backend: Any, value: Any, reduction: str, x: Any) -> Any:
    if value is None:
        return None
    if reduction != "mean":
        raise ValueError(f'normalizer replaces the sum of weights in reduction="mean", got reduction={reduction!r}.')
    if isinstance(value, Real):
        return number("normalizer", value, 0, float("inf"), "a finite number of at least 0")
    value = array(backend, "normalizer", companion(backend, "normalizer", value, x))
    if prod(value.shape) != 1:
        raise ValueError(f"normalizer must be one number, got shape {tuple(value.shape)}.")
    if backend.look(lambda value: ~((value >= 0) & (value < float("inf"))), value):
        raise ValueError("normalizer must be a finite number of at least 0, got one that is not.")
    return value
