"""Who serves an array: one record a library, found by the array's type.

A library is imported only when one of its arrays arrives. A kernel may answer `NotImplemented` (not my dtype, shape or
option); the lifted formula stands behind it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .._op import OPS, Op


def evaluate(xp: Any, name: str, **values: Any) -> Any:
    """A function's formula, as it stands: how rules call one another where nothing differentiates them."""
    return OPS[name].forward(xp, **values)


def plain(op: Op, xp: Any) -> Callable[[dict[str, Any]], Any]:
    """The lift for a library without derivatives of its own: the formula itself."""
    forward = op.forward
    return lambda values: forward(xp, **values)


def numpy_uniform(put: Any, xp: Any, rng: Any, shape: tuple, dtype: Any, like: Any) -> Any:
    """Draws of a numpy Generator, put beside `like`: one seed gives the same uniforms on libraries whose
    arithmetic has the same width.
    """
    if not any(c.__name__ == "Generator" and c.__module__.startswith("numpy.random") for c in type(rng).__mro__):
        return NotImplemented
    return put(rng.random(size=shape, dtype="float64" if dtype == xp.float64 else "float32"), like)


@dataclass(frozen=True, slots=True, eq=False)
class Backend:
    """What softxp must know of a library. Everything but the name and the namespace has a default that conforms."""

    name: str
    xp: Any
    lift: Callable[[Op, Any], Callable[[dict[str, Any]], Any]] = plain
    kernels: Mapping[str, Callable[..., Any]] = field(
        default_factory=dict
    )  # of a public function's arguments, in order
    pullbacks: Mapping[str, Callable[..., Any]] = field(
        default_factory=dict
    )  # as a record's vjp: (ct, y, wanted, **values)
    sweeps: Mapping[str, Callable[..., Any]] = field(default_factory=dict)  # (**values) -> value and gradient by x
    state: Callable[..., Any] = lambda x, **how: (
        NotImplemented
    )  # (x, axis=, where=, compute=) -> m, r with `axis` of size 1
    rows: Callable[[Any], bool] = lambda x: False  # do the row kernels see x, if they are there?
    double: Callable[[Any], bool] = lambda x: False  # float64 arithmetic is there, and cheap, where x lies
    look: Callable[..., Any] = lambda of, x: None  # any(of(x)) if x can be read on the host now, else None
    adopt: Callable[[Any], Any] = lambda x: x  # one of the library's stranger arrays as its plain one
    compares_uint64: bool = True
    device: Callable[[Any], Any] = lambda x: None
    put: Any = None  # (host value, like) -> array beside `like`
    arange: Any = None  # (n, dtype, like) -> array beside `like`
    default_float: Any = None
    default_int: Any = None
    # (rng, shape, dtype, like) -> uniforms in [0, 1) beside `like`, or NotImplemented: no generator of the library's
    uniform: Any = None
    guard: Callable[[Any], Any] = lambda fn: fn  # decorator under which a formula runs
    road: str = "formula"  # what the doctor says of it
    roads: Mapping[str, str] = field(default_factory=dict)  # and of functions that take another road first
    serves: Callable[[str, Any], bool] = lambda name, x: True  # may the kernel of that name serve x's device?
    lifted: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)

    def find(self, x: Any, name: str) -> "Backend":
        """The backend of another array of a call."""
        return find(x, name)

    def __post_init__(self) -> None:
        xp, set_ = self.xp, lambda name, value: object.__setattr__(self, name, value)
        if self.put is None:
            set_("put", lambda value, like: xp.asarray(value, device=self.device(like)))
        if self.arange is None:
            set_("arange", lambda n, dtype, like: xp.arange(n, dtype=dtype, device=self.device(like)))
        if self.default_float is None:
            set_("default_float", lambda like: xp.asarray(0.5, device=self.device(like)).dtype)
        if self.default_int is None:
            set_("default_int", lambda like: xp.asarray(0, device=self.device(like)).dtype)
        if self.uniform is None:
            set_("uniform", partial(numpy_uniform, self.put, xp))
        # now, not at the first call: compilers that trace a call cannot trace the making of a class
        self.lifted.update({name: self.guard(self.lift(op, xp)) for name, op in OPS.items()})


_BY_TYPE: dict[type, Backend] = {}


def _of_library(root: str) -> Backend | None:
    """The record of a library we know by name. Import statements: torch.compile follows these, import_module it does not."""
    if root == "numpy" or root == "ml_dtypes":
        from .on_numpy import BACKEND
    elif root == "torch":
        from .on_torch import BACKEND
    elif root == "cupy":
        from .on_cupy import BACKEND
    elif root == "jax" or root == "jaxlib":
        from .on_jax import BACKEND
    elif root == "dask":
        from .on_dask import BACKEND
    elif root == "ndonnx":
        from .on_ndonnx import BACKEND
    elif root == "array_api_strict":
        from .on_strict import BACKEND
    else:
        return None
    return BACKEND


def call(op: Op, x: Any, *rest: Any) -> Any:
    """Serve one call of a public function, given its arguments in the order of its signature."""
    backend = _BY_TYPE.get(type(x)) or find(x)
    kernel = backend.kernels.get(op.name)
    if kernel is not None:
        y = kernel(x, *rest)
        if y is not NotImplemented:
            return y
    return backend.lifted[op.name](op.prepare(backend, x, *rest))


def find(x: Any, name: str = "the first argument") -> Backend:
    """The backend of an array, by its type."""
    backend = _BY_TYPE.get(type(x))
    if backend is None:
        backend = _BY_TYPE[type(x)] = _load(x, name)
    return backend


def _load(x: Any, name: str) -> Backend:
    bases = type(x).__mro__
    if any(base.__name__ == "MaskedArray" for base in bases):
        raise TypeError(
            f"{name} is a numpy masked array, whose mask would be lost; pass x.data (or x.filled(0)) and where=~x.mask."
        )
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        for base in bases:
            backend = _BY_TYPE.get(base) or _of_library(base.__module__.partition(".")[0])
            if backend is not None:
                return backend
        if hasattr(x, "__array_namespace__"):
            return of_namespace(x.__array_namespace__())
    raise TypeError(
        f"{name} must be an array of a library that follows the array API standard, got {type(x).__name__}; convert it, "
        "for example with numpy.asarray, or see softxp.register."
    )


_BY_NAMESPACE: dict[Any, Backend] = {}


def of_namespace(xp: Any) -> Backend:
    """The backend of a conforming namespace we do not know by name."""
    known = _BY_NAMESPACE.get(xp)
    if known is None:
        known = _BY_NAMESPACE[xp] = _conforming(xp)
    return known


def _conforming(xp: Any, name: str | None = None, **how: Any) -> Backend:
    from ._namespace import careful

    name = str(name or getattr(xp, "__name__", type(xp).__name__))
    return Backend(name=name, xp=careful(xp), **{"device": _device, **how})


def _device(x: Any) -> Any:
    return getattr(x, "device", None)


def register(array_type: type, /, *, namespace: Any, name: str | None = None, **how: Any) -> None:
    """Teach softxp an array type.

    An array whose type has `__array_namespace__` needs no registration. Register to serve one that has not, or to
    bring what the standard cannot say: kernels, an autograd, where float64 is cheap.

    Parameters
    ----------
    array_type : the type of the arrays; subclasses follow.
    namespace : a namespace of the array API standard for them.
    name : what errors and the doctor call the library. Default: the namespace's own name.
    **how : any of
        kernels : dict from a function's name to a callable with the public signature's arguments in order, which may
            answer NotImplemented;
        lift : (record, namespace) -> callable(values), to join an autograd (docs/backends.md);
        double(x) : True where float64 arithmetic is there and cheap. Default: never.
        look(condition) : any(condition) where values can be read on the host now, else None, which turns label and
            temperature errors into NaN rows. Default: None.
        guard(fn) : decorator under which formulas run, such as numpy.errstate(all="ignore").
        device(x), put(value, like), arange(n, dtype, like) : where they are not `x.device` and the standard's calls.
        uniform(rng, shape, dtype, like) : draws in [0, 1) from the library's own generator, NotImplemented for what is none.
            Default: numpy's Generator, by way of put.

    Raises
    ------
    TypeError : `array_type` is no type, or `how` holds a word that is not listed.

    Examples
    --------
    >>> import numpy, softxp
    >>> class Reading(numpy.ndarray): pass
    >>> softxp.register(Reading, namespace=numpy, name="readings", double=lambda x: True)
    >>> x = numpy.asarray([0.0, 0.0]).view(Reading)
    >>> softxp.softmax(x)
    Reading([0.5, 0.5])
    """
    if not isinstance(array_type, type):
        raise TypeError(f"register needs the type of the arrays, got {array_type!r}; pass type(x).")
    words = {"kernels", "lift", "double", "look", "device", "put", "arange", "guard", "uniform"}
    if not words >= set(how):
        raise TypeError(f"register knows {sorted(words)}, got {sorted(set(how) - words)}.")
    if not hasattr(namespace, "asarray"):
        raise TypeError(f"register needs a namespace of the array API standard, a module, got {namespace!r}.")
    if not OPS.keys() >= set(how.get("kernels", ())):
        raise ValueError(f"there are kernels of {sorted(OPS)}, got {sorted(set(how['kernels']) - OPS.keys())}.")
    if getattr(namespace, "__name__", "") == "numpy":
        from array_api_compat import numpy as namespace  # numpy's own sort knows no `descending`
    if "look" in how:
        how["look"] = _of_condition(how["look"])
    _BY_TYPE[array_type] = _conforming(namespace, name, **how)


def _of_condition(look: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda of, x: look(of(x))
