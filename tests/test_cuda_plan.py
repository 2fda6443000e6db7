"""The planner of the CUDA kernels, which is pure Python: what it plans can be launched, and holds all of every row."""

import re

import emulated as M
import numpy as np
import pytest
from test_cuda_kernels import question

from softxp._kernels import plan as P

SOURCE = M.SOURCE.read_text()
NS = (
    1,
    2,
    3,
    8,
    31,
    64,
    256,
    1000,
    1023,
    1024,
    4096,
    4097,
    32768,
    50257,
    131072,
    262144,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
)
FLAGS = {
    **dict.fromkeys(P.OPERATIONS, (0, P.MASK, P.MASK | P.TEMPERATURE)),
    **dict.fromkeys(P.LOSSES, (0, P.CLASS_WEIGHT, P.SOFT, P.SMOOTHING, 63)),
}  # fmt: skip


def options(launch: P.Launch) -> dict[str, str]:
    return dict(option.removeprefix("-DSOFTROW_").split("=") for option in launch.options)


def looked_at(plan: P.Plan, operation: str, dtype: str, rows: int, n: int, aligned: bool, together: bool) -> None:
    width = 16 // P.SIZES[dtype]
    assert plan.pieces * plan.piece >= n > (plan.pieces - 1) * plan.piece
    assert plan.pieces <= P.MOST_PIECES
    cluster = "CLUSTER" in "".join(plan.launches[0].options)
    assert plan.workspace == (rows * plan.pieces * P.RECORD * 8 if len(plan.launches) == 2 else 0)
    for launch in plan.launches:
        o = options(launch)
        assert cluster == (o["PART"] == "CLUSTER") and (
            not cluster or o["CLUSTER"] == str(plan.pieces) in ("2", "4", "8")
        )
        lanes, threads, vectors, held = (int(o[k]) for k in ("LANES", "THREADS", "VECTORS", "HELD"))
        assert threads == launch.block
        assert threads % 32 == 0 and 32 <= threads <= P.threads_at_most(dtype, int(o["FLAGS"]))
        assert 1 <= vectors <= P.vectors_at_most(operation, dtype, int(o["FLAGS"]), held) <= 8
        assert lanes in (P.COLUMNS, 1, 2, 4, 8, 16, 32, threads)
        assert bool(int(o["FLAGS"]) & P.STRIDED) == (not together)
        size = threads // 32 if lanes == P.COLUMNS else lanes
        groups = 32 if lanes == P.COLUMNS else threads // lanes
        per_row = plan.pieces
        if o["PART"] == "LAST" and operation in P.ROW_ANSWERS:
            per_row = 1
        assert launch.grid == -(-rows // groups) * per_row
        assert 1 <= launch.grid <= P.BLOCKS
        assert (held == P.V_IN_SHARED) == (launch.shared > 0) and launch.shared <= P.ROOM
        if held:  # the worst beginning of a row leaves room
            assert size * vectors * width >= plan.piece + (0 if aligned or not together else width - 1)


@pytest.mark.parametrize("operation", P.OPERATIONS)
@pytest.mark.parametrize("dtype", P.SIZES)
def test_every_plan_can_be_launched(operation, dtype):
    for flags in FLAGS[operation]:
        for n in NS:
            for rows in (1, 2, 5, 32, 131, 132, 4096, 100_000, (1 << 33) // n + 1):
                for aligned in (True, False):
                    for along, beside in ((1, 0), (7, 1), (2, 0)):
                        capability = 80 if rows % 2 else 90
                        how = dict(
                            multiprocessors=132, capability=capability, aligned=aligned, along=along, beside=beside
                        )
                        plan = P.plan(operation, dtype, flags, rows, n, **how)
                        if plan is None:
                            assert rows * n > 1 << 32, "only what no memory holds may be refused"
                            continue
                        looked_at(plan, operation, dtype, rows, n, aligned, along == 1)


def test_few_long_rows_are_cut():
    for operation in P.OPERATIONS:
        plan = P.plan(operation, "bfloat16", 0, 1, 262144, multiprocessors=132)
        assert plan is not None
        cut = operation != "softmax_pullback"
        assert (len(plan.launches) == 2) == cut
        assert (plan.launches[0].grid > 24) == cut
    assert len(P.plan("softmax", "bfloat16", 0, 4096, 262144, multiprocessors=132).launches) == 1


def test_a_cluster_holds_what_a_block_does_not():
    for dtype, most in (("float16", 262144), ("float32", 262144), ("float64", 65536)):
        for operation in ("softmax", "softmax_pullback", "log_softmax_pullback"):
            for n in NS:
                plan = P.plan(operation, dtype, 0, 4096, n, multiprocessors=132, capability=90)
                held = options(plan.launches[0])["HELD"]
                assert (held != str(P.STREAMED)) == (n <= most), (dtype, n)
    assert P.plan("softmax", "float16", 0, 4096, 50257, multiprocessors=132, capability=90, aligned=False).pieces == 4
    assert P.plan("softmax", "float16", 0, 4096, 50257, multiprocessors=132, capability=89).pieces == 1


def test_what_no_cluster_holds_is_read_again_by_one():
    for n in (262145, 1 << 20, 1 << 31):
        plan = P.plan("softmax", "float32", 0, 4096, n, multiprocessors=132, capability=90)
        assert plan.pieces == 8 and options(plan.launches[0])["HELD"] == str(P.STREAMED)
    assert P.plan("softmax", "float32", 0, 4096, 262145, multiprocessors=132, capability=89).pieces == 1


def test_the_second_array_waits_in_shared_memory_where_there_is_so_much():
    for dtype, n in (("bfloat16", 262144), ("float32", 131072), ("float64", 65536)):
        for operation, flags in (("softmax_pullback", 0), ("loss_and_gradient", P.SOFT)):
            for capability, shared in ((89, P.ROOM), (90, P.ROOM), (100, P.ROOM), (120, 99 << 10), (120, 48 << 10)):
                how = dict(multiprocessors=132, capability=capability, shared=shared)
                plan = P.plan(operation, dtype, flags, 4096, n, **how)
                (launch,) = plan.launches
                apart = options(launch)["HELD"] == str(P.V_IN_SHARED)
                assert launch.shared <= shared
                held = not (flags and n == 262144) and shared > 99 << 10 and capability >= 90
                assert apart == held or (capability, shared) == (120, 99 << 10)
                assert apart == (launch.shared > 0) and launch.shared * (1024 // launch.block) <= P.ROOM
    assert not P.plan("softmax", "float32", 0, 4096, 262144, multiprocessors=132, capability=90).launches[0].shared


def test_two_blocks_share_a_multiprocessor_where_clusters_can_hold_a_row():
    for dtype, n, pieces in (("bfloat16", 16384, 1), ("bfloat16", 32768, 2), ("float32", 131072, 8)):
        plan = P.plan("softmax", dtype, 0, 4096, n, multiprocessors=132, capability=90)
        assert (plan.pieces, plan.launches[0].block) == (pieces, 512)
    assert P.plan("softmax", "bfloat16", 0, 4096, 262144, multiprocessors=132, capability=90).launches[0].block == 1024
    assert P.plan("softmax", "bfloat16", 0, 4096, 32768, multiprocessors=132, capability=89).launches[0].block == 1024


def test_a_row_is_read_once_where_it_fits():
    for dtype, most in (("float16", 32768), ("bfloat16", 32768), ("float32", 32768), ("float64", 8192)):
        for n in NS:
            held = options(P.plan("softmax", dtype, 0, 4096, n, multiprocessors=132).launches[0])["HELD"]
            assert held == str(int(n <= most)), (dtype, n)


def test_short_rows_share_a_warp():
    for n, lanes in ((4, 1), (64, 4), (256, 8), (1000, 32)):
        assert options(P.plan("softmax", "bfloat16", 0, 1 << 20, n, multiprocessors=132).launches[0])["LANES"] == str(
            lanes
        )


def test_nothing_to_do_and_nothing_to_take():
    assert P.plan("softmax", "float32", 0, 0, 5, multiprocessors=132).launches == ()
    assert P.plan("softmax", "float32", 0, 5, 0, multiprocessors=132) is None
    assert P.plan("softmax", "float32", 0, 5, (1 << 31) + 1, multiprocessors=132) is None
    assert P.plan("softmax", "int32", 0, 5, 5, multiprocessors=132) is None
    assert P.plan("softmax", "float32", P.WIDE, 5, 5, multiprocessors=132) is None
    for dtype, answer in (("float32", "float64"), ("float64", "float16"), ("float16", "bfloat16")):
        assert P.plan("softmax", dtype, 0, 5, 5, multiprocessors=132, answer=answer) is None


def test_few_instances_serve_all():
    """Each is compiled at its first use: sizes must share them."""
    seen = {
        launch.options
        for n in range(1, 40_000)
        for launch in P.plan("softmax", "bfloat16", 0, 1 << 16, n, multiprocessors=132, aligned=n % 8 == 0).launches
    }
    assert len(seen) <= 32


# --- the contract: the same words in plan.py and softrow.cu ---------------------------------------------------------


def fields(struct: str) -> list[str]:
    body = re.search(rf"struct {struct} {{(.*?)}};", SOURCE, re.S).group(1)
    declared = [
        line.split(None, 1)[1] for line in body.replace("unsigned long long", "Address").split(";") if line.strip()
    ]
    return [name.strip() for line in declared for name in line.split(",")]


@pytest.mark.parametrize("struct", [P.Call, P.View, P.Number, P.Rows], ids=lambda s: s.__name__)
def test_fields_are_those_of_the_source(struct):
    assert fields(struct.__name__) == [name for name, _ in struct._fields_]


def test_names_are_those_of_the_source():
    enums = [[part.strip() for part in body.split(",")] for body in re.findall(r"^enum {(.*?)};", SOURCE, re.M | re.S)]
    assert enums[0] == [operation.upper() for operation in (*P.OPERATIONS, *P.SUMS)]
    assert {name: int(value) for name, value in (part.split(" = ") for part in enums[1])} == {
        name: getattr(P, name)
        for name in ["MASK", "TEMPERATURE", "SOFTCAP", "SOFT", "SMOOTHING", "CLASS_WEIGHT", "WIDE", "STRIDED", "GIVEN"]
    }
    assert f"RECORD = {P.RECORD};" in SOURCE


def test_the_source_includes_nothing():
    assert "#include" not in SOURCE
    assert "__ldg" not in SOURCE and "ld.global.nc." not in SOURCE and "__restrict__" not in SOURCE


# --- as planned: the sizes of the benchmark, with the threads a GPU gets ---------------------------------------------

PLANNED = (  # operation, dtype, flags, outer, inner, n, layout
    ("softmax", "bfloat16", 0, 2, 1, 50257, "rows"),
    ("softmax", "float32", 0, 1, 2, 70001, "rows"),
    ("softmax", "float16", 0, 9, 1, 64, "rows"),
    ("softmax", "float32", P.MASK, 1, 40, 1000, "columns"),
    ("log_softmax", "bfloat16", 0, 5, 1, 1000, "rows"),
    ("log_softmax", "float64", 0, 2, 1, 4097, "rows"),
    ("logsumexp", "float64", 0, 3, 1, 1023, "rows"),
    ("logsumexp", "bfloat16", 0, 1, 1, 262144, "rows"),
    ("loss_and_gradient", "bfloat16", 0, 3, 1, 4097, "rows"),
    ("loss_and_gradient", "float32", P.SMOOTHING, 1, 2, 100001, "rows"),
    ("loss", "float16", 0, 2, 1, 32768, "rows"),
    ("softmax_pullback", "float32", 0, 2, 1, 20011, "rows"),
    ("softmax_pullback", "float64", 0, 3, 1, 9001, "rows"),
    ("softmax_pullback", "bfloat16", 0, 2, 1, 131072, "rows"),
    ("log_softmax_pullback", "float32", 0, 2, 1, 131073, "rows"),
)


@pytest.mark.skipif(M.COMPILER is None, reason="no g++ is found, which builds the kernels for the CPU")
@pytest.mark.parametrize("case", PLANNED, ids=lambda c: "-".join(map(str, c)))
def test_as_planned(case):
    operation, dtype, flags, outer, inner, n, layout = case
    q = question(operation, dtype, flags, outer, inner, n, np.random.default_rng(n))
    in_place = operation == "loss_and_gradient"
    M.judge(q, M.answers(None, q, None, layout=layout, shift=1, in_place=in_place, seed=n), M.truths(q))
