"""What `make gpu` runs, without a GPU: that its lines run, and that it says what it misses."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from softxp._kernels import plan as P

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))

from benchmarks import bars, page  # noqa: E402


def run(*command, code=0, **environment):
    path = os.pathsep.join([str(HOME / each) for each in ("src", "conformance", "tests")])
    done = subprocess.run(
        [sys.executable, *command], cwd=HOME, env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def test_its_tests_run_with_tensors_of_the_cpu():
    pytest.importorskip("torch")
    some = "small and not (300001 or 100001 or 40000 or 5000) or sanitized_roads and not 70- or nobody"
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "rehearsal", "tests/test_on_gpu.py", "-k", some)
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_the_sanitizer_sees_every_way_to_hold_a_row():
    pytest.importorskip("torch")
    from test_on_gpu import ROADS

    ways = set()
    for operation in ("log_softmax", "log_softmax_pullback"):
        for rows, n in ROADS:
            how = dict(multiprocessors=132, capability=90, aligned=n % 4 == 0)
            (launch, *_) = P.plan(operation, "float32", 0, rows, n, **how).launches
            of = dict(each[2:].split("=") for each in launch.options)
            lanes, held = int(of["SOFTROW_LANES"]), int(of["SOFTROW_HELD"])
            way = "some lanes" if lanes < 32 else "a warp" if lanes == 32 else "a block"
            ways.add(way if of["SOFTROW_PART"] == "WHOLE" and held == P.IN_REGISTERS else (of["SOFTROW_PART"], held))
    clusters = {("CLUSTER", held) for held in (P.IN_REGISTERS, P.V_IN_SHARED, P.STREAMED)}
    assert ways == {"some lanes", "a warp", "a block", *clusters, ("FIRST", P.STREAMED)}


# --- the benchmark, its bars, its page ---------------------------------------------------------------------------------


def complete(slow=1.0):
    """Rows of a run that reaches every bar, were it not `slow`."""
    rows = []
    for function in bars.FUNCTIONS:
        small = {"softxp": 6e-6, "torch": 5e-6, "softxp on cupy": 7e-6, "cupyx": 5e-5}
        rows.append({"function": function, "dtype": "float32", "rows": 32, "n": 1000, "host seconds": small})
        for dtype in bars.DTYPES:
            for n in bars.LENGTHS:
                took = {"copy": 1.0, "softxp": 1.1 * slow, "torch": 9.9, "cupyx": 9.9, "formula": 20.0}
                of_copy = {name: 1 / t for name, t in took.items() if name != "copy"}
                row = {"function": function, "dtype": dtype, "rows": 100, "n": n, "bytes": 2, "seconds": took}
                rows.append({**row, "of copy": of_copy})
    product = {"function": "linear_cross_entropy", "dtype": "bfloat16", "rows": 8192, "width": 4096, "n": 131_072}
    return [*rows, {**product, "seconds": {"softxp": 0.039, "products": 0.03}}]


def test_bars():
    assert all(each["reached"] for each in bars.bars(complete()))
    slow = {each["name"] for each in bars.bars(complete(1.1)) if not each["reached"]}
    assert slow == {f"{f}, of a copy's speed, n from 2048 to 262144" for f in bars.FUNCTIONS}
    assert not any(each["reached"] for each in bars.bars([]))
    rows = complete()
    rows.remove(next(r for r in rows if (r["function"], r["dtype"], r["n"]) == ("softmax", "float16", 50_257)))
    lost = [each for each in bars.bars(rows) if not each["reached"]]
    assert [each["where"] for each in lost] == [
        "1 of 24 not measured", "1 of 4 not measured", "1 of 3 not measured", "1 of 4 not measured"
    ]  # fmt: skip


def test_the_page_has_a_half_for_the_gpu(tmp_path):
    pytest.importorskip("matplotlib")
    target = tmp_path / "speed.md"
    target.write_text((HOME / "docs" / "speed.md").read_text())
    report = {"machine": {"gpu": "some GPU", "torch": "2"}, "rows": complete(), "bars": bars.bars(complete())}
    source = tmp_path / "gpu.json"
    source.write_text(json.dumps(report))
    page.main(["--gpu", str(source), str(target)])
    once = target.read_text()
    assert page.NO_GPU not in once
    assert "32 of 32 are reached" in once
    assert "| softmax, vjp | float64 | " + " | ".join(["0.91"] * 11) + " |" in once
    assert once.startswith((HOME / "docs" / "speed.md").read_text()[:500])
    assert {each.name for each in tmp_path.glob("*.svg")} == {"speed-gpu.svg", "speed-gpu-peers.svg"}
    page.main(["--gpu", str(source), str(target)])
    assert target.read_text() == once
    report["machine"]["gpu"] = "none: a rehearsal"
    source.write_text(json.dumps(report))
    with pytest.raises(ValueError, match="a rehearsal's figures mean nothing"):
        page.main(["--gpu", str(source), str(target)])


def test_the_committed_page_has_no_figures_of_a_rehearsal():
    assert "a rehearsal" not in (HOME / "docs" / "speed.md").read_text()


@pytest.fixture
def gpu_benchmark(monkeypatch):
    pytest.importorskip("torch")
    from benchmarks import gpu

    few = [(f, d, 3, 40, False) for f in gpu.FUNCTIONS for d in ("bfloat16", "float64")]
    monkeypatch.setattr(gpu, "shapes", lambda size: few)
    return gpu


def test_the_benchmark_is_rehearsed(gpu_benchmark, tmp_path, capsys):
    assert gpu_benchmark.main(["--rehearse", "--json", str(tmp_path / "speed.json")]) == 0
    report = json.loads((tmp_path / "speed.json").read_text())
    assert len(report["rows"]) == 5 + 1 + 12
    assert all({"softxp", "torch", "formula"} <= set(r["of copy"]) for r in report["rows"][6:])
    assert len(report["bars"]) == 32
    assert "of 32 bars are reached" in capsys.readouterr().out


def test_kernels_that_always_fail_are_not_timed(gpu_benchmark, monkeypatch, capsys, tmp_path):
    """The formula answers in their place, and rightly: its figures are not theirs."""
    import pretend
    from rehearsal import stand_in

    monkeypatch.setenv("SOFTXP_CACHE_DIR", str(tmp_path))
    driver = pretend.Driver()
    driver.launch_error = 701
    with pretend.gpu(driver), stand_in(monkeypatch), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert gpu_benchmark.main(["--rehearse"]) == 1
    said = capsys.readouterr().err
    assert "softxp fails: RuntimeError: the formula answered for the kernels: cuLaunchKernel: 701" in said
    assert "FAILED softxp: softmax, bfloat16, 3 × 40" in said
    assert "FAILED softxp: linear_cross_entropy" in said
    assert len([each for each in said.splitlines() if each.startswith("FAILED")]) == 18


# --- the script --------------------------------------------------------------------------------------------------------

PYTHON = """#!/bin/sh
echo "$*" >>calls
case "$*" in
*"{fails}"*) exit 1 ;;
esac
"""


def make(tmp_path, fails="nothing at all", sanitizer=True, **environment):
    """.ci/gpu with a Python, and a sanitizer, that note what they are asked and do nothing."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / "bin").mkdir()
    for name in ("gpu", "gpu-ready.py"):
        (tmp_path / ".ci" / name).write_text((HOME / ".ci" / name).read_text())
    for name in ("python", "compute-sanitizer")[: 1 + sanitizer]:
        (tmp_path / "bin" / name).write_text(PYTHON.format(fails=fails))
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", ".ci/gpu"], cwd=tmp_path, env={"PATH": path, "PYTHON": "python", "CUDA_HOME": "/nowhere", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done, (tmp_path / "calls").read_text().splitlines()


def test_all_steps(tmp_path):
    done, calls = make(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [line.removeprefix("== ") for line in done.stdout.splitlines() if line.startswith("==")]
    assert steps == [
        "doctor", "tests", "racecheck", "memcheck", "conformance", "speed", "conformance-formula", "conformance-all"
    ]  # fmt: skip
    for part in ("torch-cuda-kernels --target cupy-kernels", "kns=softrow", "-k sanitized", "benchmarks.gpu --json"):
        assert any(part in call for call in calls), part


@pytest.mark.parametrize(
    "fails, name",
    [
        ("benchmarks.gpu", "speed (1)"),
        ("memcheck", "memcheck (1)"),
        ("--quick --target torch-cuda-k", "conformance (1)"),
    ],
)
def test_a_step_that_fails_is_named_and_the_rest_is_run(tmp_path, fails, name):
    done, _ = make(tmp_path, fails)
    assert done.returncode == 1
    assert name in done.stderr.splitlines()[-1]
    assert "== conformance-all" in done.stdout


def test_a_sanitizer_is_missed(tmp_path):
    done, _ = make(tmp_path, sanitizer=False)
    assert done.returncode == 1
    assert "SOFTXP_NO_SANITIZER=1 goes without" in done.stderr


def test_a_sanitizer_may_be_done_without(tmp_path):
    assert make(tmp_path, sanitizer=False, SOFTXP_NO_SANITIZER="1")[0].returncode == 0


def test_no_step_begins_without_time(tmp_path):
    done, _ = make(tmp_path, GPU_SECONDS="3")
    assert done.returncode == 1
    assert "tests (no time)" in done.stderr
    assert "not finished in the time: conformance-all" in done.stdout


@pytest.mark.parametrize("lacks", [("array_api_compat",), ("mpmath", "cuda.bindings")])
def test_what_is_missing_is_said_in_a_sentence(lacks):
    pytest.importorskip("torch")
    code = (
        "import runpy, sys, torch; torch.cuda.is_available = lambda: True; torch.Tensor.cuda = lambda self: self\n"
        f"sys.modules.update(dict.fromkeys({lacks!r}))\n"
        "runpy.run_path('.ci/gpu-ready.py', run_name='__main__')"
    )
    said = run("-c", code, code=2).stderr
    assert len(said.splitlines()) == 1
    assert said.startswith("make gpu needs ")
    assert all(each in said.partition(", which")[0] for each in lacks)
    assert ("-m pip install array-api-compat" in said) == ("array_api_compat" in lacks)


def test_kernels_that_do_not_work_are_said_in_a_sentence():
    """Here, where there is no driver."""
    pytest.importorskip("torch")
    code = (
        "import runpy, torch; torch.cuda.is_available = lambda: True; torch.Tensor.cuda = lambda self: self\n"
        "runpy.run_path('.ci/gpu-ready.py', run_name='__main__')"
    )
    said = run("-c", code, code=2).stderr
    assert said.startswith("make gpu needs softxp's CUDA kernels, which do not work here")
    assert len(said.splitlines()) == 1
