"""The suite judges other libraries' softmax, and finds their known faults by name."""

import json
import subprocess
import sys

import pytest

from softxp_conformance import report

# what must fail: an implementation, its fault in words, and the test that names it
FAULTS = {
    "log_softmax([17, 0]) is 0: scipy": "test_gap[numpy:scipy.special-float32-log_softmax]",
    "log_softmax([17, 0]) is 0: torch": "test_gap[torch:torch.nn.functional-float32-log_softmax]",
    "log_softmax([17, 0]) is 0: jax": "test_gap[jax:jax.nn-float32-log_softmax]",
    "a confident loss is 0: optax": "test_gap[jax:optax-float32-cross_entropy]",
    "float16 sums over 70,000: scipy": "test_half_sums[numpy:scipy.special-float16-70000-logsumexp]",
    "float16 sums over 70,000: torch": "test_half_sums[torch:torch.nn.functional-float16-70000-logsumexp]",
    "float16 sums over 70,000: jax": "test_half_sums[jax:jax.nn-float16-70000-logsumexp]",
    "int8 wraps: scipy": "test_contract_integers[numpy:scipy.special-int8-softmax]",
    "int8 wraps: jax": "test_contract_integers[jax:jax.nn-int8-softmax]",
    "a common offset drowns the loss: optax": "test_rows[jax:optax-float32-cross_entropy-plain-offset]",
}
# what they do well must pass, or the suite would be red for everybody
SOUND = [
    "test_rows[numpy:scipy.special-float32-softmax-plain-normal]",
    "test_rows[torch:torch.nn.functional-float32-log_softmax-plain-ties]",
    "test_rows[torch:torch.nn.functional-float32-cross_entropy-plain-ties]",
    "test_rows[jax:jax.nn-float32-logsumexp-plain-normal]",
    "test_rows[torch:entmax-float32-sparsemax-plain-normal]",
    "test_rows[torch:entmax-float32-entmax-plain-scale-10]",
]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    for module in ("scipy", "torch", "jax", "optax", "entmax"):
        pytest.importorskip(module)
    path = tmp_path_factory.mktemp("judged") / "report.jsonl"
    command = [
        sys.executable, "-m", "softxp_conformance", "--quick", "--report", str(path), "-k",
        "test_gap or half_sums or test_contract_integers or (test_rows and plain)",
        "--dtype", "float16", "--dtype", "float32",
    ]  # fmt: skip
    for name in ("scipy.special", "torch.nn.functional", "jax.nn", "optax", "entmax"):
        command += ["--implementation", name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    return path


def test_known_faults_are_found_by_name(judged):
    _, rows = report.read([judged])
    outcome = {row["test"].partition("::")[2]: row["outcome"] for row in rows}
    assert {test: outcome.get(test) for test in FAULTS.values()} == dict.fromkeys(FAULTS.values(), "failed")
    assert {test: outcome.get(test) for test in SOUND} == dict.fromkeys(SOUND, "passed")
    (points,) = (
        row["points"] for row in rows if row.get("points") and row["test"].endswith("special-float32-log_softmax]")
    )
    assert dict(map(tuple, points))[17.0] > 1e6


def test_pages_for_people(judged, tmp_path):
    pytest.importorskip("matplotlib")
    runs, rows = report.read([judged])
    for name in ("page.html", "page.md"):
        report.write(tmp_path / name, runs, rows)
        page = (tmp_path / name).read_text()
        assert "numpy:scipy.special" in page and "does not conform" in page and runs[0]["processor"] in page
    html = (tmp_path / "page.html").read_text()
    assert html.count("<svg") == 2 and "PICTURE" not in html and "src=" not in html  # self-contained
    assert (tmp_path / "page-heat.svg").exists() and "](page-gap.svg)" in (tmp_path / "page.md").read_text()

    between = tmp_path / "docs.md"
    between.write_text(f"before {report.BEGIN} old {report.END} after")
    report.insert(between, runs, rows)
    text = between.read_text()
    assert text.startswith("before") and text.endswith("after") and "old" not in text and "| worst ulp |" in text


def test_rows_are_json(judged):
    lines = judged.read_text().splitlines()
    assert "run" in json.loads(lines[0]) and "Infinity" not in judged.read_text()
