"""Calls whose arrays lie in the memory of a GPU, as work for the CUDA kernels: once for all libraries.

A library's `Device` says how its arrays lie and where its work goes. Every function answers NotImplemented for what the
kernels do not take, and the formula serves it. Nothing here waits for the GPU: no number of an array is looked at.

Arrays that a kernel still reads may be let go here: a library gives their memory to later work of the same stream alone.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial, wraps
from struct import pack_into
from typing import Any, NamedTuple

from .. import _formulas as F
from .._kernels import cuda
from .._kernels import plan as P
from . import _warm
from ._geometry import Layout, neighbours, spread, step

_NOWHERE = nullcontext()


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """How a library's arrays lie in the memory of GPUs, and where work on them goes."""

    xp: Any  # the library's namespace, as formulas see it
    kinds: Mapping[Any, str]  # dtype -> its name, of those that the kernels know
    plain: Callable[[Any], bool]  # is it the library's own array, with memory of its own?
    gpu: Callable[[Any], int]  # array -> number of its GPU
    address: Callable[[Any], int]
    steps: Callable[[Any], tuple[int, ...]]  # from number to number along each axis, in numbers
    like: Callable[[Any, Any], Any]  # (array, dtype) -> new memory for one of its shape and order
    empty: Callable[[Any, Any, Any], Any]  # (shape, dtype, like) -> new memory in C order, beside `like`
    in_order: Callable[[Any], bool]  # does it lie in C order?
    together: Callable[[Any], Any]  # array -> itself, or a copy, in C order
    stream: Callable[[int], int]  # number of a GPU -> handle of its current stream
    guard: Callable[[Any], AbstractContextManager[Any]] = lambda x: _NOWHERE  # under which new arrays lie beside x
    ready: dict[tuple, Any] = field(default_factory=dict)  # calls of plain rows


def on_gpu(serve: Callable[..., Any]) -> Callable[..., Any]:
    """Only while the road is open. What it needs and does not find closes it."""

    @wraps(serve)
    def served(device: Device, *before: Any, x: Any, **values: Any) -> Any:
        if not _warm.cuda or not device.plain(x):
            return NotImplemented
        try:
            with device.guard(x):
                return serve(device, *before, x=x, **values)
        except cuda.Unavailable as error:
            _warm.close_cuda(str(error))
            return NotImplemented

    return served


def all_plain(device: Device, *values: Any) -> bool:
    return all(v is None or isinstance(v, (int, float)) or device.plain(v) for v in values)


def least_rows(kernel: Any) -> int:
    """Of a tile of linear_cross_entropy. The kernel's gradient is a sum over tiles, which each of them reads and writes.
    With half as many rows as a class has numbers, that costs no more than the tile itself.
    """
    return max(1024, kernel.shape[1] // 2)


# --- one call ----------------------------------------------------------------------------------------------------------


class Work(Layout):
    """The rows of one array, and the kernels' `call` and `flags` for them."""

    __slots__ = ("call", "device", "flags", "held", "starts", "x")

    def __init__(self, device: Device, x: Any, axis: tuple[int, ...]) -> None:
        super().__init__(tuple(x.shape), axis)
        self.device, self.x, self.flags = device, x, 0
        self.held: list[Any] = []  # what the addresses in the call point to
        self.call = P.Call(rows=self.outer * self.inner, inner=self.inner, n=self.n)
        for number in self.call.temperature, self.call.factor, self.call.sample_weight, self.call.cotangent:
            number.value = 1.0
        self.call.x = self.view(x)

    @classmethod
    def on(
        cls, device: Device, x: Any, axis: tuple[int, ...], dtype: Any, where: Any = None, temperature: Any = 1.0
    ) -> Any:
        """The call on x's rows, whose answer of `dtype` is yet to come; None where the kernels do not take it."""
        kinds = device.kinds
        if x.dtype not in kinds or dtype not in kinds or not P.answers(kinds[x.dtype], kinds[dtype]):
            return None
        if not neighbours(x.shape, axis) or not all_plain(device, where, temperature):
            return None
        work = cls(device, x, axis)
        if where is not None:
            work.flags |= P.MASK
            work.call.mask = work.view(where)
        if not isinstance(temperature, float) or temperature != 1:
            work.flags |= P.TEMPERATURE
            work.call.temperature = work.number(temperature)
        return work

    def hold(self, a: Any) -> int:
        self.held.append(a)
        return self.device.address(a)

    def lies(self, a: Any) -> tuple[int, int, int] | None:
        shape, device = tuple(a.shape), self.device
        if shape == self.shape and device.in_order(a):
            return self.n * self.inner, 1, self.inner
        return self.steps(spread(shape, device.steps(a), self.shape))

    def view(self, a: Any) -> P.View:
        """An array of this shape, or one that broadcasts to it: a copy where it does not lie in steps."""
        steps = self.lies(a)
        if steps is None:
            a = self.device.together(self.device.xp.broadcast_to(a, self.shape))
            steps = self.lies(a)
        assert steps is not None
        return P.View(self.hold(a), *steps)

    def new(self, dtype: Any) -> tuple[Any, P.View]:
        """Memory for an answer like x, in its order where that is one of steps."""
        y = self.device.like(self.x, dtype)
        if self.lies(y) is None:
            y = self.device.empty(self.shape, dtype, self.x)
        return y, self.view(y)

    def vector(self, a: Any) -> P.Rows:
        """An array with a number for each row, or one for all of them: a copy where it does not lie in one step."""
        rows, shape, device = self.row_shape, tuple(a.shape), self.device
        if shape == rows and device.in_order(a):
            return P.Rows(self.hold(a), 1)
        one = step(rows, spread(shape, device.steps(a), rows))
        if one is None:
            a, one = device.together(device.xp.broadcast_to(a, rows)), 1
        return P.Rows(self.hold(a), one)

    def number(self, value: Any) -> P.Number:
        """A Python number, or an array that broadcasts to the rows, as the kernels read it."""
        if isinstance(value, (int, float)):
            return P.Number(0, 0, value)
        at = self.vector(F.cast(self.device.xp, value, self.device.xp.float64))
        return P.Number(at.address, at.step, 0.0)

    def new_rows(self, count: int) -> tuple[Any, list[P.Rows]]:
        """(count, rows) of float64, and where each row of them lies."""
        rows = self.call.rows
        both = self.device.empty((count, rows), self.device.xp.float64, self.x)
        start = self.hold(both)
        return both, [P.Rows(start + 8 * rows * i, 1) for i in range(count)]

    def run(self, operation: str, dtype: Any, flags: int | None = None) -> bool:
        """Launch it, with an answer of that dtype. False where the kernels do not take the call."""
        flags = self.flags if flags is None else flags
        device, call, number = self.device, self.call, self.device.gpu(self.x)
        gpu, kind, answer = cuda.gpu(number), device.kinds[self.x.dtype], device.kinds[dtype]
        plan = P.plan_of(operation, kind, flags, call, *gpu.facts, answer)
        if plan is None:
            return False
        if plan.workspace:
            call.workspace = self.hold(device.empty((plan.workspace // 8,), device.xp.float64, self.x))
        self.starts = [gpu.ready(launch) for launch in plan.launches]
        gpu.start(self.starts, call, device.stream(number))
        return True


# --- maps and reductions -------------------------------------------------------------------------------------------------


def _map(operation: str) -> Callable[..., Any]:
    @on_gpu
    def serve(
        device: Device, x: Any, *, axis: Any, where: Any = None, temperature: Any = 1.0, dtype: Any, compute: Any
    ) -> Any:
        work = Work.on(device, x, axis, dtype, where, temperature)
        if work is None:
            return NotImplemented
        y, work.call.y = work.new(dtype)
        return y if work.run(operation, dtype) else NotImplemented

    return serve


@on_gpu
def _logsumexp(
    device: Device, x: Any, *, axis: Any, b: Any = None, where: Any = None, keepdims: bool, return_sign: bool = False,
    dtype: Any, compute: Any,
) -> Any:  # fmt: skip
    work = Work.on(device, x, axis, dtype, where) if b is None and not return_sign else None
    if work is None:
        return NotImplemented
    shape = work.row_shape if keepdims else work.shape[: work.first] + work.shape[work.last :]
    y = device.empty(shape, dtype, x)
    work.call.y = P.View(device.address(y), work.inner, 1, 0)
    return y if work.run("logsumexp", dtype) else NotImplemented


@on_gpu
def state(device: Device, x: Any, *, axis: Any, where: Any, compute: Any) -> Any:
    """(m, r) with `axis` of size 1, for a state that goes on."""
    work = Work.on(device, x, axis, x.dtype, where)
    if work is None:
        return NotImplemented
    if x.dtype == device.xp.float32 and compute == device.xp.float64:
        work.flags |= P.WIDE
    both, (work.call.m, work.call.r) = work.new_rows(2)
    if not work.run("state", x.dtype):
        return NotImplemented
    m, r = (device.xp.reshape(both[i, ...], work.row_shape) for i in range(2))
    return F.cast(device.xp, m, x.dtype), F.cast(device.xp, r, compute)


def _pull_map(operation: str) -> Callable[..., Any]:
    @on_gpu
    def pull(
        device: Device, ct: Any, y: Any, wanted: Any, x: Any, *, axis: Any, where: Any = None, temperature: Any = 1.0,
        dtype: Any, compute: Any,
    ) -> Any:  # fmt: skip
        if wanted != ("x",) or dtype != x.dtype or ct.dtype != dtype or not device.plain(ct):
            return NotImplemented
        work = Work.on(device, x, axis, dtype, where, temperature)
        if work is None:
            return NotImplemented
        work.call.v = work.view(ct)
        gradient, work.call.y = work.new(dtype)
        return {"x": gradient} if work.run(operation, dtype) else NotImplemented

    return pull


@on_gpu
def _pull_logsumexp(
    device: Device, ct: Any, y: Any, wanted: Any, x: Any, *, axis: Any, where: Any = None, keepdims: bool, b: Any = None,
    return_sign: bool = False, dtype: Any, compute: Any,
) -> Any:  # fmt: skip
    if wanted != ("x",) or b is not None or not device.plain(ct):
        return NotImplemented
    work = Work.on(device, x, axis, x.dtype, where)
    if work is None:
        return NotImplemented
    work.call.factor = work.number(ct if keepdims else F.keep(device.xp, ct, axis))
    gradient, work.call.y = work.new(x.dtype)
    return {"x": gradient} if work.run("softmax", x.dtype) else NotImplemented


# --- cross-entropy: one launch gives each row's loss and weight, another what they come to -----------------------------


class Loss(Work):
    """One call of cross_entropy."""

    __slots__ = ("axis", "dtype", "normalizer", "reduction")

    @classmethod
    def begin(
        cls, device: Device, x: Any, labels: Any, *, axis: Any, classes: Any, where: Any, temperature: Any,
        label_smoothing: float, class_weight: Any, sample_weight: Any, ignore_index: Any, z_loss: float, softcap: Any,
        reduction: str, normalizer: Any, dtype: Any, compute: Any,
    ) -> Any:  # fmt: skip
        soft = classes is None
        if (soft and labels.dtype != x.dtype) or not all_plain(device, labels, class_weight, sample_weight, normalizer):
            return None
        self = cls.on(device, x, axis, dtype, where, temperature)
        if self is None:
            return None
        self.axis, self.dtype, self.reduction = axis, dtype, reduction
        self.normalizer = 1.0 if reduction == "sum" else normalizer
        call, xp = self.call, device.xp
        if soft:
            self.flags |= P.SOFT
            call.v = self.view(labels)
        else:
            call.label = self.vector(labels)
            call.label_kind = labels.dtype.itemsize * (-1 if "uint" in str(labels.dtype) else 1)
        call.ignore, call.ignore_index = int(ignore_index is not None), ignore_index or 0
        if class_weight is not None:
            self.flags |= P.CLASS_WEIGHT
            weights = device.together(xp.reshape(F.cast(xp, class_weight, xp.float64), (self.n,)))
            call.class_weight = self.hold(weights)
        if sample_weight is not None:
            call.sample_weight = self.number(sample_weight)
        self.flags |= (P.SMOOTHING if label_smoothing else 0) | (P.SOFTCAP if softcap else 0)
        call.smoothing, call.softcap, call.z_loss = label_smoothing, softcap or 0.0, z_loss
        return self

    def finer(self) -> bool:
        """Has the loss more bits than the logits? Kernels that write a gradient are as exact as that needs."""
        kinds = self.device.kinds
        return P.SIZES[kinds[self.dtype]] > P.SIZES[kinds[self.x.dtype]]

    def losses(self) -> Any:
        """(2, rows): each row's s · loss, and s · its weight; None where the kernels do not take the call."""
        return self.rows_by("loss", self.dtype)

    def rows_by(self, operation: str, dtype: Any) -> Any:
        both, (self.call.loss, self.call.weight) = self.new_rows(2)
        return both if self.run(operation, dtype) else None

    def summed(self, operation: str) -> None:
        flags = self.flags & (P.SOFT | P.CLASS_WEIGHT)
        if self.normalizer is not None:
            self.call.divisor, flags = self.of_call(self.normalizer), P.GIVEN
        self.run(operation, self.dtype, flags)

    def of_call(self, value: Any) -> P.Number:
        """A number, or an array of one."""
        return self.number(value if isinstance(value, (int, float)) else self.device.xp.reshape(value, ()))

    def reduced(self, both: Any) -> Any:
        """What the rows come to, as the caller gets it."""
        xp = self.device.xp
        if self.reduction == "none":
            return F.cast(xp, F.drop(xp, xp.reshape(both[0, ...], self.row_shape), self.axis), self.dtype)
        y = self.device.empty((), self.dtype, self.x)
        self.call.y = P.View(self.device.address(y), 0, 0, 0)  # (not held: y's autograd holds this)
        self.summed("total")
        return y

    def shared(self) -> bool:
        """Is it said what each row of a mean counts for?"""
        if self.reduction != "mean":
            return True
        # what distributions add up to takes reading them: so the losses come first after all
        if self.flags & P.SOFT and self.normalizer is None and self.losses() is None:
            return False
        share = self.hold(self.device.empty((1,), self.device.xp.float64, self.x))
        self.call.m = P.Rows(share, 0)
        self.summed("share")
        self.call.factor = P.Number(share, 0, 0.0)
        return True

    def with_gradient(self, dtype: Any) -> Any:
        """(2, rows) as of `losses`, and the gradient by x, of that dtype; None where declined."""
        gradient, self.call.y = self.new(dtype)
        both = self.rows_by("loss_and_gradient", dtype) if self.shared() else None
        return None if both is None else (both, gradient)


@on_gpu
def _cross_entropy(device: Device, x: Any, labels: Any, **options: Any) -> Any:
    loss = Loss.begin(device, x, labels, **options)
    if loss is None or (both := loss.losses()) is None:
        return NotImplemented
    return loss.reduced(both)


@on_gpu
def _pull_cross_entropy(device: Device, ct: Any, y: Any, wanted: Any, x: Any, labels: Any, **options: Any) -> Any:
    loss = Loss.begin(device, x, labels, **options) if wanted == ("x",) and device.plain(ct) else None
    if loss is None:
        return NotImplemented
    each = loss.reduction == "none"
    loss.call.factor = loss.number(F.keep(device.xp, ct, loss.axis)) if each else loss.of_call(ct)
    done = loss.with_gradient(x.dtype)
    return NotImplemented if done is None else {"x": done[1]}


@on_gpu
def _sweep_cross_entropy(device: Device, x: Any, labels: Any, gradient: Any = None, **options: Any) -> Any:
    """The value, one number; its gradient by the logits, of the dtype `gradient` or else theirs; and `again`(cotangent)."""
    loss = Loss.begin(device, x, labels, **options) if options["reduction"] != "none" else None
    if loss is None or loss.finer():
        return NotImplemented
    done = loss.with_gradient(x.dtype if gradient is None else gradient)
    if done is None:
        return NotImplemented
    both, gradient = done
    once_more = partial(_again, device, loss, loss.starts, P.Call.from_buffer_copy(loss.call), x=gradient)
    return loss.reduced(both), gradient, once_more


@on_gpu
def _again(device: Device, loss: Loss, starts: Any, call: P.Call, ct: Any, x: Any) -> Any:
    """The gradient x of a sweep, times ct: computed anew in its place unless ct is 1, which the GPU alone looks at."""
    if not device.plain(ct):
        return NotImplemented
    call.cotangent, number = loss.of_call(ct), device.gpu(x)
    cuda.gpu(number).start(starts, call, device.stream(number))
    return x


# --- rows that lie one after the other: what a small call costs is what it costs here ---------------------------------


def kernels_of(device: Device, unfollowed: Callable[[Any], bool] = lambda x: True) -> dict[str, Callable[..., Any]]:
    """Kernels of public functions, for calls without options whose answer no autograd follows."""

    def of_map(operation: str) -> Callable[..., Any]:
        def kernel(x: Any, axis: Any, where: Any, temperature: Any, dtype: Any) -> Any:
            """CUDA kernel, where they are on (plain rows, no gradient)"""
            if where is not None or dtype is not None or temperature.__class__ is not float or temperature != 1.0:
                return NotImplemented
            return plain_rows(device, operation, axis, x=x) if unfollowed(x) else NotImplemented

        return kernel

    def logsumexp(x: Any, axis: Any, b: Any, where: Any, keepdims: bool, return_sign: bool, dtype: Any) -> Any:
        """CUDA kernel, where they are on (plain rows, no gradient)"""
        if b is not None or where is not None or keepdims or return_sign or dtype is not None:
            return NotImplemented
        return plain_rows(device, "logsumexp", axis, x=x) if unfollowed(x) else NotImplemented

    def cross_entropy(
        x: Any, labels: Any, axis: Any, where: Any, temperature: Any, label_smoothing: Any, class_weight: Any,
        sample_weight: Any, ignore_index: Any, z_loss: Any, softcap: Any, reduction: Any, normalizer: Any, dtype: Any,
    ) -> Any:  # fmt: skip
        """CUDA kernel, where they are on (plain rows, integer labels, no gradient)"""
        if not unfollowed(x):
            return NotImplemented
        for option in (where, class_weight, sample_weight, softcap, normalizer, dtype):
            if option is not None:
                return NotImplemented
        if not temperature.__class__ is label_smoothing.__class__ is z_loss.__class__ is float:
            return NotImplemented
        if (temperature, label_smoothing, z_loss) != (1.0, 0.0, 0.0):
            return NotImplemented
        return plain_loss(device, labels, axis, ignore_index, reduction, x=x)

    maps = {name: of_map(name) for name in ("softmax", "log_softmax")}
    return {**maps, "logsumexp": logsumexp, "cross_entropy": cross_entropy}


class Ready(NamedTuple):
    """A call that was asked before: all but its addresses."""

    gpu: cuda.Gpu
    starts: list[tuple[Any, int, int, int]]  # empty: it is not served here
    call: bytes

    def start(self, device: Device, x: Any, addresses: tuple[tuple[int, int], ...]) -> None:
        """`addresses`: where in the call each of them belongs, and what it is."""
        call = P.Call.from_buffer_copy(self.call)
        for at, address in addresses:
            pack_into("Q", call, at, address)
        self.gpu.start(self.starts, call, device.stream(device.gpu(x)))


_X, _Y, _LABEL, _LOSS, _WEIGHT = (getattr(P.Call, name).offset for name in ("x", "y", "label", "loss", "weight"))


def _ready(device: Device, key: tuple, make: Callable[..., Any], *of: Any) -> Ready:
    """`make(...)` says what to do: work, and its operations with their flags; or None."""
    found = device.ready.get(key)
    if found is None:
        gpu, todo = cuda.gpu(device.gpu(of[0])), make(device, *of)
        found = Ready(gpu, [], b"")
        if todo is not None:
            work, *operations = todo
            kind, plans = device.kinds[work.x.dtype], []
            # (the last one first: a call has the pieces of rows, and where all rows are one piece nobody asks for that)
            for operation, flags in reversed(operations):
                plans.append(P.plan_of(operation, kind, flags, work.call, *gpu.facts))
            if all(plan is not None and len(plan.launches) == 1 for plan in plans):
                launches = [plan.launches[0] for plan in reversed(plans)]
                found = Ready(gpu, [gpu.ready(launch) for launch in launches], bytes(work.call))
        if len(device.ready) >= 1024:
            device.ready.clear()
        device.ready[key] = found
    return found


def _plain(device: Device, axis: Any, x: Any) -> bool:
    """Are rows the last axis of an array in C order that holds numbers?"""
    shape = x.shape
    return axis.__class__ is int and axis in (-1, len(shape) - 1) and 0 not in shape and device.in_order(x)


@on_gpu
def plain_rows(device: Device, operation: str, axis: Any, x: Any) -> Any:
    """softmax, log_softmax or logsumexp."""
    if not _plain(device, axis, x):
        return NotImplemented
    start = device.address(x)
    ready = _ready(device, (operation, device.gpu(x), x.dtype, x.shape, start % 16), _of_rows, x, operation)
    if not ready.starts:
        return NotImplemented
    y = device.empty(x.shape[:-1], x.dtype, x) if operation == "logsumexp" else device.like(x, x.dtype)
    ready.start(device, x, ((_X, start), (_Y, device.address(y))))
    return y


def _of_rows(device: Device, x: Any, operation: str) -> Any:
    work = Work.on(device, x, (len(x.shape) - 1,), x.dtype) if x.shape else None
    if work is None:
        return None
    work.call.y = P.View(0, 1, 1, 0) if operation == "logsumexp" else work.call.x
    return work, (operation, 0)


@on_gpu
def plain_loss(device: Device, labels: Any, axis: Any, ignore_index: Any, reduction: Any, x: Any) -> Any:
    """The mean or the sum of cross-entropies with signed labels in C order."""
    if not _plain(device, axis, x) or not device.plain(labels) or labels.shape != x.shape[:-1]:
        return NotImplemented
    if reduction not in ("mean", "sum") or (ignore_index is not None and ignore_index.__class__ is not int):
        return NotImplemented
    number, start = device.gpu(x), device.address(x)
    if device.gpu(labels) != number or not device.in_order(labels):
        return NotImplemented
    key = reduction, ignore_index, labels.dtype, number, x.dtype, x.shape, start % 16
    ready = _ready(device, key, _of_loss, x, labels, ignore_index, reduction)
    if not ready.starts:
        return NotImplemented
    both, y = device.empty((2, *labels.shape), device.xp.float64, x), device.empty((), x.dtype, x)
    loss = device.address(both)
    weight = loss + both.nbytes // 2
    addresses = (
        (_X, start), (_LABEL, device.address(labels)), (_LOSS, loss), (_WEIGHT, weight), (_Y, device.address(y))
    )  # fmt: skip
    ready.start(device, x, addresses)
    return y


def _of_loss(device: Device, x: Any, labels: Any, ignore_index: Any, reduction: Any) -> Any:
    signed = str(labels.dtype).rpartition(".")[2] in ("int8", "int16", "int32", "int64")
    if not signed or not x.shape or abs(ignore_index or 0) >= 1 << 63:
        return None
    loss = Loss.begin(
        device, x, device.xp.expand_dims(labels, axis=-1), axis=(len(x.shape) - 1,), classes=(), where=None, temperature=1.0,
        label_smoothing=0.0, class_weight=None, sample_weight=None, ignore_index=ignore_index, z_loss=0.0, softcap=None,
        reduction=reduction, normalizer=None, dtype=x.dtype, compute=None,
    )  # fmt: skip
    if loss is None:
        return None
    loss.call.loss = loss.call.weight = P.Rows(0, 1)
    loss.call.divisor = loss.of_call(1.0)
    return loss, ("loss", 0), ("total", P.GIVEN if reduction == "sum" else 0)


FORWARD = {
    "softmax": _map("softmax"), "log_softmax": _map("log_softmax"), "logsumexp": _logsumexp, "cross_entropy": _cross_entropy
}  # fmt: skip
PULLBACK = {
    "softmax": _pull_map("softmax_pullback"),
    "log_softmax": _pull_map("log_softmax_pullback"),
    "logsumexp": _pull_logsumexp,
    "cross_entropy": _pull_cross_entropy,
}
SWEEP = {"cross_entropy": _sweep_cross_entropy}
