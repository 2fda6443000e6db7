"""The plan of a call on CUDA: which instances of softrow.cu, in which grid. Pure Python, and the same for every library.

A caller fills a `Call`, asks `plan` for a `Plan`, compiles each launch's `options` with NVRTC (the source includes nothing,
and its one function is called `softrow`), and launches them in order on one stream with the `Call` as the only parameter,
passed by value, and with `shared` bytes of dynamic shared memory. `plan` answers None for what the kernels do not take, such
as rows of no numbers.

    operation              reads                       writes
    softmax                x                           y; p times `factor` where that has an address: logsumexp's derivative
    log_softmax            x                           y
    logsumexp              x                           y: one number of x's dtype for each row (its steps outer and inner)
    state                  x                           m, r: what logsumexp = m + log1p(r) is made of
    loss                   x, labels                   loss, weight
    loss_and_gradient      x, labels                   loss, weight, and y: the gradient. y may be x, with x's own steps
    softmax_pullback       x, v (the cotangent)        y: the cotangent of x. y may be v, or x
    log_softmax_pullback   x, v (the cotangent)        y: the same
    total                  loss, weight                y: one number, Σ loss / divisor, which is `divisor` or else Σ weight
    share                  labels, or soft: weight     m: one number, factor / divisor, the `factor` of a mean's gradient

    flag          of               what it switches on, at compile time
    MASK          all              mask: bool, x's shape by steps, of which any may be 0
    TEMPERATURE   maps, losses     temperature, unless it is 1. Of each row: 0 and inf are limits, negative or NaN gives NaN
    SOFTCAP       losses           softcap
    SOFT          losses           labels are distributions: v, with x's dtype and shape; otherwise `label` is read
    SMOOTHING     losses           smoothing
    CLASS_WEIGHT  losses           class_weight
    WIDE          state, float32   arithmetic in float64
    GIVEN         total, share     the divisor is `divisor`, and not Σ weight

y's dtype, the `answer`, is x's own, or float32 where x has 16 bits, or 16 bits where x is float32. Losses are as exact as it
needs, though they lie in float64.

A view is an address (0: none) and the steps, in elements, from one outer index to the next, one inner index to the next, and
along a row: number k of row i * inner + j is at outer * i + inner * j + along * k. Quantities of a row are float64, one step
apart, step 0 for one that is all rows'. A `Number` without an address is its `value`. `label` may have any integer type:
`label_kind` is its size in bytes, negative where it is unsigned; bad ones give NaN, and are never an address.

loss is `s · loss` and weight is `s · W` of docs/semantics.md, both 0 in a dropped row: "mean" is Σ loss / Σ weight. The
gradient is that of `cotangent · factor · s · loss`; where `cotangent` has an address and is 1, nothing is done, since y
holds that gradient already. The mean of nothing, 0 / 0, is 0, and so is its gradient.

Pullbacks start from x, not from p: an answer of 16 bits is too short for it, and p does not say which rows are frozen.
Arithmetic is float32 for 16 and 32 bits, float64 for float64. v and y are fastest where they lie as x does: their addresses
equal to x's modulo 16, in every row.
"""

import ctypes
import itertools
from functools import lru_cache
from typing import NamedTuple

OPERATIONS = (
    "softmax", "log_softmax", "logsumexp", "state", "loss", "loss_and_gradient", "softmax_pullback",
    "log_softmax_pullback",
)  # fmt: skip
SUMS = ("total", "share")  # over all rows: after the losses, and before their gradient
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
MASK, TEMPERATURE, SOFTCAP, SOFT, SMOOTHING, CLASS_WEIGHT, WIDE, GIVEN = 1, 2, 4, 8, 16, 32, 64, 256
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
    """softrow.cu's `Call`, field by field. All starts as 0: temperature, factor, sample_weight, cotangent want a value."""

    _fields_ = (
        ("x", View),
        ("y", View),
        ("v", View),
        ("mask", View),
        ("temperature", Number),  # of each row
        ("factor", Number),  # of each row; in softmax it counts where it has an address
        ("sample_weight", Number),  # of each row
        ("divisor", Number),  # of the call
        ("cotangent", Number),  # of the call
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
    options: tuple[
        str, ...
    ]  # for NVRTC, beside --gpu-architecture and -std=c++17; fast math would undo the compensations
    grid: int  # blocks, along x
    block: int  # threads in a block
    shared: int = 0  # bytes of dynamic shared memory, which may be more than a kernel has without having asked for it


class Plan(NamedTuple):
    launches: tuple[Launch, ...]
    workspace: int  # bytes
    pieces: int
    piece: int


ELEMENTS = {"float16": "Half", "bfloat16": "Bfloat", "float32": "float", "float64": "double"}
LOSSES = ("loss", "loss_and_gradient")
ROW_ANSWERS = ("logsumexp", "state", "loss")  # nothing is written for each number
PULLBACKS = ("softmax_pullback", "log_softmax_pullback")

STREAMED, IN_REGISTERS, V_IN_SHARED = range(3)  # how a row is held: not at all, it is read again
COLUMNS = 0  # as the number of lanes of a row: neighbouring threads take neighbouring rows
LONGEST = 1 << 31  # numbers in a row
BLOCKS = (1 << 31) - 1  # in a grid
SHARED = 2  # blocks on a multiprocessor, where clusters can hold a row: one loads while the other waits for its sums
SECTORS = 4  # neighbouring lanes whose vectors are whole sectors of memory, whatever the row's length
STREAM = 512  # threads for a row that is read twice
CUT = 256  # threads for a piece of a row
OF_SUMS = 6400  # bytes of shared memory for the sums of a block, at most
ROOM = 227 << 10  # bytes of shared memory that a block may have, from compute capability 9.0 up to 12.0
MOST_PIECES = 512  # of a row: each is looked at by each block that finishes the row
SUMMED = 8  # rows that a thread adds up where there are many: fewer would wait for one another's memory
WORTH_CUTTING = 1 << 18  # bytes of a row from which two launches cost less than one multiprocessor's slowness


def vectors_at_most(operation: str, dtype: str, flags: int, held: int = IN_REGISTERS) -> int:
    """How many 16-byte vectors of a row a thread holds: 32 numbers of 32 bits, or 16 of 64, of all arrays together."""
    size = SIZES[dtype]
    most = {2: 4, 4: 8, 8: 8}[size]
    if flags & WIDE or (held != V_IN_SHARED and reads_v(operation, flags)):
        most //= 2
    return most


def reads_v(operation: str, flags: int) -> bool:
    return operation in PULLBACKS or flags & SOFT != 0


def answers(dtype: str, answer: str) -> bool:
    """May numbers of `answer` be what the kernels make of numbers of `dtype`?"""
    return dtype == answer or {SIZES[dtype], SIZES[answer]} == {2, 4}


def threads_at_most(dtype: str, flags: int) -> int:
    """So many that each has the registers it needs, of 65536 in a multiprocessor: softrow.cu's HEAVY."""
    return 512 if dtype == "float64" or flags else 1024


def instance(
    operation: str, dtype: str, answer: str, flags: int, lanes: int, threads: int, vectors: int, held: int, grid: int,
    part: str = "WHOLE", cluster: int = 1,
) -> Launch:  # fmt: skip
    values = (
        operation.upper(), ELEMENTS[dtype], ELEMENTS[answer], lanes, threads, vectors, int(held), part, flags
    )  # fmt: skip
    names = ("OPERATION", "ELEMENT", "ANSWER", "LANES", "THREADS", "VECTORS", "HELD", "PART", "FLAGS")
    options = tuple(f"-DSOFTROW_{k}={v}" for k, v in zip(names, values, strict=True))
    if cluster > 1:
        options = *options, f"-DSOFTROW_CLUSTER={cluster}"
    if held != V_IN_SHARED:
        return Launch(options, grid, threads)
    shared = 16 * vectors * threads + OF_SUMS
    return Launch((*options, f"-DSOFTROW_SHARED={shared}"), grid, threads, shared)


def plan(
    operation: str, dtype: str, flags: int, rows: int, n: int, *, multiprocessors: int, capability: int = 80,
    shared: int = ROOM, aligned: bool = True, along: int = 1, beside: int = 0, answer: str = "",
) -> Plan | None:  # fmt: skip
    """The plan for `rows` rows of `n` numbers, with answers of the dtype `answer` or else x's.

    capability: 90 for 9.0, from which on blocks can be clusters. shared: bytes of shared memory that a block may have.
    aligned: every row of x begins at a multiple of 16 bytes. along: x's step along a row. beside: the step from one row to
    the next where that is a shorter one, else 0. `plan_of` reads these off a Call.
    """
    what = (operation, dtype, answer or dtype, flags)
    return _make(*what, rows, n, multiprocessors, capability, shared, aligned, along == 1, beside != 0)


def plan_of(
    operation: str,
    dtype: str,
    flags: int,
    call: Call,
    multiprocessors: int,
    capability: int = 80,
    shared: int = ROOM,
    answer: str = "",
) -> Plan | None:
    """The plan for a Call, into which its pieces are written. The workspace is still the caller's to find."""
    if operation in SUMS:
        found = _make_sums(operation, dtype, answer or dtype, flags, call.rows)
        call.pieces, call.piece = found.pieces, found.piece
        return found
    x, size, inner = call.x, SIZES[dtype], call.inner
    outer_step, inner_step, along = x.outer, x.inner, x.along
    # (a step that is not taken does not count)
    beside = inner_step if inner > 1 else outer_step
    aligned = x.address % 16 == 0 and outer_step * size % 16 == 0 and (inner == 1 or inner_step * size % 16 == 0)
    found = plan(
        operation, dtype, flags, call.rows, call.n, multiprocessors=multiprocessors, capability=capability,
        shared=shared, aligned=aligned, along=along, beside=beside if abs(beside) < abs(along) else 0, answer=answer,
    )  # fmt: skip
    if found is not None:
        call.pieces, call.piece = found.pieces, found.piece
    return found


@lru_cache(4096)
def _make(
    operation: str, dtype: str, answer: str, flags: int, rows: int, n: int, multiprocessors: int, capability: int,
    shared: int, aligned: bool, together: bool, columns: bool,
) -> Plan | None:  # fmt: skip
    if not {dtype, answer} <= set(SIZES) or not answers(dtype, answer) or not 0 < n <= LONGEST:
        return None
    if flags & WIDE and (operation, dtype) != ("state", "float32"):
        return None
    if rows == 0:
        return Plan((), 0, 1, n)
    width, most = 16 // SIZES[dtype], vectors_at_most(operation, dtype, flags)
    peeled = 0 if aligned or not together else width - 1  # numbers before the first vector, at most
    vectors = _up(n + peeled, width)  # that a row touches
    cuttable = operation != "softmax_pullback"  # whose sums are two, one after the other
    if not together:
        flags |= STRIDED
    whole, clusters = threads_at_most(dtype, flags), capability >= 90
    what = (operation, dtype, answer, flags)

    if not together and columns:
        size = 1  # threads of a row, 32 rows beside one another
        while size < 16 and size * most < vectors:
            size *= 2
        lanes, threads, groups = COLUMNS, 32 * size, 32
        held = size * most >= vectors
        per_thread = _enough(_up(vectors, size), most) if held else max(1, most // 2)
    elif vectors <= 32 * most:
        lanes = 1
        while lanes < 32 and ((lanes < SECTORS and lanes * 2 < vectors) or lanes * most < vectors):
            lanes *= 2
        threads = 128 if rows * lanes >= 128 * multiprocessors else 32
        size, groups, held, per_thread = lanes, threads // lanes, True, _enough(_up(vectors, lanes), most)
    elif vectors <= (whole // SHARED if clusters else whole) * most:
        per_thread = most  # what a thread does once for its row is shared by all of its numbers
        threads = _round(_up(vectors, most))
        size, lanes, groups, held = threads, threads, 1, True
    else:
        size = lanes = threads = STREAM
        groups, held, per_thread = 1, False, max(1, most // 2)

    blocks = _up(rows, groups)
    if n * SIZES[dtype] >= WORTH_CUTTING and 2 * blocks <= multiprocessors and cuttable:
        per_thread = max(1, most // 2)
        if lanes != COLUMNS:
            lanes = threads = size = CUT
        tile = size * per_thread * width
        pieces = min(MOST_PIECES, _up(n, tile), _up(4 * multiprocessors, blocks))
        piece = _up(n, pieces)
        piece = _up(piece, width) * width  # so that pieces begin where the row's own vectors do
        pieces = _up(n, piece)
        shape = (*what, lanes, threads, per_thread, False)
        finishing = blocks if operation in ROW_ANSWERS else blocks * pieces
        first = instance(*shape, grid=blocks * pieces, part="FIRST")
        return Plan((first, instance(*shape, grid=finishing, part="LAST")), rows * pieces * RECORD * 8, pieces, piece)
    if not held and lanes != COLUMNS and clusters and 8 * rows <= BLOCKS:
        found = _make_cluster(what, rows, n, shared if together else 0, whole, peeled)
        if found is not None:
            return found
    if blocks > BLOCKS:
        return None
    return Plan((instance(*what, lanes, threads, per_thread, held, blocks),), 0, 1, n)


def _make_cluster(
    what: tuple[str, str, str, int], rows: int, n: int, shared: int, whole: int, peeled: int
) -> Plan | None:
    """Blocks that share a row which one cannot hold. `shared`: bytes of shared memory in which v may wait."""
    operation, dtype, _, flags = what
    width = 16 // SIZES[dtype]

    def of(cluster: int) -> tuple[int, int]:
        """Numbers in a piece, and vectors that it touches."""
        piece = _up(_up(n, cluster), width) * width
        return piece, _up(piece + peeled, width)

    ways = (IN_REGISTERS, V_IN_SHARED) if reads_v(operation, flags) else (IN_REGISTERS,)
    for limit, held, cluster in itertools.product((whole // SHARED, whole), ways, (2, 4, 8)):
        (piece, vectors), most = of(cluster), vectors_at_most(operation, dtype, flags, held)
        threads = _round(_up(vectors, most))
        if _up(n, piece) == cluster and threads <= limit and threads * most >= vectors:
            launch = instance(*what, threads, threads, most, held, rows * cluster, "CLUSTER", cluster)
            if launch.shared <= shared:
                return Plan((launch,), 0, cluster, piece)
    # it is read again, by so few clusters at a time that it is found in the second cache
    (piece, _), most = of(8), vectors_at_most(operation, dtype, flags)
    if _up(n, piece) != 8:
        return None
    launch = instance(*what, STREAM, STREAM, max(1, most // 2), STREAMED, rows * 8, "CLUSTER", 8)
    return Plan((launch,), 0, 8, piece)


@lru_cache(4096)
def _make_sums(operation: str, dtype: str, answer: str, flags: int, rows: int) -> Plan:
    """`piece` and `pieces` are of all rows here."""
    rows = 1 if operation == "share" and flags & GIVEN else rows  # nothing is added up
    shape = (operation, dtype, answer, flags, STREAM, STREAM, 1, False)
    piece = max(SUMMED * STREAM, _up(rows, MOST_PIECES))
    pieces = max(1, _up(rows, piece))
    if pieces == 1:
        return Plan((instance(*shape, grid=1),), 0, 1, piece)
    first = instance(*shape, grid=pieces, part="FIRST")
    return Plan((first, instance(*shape, grid=1, part="LAST")), 2 * 8 * pieces, pieces, piece)


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _enough(vectors: int, most: int) -> int:
    """The first of a few numbers of vectors a thread that suffices: each is another instance to compile."""
    return next(v for v in (1, 2, 3, 4, 6, 8, most) if v >= min(vectors, most))


def _round(threads: int) -> int:
    """Up to whole warps, and of many to a few sizes: each is another instance to compile."""
    step = 32 if threads <= 128 else 64 if threads <= 256 else 128
    return min(1024, _up(threads, step) * step)
