"""softrow.cu built by g++ over cuda/host.h, which runs the threads of a block as fibres; its calls, laid out in memory with
guards around them; and the truth, which is the formulas' in numpy's longest float.
"""

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import softxp
from softxp import _formulas as F
from softxp import _loss as L
from softxp._kernels import plan as P
from softxp_conformance import ulp
from softxp_conformance.budgets import PROMISE
from softxp_conformance.precise import DD

SOURCE = Path(softxp.__file__).parent / "_kernels" / "softrow.cu"
HOST = Path(__file__).parent / "cuda" / "host.h"
COMPILER = shutil.which("g++")
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
LONG = np.longdouble


# --- the source as a library of instances ------------------------------------------------------------------------------


class Library:
    """Instances of the kernel, by the options of their launches."""

    def __init__(self, launches: Any, source: str | None = None) -> None:
        self.names = {options: i for i, options in enumerate(sorted({launch.options for launch in launches}))}
        text = SOURCE.read_text() if source is None else source
        lines = [f'#include "{HOST}"']
        for options, i in self.names.items():
            config = ", ".join(option.partition("=")[2] for option in options[:9])
            lines.append(
                f'extern "C" int run_{i}(const Call* call, long long grid, unsigned seed) '
                f"{{ return launch<Config<{config}>>(call, grid, seed); }}"
            )
        self.built = ctypes.CDLL(str(build(text, "\n".join(lines))))

    def launch(self, launch: P.Launch, call: P.Call, seed: int) -> None:
        run = getattr(self.built, f"run_{self.names[launch.options]}")
        wrong = run(ctypes.byref(call), ctypes.c_longlong(launch.grid), ctypes.c_uint(seed))
        assert wrong != 1, "some threads of a block wait where others do not come"
        assert wrong != 2, "a vector does not begin at a multiple of 16 bytes"

    def variant(self, number: int) -> None:
        ctypes.c_int.in_dll(self.built, "broken").value = number


def build(source: str, main: str) -> Path:
    """Compiled once for all processes that ask, and kept while neither text changes."""
    folder = Path(tempfile.gettempdir()) / f"softxp-cuda-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    name = hashlib.sha256("\0".join((source, main, HOST.read_text())).encode()).hexdigest()[:24]
    library = folder / f"{name}.so"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            (folder / f"{name}.cu").write_text(source)
            (folder / f"{name}.cpp").write_text(main)
            command = [
                str(COMPILER), "-std=c++17", "-O0", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-shared", "-fPIC", "-w",
                f'-DSOURCE="{folder / name}.cu"', str(folder / f"{name}.cpp"), "-o", str(folder / f"{name}.new"),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[:4000]
            (folder / f"{name}.new").rename(library)
    return library


# --- arrays in guarded memory ----------------------------------------------------------------------------------------------

GUARD = 96  # bytes at either end


@dataclass
class Laid:
    """An array (outer, inner, n) with steps of one's own choice, inside a buffer whose other bytes are guards."""

    buffer: Any
    view: Any
    before: Any = None

    @classmethod
    def new(cls, shape: tuple, dtype: Any, steps: tuple[int, int, int], shift: int = 0, fill: int = 0xFF) -> "Laid":
        size = np.dtype(dtype).itemsize
        low = sum(min(0, step * (n - 1)) for step, n in zip(steps, shape, strict=True))
        high = sum(max(0, step * (n - 1)) for step, n in zip(steps, shape, strict=True))
        room = np.full((high - low + 1) * size + 2 * GUARD + 64, fill, np.uint8)
        first = -room.ctypes.data % 64 + GUARD // 32 * 32 + shift * size
        start = room[first - low * size :]
        view = np.lib.stride_tricks.as_strided(
            start[: len(start) // size * size].view(dtype), shape, [step * size for step in steps]
        )
        return cls(room, view)

    def put(self, values: Any) -> "Laid":
        self.view[...] = values
        return self

    def watch(self) -> "Laid":
        self.before = self.buffer.copy()
        return self

    def untouched(self) -> bool:
        """Are all bytes but the view's own as they were?"""
        after, self.view[...] = self.view.copy(), 0
        here = self.buffer.copy()
        self.view[...] = after
        other = Laid(self.before.copy(), None)
        offset = self.view.ctypes.data - self.buffer.ctypes.data
        part = other.buffer[offset % self.view.itemsize :]
        part = part[: len(part) // self.view.itemsize * self.view.itemsize].view(self.view.dtype)
        np.lib.stride_tricks.as_strided(part[offset // self.view.itemsize :], self.view.shape, self.view.strides)[
            ...
        ] = 0
        return bool((here == other.buffer).all())

    def as_view(self) -> P.View:
        size = self.view.itemsize
        return P.View(self.view.ctypes.data, *(step // size for step in self.view.strides))


def steps(layout: str, outer: int, inner: int, n: int) -> tuple[int, int, int]:
    """(outer, inner, along) of an array with shape (outer, inner, n)."""
    return {
        "rows": (inner * n, n, 1),
        "pitch": (inner * (n + 3), n + 3, 1),
        "columns": (inner * n, 1, inner),
        "apart": (inner * 2 * n, 2 * n, 2),
        "back": (inner * n, n, -1),
        "same": (n, 0, 1),  # broadcast along inner
        "row": (0, 0, 1),
        "one": (1, 1, 0),
        "none": (0, 0, 0),
    }[layout]


# --- a call ----------------------------------------------------------------------------------------------------------------


@dataclass
class Question:
    """An operation with its arrays, shaped (outer, inner, n) or (outer, inner, 1)."""

    operation: str
    dtype: str
    flags: int
    x: Any
    answer: str = ""  # y's dtype, if it is not x's
    v: Any = None
    where: Any = None
    temperature: Any = 1.0
    factor: Any = None
    cotangent: float | None = None
    labels: Any = None
    sample_weight: Any = None
    class_weight: Any = None
    softcap: float = 0.0
    smoothing: float = 0.0
    z_loss: float = 0.0
    ignore_index: int | None = -100
    kept: list = field(default_factory=list)

    @property
    def of_y(self) -> str:
        return self.answer or self.dtype

    @property
    def finer(self) -> str:
        return max(self.dtype, self.of_y, key=P.SIZES.__getitem__)


def quantity(q: Question, values: Any) -> P.Number:
    if isinstance(values, float):
        return P.Number(0, 0, values)
    a = np.ascontiguousarray(values, np.float64).reshape(-1)
    q.kept.append(a)
    return P.Number(a.ctypes.data, 0 if a.size == 1 else 1, np.nan)


def new_rows(q: Question, rows: int, dtype: Any = np.float64) -> tuple[Laid, P.Rows]:
    laid = Laid.new((1, 1, rows), dtype, (0, 0, 2), fill=0xAB).watch()
    q.kept.append(laid)
    return laid, P.Rows(laid.view.ctypes.data, 2)


def answers(
    library: Library | None, q: Question, launches: Any, *, pieces: int = 1, piece: int = 0, layout: str = "rows",
    shift: int = 0, y_layout: str | None = None, y_shift: int | None = None, mask_layout: str | None = None,
    in_place: bool = False, seed: int = 0, multiprocessors: int = 132,
) -> dict[str, Any]:  # fmt: skip
    """What the kernel writes, by name, shaped like the question's arrays. Guards and canaries are looked at too.

    Without launches the plan says which.
    """
    outer, inner, n = q.x.shape
    rows, dtype = outer * inner, DTYPES[q.dtype]
    call = P.Call(rows=rows, inner=inner, n=n, pieces=pieces, piece=piece or n)
    here = steps(layout, outer, inner, n)
    x = Laid.new(q.x.shape, dtype, here, shift).put(q.x).watch()
    call.x = x.as_view()
    q.kept.append(x)
    v = None
    if q.v is not None:
        v = Laid.new(q.x.shape, dtype, here, shift).put(q.v).watch()
        call.v = v.as_view()
        q.kept.append(v)
    if q.where is not None:
        mask = Laid.new(q.x.shape, np.uint8, steps(mask_layout or layout, outer, inner, n), 1)
        call.mask = mask.put(q.where).as_view()
        q.kept.append(mask)
    y = None
    if in_place:
        y = x
    elif q.operation == "logsumexp":
        y = Laid.new((outer, inner, 1), DTYPES[q.of_y], (inner, 1, 7), 1, fill=0xAB).watch()
    elif q.operation not in P.ROW_ANSWERS:
        y_steps = here if y_layout is None else steps(y_layout, outer, inner, n)
        y = Laid.new(q.x.shape, DTYPES[q.of_y], y_steps, shift if y_shift is None else y_shift, fill=0xAB).watch()
    if y is not None:
        call.y = y.as_view()
    call.temperature = quantity(q, q.temperature)
    call.factor = P.Number(0, 0, 1.0) if q.factor is None else quantity(q, q.factor)
    call.cotangent = P.Number(0, 0, 1.0) if q.cotangent is None else quantity(q, np.asarray([q.cotangent]))
    call.sample_weight = quantity(q, 1.0 if q.sample_weight is None else q.sample_weight)
    if q.labels is not None:
        labels = np.ascontiguousarray(q.labels).reshape(-1)
        q.kept.append(labels)
        call.label = P.Rows(labels.ctypes.data, 0 if labels.size == 1 else 1)
        call.label_kind = labels.itemsize * (1 if labels.dtype.kind == "i" else -1)
    if q.class_weight is not None:
        weights = np.ascontiguousarray(q.class_weight, np.float64)
        q.kept.append(weights)
        call.class_weight = weights.ctypes.data
    call.softcap, call.smoothing, call.z_loss = q.softcap, q.smoothing, q.z_loss
    call.ignore, call.ignore_index = int(q.ignore_index is not None), q.ignore_index or 0
    outputs = {"state": ("m", "r")}.get(q.operation, ("loss", "weight") if q.operation in P.LOSSES else ())
    written = {}
    for name in outputs:
        written[name], target = new_rows(q, rows)
        setattr(call, name, target)
    if launches is None:
        found = P.plan_of(q.operation, q.dtype, q.flags, call, multiprocessors, 90, answer=q.answer)
        assert found is not None
        launches, pieces, library = found.launches, found.pieces, Library(found.launches)
    workspace = np.full(rows * pieces * P.RECORD + 1, np.nan)
    call.workspace = workspace.ctypes.data
    assert library is not None
    for launch in launches:
        library.launch(launch, call, seed)
    assert np.isnan(workspace[-1]), "written past the workspace"
    if y is not None:
        written["y"] = y
    for name, laid in written.items():
        assert laid.untouched(), f"{name}: written outside its own elements"
    for given in (x, v):
        assert given is None or given is y or (given.buffer == given.before).all(), "an input was written"
    return {
        name: np.array(laid.view, np.float64).reshape((outer, inner, -1)) for name, laid in written.items()
    }  # fmt: skip


# --- the truth -------------------------------------------------------------------------------------------------------------


@dataclass
class Truth:
    value: Any
    kind: str
    gap: Any = 0.0
    scale: Any = 0.0


def call_formula(name: str, **values: Any) -> Any:
    return getattr(F, name)(np, **values)


def truths(q: Question) -> dict[str, Truth]:
    with np.errstate(all="ignore"):
        return _truths(q)


def _truths(q: Question) -> dict[str, Truth]:
    axis, x = (2,), np.asarray(q.x, LONG)
    t = q.temperature if isinstance(q.temperature, float) else np.asarray(q.temperature, LONG)
    how = dict(axis=axis, where=q.where, temperature=t)
    whole = dict(dtype=np.dtype(LONG), compute=np.dtype(LONG))
    u = F.capped(np, x, q.softcap, LONG) if q.softcap else x
    s = F.rows(np, u, **how, compute=LONG)
    gap, p = np.abs(np.where(np.isfinite(s.d), s.d, 0)), s.e / (1 + s.r)
    lse = s.m + np.log1p(s.r)
    if q.operation == "softmax" and q.factor is None:
        return {"y": Truth(p, "map", gap)}
    if q.operation == "softmax":
        ct = np.asarray(q.factor, LONG)
        g = F.logsumexp_vjp(call_formula, np, ct, None, ("x",), x, axis=axis, where=q.where, keepdims=True, **whole)[
            "x"
        ]
        return {"y": Truth(g, "gradient", gap)}
    if q.operation == "log_softmax":
        return {"y": Truth(s.d - np.log1p(s.r), "log")}
    if q.operation == "logsumexp":
        return {"y": Truth(lse, "lse", scale=np.maximum(np.abs(s.m), np.log1p(s.r)))}
    if q.operation == "state":
        return {"m": Truth(s.m, "lse"), "r": Truth(s.r, "map", 8.0)}
    if q.operation in P.PULLBACKS:
        rule = getattr(F, q.operation.replace("pullback", "vjp"))
        ct = np.asarray(q.v, LONG)
        g = rule(call_formula, np, ct, p, ("x",), x, **how, **whole)["x"]
        over = np.where(np.isfinite(np.asarray(t, LONG)) & (np.asarray(t) != 0), t, 1)
        if q.operation == "softmax_pullback":
            top = np.sum(np.where(s.top, ct, 0), -1, keepdims=True) / np.maximum(np.sum(s.top, -1, keepdims=True), 1)
            size = p * (np.abs(ct - top) + np.sum(p * np.abs(ct - top), -1, keepdims=True))
        else:
            size = np.abs(ct) * (1 - p) + p * (np.sum(np.abs(ct), -1, keepdims=True) - np.abs(ct))
        least = np.finfo(np.float64 if q.dtype == "float64" else np.float32).tiny  # below it p has fewer digits
        size = size + least * np.max(np.abs(ct), -1, keepdims=True)
        return {"y": Truth(g, "gradient", gap, np.abs(size / over))}

    soft = bool(q.flags & P.SOFT)
    wide = None if q.class_weight is None else np.asarray(q.class_weight, LONG)
    of_rows = None if q.sample_weight is None else np.asarray(q.sample_weight, LONG).reshape(np.shape(q.sample_weight))
    options = dict(
        labels=np.asarray(q.v, LONG) if soft else q.labels, classes=None if soft else np.arange(q.x.shape[2]),
        label_smoothing=q.smoothing, class_weight=wide, sample_weight=of_rows, ignore_index=q.ignore_index, z_loss=q.z_loss,
        softcap=q.softcap or None, **how,
    )  # fmt: skip
    targets, loss = L.loss_rows(np, x, compute=LONG, **options)
    zero = np.zeros_like(loss)
    loss = np.where(targets.dropped, zero, loss if targets.s is None else targets.s * loss)
    weight = np.where(targets.dropped, zero, targets.weight if targets.s is None else targets.s * targets.weight)
    far = np.max(np.abs(np.where(np.isfinite(u), u, 0)), -1, keepdims=True) / np.where(np.asarray(t) > 0, t, 1)
    lost = q.z_loss * (far + 2 * np.log1p(np.where(s.r > 0, s.r, 0))) ** 2 + (far if q.softcap else 0)
    out = {
        "loss": Truth(loss, "log", scale=lost * np.abs(weight) if q.softcap or q.z_loss else 0.0),
        "weight": Truth(weight, "lse"),
    }
    if q.operation == "loss_and_gradient":
        ct = zero[..., 0] + (1 if q.factor is None else np.asarray(q.factor, LONG)[..., 0])
        ct = ct * (1 if q.cotangent is None else q.cotangent)
        g = L.cross_entropy_vjp(
            call_formula, np, ct, None, ("x",), x=x, reduction="none", normalizer=None, **options, **whole
        )["x"]
        g = np.where(targets.dropped, 0, g)  # whatever the temperature is
        by = np.abs(ct[..., None] * (1 if targets.s is None else targets.s) / np.where(np.asarray(t) > 0, t, 1))
        slope = F.cap_slope(np, x, q.softcap) if q.softcap else 1
        all_q = np.sum(np.abs(targets.q), -1, keepdims=True)
        more = 2 * q.z_loss * np.abs(weight) * (far + np.log1p(np.where(s.r > 0, s.r, 0)))
        size = np.abs(targets.q) * (1 - p) + p * (all_q - np.abs(targets.q) + more)
        gap = gap + 2 * np.abs(np.where(np.isfinite(x), x, 0) / q.softcap) if q.softcap else gap  # the slope's exponent
        out["y"] = Truth(g, "gradient", gap, by * size * slope * (1 + 4 * far if q.softcap else 1))
    return out


def judge(q: Question, got: dict[str, Any], true: dict[str, Truth]) -> None:
    """Every entry within the promise; infinities, NaN and zeros exactly."""
    assert got.keys() == true.keys()
    for name, truth in true.items():
        value = np.broadcast_to(truth.value, got[name].shape)
        with np.errstate(all="ignore"):
            hi = np.asarray(value, np.float64)
            lo = np.asarray(np.where(np.isfinite(value), value - hi, 0), np.float64)
            dtype = q.of_y if name == "y" else q.finer
            far = ulp.distance(got[name], DD(hi, lo), dtype, np.asarray(truth.scale, np.float64))
            bound = PROMISE[truth.kind](dtype, np.asarray(truth.gap, np.float64))
            ratio = far / np.broadcast_to(bound, far.shape)
        if not (ratio <= 1).all():
            at = np.unravel_index(int(np.argmax(np.where(np.isnan(ratio), np.inf, ratio))), ratio.shape)
            raise AssertionError(
                f"{q.operation} {q.dtype}, {name} at {tuple(map(int, at))}: got {got[name][at]!r}, truth {hi[at]!r}, "
                f"{far[at]:.3g} ulp; {int((~(ratio <= 1)).sum())} of {ratio.size} entries are past the promise"
            )
