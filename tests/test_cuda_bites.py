"""The tests of softrow.cu must fail where the source is wrong: each line below is one mistake, and where it must be seen."""

import zlib
from functools import cache

import emulated as M
import numpy as np
import pytest
from test_cuda_kernels import ROADS, ask, ask_all_sums, asked, launches, launches_of_sums, sizes, tried

from softxp._kernels import plan as P

pytestmark = pytest.mark.skipif(M.COMPILER is None, reason="no g++ is found, which builds the kernels for the CPU")

V_APART = ("log_softmax_pullback", "a cluster, v apart")
SHARE, TOTAL = ("share", "rows"), ("total", "rows")
BLOCK, LANES, COLUMNS = (("loss_and_gradient", road) for road in ("a block", "lanes", "columns"))
# name: (a place in the source with the right expression between « and », the wrong one or None for a statement that is left
# out, and where it shows: operation and road, ...)
MISTAKES = {
    "the maximum is in the sum": ("sums[C::REST] += TOPS ? «below * e» : e;", "e", ("log_softmax", "lanes")),
    "no maximum is in the sum": ("«s[C::TOPS] > 0 ? s[C::TOPS] - 1 : 0»", "0", ("softmax", "a warp")),
    "no warp has a maximum": ("if (C::FEW_TOPS && «!tops»)", "true", ("softmax", "a block"), ("state", "a cluster")),
    "no barrier in a block": (
        "cells[k * 32 + warp] = value[k];\n        «__syncthreads()»;",
        None,
        ("softmax", "a block"),
        ("loss", "a stream"),
    ),
    "no barrier in columns": (
        "cells[thread] = value[k];\n        «__syncthreads()»;",
        None,
        ("softmax", "columns"),
    ),
    "no barrier in a cluster": (
        "ours[k] = value[k];\n          «cluster_barrier()»;",
        None,
        ("softmax", "a cluster"),
    ),
    "a block leaves its cluster": (
        "if constexpr (C::PART == CLUSTER) «cluster_barrier()»;",
        None,
        ("logsumexp", "a cluster"),
        ("softmax", "a cluster"),
    ),
    "another block's sums": ("of_block(ours + k, «lane % 8»)", "0", ("softmax", "a cluster")),
    "a warp too many": ("«lane % LANES < WARPS» ? cells", "true", ("softmax", "a block"), BLOCK),
    "no turns in a block": (": nothing);\n        }\n        «turn ^= 1»;", None, ("softmax", "a block"), BLOCK),
    "no turns in columns": ("lane]);\n        «turn ^= 1»;", None, ("softmax", "columns"), COLUMNS),
    "v is not waited for": ("if constexpr (C::SENT) «sent_vectors_arrive()»;", None, V_APART, BLOCK),
    "another thread's v": ("i * C::THREADS + «threadIdx.x»", "0", V_APART),
    "v where x is -inf": ("narrow(E(), A(0)) : «element<E>(sent(j / C::WIDTH), k)»", "narrow(E(), A(0))", V_APART),
    "a label of n is a class": ("«label >= call.n»", "label > call.n", BLOCK, ("loss", "lanes")),
    "an unsigned label is negative": ("«call.label_kind == -8 && label < 0»", "false", ("loss", "columns"), LANES),
    "an ignored row counts": ("return {label, bad, «ignored» ||", "false", BLOCK, ("loss", "lanes")),
    "a row of weight 0 counts": ("(weight == 0 && !bad) || «sample == 0»", "false", BLOCK, COLUMNS),
    "the head is not peeled": (
        "«i >= low» && i < high ? first",
        "true",
        ("softmax", "a block"),
        ("logsumexp", "a warp"),
    ),
    "a number too many": ("k >= low && «k < high»", "k <= high", ("softmax", "lanes"), ("softmax", "steps")),
    "vectors anywhere": (
        "«reinterpret_cast<Address>(from.start + origin) % bytes == 0»",
        "true",
        ("softmax", "a block"),
    ),
    "what is past the end takes part": (
        "bool takes_part = «r.has(offset(j))»;",
        "true",
        *((o, r) for o in P.LOSSES for r in ("pieces", "columns", "a block")),
    ),
    "a masked gradient": ("«!(tile.part >> j & 1)»;", "false", ("softmax_pullback", "a block"), BLOCK, LANES),
    "a dropped row has a gradient": ("if («zero» || hidden)", "false", BLOCK, COLUMNS),
    "the label's slope is a class's": ("«!bad && !zero && owns(label)»", "false", BLOCK, COLUMNS),
    "p - 1": ("«expm1_of(label_d - log())»", "exp_of(label_d - log()) - 1", BLOCK, COLUMNS),
    "p - 1 for a vector of labels": (
        "«e == A(1) && r < A(1)»",
        "false",
        *(("loss_and_gradient", r) for r in ("a stream", "pieces", "columns", "a warp")),
    ),
    "a difference is rounded": (
        "error = «(x - (d - v)) - (centre + v)»",
        "A(0)",
        *(("log_softmax", road) for road in ROADS if tried("log_softmax", road)),
    ),
    "the rounding of what is far": (
        "error = «zero ? 0.0f : error»;",
        "error",
        *(("softmax", r) for r in ("a block", "steps", "a stream of columns")),
    ),
    "scaled with every maximum": (".d < «A(4)»", "A(0)", ("softmax", "a stream of columns")),
    "a lower maximum's labels": (
        "«s[C::V_REST] * d»",
        "Total(0)",
        *(("loss", r) for r in ("a stream", "a stream of steps", "pieces")),
    ),
    "the label of no piece": ("? «A(record(0)[1 + C::SUMS])» : group", "A(0)", ("loss", "pieces")),
    "another row's pieces": ("«row * call.pieces + of_piece»", "of_piece", ("softmax", "pieces"), ("loss", "pieces")),
    "the first row of a middle axis": (
        "«(row - outer * inner) * view.inner»",
        "0",
        ("softmax", "columns"),
        ("softmax", "lanes"),
    ),
    "a negative temperature": (
        "«temper.bad ? A(NOT_A_NUMBER) : rest»",
        "rest",
        ("softmax", "steps"),
        ("softmax", "lanes"),
    ),
    "a limit has a derivative": (
        "(m - m != A(0) || «limit»)",
        "false",
        ("softmax_pullback", "a block"),
        ("log_softmax_pullback", "lanes"),
    ),
    "nothing has a top": ("«m == A(-INF) ? A(NOT_A_NUMBER) : m»};", "m", ("softmax", "lanes"), ("state", "lanes")),
    "smoothing counts the masked": (
        "A part = «(tile.part >> j & 1) ? A(1) : A(0)»",
        "A(1)",
        *(("loss", r) for r in ("columns", "a block", "pieces")),
    ),
    "a row that is not there": (
        "leads = «there» && ",
        "true",
        ("loss", "lanes"),
        ("state", "lanes"),
        ("logsumexp", "lanes"),
    ),
    "an infinite maximum": ("return {«top ? A(0) : q»,", "q", ("softmax", "a block"), ("log_softmax", "lanes")),
    "an infinite maximum without a temperature": (
        "if (C::TEMPERED || «height.centre != A(INF)») return;",
        "true",
        ("softmax", "lanes"),
        ("log_softmax", "a stream"),
    ),
    "no shift": ("height = height_of(«state.centre», state.m);", "A(0)", ("softmax", "a block")),
    "v is not shifted": (
        "part += tile.x[j] * («second(tile, j) - mean»)",
        "second(tile, j)",
        ("softmax_pullback", "a warp"),
        ("softmax_pullback", "lanes"),
    ),
    "the temperature's rounding": (
        "+ error) * by - «q * excess»",
        "A(0)",
        *(("log_softmax", road) for road in ROADS if tried("log_softmax", road)),
    ),
    "no cotangent": ("number_of(call.factor, row) * «number_of(call.cotangent, 0)» * sample", "1", BLOCK, LANES),
    "what is dropped weighs": ("one.weight = «label.dropped» ? 0", "false", SHARE),
    "a class's weight is 1": ("bad ? 0 : «WEIGHTS» ? class_weight", "false", SHARE, BLOCK),
    "the mean of nothing": ("«divisor == 0 && sums[0] == 0»", "false", SHARE, TOTAL),
    "a given divisor": ("«C::FLAGS & GIVEN» ? number_of", "0", SHARE, TOTAL),
    "the rows of another block": ("C::PART == FIRST ? «blockIdx.x * call.piece» : 0", "0", TOTAL),
    "half a vector": (
        "WIDTH * sizeof(T) < 16 ? «8» : 16",
        "2",
        ("softmax", "a block"),
        ("loss_and_gradient", "a stream"),
    ),
    "another owner": ("lane == «(C::STRIDES ? k : k / C::WIDTH)» % C::SIZE", "k", LANES, BLOCK),
}


PLACES = sorted({place for _, _, *where in MISTAKES.values() for place in where})


@cache
def broken() -> M.Library:
    """All mistakes in one source; `variant` chooses one."""
    source = M.SOURCE.read_text()
    for number, (place, wrong, *_) in enumerate(MISTAKES.values(), 1):
        before, right, after = place.replace("»", "«").split("«")
        both = f"if (broken != {number}) {right}" if wrong is None else f"(broken == {number} ? ({wrong}) : ({right}))"
        assert before + right + after in source, (
            f"{before + right + after!r} is not in the source any more: mend the list"
        )
        source = source.replace(before + right + after, before + both + after)
    run = [
        launch
        for operation, road in PLACES
        if operation not in P.SUMS
        for how in asked(operation, road)
        for launch in launches(operation, road, *how)
    ]
    return M.Library([*run, *launches_of_sums()], 'extern "C" { int broken = 0; }\n' + source)


@pytest.mark.parametrize("name", MISTAKES)
def test_is_seen(name):
    number = list(MISTAKES).index(name) + 1
    lib = broken()
    lib.variant(number)
    try:
        for again in range(12):
            for operation, road in MISTAKES[name][2:]:
                if operation in P.SUMS:
                    ask_all_sums(lib, operation, again)
                    continue
                for how in asked(operation, road):
                    for n in sizes(road, how[0])[::-1]:
                        seed = zlib.crc32(f"{operation} {road} {how[0]} {n} {again}".encode())
                        ask(lib, operation, road, *how, n, np.random.default_rng(seed))
    except AssertionError:
        return
    finally:
        lib.variant(0)
    raise AssertionError(f"{name}: all tests pass")


def test_the_right_source_passes():
    for operation, road in PLACES:
        if operation in P.SUMS:
            ask_all_sums(broken(), operation, 0)
            continue
        for how in asked(operation, road):
            n = sizes(road, how[0])[-1]
            ask(broken(), operation, road, *how, n, np.random.default_rng(n))
