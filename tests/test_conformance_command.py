"""The command as strangers use it: its verdict, its exit codes, its filters, its errors."""

import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree

import pytest

from softxp_conformance import report

ONE = ["--target", "numpy", "--function", "softmax", "--dtype", "float32", "--kind", "values", "--family", "ties"]


def suite(*arguments, home=None):
    command = [sys.executable, "-m", "softxp_conformance", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=home)


def test_verdict_filters_and_junit(tmp_path):
    done = suite(*ONE, "-n", "2", "--junit", str(tmp_path / "junit.xml"))
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("numpy conforms: 7 passed, 0 failed in ")
    cases = ElementTree.parse(tmp_path / "junit.xml").iter("testcase")
    assert all("test_rows[numpy-float32-softmax-" in case.attrib["name"] for case in cases)


def test_help_is_short():
    page = suite("--help").stdout
    assert "--implementation" in page and "--seed" in page and len(page.splitlines()) < 80


@pytest.mark.parametrize("arguments,code,words", [
    (["--target", "nowhere.at_all:TARGET"], 4, "nowhere"),
    (["--target", "numpyy"], 4, "is none of numpy"),
    (["--target", "cupy"], 4, "was named but cannot be used"),
    (["--target", "numpy", "--implementation", "jax.nn"], 4, "takes arrays of jax"),
    (["--target", "numpy", "--device", "mars"], 4, "--device must be one of cpu, got mars"),
    ([*ONE, "--report", "page.pdf"], 4, "one of .jsonl, .md, .html, got .pdf"),
    ([*ONE, "--report", "no/such/folder/page.html"], 4, "cannot be written"),
    (["--target", "numpy", "--implementation", "os:path"], 4, "must be a softxp_conformance.implementations.Implementation"),
    ([*ONE, "-k", "no_such_test"], 5, "nothing was asked"),
])  # fmt: skip
def test_errors(arguments, code, words):
    done = suite(*arguments)
    assert done.returncode == code and words in done.stdout + done.stderr


def test_seeds_replay():
    def drawn(seed):
        done = suite("--implementation", "scipy.special", "--function", "log_softmax", "--dtype", "float32", "--seed", seed,
                     "--family", "drawn")  # fmt: skip
        return [line for line in done.stdout.splitlines() if line.startswith("FAILED")]

    one = drawn("1")
    assert one == drawn("1") != drawn("2")
    assert "(seed 1)" in one[0]


def theirs(folder, fields):
    text = """
        from softxp_conformance.targets import Target
        TARGET = Target("theirs", "numpy", dtypes=("float32",), FIELDS)
        """
    (folder / "theirs.py").write_text(textwrap.dedent(text).replace("FIELDS", fields))


@pytest.mark.parametrize("fields,words", [
    ('xfail={"no such test": "gone"}', "match no test"),
    ('stated={"no such test": "gone"}', "match no test"),
    ('xfail={"test_contract_bool": "it is refused all the same"}', "was expected to fail, and passed"),
])  # fmt: skip
def test_stale_expectations_are_errors(tmp_path, fields, words):
    theirs(tmp_path, f"{fields}, only=('test_contract_bool', 'test_contract_lazy')")
    done = suite("--target", "theirs:TARGET", "-n", "1", home=tmp_path)
    assert done.returncode != 0 and words in done.stdout + done.stderr, done.stdout


def test_another_targets_tests_do_not_keep_a_line_alive(tmp_path):
    theirs(tmp_path, 'xfail={"integers[numpy-int8]": "of numpy, not of theirs"}')
    done = suite("--target", "numpy", "--target", "theirs:TARGET", "--collect-only", home=tmp_path)
    assert done.returncode == 4 and "'integers[numpy-int8]' of theirs" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "narrower", [["--deselect", "x"], ["--ignore", "x"], ["--dtype", "float32"], ["-k", "test_rows"]]
)
def test_a_narrowed_run_finds_nothing_stale(tmp_path, narrower):
    theirs(tmp_path, 'xfail={"no such test": "gone"}')
    done = suite("--target", "theirs:TARGET", "--collect-only", *narrower, home=tmp_path)
    assert "match no test" not in done.stderr and "test_rows[theirs-float32" in done.stdout, done.stderr


def test_a_peer_is_asked_everything():
    """What a target states of softxp's answers is not stale because a peer was asked."""
    done = suite("--implementation", "scipy.special", "--collect-only")
    assert "test_rows[numpy:scipy.special-float32-softmax" in done.stdout, done.stdout[-500:] + done.stderr


WRONG = """
    import os
    from softxp_conformance.implementations import Implementation

    def zeros(x, *, axis: int = -1):
        return 0 * x

    def dies(x, *, axis: int = -1):
        os._exit(3)

    ZEROS = Implementation("zeros", {"softmax": zeros})
    DIES = Implementation("dies", {"softmax": dies})
    OPAQUE = Implementation("opaque", {"softmax": max})
    MISSPELT = Implementation("misspelt", {"sofmax": zeros})
    """


@pytest.fixture
def home(tmp_path):
    (tmp_path / "their.py").write_text(textwrap.dedent(WRONG))
    return tmp_path


def test_the_first_failure_ends_the_run_and_is_said(home):
    done = suite(*ONE, "--implementation", "their:ZEROS", "-x", "-n", "1", home=home)
    assert done.returncode == 1 and "FAILED test_rows[numpy:zeros-float32-softmax-plain-ties]" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("numpy:zeros does not conform")


def test_a_crash_stands_in_the_report(home):
    done = suite(*ONE, "--implementation", "their:DIES", "-n", "1", "--max-worker-restart", "0",
                 "--report", "r.jsonl", home=home)  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    _, rows = report.read([home / "r.jsonl"])
    assert rows[0]["outcome"] == "failed" and report.who(rows[0]) == "numpy:dies" and rows[0]["dtype"] == "float32"


def test_a_function_must_have_a_signature(home):
    done = suite(*ONE, "--implementation", "their:OPAQUE", home=home)
    assert done.returncode == 4 and "has no signature to read; wrap it in a def" in done.stderr


def test_a_question_that_failed_in_one_report_and_passed_in_another_has_failed(home):
    assert suite(*ONE, "--implementation", "their:ZEROS", "--report", "wrong.jsonl", home=home).returncode == 1
    rows = (home / "wrong.jsonl").read_text()
    (home / "right.jsonl").write_text(rows.replace('"outcome": "failed"', '"outcome": "passed"'))
    _, both = report.read([home / "wrong.jsonl", home / "right.jsonl"])
    assert "does not conform" in report.verdict_text(both)


@pytest.mark.parametrize("fields,words", [
    ('only="test_rows"', "Target.only must be a tuple of strings, got 'test_rows'"),
    ('only=("test_rows[pebble",)', "Target.only must hold regular expressions"),
    ('xfail=["test_rows"]', "Target.xfail must be a dict"),
    ('flushes=("float33",)', "Target.dtypes must be some of float16"),
    ("asnumpy=lambda a: a.tolist()", "its asnumpy must give a numpy.ndarray, got builtins.list"),
    ("asarray=lambda a: None, ready=lambda: 1 / 0", "division by zero"),
])  # fmt: skip
def test_mistakes_in_a_target_are_said(tmp_path, fields, words):
    theirs(tmp_path, fields)
    done = suite("--target", "theirs:TARGET", home=tmp_path)
    assert done.returncode == 4 and words in done.stderr, done.stderr


def test_a_library_must_be_asked_with_its_own_arrays(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "from softxp_conformance.targets import Target\nTARGET = Target('theirs', 'theirs', dtypes=('float32',))\n"
    )
    done = suite("--target", "theirs:TARGET", home=tmp_path)
    assert done.returncode == 4 and "its asarray must give arrays of theirs, got a numpy.ndarray" in done.stderr


@pytest.mark.parametrize("arguments,words", [
    (["--dtype", "bfloat16"], "--dtype must be one of float16, float32, float64 for numpy, got bfloat16"),
    (["--examples", "0"], "--examples must be at least 1"),
    (["--implementation", "their:MISSPELT"], "its functions must be among softmax"),
])  # fmt: skip
def test_mistakes_in_options_are_said(home, arguments, words):
    done = suite("--target", "numpy", *arguments, home=home)
    assert done.returncode == 4 and words in done.stderr, done.stderr
