"""The conformance suite must fail on wrong implementations, each by the name of the case that catches it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# implementation in tests/wrong.py: the test that must fail, or how its id begins
WRONG = {
    "ZEROS": "test_rows[numpy:zeros-float32-softmax-plain-normal]",
    "UNIFORM": "test_rows[numpy:uniform-float32-softmax-plain-normal]",
    "WRONG_AXIS": "test_rows[numpy:wrong axis-float32-softmax-plain-normal]",
    "NO_SHIFT": "test_rows[numpy:no shift-float32-softmax-plain-offset]",
    "HALF_INSIDE": "test_rows[numpy:float16 inside-float32-softmax-plain-normal]",
    "SUM_IN_HALF": "test_half_sums[numpy:sum in float16-float16-70000-logsumexp]",
    "TEXTBOOK_LOG": "test_gap[numpy:log(1 + r)-float32-log_softmax]",
    "OVERFLOWS": "test_rows[numpy:overflows-float32-logsumexp-plain-extreme]",
    "LEAKS": "test_rows[numpy:NaN row leaks-float32-softmax-plain-nan]",
    "THREE_ULP_MORE": "test_long[numpy:3 ulp more on long rows-float32-softmax-50257-normal",
    "WRITES": "test_contract_dtype_device_and_inputs[numpy:in-place write-float32-softmax]",
    "BY_SIZE": "test_contract_same_bits_in_a_batch[numpy:bits by the batch-float32-softmax-ordinary]",
    "LABEL_OFF_BY_ONE": "test_rows[numpy:label off by one-float32-cross_entropy-plain-normal]",
    "MEAN_OVER_IGNORED": "test_rows[numpy:mean over ignored rows-float32-cross_entropy-mean-all]",
    "GRADIENT_SIGN": "test_vjp[numpy:gradient's sign-float32-softmax-plain-normal]",
    "NO_TEMPERATURE": "test_vjp[numpy:no T in the gradient-float32-softmax-T=1.75-normal]",
    "P_MINUS_ONE": "test_confident_loss[numpy:p - 1-float32-top]",
}
# families that must not catch it: a case that fails for everybody would prove nothing
SPARED = {
    "NO_SHIFT": "test_rows[numpy:no shift-float32-softmax-plain-normal]",
    "TEXTBOOK_LOG": "test_rows[numpy:log(1 + r)-float32-log_softmax-plain-equal]",
    "OVERFLOWS": "test_rows[numpy:overflows-float32-logsumexp-plain-normal]",
    "THREE_ULP_MORE": "test_rows[numpy:3 ulp more on long rows-float32-softmax-plain-normal]",
    "MEAN_OVER_IGNORED": "test_rows[numpy:mean over ignored rows-float32-cross_entropy-plain-normal]",
    "NO_TEMPERATURE": "test_vjp[numpy:no T in the gradient-float32-softmax-plain-normal]",
}


def run(*arguments):
    """(exit code, last line, outcome by test id) of the suite on numpy."""
    home = Path(__file__).parent
    command = [sys.executable, "-m", "softxp_conformance", "--target", "numpy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home)
    return done.returncode, done.stdout.splitlines()[-1], done


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    report = tmp_path_factory.mktemp("bites") / "report.jsonl"
    asked = (
        "(test_rows and (plain or mean)) or (test_vjp and softmax) or test_gap or (test_long and 50257 and normal) or "
        "half_sums or device_and_inputs or in_a_batch or test_confident"
    )
    named = [part for name in WRONG for part in ("--implementation", f"wrong:{name}")]
    code, line, done = run(*named, "--dtype", "float32", "--dtype", "float16", "-k", asked, "--report", str(report))
    assert code == 1 and "do not all conform" in line, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(row) for row in report.read_text().splitlines()[1:]]
    return {row["test"].partition("::")[2]: row["outcome"] for row in rows}


@pytest.mark.parametrize("name", WRONG)
def test_is_caught_by_name(name, outcomes):
    ids = [test for test in outcomes if test.startswith(WRONG[name])]
    assert ids and all(outcomes[test] == "failed" for test in ids), ids
    if name in SPARED:
        assert outcomes[SPARED[name]] == "passed"


def test_the_right_one_passes():
    code, line, done = run("--implementation", "wrong:RIGHT", "--quick", "--dtype", "float32")
    assert code == 0 and line.startswith("numpy:right conforms: "), done.stdout[-2000:]
