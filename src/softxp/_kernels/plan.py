"""The plan of a call on CUDA: which instances of softrow.cu, in which grid. Pure Python, and the same for every library.

A caller fills a `Call`, asks `plan` for a `Plan`, compiles each launch's `options` with NVRTC (the source includes nothing,
and its one function is called `softrow`), and launches them in order on one stream with the `Call` as the only parameter,
passed by value. No launch needs dynamic shared memory. `plan` answers None for what the kernels do not take.

    operation              reads                       writes
    softmax                x                           y; with `factor`, p times it: the derivative of logsumexp, 0 in frozen rows
    log_softmax            x                           y
    logsumexp              x                           y: one number of x's dtype for each row (its steps outer and inner)
    state                  x                           m, r: what logsumexp = m + log1p(r) is made of
    loss                   x, labels                   loss, weight
    loss_and_gradient      x, labels                   loss, weight, and y: the gradient. y may be x
    softmax_pullback       x, v (the cotangent)        y: the cotangent of x. y may be v, or x
    log_softmax_pullback   x, v (the cotangent)        y: the same

    flag          of               what it switches on, at compile time
    MASK          all              mask: bool, x's shape by steps, of which any may be 0
    TEMPERATURE   maps, losses     temperature, unless it is 1. Of each row: 0 and inf are limits, negative or NaN gives NaN
    SOFTCAP       losses           softcap
    SOFT          losses           labels are distributions: v, with x's dtype and shape; otherwise `label` is read
    SMOOTHING     losses           smoothing
    CLASS_WEIGHT  losses           class_weight
    WIDE          state, float32   arithmetic in float64

A view is an address (0: none) and the steps, in elements, from one outer index to the next, one inner index to the next, and
along a row: number k of row i * inner + j is at outer * i + inner * j + along * k. Quantities of a row are float64, one step
apart, step 0 for one that is all rows'. A `Number` without an address is its `value`. `label` may have any integer type:
`label_kind` is its size in bytes, negative where it is unsigned; bad ones give NaN, and are never an address.

loss is `s · loss` and weight is `s · W` of docs/semantics.md, both 0 in a dropped row: "mean" is Σ loss / Σ weight. The
gradient is that of `factor · s · loss`. Arithmetic is float32 for 16 and 32 bits, float64 for float64. v and y are fastest where
they lie as x does: their addresses equal to x's modulo 16.
"""

import ctypes
from typing import NamedTuple

OPERATIONS = (
    "softmax", "log_softmax", "logsumexp", "state", "loss", "loss_and_gradient", "softmax_pullback",
    "log_softmax_pullback",
)  # fmt: skip
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
MASK, TEMPERATURE, SOFTCAP, SOFT, SMOOTHING, CLASS_WEIGHT, WIDE = 1, 2, 4, 8, 16, 32, 64
STRIDED = 128  # set by the plan: the numbers of a row are not neighbours, and are read one by one

RECORD = 12  # float64 of workspace for each piece of a row


class View(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64), ("outer", ctypes.c_int64), ("inner", ctypes.c_int64), ("along", ctypes.c_int64)
    )  # fmt: skip


class Number(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("step", ctypes.c_int64), ("value", ctypes.c_double))


class Rows(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("step", ctypes.c_int64))


class Call(ctypes.Structure):
    """softrow.cu's `Call`, field by field. Everything starts as 0: set the values of temperature, factor and sample_weight."""

    _fields_ = (
        ("x", View),
        ("y", View),
        ("v", View),
        ("mask", View),
        ("temperature", Number),  # of each row
        ("factor", Number),  # of each row; in softmax it counts where it has an address
        ("sample_weight", Number),  # of each row
        ("label", Rows),
        ("loss", Rows),
        ("weight", Rows),
        ("m", Rows),
        ("r", Rows),
        ("class_weight", ctypes.c_uint64),  # float64, n of them
        ("workspace", ctypes.c_uint64),  # Plan.workspace bytes, any contents
        ("rows", ctypes.c_int64),  # in all: outer times inner
        ("inner", ctypes.c_int64),
        ("n", ctypes.c_int64),  # numbers in a row
        ("pieces", ctypes.c_int64),  # of a row: Plan.pieces
        ("piece", ctypes.c_int64),  # numbers in a piece: Plan.piece
        ("ignore_index", ctypes.c_int64),
        ("softcap", ctypes.c_double),
        ("smoothing", ctypes.c_double),
        ("z_loss", ctypes.c_double),
        ("label_kind", ctypes.c_int32),
        ("ignore", ctypes.c_int32),  # is there an ignore_index?
    )


class Launch(NamedTuple):
    options: tuple[str, ...]  # for NVRTC, beside --gpu-architecture and -std=c++17
    grid: int  # blocks, along x
    block: int  # threads in a block


class Plan(NamedTuple):
    launches: tuple[Launch, ...]
    workspace: int  # bytes
    pieces: int
    piece: int


def plan(
    operation: str, dtype: str, flags: int, rows: int, n: int, *, multiprocessors: int, aligned: bool = True,
    along: int = 1, beside: int = 0,
) -> Plan | None:  # fmt: skip
    """The plan for `rows` rows of `n` numbers.

    aligned: every row of x begins at a multiple of 16 bytes. along: x's step along a row. beside: the step from one row to
    its neighbour, inner or outer, whichever is there. Use `plan_of` to have these read off a Call.
    """
    raise NotImplementedError


def plan_of(operation: str, dtype: str, flags: int, call: Call, multiprocessors: int) -> Plan | None:
    """The plan for a Call, into which its pieces are written. The workspace is still the caller's to find."""
    raise NotImplementedError
