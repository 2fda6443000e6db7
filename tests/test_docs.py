"""Every ```python block of the README and of docs/ runs, page by page, and the doctor answers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
PAGES = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_examples_run(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.S | re.M)
    scope: dict = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), scope)


def test_the_matrix_to_paste_is_the_one_that_runs():
    text = (HOME / "docs" / "conformance.md").read_text()
    theirs = (HOME / "examples/third_party/.github/workflows/conformance.yml").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.S | re.M)
    assert block == theirs.partition("\n")[2]  # but for the comment above it


def test_the_doctor():
    out = subprocess.run([sys.executable, "-m", "softxp"], capture_output=True, text=True, check=True).stdout
    assert "All agree." in out
    assert "Which road each function takes" in out
