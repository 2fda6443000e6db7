"""What the examples share: libraries, data, a few layers with their derivatives, the table and the picture.

An example calls `run` with a function of a Library, which trains and measures there, and with one that draws.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

console = Console()

# --- libraries -------------------------------------------------------------------------------------------------------


class Library(NamedTuple):
    """How arrays get into a library and out of it, and how it likes to run a function that is called many times."""

    asarray: Callable[[Any], Any]
    asnumpy: Callable[[Any], Any] = np.asarray
    ready: Callable[[Any], Any] = lambda fn: fn


def _numpy() -> Library:
    return Library(np.asarray)


def _torch() -> Library:
    import torch

    return Library(torch.asarray)


def _torch_cuda() -> Library:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device")
    return Library(lambda x: torch.asarray(x, device="cuda"), lambda x: x.cpu().numpy())


def _jax() -> Library:
    import jax

    jax.config.update("jax_enable_x64", True)  # so that it can be compared with the others to the last digits
    return Library(jax.numpy.asarray, ready=jax.jit)


def _dask() -> Library:
    dask, da = import_module("dask"), import_module("dask.array")
    return Library(
        lambda x: da.from_array(x, chunks=(450, *x.shape[1:])),
        ready=lambda fn: lambda *arrays: dask.persist(*fn(*arrays)),
    )


def _cupy() -> Library:
    import cupy

    cupy.zeros(1)  # raises where there is no CUDA device
    return Library(cupy.asarray, cupy.asnumpy)


def _strict() -> Library:
    import array_api_strict

    return Library(array_api_strict.asarray)


def _ndonnx() -> Library:
    import ndonnx
    import onnxruntime

    def export(fn: Any) -> Any:
        """The function as an ONNX graph, traced at its first call, in onnxruntime's hands."""
        sessions: list[Any] = []

        def run(*arrays: Any) -> Any:
            feed = {f"in{i}": a for i, a in enumerate(arrays)}
            if not sessions:
                inputs = {k: ndonnx.argument(shape=a.shape, dtype=ndonnx.asarray(a).dtype) for k, a in feed.items()}
                outputs = {f"out{i}": a for i, a in enumerate(fn(*inputs.values()))}
                model = ndonnx.build(inputs, outputs).SerializeToString()
                sessions.append(onnxruntime.InferenceSession(model))
            return sessions[0].run(None, feed)

        return run

    return Library(np.asarray, ready=export)


# name -> (module to look for, what pip calls it, loader)
LIBRARIES: dict[str, tuple[str, str, Callable[[], Library]]] = {
    "numpy": ("numpy", "numpy", _numpy),
    "torch": ("torch", "torch", _torch),
    "torch, cuda": ("torch", "torch", _torch_cuda),
    "jax, jitted": ("jax", "jax", _jax),
    "dask": ("dask.array", "'dask[array]'", _dask),
    "cupy": ("cupy", "cupy-cuda12x", _cupy),
    "array_api_strict": ("array_api_strict", "array-api-strict", _strict),
    "ndonnx, exported": ("ndonnx", "ndonnx onnxruntime", _ndonnx),
}


def loaded(names: Iterable[str], skipped: dict[str, str]) -> Iterable[tuple[str, Library]]:
    """The libraries that are here, one after the other; why the others are not goes into `skipped`."""
    for name in names:
        module, pip, load = LIBRARIES[name]
        if find_spec(module.partition(".")[0]) is None:
            skipped[module] = f"not installed; {sys.executable} -m pip install {pip}"
            continue
        try:
            library = load()
        except Exception as reason:
            skipped[name] = str(reason).partition("\n")[0]
            continue
        yield name, library


# --- data ------------------------------------------------------------------------------------------------------------


class Digits(NamedTuple):
    X: Any  # (rows, 64), with mean 0 in each pixel: a long common direction would ask for smaller steps, and more of them
    X_test: Any
    labels: Any
    labels_test: Any
    mean: Any


def digits(held_out: float = 0.25) -> Digits:
    """scikit-learn's 1797 handwritten digits, 8 × 8 pixels. A share of them is held out."""
    data: Any = load_digits()
    split: Any = train_test_split(data.data / 16, data.target, test_size=held_out, random_state=0, stratify=data.target)
    X, X_test, labels, labels_test = split
    mean = X.mean(axis=0)
    return Digits(X - mean, X_test - mean, labels, labels_test, mean)


# --- layers and their derivatives ------------------------------------------------------------------------------------
# softxp has the derivatives of its own functions. What stands before them is these few lines, the same for each library;
# each gives its answer and its pullback, as softxp.vjp does. With torch or JAX their autograd would do as well.


def weights(rng: np.random.Generator, *sizes: int) -> list[Any]:
    """W, b, W, b, ... of layers from each size to the next."""
    out: list[Any] = []
    for n, m in pairwise(sizes):
        out += [rng.normal(size=(n, m)) / np.sqrt(n), np.zeros(m)]
    return out


def perceptron(layers: Sequence[Any], x: Any) -> tuple[Any, Callable[[Any], tuple[list[Any], Any]]]:
    """x W + b for each layer, and tanh between them. Its pullback gives the cotangents of the layers, and that of x."""
    xp = array_namespace(x)
    pairs = list(zip(layers[::2], layers[1::2], strict=True))
    inputs = []
    for i, (W, b) in enumerate(pairs):
        x = xp.tanh(x) if i else x
        inputs.append(x)
        x = x @ W + b

    def pullback(ct: Any) -> tuple[list[Any], Any]:
        out: list[Any] = []
        for i, (W, _) in reversed(list(enumerate(pairs))):
            out = [inputs[i].T @ ct, xp.sum(ct, axis=0), *out]
            ct = ct @ W.T
            ct = ct * (1 - inputs[i] ** 2) if i else ct
        return out, ct

    return x, pullback


class Adam(NamedTuple):
    """Parameters and what Adam keeps beside them (Kingma & Ba 2015, arXiv:1412.6980). A step gives the next one."""

    parameters: list[Any]
    first: list[Any]
    second: list[Any]
    count: Any

    @classmethod
    def of(cls, library: Library, parameters: Sequence[Any]) -> "Adam":
        zeros = [np.zeros_like(p) for p in parameters]
        put = library.asarray
        return cls(list(map(put, parameters)), list(map(put, zeros)), list(map(put, zeros)), put(np.asarray(0.0)))

    def step(self, gradients: Sequence[Any], rate: float) -> "Adam":
        n = self.count + 1
        first = [0.9 * m + 0.1 * g for m, g in zip(self.first, gradients, strict=True)]
        second = [0.99 * v + 0.01 * g * g for v, g in zip(self.second, gradients, strict=True)]
        size, moved = rate * (1 - 0.99**n) ** 0.5 / (1 - 0.9**n), zip(self.parameters, first, second, strict=True)
        return Adam([p - size * m / (v**0.5 + 1e-8) for p, m, v in moved], first, second, n)


def accuracy(logits: Any, labels: Any) -> float:
    xp = array_namespace(logits)
    return float(xp.mean(xp.astype(xp.argmax(logits, axis=-1) == labels, logits.dtype)))


# --- the table, the picture, the command -----------------------------------------------------------------------------


def table(title: str, first: str, columns: Iterable[str]) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold")
    made.add_column(first, no_wrap=True)
    for column in columns:
        made.add_column(column, justify="right")
    return made


@cache
def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({
        "svg.hashsalt": "softxp", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True,
        "savefig.dpi": 120, "legend.frameon": False,
    })  # fmt: skip
    return plt


class Result(NamedTuple):
    rows: list[dict[str, str | float]]  # of the table; a number is held against numpy's, so it comes unrounded
    shown: Any  # what the picture is drawn from


def shown(value: str | float, form: str) -> str:
    return value if isinstance(value, str) else format(value, form)


def run(
    about: str,
    on: Callable[[Library, Any], Result],
    draw: Callable[[Any, Any], Any],
    columns: dict[str, str],
    full: Any,
    quick: Any,
    *,
    tolerance: float = 1e-6,
    argv: Sequence[str] | None = None,
) -> dict[str, Result]:
    """The command: on(library, settings) for each library, a table of their rows, and the picture draw(pyplot, shown).

    columns : heading -> format of its numbers. tolerance : how far a number may lie from the first library's.
    """
    name = Path(sys.modules[on.__module__].__file__ or "example").stem
    chosen = {"numpy": "numpy", "torch": "torch", "jax": "jax, jitted"}
    parser = ArgumentParser(f"python examples/{name}.py", description=about.partition("\n")[0])
    parser.add_argument(
        "--backend", nargs="+", choices=chosen, default=[*chosen], help="default: each that is installed"
    )
    parser.add_argument("--quick", action="store_true", help="small settings, seconds")
    parser.add_argument(
        "--out", type=Path, default=Path("build/examples") / f"{name}.png", help="the picture (default: %(default)s)"
    )
    asked = parser.parse_args(argv)

    for paragraph in about.strip().split("\n\n"):
        console.print(" ".join(paragraph.split()), highlight=False, markup=False)
    skipped: dict[str, str] = {}
    results: dict[str, Result] = {}
    done = table("", "library", [*columns, "s"])
    for library_name, library in loaded([chosen[b] for b in asked.backend], skipped):
        with console.status(library_name):
            began = perf_counter()
            result = on(library, quick if asked.quick else full)
            seconds = f"{perf_counter() - began:.1f}"
        for i, row in enumerate(result.rows):
            cells = (shown(row[c], form) for c, form in columns.items())
            done.add_row(library_name if i == 0 else "", *cells, seconds if i == 0 else "")
        done.add_section()
        results[library_name] = result
    if not results:
        raise SystemExit("; ".join(f"{k}: {v}" for k, v in skipped.items()))
    console.print(done)
    for module, reason in skipped.items():
        console.print(f"skipped {module}: {reason}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    agree(results, tolerance)

    plt = pyplot()
    figure = draw(plt, next(iter(results.values())).shown)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(asked.out, metadata={"Date": None} if asked.out.suffix == ".svg" else None)
    plt.close(figure)
    console.print(f"picture: {asked.out}\n", highlight=False, markup=False)
    return results


def agree(results: dict[str, Result], tolerance: float) -> None:
    (first, truth), *others = results.items()
    for name, result in others:
        for mine, theirs in zip(result.rows, truth.rows, strict=True):
            for column, a in mine.items():
                b = theirs[column]
                if a != b and (
                    isinstance(a, str) or isinstance(b, str) or not abs(a - b) <= tolerance * max(1, abs(b))
                ):
                    raise SystemExit(f"{name} should find {first}'s {column}, {b}, but finds {a}.")
    if others:
        console.print(f"All find the same, to {tolerance:g}.", highlight=False)
