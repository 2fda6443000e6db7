"""softrow.cu, run on the CPU, against the formulas: operations, dtypes, roads, options, layouts, schedules, corners.

No GPU is asked: what this proves is the source's arithmetic, its addresses and its barriers.
"""

import zlib
from functools import cache

import emulated as M
import numpy as np
import pytest

from softxp._kernels import plan as P

pytestmark = pytest.mark.skipif(M.COMPILER is None, reason="no g++ is found, which builds the kernels for the CPU")

# road: (lanes of a row, threads of a block, vectors of a thread, how it is held, layout of x)
ROADS = {
    "a thread": (1, 32, 2, True, "rows"),
    "lanes": (8, 64, 2, True, "rows"),
    "a warp": (32, 64, 2, True, "rows"),
    "a block": (96, 96, 2, True, "rows"),
    "a stream": (64, 64, 1, False, "rows"),
    "pieces": (64, 64, 1, False, "rows"),
    "a cluster": (64, 64, 2, True, "rows"),
    "columns": (P.COLUMNS, 64, 2, True, "columns"),
    "a stream of columns": (P.COLUMNS, 64, 1, False, "columns"),
    "pieces of columns": (P.COLUMNS, 64, 1, False, "columns"),
    "steps": (4, 32, 2, True, "apart"),
    "a stream of steps": (64, 64, 1, False, "back"),
    "a cluster's stream": (64, 64, 1, False, "rows"),
    "a cluster, v apart": (64, 64, 2, P.V_IN_SHARED, "rows"),
}
V_APART = list(ROADS)[-1]
BOTH = P.MASK | P.TEMPERATURE
PLAIN = {"logsumexp": (0, P.MASK), "state": (0, P.MASK), "loss": (), "loss_and_gradient": ()}
OF_LOSSES = (
    0, BOTH | P.CLASS_WEIGHT, P.SMOOTHING | P.MASK, P.SOFTCAP | P.TEMPERATURE, P.SOFT, 63, P.SMOOTHING | P.CLASS_WEIGHT,
    P.SOFTCAP | P.MASK, P.SOFT | BOTH | P.SMOOTHING,
)  # fmt: skip
# dtypes and those of the answer
PAIRS = (
    (("float16", "float32"), ("float64", "float64")),
    (("bfloat16", "bfloat16"), ("float32", "float16")),
    (("float16", "float16"), ("float64", "float64")),
    (("bfloat16", "float32"), ("float32", "float32")),
    (("float16", "float16"), ("float32", "bfloat16")),
)


def asked(operation: str, road: str) -> list[tuple[str, str, int]]:
    """Dtype, answer's dtype and flags in which a road is tried: narrow and wide, so that all meet all over the table."""
    i, j = P.OPERATIONS.index(operation), list(ROADS).index(road)
    dtypes = PAIRS[(i + j) % 5]
    if operation == "state":  # which has no answer of another dtype
        dtypes = tuple((dtype, dtype) for dtype, _ in dtypes)
    if operation in P.LOSSES:
        flags = OF_LOSSES[(2 * j + i) % 9], OF_LOSSES[(2 * j + i + 1) % 9]
        if road == V_APART:
            flags = P.SOFT | flags[0], P.SOFT | flags[1]
    else:
        flags = PLAIN.get(operation, (0, BOTH))
        flags = flags if j // 2 % 2 else flags[::-1]
    all_asked = [(*pair, of) for pair, of in zip(dtypes, flags, strict=True)]
    if (operation, road) == ("softmax", "a stream of columns"):
        all_asked.append(("float32", "float32", 0))
    if operation == "state" and "float32" in dtypes[1]:
        all_asked.append(("float32", "float32", P.WIDE))
    return all_asked


def launches(operation: str, road: str, dtype: str, answer: str, flags: int, grid: int = 1) -> list[P.Launch]:
    lanes, threads, vectors, held, layout = ROADS[road]
    flags |= P.STRIDED if layout in ("columns", "apart", "back") else 0
    parts = ("FIRST", "LAST") if road.startswith("pieces") else ("CLUSTER",) if in_cluster(road) else ("WHOLE",)
    return [P.instance(operation, dtype, answer, flags, lanes, threads, vectors, held, grid, part) for part in parts]


def in_cluster(road: str) -> bool:
    return road.startswith("a cluster")


def tried(operation: str, road: str) -> bool:
    if road == V_APART:
        return operation in (*P.PULLBACKS, *P.LOSSES)  # only they read v
    return not (operation == "softmax_pullback" and road.startswith("pieces"))  # its second sums need the first ones


@cache
def library(operation: str) -> M.Library:
    return M.Library(
        launch
        for road in ROADS
        if tried(operation, road)
        for how in asked(operation, road)
        for launch in launches(operation, road, *how)
    )


# --- questions -------------------------------------------------------------------------------------------------------------

INF, NAN = float("inf"), float("nan")


def rows_of(rng: np.random.Generator, rows: int, n: int) -> np.ndarray:
    """Rows of every family, in an order drawn anew."""
    x = rng.normal(size=(rows, n)) * 3
    for i, family in enumerate(rng.permutation(np.arange(rows) % 14)):
        some = rng.random(n) < 0.3
        one = rng.integers(n)
        if family == 1:
            x[i] = x[i] * 10 + 300
        elif family == 2:
            x[i] = np.round(x[i])  # ties
        elif family == 3:
            x[i, one] = x[i].max() + 20  # a confident row: a tail that 1 + r loses
        elif family == 4:
            x[i, some] = -INF
        elif family == 5:
            x[i] = -INF
        elif family == 6:
            x[i, one] = INF
        elif family == 7:
            x[i, some] = INF
        elif family == 8:
            x[i, one] = NAN
        elif family == 9:
            x[i] = NAN
        elif family == 10:
            x[i, some], x[i, one] = INF, NAN
        elif family == 11:
            x[i] = 2.5
        elif family == 12:
            x[i] = rng.choice([-6e4, 6e4], n)  # nearly the ends of a float16
        elif family == 13:
            x[i] = np.sort(x[i]) / 10  # the maximum moves with every tile, and no tile loses its weight
    return x


def question(
    operation: str, dtype: str, flags: int, outer: int, inner: int, n: int, rng: np.random.Generator
) -> M.Question:
    shape, rows, to = (outer, inner, n), (outer, inner, 1), M.DTYPES[dtype]
    with np.errstate(all="ignore"):
        x = rows_of(rng, outer * inner, n).reshape(shape).astype(to)
    q = M.Question(operation, dtype, flags, x)
    if flags & P.MASK:
        q.where = rng.random(shape) < rng.choice([0.2, 0.8, 1.0], rows)
        q.where &= rng.random(rows) < 0.9
    if flags & P.TEMPERATURE:
        q.temperature = rng.choice([1.0, 0.3, 2.7, 1e-3, 77.0, 0.0, INF, NAN, -1.0], rows)
        if rng.random() < 0.3:
            q.temperature = float(rng.choice([0.0, INF, 0.7]))
    if operation == "softmax" and not flags & P.TEMPERATURE and rng.random() < 0.5:
        q.factor = rng.normal(size=rows)
    if operation in P.PULLBACKS:
        q.v = (rng.normal(size=shape) + rng.choice([0, 0, 100])).astype(to)
    if operation not in P.LOSSES:
        return q
    if flags & P.SOFT:
        v = rng.random(shape) * (rng.random(shape) < 0.7)
        v[::3] = 0
        hot = np.argmax(np.where(np.isnan(x.astype(float)), -INF, x.astype(float)), -1)[::3]
        np.put_along_axis(v[::3], np.where(rng.random(hot.shape) < 0.6, hot, rng.integers(n))[..., None], 1, -1)
        v[rng.random((outer, inner)) < 0.1] = 0
        q.v = (v / np.maximum(v.sum(-1, keepdims=True), 1e-9)).astype(to)
    else:
        labels = rng.integers(0, n, rows)
        top = np.argmax(np.where(np.isnan(x.astype(float)), -INF, x.astype(float)), -1, keepdims=True)
        labels = np.where(rng.random(rows) < 0.4, top, labels)
        kind = rng.choice(["int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"])
        bad = [-100, -1, n, n + 5, -(1 << 40), 1 << 33, 156]
        labels = np.where(rng.random(rows) < 0.3, rng.choice(bad, rows), labels)
        least, most = np.iinfo(kind).min, np.iinfo(kind).max
        q.labels = np.where((labels < least) | (labels > most), 0 if n - 1 > most else n - 1, labels).astype(kind)
        if kind == "uint64":
            q.labels[0, 0, 0] = 2**64 - 100  # not -100
        q.ignore_index = [-100, None, 3][rng.integers(3)]
    if flags & P.CLASS_WEIGHT:
        q.class_weight = rng.random(n) * 2 * (rng.random(n) < 0.9)
    if flags & P.SOFTCAP:
        q.softcap = float(rng.choice([3.0, 50.0]))
    if flags & P.SMOOTHING:
        q.smoothing = float(rng.choice([0.1, 1.0, 0.4]))
    if rng.random() < 0.4:
        q.sample_weight = rng.choice([1.0, 0.0, 2.5], rows)
    if rng.random() < 0.5:
        q.factor = rng.normal(size=rows)
    if rng.random() < 0.3:
        q.cotangent = -0.625
    if rng.random() < 0.3:
        q.z_loss = 0.01
        if flags & P.TEMPERATURE:
            q.temperature = rng.choice([1.0, 0.7, 5.0], rows)  # a limit's log-sum-exp is not finite
    return q


def sizes(road: str, dtype: str) -> list[int]:
    """1, 2, what ends in the middle of a warp, one around every edge of the road; and prime, where it may be anything."""
    lanes, threads, vectors, held, layout = ROADS[road]
    width = 16 // P.SIZES[dtype]
    tile = (lanes or threads // 32) * vectors * width
    if not held and not in_cluster(road):
        return [1, 2, tile - 1, tile, tile + 1, 3 * tile + 5, 997]
    if in_cluster(road):
        return [1, 33, 997]
    most = tile if layout != "rows" else tile - width + 1  # rows may begin anywhere
    return sorted({n for n in (1, 2, 3, 31, 33, 61, most - 1, most) if n <= most})


def ask(
    lib: M.Library, operation: str, road: str, dtype: str, answer: str, flags: int, n: int, rng: np.random.Generator
) -> None:
    lanes, threads, _, _, layout = ROADS[road]
    groups = 32 if lanes == P.COLUMNS else threads // lanes
    inner = int(rng.choice([5, 37] if layout == "columns" else [1, 1, 3]))
    outer = -(-int(rng.choice([groups + 1, 5, 14])) // inner)
    if layout == "columns":
        outer = int(rng.choice([1, 3 if n < 100 else 2]))
    q = question(operation, dtype, flags, outer, inner, n, rng)
    q.answer = answer
    width = 16 // P.SIZES[dtype]
    pieces, piece = 1, n
    if road.startswith("pieces"):
        piece = -(-n // int(rng.integers(1, 5))) // width * width + width
        pieces = -(-n // piece)
    if in_cluster(road):
        pieces = int(rng.choice([k for k in (2, 4, 8) if n // k <= threads * 2 * width - 2 * width]))
        piece = -(-n // pieces) // width * width + width  # the last ones may have nothing
    blocks = -(-outer * inner // groups)
    run = launches(operation, road, dtype, answer, flags, blocks * pieces)
    if len(run) == 2 and operation in P.ROW_ANSWERS:
        run[1] = run[1]._replace(grid=blocks)
    if layout == "rows":
        layout = str(rng.choice(["rows", "rows", "pitch"]))
    shift = int(rng.choice([0, 0, 1, width - 1]))
    in_place = operation == "loss_and_gradient" and answer == dtype and bool(rng.random() < 0.5)
    true = M.truths(q)
    if operation == "softmax" and answer == dtype and q.factor is None and rng.random() < 0.3:
        in_place = True
    got = M.answers(
        lib, q, run, pieces=pieces, piece=piece, layout=layout, shift=shift, in_place=in_place,
        y_layout=rng.choice([None, None, "rows", "apart"]), y_shift=rng.choice([None, None, 0, 1]),
        mask_layout=None, seed=int(rng.integers(4)),
    )  # fmt: skip
    M.judge(q, got, true)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("operation", P.OPERATIONS)
def test_every_road(operation, road):
    if not tried(operation, road):
        pytest.skip("no plan has this road")
    lib = library(operation)
    for how in asked(operation, road):
        for n in sizes(road, how[0]):
            for again in range(2):
                seed = zlib.crc32(f"{operation} {road} {how[0]} {n} {again}".encode())
                try:
                    ask(lib, operation, road, *how, n, np.random.default_rng(seed))
                except AssertionError as e:
                    raise AssertionError(f"{road}, {how}, n = {n}, draw {again}: {e}") from e


def test_a_gradient_that_is_there_already():
    """A cotangent of 1, read from memory: nothing is written."""
    for road in ("lanes", "a block", "pieces", "a cluster"):
        (how, *_) = asked("loss_and_gradient", road)
        q = question("loss_and_gradient", how[0], how[2], 3, 1, 33, np.random.default_rng(0))
        q.answer, q.cotangent = how[1], 1.0
        pieces = 4 if road in ("pieces", "a cluster") else 1
        run = launches("loss_and_gradient", road, *how, 3 * pieces)
        got = M.answers(library("loss_and_gradient"), q, run, pieces=pieces, piece=16 if pieces > 1 else 33)
        canary = np.frombuffer(b"\xab" * 8, M.DTYPES[how[1]])[0]
        assert (got["y"] == float(canary)).all(), road


# --- sums over all rows ----------------------------------------------------------------------------------------------------

SUMMED = {  # answer's dtypes and flags
    "total": (("float32", 0), ("bfloat16", 0), ("float32", P.GIVEN)),
    "share": tuple(("float32", flags) for flags in (0, P.SOFT, P.CLASS_WEIGHT, P.GIVEN)),
}


def launches_of_sums() -> list[P.Launch]:
    return [
        P.instance(operation, "float32", answer, flags, P.STREAM, P.STREAM, 1, False, 1, part)
        for operation, how in SUMMED.items()
        for answer, flags in how
        for part in ("WHOLE", "FIRST", "LAST")
    ]


def ask_sums(lib: M.Library, operation: str, answer: str, flags: int, rows: int, rng: np.random.Generator) -> None:
    """Losses and weights, or labels and their weights: what they come to, with and without anything that counts."""
    nothing, n = rng.random() < 0.3, 5
    labels = rng.integers(-1 if rng.random() < 0.5 else 0, n, rows)
    labels[rng.random(rows) < (1.0 if nothing else 0.2)] = -100
    of_class, sample = rng.random(n) * (rng.random(n) < 0.7), rng.random(rows) * (rng.random(rows) < 0.8)
    inside = (labels >= 0) & (labels < n)
    by = np.float32(of_class)[np.where(inside, labels, 0)].astype(float) if flags & P.CLASS_WEIGHT else np.ones(rows)
    weight = np.where(inside, sample * by, 0)
    loss = np.where(weight == 0, 0, weight * rng.normal(size=rows))
    divisor, factor = float(rng.choice([0.0, 2.5])), np.asarray([-1.75])
    call = P.Call(rows=rows, inner=1, n=n, ignore=1, ignore_index=-100)
    call.loss, call.weight = (P.Rows(a.ctypes.data, 1) for a in (loss, weight))
    call.label, call.label_kind = P.Rows(labels.ctypes.data, 1), 8
    call.sample_weight = P.Number(sample.ctypes.data, 1, np.nan)
    call.class_weight, call.divisor = of_class.ctypes.data, P.Number(0, 0, divisor)
    call.factor = P.Number(factor.ctypes.data, 0, np.nan)
    y, m = np.full(1, np.nan, M.DTYPES[answer]), np.full(1, np.nan)
    call.y, call.m = P.View(y.ctypes.data, 0, 0, 0), P.Rows(m.ctypes.data, 0)
    plan = P.plan_of(operation, "float32", flags, call, 132, 90, answer=answer)
    workspace = np.full(plan.workspace // 8 + 1, np.nan)
    call.workspace = workspace.ctypes.data
    for launch in plan.launches:
        lib.launch(launch, call, int(rng.integers(4)))
    assert np.isnan(workspace[-1])
    by = divisor if flags & P.GIVEN else weight.sum()
    over = loss.sum() if operation == "total" else float(factor[0])
    with np.errstate(all="ignore"):
        none = by == 0 and (operation == "share" or loss.sum() == 0)
        want = 0.0 if none else over / by
        eps = {"float32": 1e-6, "bfloat16": 4e-3}[answer]
    np.testing.assert_allclose(float(y[0]) if operation == "total" else m[0], want, rtol=eps, atol=1e-12)
    assert np.isnan(float((m if operation == "total" else y)[0])), "something else was written"


def ask_all_sums(lib: M.Library, operation: str, again: int) -> None:
    for answer, flags in SUMMED[operation]:
        for rows in (1, 3, 511, 513, P.SUMMED * P.STREAM, P.SUMMED * P.STREAM + 1, 9001):
            seed = zlib.crc32(f"{operation} {flags} {rows} {again}".encode())
            ask_sums(lib, operation, answer, flags, rows, np.random.default_rng(seed))


@pytest.mark.parametrize("operation", P.SUMS)
def test_sums_over_all_rows(operation):
    library = M.Library(launches_of_sums())
    for again in range(4):
        ask_all_sums(library, operation, again)
