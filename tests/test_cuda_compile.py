"""softrow.cu under NVRTC, which needs no GPU: each class of instances compiles without a header, keeps its numbers in
registers, and moves 16 bytes at once.
"""

import ctypes
import re
from functools import cache
from importlib import metadata
from typing import Any

import emulated as M
import pytest
from test_cuda_kernels import launches_of_sums

from softxp._kernels import plan as P

ARCHITECTURES = {"sm_80": 80, "sm_90": 90, "sm_100": 100}


@cache
def nvrtc() -> Any:
    """NVRTC from its wheel; None where that is not installed."""
    for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu13", "nvidia-cuda-nvrtc-cu12"):
        try:
            files = metadata.files(name) or []
        except metadata.PackageNotFoundError:
            continue
        found = sorted(
            (str(f.locate()) for f in files if re.fullmatch(r"libnvrtc(-builtins)?\.so[.\d]*", f.name)), reverse=True
        )
        if found:  # libnvrtc.so opens libnvrtc-builtins.so by its bare name
            return [
                ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL) for path in sorted(found, key=lambda p: "builtins" not in p)
            ][-1]
    return None


pytestmark = pytest.mark.skipif(nvrtc() is None, reason="no nvidia-cuda-nvrtc is installed, which compiles the kernels")


def compiled(options: tuple[str, ...], architecture: str) -> tuple[str, str]:
    """The PTX and what the assembler says."""
    lib, program = nvrtc(), ctypes.c_void_p()
    assert lib.nvrtcCreateProgram(ctypes.byref(program), M.SOURCE.read_bytes(), b"softrow.cu", 0, None, None) == 0
    asked = [o.encode() for o in (*options, "-std=c++17", f"--gpu-architecture={architecture}", "--ptxas-options=-v")]
    failed = lib.nvrtcCompileProgram(program, len(asked), (ctypes.c_char_p * len(asked))(*asked))

    def text(what: str) -> str:
        size = ctypes.c_size_t()
        assert getattr(lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
        room = ctypes.create_string_buffer(size.value)
        assert getattr(lib, f"nvrtcGet{what}")(program, room) == 0
        return room.value.decode()

    log = text("ProgramLog")
    assert not failed, log[:4000]
    ptx = text("PTX")
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx, log


BOTH = P.MASK | P.TEMPERATURE
# operation, dtype (and the answer's where that is another), flags, rows, n, (along, beside): every operation where it has
# the most registers to hold, and every road
CASES = (
    ("softmax", "bfloat16", 0, 1 << 16, 64, (1, 0)),
    ("softmax", "float32", 0, 1 << 16, 1000, (1, 0)),
    ("softmax", "float16", 0, 4096, 32768, (1, 0)),
    ("softmax", "float32", 0, 4096, 32768, (1, 0)),
    ("softmax", "float64", 0, 4096, 8192, (1, 0)),
    ("softmax", "bfloat16", 0, 4096, 262144, (1, 0)),
    ("softmax", "float32", BOTH, 4096, 16384, (1, 0)),
    ("softmax", "float32", 0, 1, 262144, (1, 0)),
    ("softmax", "float32", 0, 1 << 16, 64, (64, 1)),
    ("softmax", "bfloat16", 0, 1 << 16, 4096, (64, 1)),
    ("log_softmax", "bfloat16", 0, 4096, 32768, (1, 0)),
    ("log_softmax", "float32", 0, 4096, 50257, (1, 0)),
    ("logsumexp", "float32", 0, 4096, 32768, (1, 0)),
    ("logsumexp", "float16", 0, 4096, 131072, (1, 0)),
    ("state", "float32", P.WIDE, 4096, 50257, (1, 0)),
    ("loss", "bfloat16", 0, 4096, 32768, (1, 0)),
    ("loss", "float32", P.SOFT | P.SMOOTHING, 4096, 4096, (1, 0)),
    ("loss_and_gradient", "bfloat16", 0, 4096, 32768, (1, 0)),
    ("loss_and_gradient", "float16", 0, 4096, 1000, (1, 0)),
    ("loss_and_gradient", "float32", 0, 4096, 50257, (1, 0)),
    ("loss_and_gradient", "bfloat16", 63, 4096, 4096, (1, 0)),
    ("loss_and_gradient", "float64", 63, 4096, 32768, (1, 0)),
    ("loss_and_gradient", "bfloat16", P.SMOOTHING, 4, 131072, (1, 0)),
    ("softmax_pullback", "float32", 0, 4096, 16384, (1, 0)),
    ("softmax_pullback", "bfloat16", BOTH, 4096, 32768, (1, 0)),
    ("log_softmax_pullback", "float16", 0, 4096, 16384, (1, 0)),
    ("log_softmax_pullback", "float64", 0, 4096, 50257, (1, 0)),
    ("softmax", "bfloat16 float32", 0, 4096, 32768, (1, 0)),
    ("log_softmax", "float16 float32", BOTH, 4096, 4096, (1, 0)),
    ("loss_and_gradient", "float32 bfloat16", 0, 4096, 131072, (1, 0)),
    ("loss_and_gradient", "float32 bfloat16", 0, 4096, 32768, (1, 0)),
    ("loss_and_gradient", "bfloat16", 0, 4096, 262144, (1, 0)),
    ("softmax_pullback", "float32", 0, 4096, 262144, (1, 0)),
    ("loss_and_gradient", "float32", 0, 4096, 1000, (1, 0)),
    ("softmax_pullback", "bfloat16", 0, 4096, 131072, (1, 0)),
    ("softmax", "float32", 0, 4096, 1 << 19, (1, 0)),
    ("loss_and_gradient", "float32 bfloat16", 0, 4096, 256, (1, 0)),
    ("loss_and_gradient", "bfloat16", P.SOFT, 4096, 131072, (1, 0)),
)


@pytest.mark.parametrize("i, case", list(enumerate(CASES)), ids=["-".join(map(str, case[:5])) for case in CASES])
def test_compiles_and_stays_in_registers(i, case):
    operation, dtype, flags, rows, n, (along, beside) = case
    architecture, capability = list(ARCHITECTURES.items())[i % 3]
    dtype, _, answer = dtype.partition(" ")
    how = dict(multiprocessors=132, capability=capability, along=along, beside=beside, answer=answer)
    plan = P.plan(operation, dtype, flags, rows, n, **how)
    for launch in plan.launches:
        ptx, log = compiled(launch.options, architecture)
        registers = int(re.search(r"Used (\d+) registers", log).group(1))
        spilled = int(re.search(r"(\d+) bytes spill stores", log).group(1))
        given = dict(option.split("=") for option in launch.options)
        of_flags = int(given["-DSOFTROW_FLAGS"])
        heavy = of_flags or dtype == "float64" or (architecture == "sm_100" and given["-DSOFTROW_HELD"] == "0")
        apart = given["-DSOFTROW_HELD"] == str(P.V_IN_SHARED)
        tight = (
            operation == "loss_and_gradient" and int(given["-DSOFTROW_LANES"]) <= 32 and "float32" in (dtype, answer)
        )
        even = launch.block in (32, 64, 128, 256, 512, 1024)
        assert registers <= (128 if heavy else 64 if even and not tight else 80)
        # some options spill a few, and so does a whole multiprocessor's block; they stay in the first cache
        assert spilled <= (128 if heavy or apart else 64 if launch.block == 1024 else 32), log
        assert "ld.global.nc" not in ptx
        if not of_flags & P.STRIDED and given["-DSOFTROW_PART"] != "LAST":
            views = 2 if P.reads_v(operation, flags) and not apart else 1
            assert not apart or ptx.count("cp.async.cg.shared.global") >= int(given["-DSOFTROW_VECTORS"])
            assert ptx.count("ld.global.v4") >= views * int(given["-DSOFTROW_VECTORS"])
        if not of_flags & P.STRIDED and given["-DSOFTROW_PART"] != "FIRST" and operation not in P.ROW_ANSWERS:
            half = P.SIZES[answer or dtype] < P.SIZES[dtype]
            assert ptx.count("st.global.v2" if half else "st.global.v4") >= int(given["-DSOFTROW_VECTORS"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sums_over_all_rows_compile(architecture):
    for launch in launches_of_sums():
        _, log = compiled(launch.options, architecture)
        assert "0 bytes spill stores" in log
