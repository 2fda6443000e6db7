"""Who may import whom, and what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import softxp

HOME = Path(softxp.__file__).parent
ROOMS = {
    "attention", "calibrate", "contrastive", "core", "decode", "linear", "losses", "routing", "sparse", "streaming",
    "transform",
}  # fmt: skip
MAY = {  # file -> files of ours it may import
    "_formulas": set(),
    "_loss": {"_formulas"},
    "_op": set(),
    "_args": set(),
    "attention": {"_args", "_formulas", "_op", "_backends", "core"},
    "calibrate": {"_args", "_formulas", "_loss", "_backends", "core"},
    "contrastive": {"_args", "_formulas", "_products", "_op", "_backends"},
    "core": {"_args", "_formulas", "_loss", "_op", "_backends"},
    "decode": {"_args", "_formulas", "_op", "_backends"},
    "_products": {"_args", "_formulas", "_loss", "_op"},
    "linear": {"_args", "_products", "_op", "_backends", "core"},
    "losses": {"_args", "_formulas", "_loss", "_op", "_backends"},
    "routing": {"_args", "_formulas", "_loss", "_op", "_backends"},
    "sparse": {"_args", "_formulas", "_loss", "_op", "_backends"},
    "transform": {"_args", "_op", "_backends"},
    "streaming": {"_args", "_formulas", "_backends"},
    "__init__": ROOMS | {"_backends"},
    "__main__": {"__init__", "_backends", "_op", "core"},
}


def ours(path: Path) -> set[str]:
    """The files of softxp that a file imports, by name."""
    package = "softxp" if path.parent == HOME else f"softxp.{path.parent.name}"
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            full = ".".join(base + ([node.module] if node.module else []))
            names = [full] if node.module else [f"{full}.{a.name}" for a in node.names]
            found |= {(n.removeprefix("softxp").removeprefix(".") or "__init__").split(".")[0] for n in names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("softxp.")}
    return found


@pytest.mark.parametrize("path", sorted(HOME.glob("*.py")), ids=lambda p: p.stem)
def test_imports_run_one_way(path):
    assert path.stem in MAY, f"say in this test what {path.name} may import"
    assert ours(path) <= MAY[path.stem]


@pytest.mark.parametrize("path", sorted((HOME / "_backends").glob("*.py")), ids=lambda p: p.stem)
def test_backends_import_the_floors_below(path):
    assert ours(path) <= {"_op", "_formulas", "_loss", "_backends", "_kernels"}


@pytest.mark.parametrize("name", ["_formulas", "_loss"])
def test_the_mathematics_imports_nothing_but_typing(name):
    tree = ast.parse((HOME / f"{name}.py").read_text())
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level}
    assert modules == {"typing"}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Import)]


def test_src_imports_no_tests():
    for path in HOME.rglob("*.py"):
        text = path.read_text()
        assert "pytest" not in text, path
        assert "import softxp_conformance" not in text, path


def test_import_brings_no_array_library():
    code = (
        "import sys, softxp; bad = {'numpy', 'torch', 'jax', 'dask', 'cupy', 'ndonnx', 'array_api_strict', 'numba'} "
        "& set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_library_brings_no_other():
    code = (
        "import sys, numpy, softxp; softxp.softmax(numpy.ones(3)); "
        "bad = {'torch', 'jax', 'dask', 'ndonnx', 'array_api_strict'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names():
    assert sorted(softxp.__all__) == softxp.__all__
    for name in softxp.__all__:
        assert getattr(softxp, name).__doc__, name
