"""torch: the formulas lifted into autograd (reverse, forward, vmap, any order). Where nothing is traced, row kernels: with
Numba on the CPU; by NVRTC on CUDA, once they are turned on. Without them on the CPU, native softmax where it is right.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import torch
from array_api_compat import torch as compat
from torch.autograd import forward_ad

from .._op import OPS, Op, is_array
from . import Backend, _cuda, _threads, _tiles, _warm, evaluate, numpy_uniform
from ._namespace import careful, expm1


def _with_numpy() -> tuple[Any, Any]:
    try:
        import numpy

        from . import _rows
    except ImportError:  # torch itself does without numpy
        return None, None
    return numpy, _rows


np, _rows = _with_numpy()


def _expm1(x: Any) -> Any:
    """Inductor writes exp(x) - 1 for it in vectorised C++, which is 0 from -1e-17 on (torch 2.13)."""
    return expm1(torch, x) if _compiling() else torch.expm1(x)


_MIXED = hasattr(torch.ops.aten.mm, "dtype")  # torch 2.8


def _factors(a: Any, b: Any) -> Any:
    """On CUDA the tensor cores multiply bfloat16 with sums in 32 bits. float16 would lose the gradients of rare classes."""
    if not _MIXED or _compiling() or _road(a) is not CUDA or _followed({"a": a, "b": b}):
        return None
    both, kind = a.dtype if a.dtype is b.dtype else None, a.device.type
    narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else both
    return narrow if narrow is torch.bfloat16 and torch.float64 not in (a.dtype, b.dtype) else None


def _product(a: Any, b: Any) -> Any:
    return torch.mm(a, b, out_dtype=torch.float32) if a.dtype is torch.bfloat16 else a @ b


def _add_product(c: Any, a: Any, b: Any) -> Any:
    if a.dtype is not c.dtype:
        return torch.addmm(c, a.T, b, out_dtype=c.dtype, out=c)
    # (what an autograd follows, or a vmap, must not be written into)
    in_place = not (torch.is_grad_enabled() or _compiling() or _transformed())
    return c.addmm_(a.T, b) if in_place else c + a.T @ b


def _transformed() -> bool:
    """Under vmap, grad and the like of torch.func?"""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]


_compiling = torch.compiler.is_compiling


def _descending(x: Any, floor: Any) -> Any:
    """A few large numbers are found five times as fast as all are sorted."""
    n = few = x.shape[-1]
    if x.is_cpu and x.numel() and not (_compiling() or _transformed()):
        few = max(1, int((x > floor).sum(-1).max()))
    if 4 * few > n or not n:
        return torch.sort(torch.maximum(x, floor), dim=-1, descending=True).values
    return torch.maximum(torch.topk(x, few, dim=-1).values, floor)


# torch adds in a cascade, so its own sum serves; its vmap of a backward knows cat but not its alias concat (torch 2.13)
XP = careful(
    compat,
    sum=compat.sum,
    concat=torch.cat,
    expm1=_expm1,
    factors=_factors,
    product=_product,
    add_product=_add_product,
    least_rows=lambda kernel: _cuda.least_rows(kernel) if kernel.is_cuda else 1,
    # the wrapped ones look things up in a cache, which torch.compile does not follow
    sort=lambda x, axis: torch.sort(x, dim=axis).values,
    cumulative_sum=lambda x, axis: torch.cumsum(x, dim=axis),
    descending=_descending,
    largest=lambda x, k: torch.topk(x, k, dim=-1).values,
    above=lambda a, b: bool(_look(lambda a: a > b, a)),
    # (which of equal entries topk finds is not said)
    largest_at=lambda x, k: torch.sort(x, dim=-1, descending=True, stable=True).indices[..., :k],
)


# --- tensors in the memory of the host, as the row kernels see them -----------------------------------------------------


def _raw(t: Any) -> Any:
    if not t.is_cpu:
        return None
    try:
        t = t.detach()
        if t.dtype is torch.bfloat16:
            return t.view(torch.int16).numpy()
        return t.numpy().view(np.uint16) if t.dtype is torch.float16 else t.numpy()
    except (RuntimeError, TypeError):  # under vmap, fake, sparse, or to be negated yet: no such memory
        return None


def _back(a: Any, dtype: Any) -> Any:
    if dtype is torch.bfloat16:
        return torch.from_numpy(a).view(dtype)
    return torch.from_numpy(a.view(np.float16) if dtype is torch.float16 else a)


def _threads_of_torch() -> int:
    return min(_threads.num_threads(), torch.get_num_threads())


class Road(NamedTuple):
    """Kernels for the tensors of one kind of device: functions of `host`, by the name of what they serve."""

    host: Any
    forward: Any
    pullback: Any
    sweep: Any
    state: Any


HOST: Any = None
NONE = CPU = Road(None, {}, {}, {}, lambda *_, **values: NotImplemented)
if _rows is not None:
    HOST = _rows.Host(
        raw=_raw,
        back=_back,
        numbers=lambda t: t.detach().double().numpy(),
        cast=lambda a, dtype: torch.from_numpy(np.asarray(a)).to(dtype),
        double=torch.float64,
        threads=_threads_of_torch,
    )
    CPU = Road(HOST, _rows.FORWARD, _rows.PULLBACK, _rows.SWEEP, _rows.state)


# --- tensors in the memory of a GPU, as the CUDA kernels see them -------------------------------------------------------

_PLAIN = {torch.Tensor, torch.nn.Parameter}

_legacy_batch = torch._C._functorch.is_legacy_batchedtensor  # pyright: ignore[reportAttributeAccessIssue]


def _plain(t: Any) -> bool:
    """With numbers of its own in memory? (a batch of cotangents, `is_grads_batched`, is a Tensor by its class)"""
    if t.__class__ not in _PLAIN or t.layout is not torch.strided or t.is_neg():
        return False
    return not (_legacy_batch(t) or t._is_zerotensor())


DEVICE = _cuda.Device(
    xp=XP,
    kinds={torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"},
    plain=_plain,
    gpu=lambda t: t.get_device(),
    address=lambda t: t.data_ptr(),
    steps=lambda t: t.stride(),
    like=lambda t, dtype: torch.empty_like(t, dtype=dtype),
    empty=lambda shape, dtype, like: torch.empty(shape, dtype=dtype, device=like.device),
    in_order=lambda t: t.is_contiguous(),
    together=lambda t: t.contiguous(),
    stream=getattr(  # (the number alone, where this torch has it: a Stream object costs more than a launch)
        torch._C, "_cuda_getCurrentRawStream", lambda gpu: torch.cuda.current_stream(gpu).cuda_stream
    ),
)
CUDA = Road(DEVICE, _cuda.FORWARD, _cuda.PULLBACK, _cuda.SWEEP, _cuda.state)
_AMD = torch.version.hip is not None  # whose tensors say is_cuda


def _watched() -> bool:
    """Does somebody follow each of torch's operations? Writing to an address would escape them."""
    return _transformed() or torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None


def _road(x: Any) -> Road:
    if x.is_cpu:
        return CPU
    return CUDA if _warm.cuda and x.is_cuda and not _AMD and not _watched() else NONE


def _by_kernel(what: str, name: str, values: dict[str, Any], *before: Any) -> Any:
    """By the kernel of x's road, if it has one for that: `what` is a field of `Road`."""
    road = _road(values["x"])
    kernel = getattr(road, what).get(name)
    return NotImplemented if kernel is None else kernel(road.host, *before, **values)


# --- tiles -----------------------------------------------------------------------------------------------------------

_TILE = 1 << 15  # numbers: a formula's temporaries stay in cache, and torch starts no threads of its own for them
_TILED = {"sparsemax", "entmax"}  # each row's answer is a row


def _in_tiles(name: str, values: dict[str, Any], more: dict[str, Any], serve: Any) -> Any:
    """serve(values and more of each tile), laid end to end. `more`: other arrays of x's shape."""
    x = values["x"] if name in _TILED else None
    if x is None or _compiling() or not x.is_cpu or x.numel() <= _TILE or _transformed():
        return NotImplemented
    cut = _tiles.longest(x.shape, values["axis"])
    if cut is None:
        return NotImplemented
    pieces = _tiles.pieces(x.shape[cut], max(1, _TILE * x.shape[cut] // x.numel()))
    whole, out = {**values, **more}, [x] * len(pieces)

    def work(i: int) -> None:
        with torch.no_grad():  # a thread's own setting
            out[i] = serve(**_tiles.part(whole, x.ndim, cut, pieces[i]))

    _threads.share(work, [(i,) for i in range(len(pieces))], _threads_of_torch())
    return torch.cat(out, dim=cut)


class _Fixed:
    """What of a call is not tensors, as one leaf: the tensors' names and the options."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.names = tuple(k for k, v in values.items() if is_array(v))
        self.options = {k: v for k, v in values.items() if k not in self.names}

    def join(self, tensors: Any) -> dict[str, Any]:
        return dict(zip(self.names, tensors, strict=True), **self.options)


def _signed(fn: Any) -> Any:
    """A Function's `apply` asks at each call for the signature, and half of what it costs is to find it out."""
    fn.__signature__ = signature(fn)
    return fn


def _lift(op: Op, _: Any) -> Callable[[dict[str, Any]], Any]:
    # names of their own: torch.compile knows no record, and these are what it finds in the functions below (torch 2.13)
    name, forward, vjp, jvp, native = op.name, op.forward, op.vjp, op.jvp, _NATIVE.get(op.name)
    if vjp is None or jvp is None:
        return lambda values: forward(XP, **values)

    kernels = name in CPU.forward or name in CUDA.forward

    def serve(values: dict[str, Any]) -> Any:
        if kernels and not _compiling():
            y = _by_kernel("forward", name, values)
            if y is not NotImplemented:
                return y
        if native is not None:
            y = native(**values)
            if y is not NotImplemented:
                return y
        y = _in_tiles(name, values, {}, lambda **tile: forward(XP, **tile))
        return forward(XP, **values) if y is NotImplemented else y

    @_signed
    def run(fixed: _Fixed, *tensors: Any) -> Any:
        return serve(fixed.join(tensors))

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.fixed, *tensors = inputs
        ctx.save_for_backward(*tensors, output)

    def pull(ctx: Any, ct: Any, call: Any) -> tuple[Any, ...]:
        if ct is None:  # the answer does not count
            return None, *(None for _ in ctx.fixed.names)
        *tensors, y = ctx.saved_tensors
        needs = dict(zip(ctx.fixed.names, ctx.needs_input_grad[-len(tensors) :], strict=True))
        wanted = tuple(k for k, need in needs.items() if need)
        values = ctx.fixed.join(tensors)
        if kernels and not torch.is_grad_enabled() and not _compiling():
            out = _by_kernel("pullback", name, values, ct, y, wanted)
            if out is not NotImplemented:
                return None, *(out[k] if need else None for k, need in needs.items())
        if wanted == ("x",) and not torch.is_grad_enabled() and not _compiling():
            g = _in_tiles(
                name, values, {"ct": ct, "y": y},
                lambda ct, y, **tile: vjp(call, XP, ct, y, wanted, **tile)["x"],
            )  # fmt: skip
            if g is not NotImplemented:
                return None, *(g if need else None for need in needs.values())
        out = vjp(call, XP, ct, y, wanted, **values)
        return None, *(out[k] if need else None for k, need in needs.items())

    class Lifted(torch.autograd.Function):
        generate_vmap_rule = True
        forward = staticmethod(run)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            setup(ctx, inputs, output)
            ctx.save_for_forward(*inputs[1:], output)
            ctx.set_materialize_grads(False)  # a tensor that does not move has no tangent, not one of zeros

        @staticmethod
        def backward(ctx: Any, *cts: Any) -> Any:
            return (None,) * len(ctx.needs_input_grad) if cts[0] is None else pull(ctx, cts[0], _again)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            # torch hides outer forward modes from this method, and then jacfwd of jacfwd is 0 (torch 2.13): let them be
            # seen, and see our own level's primals alone
            with forward_ad._set_fwd_grad_enabled(True):
                *tensors, y = (forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors)
                moved = {k: t for k, t in zip(ctx.fixed.names, tangents[1:], strict=True) if t is not None}
                return jvp(_again, XP, y, moved, **ctx.fixed.join(tensors))

    class Swept(torch.autograd.Function):
        """The value comes with its gradients, which the first backward takes away."""

        @staticmethod
        @_signed
        def forward(both: Any, fixed: Any, *tensors: Any) -> Any:
            return both[0]

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            setup(ctx, inputs[1:], output)
            _, ctx.gradients, ctx.again = inputs[0]
            ctx.at = None if ctx.again is None else [t.data_ptr() for t in inputs[2:]]
            inputs[0].clear()

        @staticmethod
        def backward(ctx: Any, *cts: Any) -> Any:
            gradients, again = ctx.gradients, ctx.again
            ctx.gradients = ctx.again = None
            if gradients is not None and again is not None and not torch.is_grad_enabled():
                # (torch says who has written into what is saved; unless it was kept elsewhere, by its hooks)
                here = ctx.at == [t.data_ptr() for t in ctx.saved_tensors[:-1]]
                g = again(cts[0]) if here and _road(cts[0]) is CUDA else NotImplemented
                if g is not NotImplemented:
                    return None, None, *(g if k == "x" else None for k in ctx.fixed.names)
            elif gradients is not None and not torch.is_grad_enabled():
                # 16 bits round once, so they are not scaled; but where looking at the scale means waiting for a GPU
                narrow = any(g.dtype.itemsize <= 2 for g in gradients.values())
                if not cts[0].is_cpu or cts[0] == 1 or (not narrow and cts[0].isfinite()):
                    return None, None, *(gradients[k].mul_(cts[0]) if k in gradients else None for k in ctx.fixed.names)
            return None, *pull(ctx, cts[0], _again)

    class Compiled(torch.autograd.Function):  # torch.compile refuses a Function that defines jvp (torch 2.13)
        forward = staticmethod(run)
        setup_context = staticmethod(setup)

        @staticmethod
        def backward(ctx: Any, *cts: Any) -> Any:
            return pull(ctx, cts[0], _formula)

    def swept(values: dict[str, Any], fixed: _Fixed) -> Any:
        """Value and gradients of a loss in one go, where a backward is to be expected."""
        wanted = [k for k in fixed.names if values[k].requires_grad]
        if not wanted or forward_ad._current_level >= 0:
            return NotImplemented
        if op.sweep is not None and values.get("reduction") != "none" and not _transformed():
            with torch.no_grad():
                return *op.sweep(_again, XP, wanted, **values), None
        if wanted != ["x"]:
            return NotImplemented
        both = _by_kernel("sweep", name, values)
        if both is NotImplemented:
            return both
        return both[0], {"x": both[1]}, both[2] if len(both) > 2 else None

    def lifted(values: dict[str, Any]) -> Any:
        if not _compiling() and not _followed(values):
            return serve(values)
        fixed = _Fixed(values)
        tensors = [values[k] for k in fixed.names]
        if not _compiling():
            both = swept(values, fixed) if torch.is_grad_enabled() else NotImplemented
            return Lifted.apply(fixed, *tensors) if both is NotImplemented else Swept.apply(list(both), fixed, *tensors)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return Compiled.apply(fixed, *tensors)
        return forward(XP, **values)

    return lifted


def _followed(values: dict[str, Any]) -> bool:
    """Does an autograd follow this call? Entering a Function that nobody follows costs more than a small call itself."""
    if forward_ad._current_level >= 0 or _transformed():
        return True
    return torch.is_grad_enabled() and any(getattr(v, "requires_grad", False) for v in values.values())


def _again(name: str, **values: Any) -> Any:
    return BACKEND.lifted[name](values)


def _formula(name: str, **values: Any) -> Any:
    return evaluate(XP, name, **values)


# --- native softmax --------------------------------------------------------------------------------------------------
# torch.softmax keeps our accuracy along the last axis while rows are short, or in arithmetic one step wider; a row with
# an infinity or with nothing in it, which it answers with NaN throughout, is left to the formula: its first entry tells.

_SHORT = {torch.float32: 1024, torch.float64: 1024, torch.float16: 16384, torch.bfloat16: 16384}
_native = torch.softmax


def _plain_softmax(x: Any, axis: Any) -> Any:
    if _compiling() or axis.__class__ is not int or not x.is_cpu or x.__class__ not in _PLAIN:
        return NotImplemented
    shape, kind = x.shape, x.dtype
    rank = len(shape)
    if not -rank <= axis < rank or 0 in shape or kind not in _SHORT:
        return NotImplemented
    if shape[axis] <= _SHORT[kind] and (axis == -1 or axis == rank - 1):
        y = _native(x, axis)
    elif kind is not torch.float64:
        y = _native(x, axis, dtype=torch.float64).to(kind)
    else:
        return NotImplemented
    try:
        if rank == 1:  # one row: a short list is cheaper than a tensor of one
            first = y.tolist()[0] if shape[0] <= 32 else y[0].item()
        else:
            first = y.select(axis, 0).sum().item()
    except RuntimeError:  # under vmap, or fake: no value to look at
        return NotImplemented
    return y if first == first else NotImplemented


def _short_softmax(x: Any, axis: int) -> Any:
    """A few short rows that lie contiguous: what a call costs is what it costs here."""
    if _compiling() or x.__class__ not in _PLAIN:
        return NotImplemented
    if not x.is_cpu:
        return _cuda.plain_rows(DEVICE, "softmax", axis, x=x) if _road(x) is CUDA else NotImplemented
    shape, kind, size = x.shape, _KINDS.get(x.dtype), x.numel()
    if kind is None or not shape or not 0 < size <= _rows.SHORT or (axis != -1 and axis != len(shape) - 1):
        return NotImplemented
    kernels, n = _rows.kernels(), shape[-1]
    if not kernels or n > kernels.TILE or not x.is_contiguous():
        return NotImplemented
    try:
        y = x.clone()  # one call of torch gives memory and numbers; the kernel works in place
        start = y.data_ptr()
    except RuntimeError:  # under vmap, or fake
        return NotImplemented
    if not start:
        return NotImplemented
    kernels.short_softmax(kind, start, start, size // n, n)
    return y


_KINDS: Any = {}
if _rows is not None:
    _KINDS = {
        torch.float32: np.float32(0), torch.float64: np.float64(0), torch.float16: np.uint16(0), torch.bfloat16: np.int16(0)
    }  # fmt: skip


def _softmax(x: Any, axis: Any, where: Any, temperature: Any, dtype: Any) -> Any:
    """row kernel, or native softmax (plain rows, no gradient)"""
    if (
        where is None
        and dtype is None
        and temperature.__class__ is float
        and temperature == 1.0
        and not x.requires_grad
        and forward_ad._current_level < 0
        and axis.__class__ is int
    ):
        y = _short_softmax(x, axis)
        return y if y is not NotImplemented or (_rows and _rows.kernels()) else _plain_softmax(x, axis)
    return NotImplemented


def _unfollowed_on_gpu(x: Any) -> bool:
    return not (x.is_cpu or _compiling() or _followed({"x": x})) and _road(x) is CUDA


def _forward_softmax(
    x: Any, axis: Any, where: Any = None, temperature: Any = 1.0, dtype: Any = None, compute: Any = None
) -> Any:
    if where is None and isinstance(temperature, float) and temperature == 1.0 and dtype is x.dtype and len(axis) == 1:
        return _plain_softmax(x, axis[0])
    return NotImplemented


_NATIVE = {"softmax": _forward_softmax}


def _state(x: Any, **how: Any) -> Any:
    """Where nothing differentiates the state: its formula's lines are what an autograd goes through."""
    if _compiling() or (x.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0:
        return NotImplemented
    road = _road(x)
    return road.state(road.host, x=x, **how)


def _look(of: Any, x: Any) -> Any:
    if torch.compiler.is_compiling() or not x.is_cpu:
        return None
    try:
        return bool(of(x).any())
    except RuntimeError:  # under vmap, or fake
        return None


def _uniform(rng: Any, shape: tuple, dtype: Any, like: Any) -> Any:
    if isinstance(rng, torch.Generator):
        if _compiling():
            raise TypeError(
                "torch.compile takes no torch.Generator (torch 2.13); draw before the call, with torch.rand(shape, "
                "generator=...), and pass the uniforms as rng."
            )
        if rng.device.type != like.device.type:
            raise ValueError(
                f"a generator draws on its own device: rng is on {rng.device}, the logits on {like.device}; make it with "
                f"torch.Generator({like.device.type!r})."
            )
        return torch.rand(shape, generator=rng, dtype=dtype, device=like.device)
    if _compiling() or _transformed():
        return NotImplemented  # numpy would draw once for all calls, or for all that is mapped over
    return numpy_uniform(_put, compat, rng, shape, dtype, like)


def _put(value: Any, like: Any) -> Any:
    if isinstance(value, (int, float)):  # (filled there, where a copy from the host would be waited for)
        return torch.full((), value, device=like.device)
    return torch.asarray(value, device=like.device)


def _adopt(x: Any) -> Any:
    if x.layout is not torch.strided:
        raise TypeError(f"softxp takes dense tensors, got one of layout {x.layout}; pass x.to_dense().")
    return x


def _pullback(name: str) -> Callable[..., Any]:
    """For softxp.vjp, where no autograd follows what it computes."""

    def pull(ct: Any, y: Any, wanted: Any, **values: Any) -> Any:
        if _compiling() or _followed({**values, "ct": ct, "y": y}):
            return NotImplemented
        return _by_kernel("pullback", name, values, ct, y, wanted)

    return pull


def _sweep(name: str) -> Callable[..., Any]:
    """For softxp.value_and_grad, likewise."""

    def sweep(**values: Any) -> Any:
        if _compiling() or _followed(values):
            return NotImplemented
        return _by_kernel("sweep", name, values)

    return sweep


BACKEND = Backend(
    name="torch",
    xp=XP,
    lift=_lift,
    kernels={**_cuda.kernels_of(DEVICE, _unfollowed_on_gpu), "softmax": _softmax},
    pullbacks={name: _pullback(name) for name in {**CPU.pullback, **CUDA.pullback}},
    sweeps={name: _sweep(name) for name in {**CPU.sweep, **CUDA.sweep}},
    state=_state,
    rows=lambda x: not _compiling() and _road(x) is not NONE,
    serves=lambda name, x: name == "softmax" if x.is_cpu else _warm.cuda,
    road="formula, lifted into autograd",
    roads={
        **dict.fromkeys(CPU.forward, "row kernels with Numba on the CPU"),
        **dict.fromkeys(CUDA.forward, "row kernels, with Numba on the CPU and by NVRTC on CUDA where they are on"),
    },
    double=lambda x: x.device.type == "cpu",
    look=_look,
    compares_uint64=False,
    adopt=_adopt,
    device=lambda x: x.device,
    put=_put,
    uniform=_uniform,
    arange=lambda n, dtype, like: torch.arange(n, dtype=dtype, device=like.device),
    default_float=lambda like: torch.get_default_dtype(),
    default_int=lambda like: torch.int64,
)


def _call(name: str, **values: Any) -> Any:
    return OPS[name].forward(XP, **values) if _compiling() or _transformed() else BACKEND.lifted[name](values)


def _swept(name: str, **values: Any) -> Any:
    return NotImplemented if torch.is_grad_enabled() or _compiling() else BACKEND.sweeps[name](**values)


XP.call, XP.swept = _call, _swept
