"""softmax by hand, then a classifier of handwritten digits trained with the same lines on every array library here.

Run by `make demo`. Needs numpy, scikit-learn and rich; serves torch, JAX, Dask, cupy, array-api-strict and ndonnx too
where they are installed. Ends with an error if any number it prints is not the one it should be.
"""

from time import perf_counter
from typing import Any

import numpy as np
from _common import LIBRARIES, console, digits, loaded, table
from array_api_compat import array_namespace
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import softxp

# --- 1. worked examples ----------------------------------------------------------------------------------------------


def check(what: str, got: Any, expected: list[float], digits: int) -> list[str]:
    """The numbers as they are printed, once they are known to be the expected ones."""
    shown, wanted = ([f"{v:.{digits}f}" for v in values] for values in (np.ravel(got), expected))
    if shown != wanted:
        raise SystemExit(f"{what} should read {' '.join(wanted)}, but softxp answers {' '.join(shown)}.")
    return shown


def worked_examples() -> None:
    x = np.asarray([2.0, 1.2, 0.5, -0.3, -1.0, -2.0])
    first = table("softmax: exponentials, divided by their sum", "logits", map(str, x))
    first.add_column("sum", justify="right")
    total = np.exp(softxp.logsumexp(x))
    first.add_row(
        "exponentials",
        *check("the exponentials", np.exp(x), [7.39, 3.32, 1.65, 0.74, 0.37, 0.14], 2),
        *check("their sum", total, [13.60], 2),
    )
    p = softxp.softmax(x)
    first.add_row(
        "probabilities",
        *check("the probabilities", p, [0.54, 0.24, 0.12, 0.05, 0.03, 0.01], 2),
        *check("their sum", p.sum(), [1.00], 2),
    )
    console.print(first)

    x = np.asarray([3.0, 1.5, 0.2, 4.1, 0.8, 2.3])
    steps = table("the same, step by step, without overflow", "logits", map(str, x))
    steps.add_column("", justify="right")
    top, lse, p = x.max(), softxp.logsumexp(x), softxp.softmax(x)
    steps.add_row(
        "less maximum",
        *check("the shifted logits", x - top, [-1.1, -2.6, -3.9, 0.0, -3.3, -1.8], 1),
        "max " + check("the maximum", top, [4.1], 1)[0],
    )
    steps.add_row(
        "exponentials",
        *check("the shifted exponentials", np.exp(x - top), [0.333, 0.074, 0.020, 1.000, 0.037, 0.165], 3),
        "sum " + check("their sum", np.exp(lse - top), [1.630], 3)[0],
    )
    steps.add_row(
        "probabilities",
        *check("the probabilities", p, [0.204, 0.046, 0.012, 0.614, 0.023, 0.101], 3),
        "sum " + check("their sum", p.sum(), [1.000], 3)[0],
    )
    console.print(steps)
    # This example is often worked by hand with a sum of 1.62, one hundredth short; say so to whoever compares.
    rounded = np.asarray([0.205, 0.046, 0.012, 0.616, 0.023, 0.102])
    if not abs(rounded - p).max() < 0.0025:
        raise SystemExit(f"softmax should be within 0.0025 of the example worked by hand, {rounded}, but is {p}.")
    by_hand = " ".join(f"{v:.3f}" for v in rounded)
    note = f"by hand, with a sum of 1.62: {by_hand}, together {rounded.sum():.3f}\n"
    console.print(note, style="dim", highlight=False)

    heat = table("the same logits at five temperatures", "temperature", map(str, x))
    for temperature, expected in {
        0: [0.000, 0.000, 0.000, 1.000, 0.000, 0.000],
        0.5: [0.097, 0.005, 0.000, 0.873, 0.001, 0.024],
        1: [0.204, 0.046, 0.012, 0.614, 0.023, 0.101],
        2: [0.223, 0.105, 0.055, 0.386, 0.074, 0.157],
        float("inf"): [0.167, 0.167, 0.167, 0.167, 0.167, 0.167],
    }.items():
        p = softxp.softmax(x, temperature=temperature)
        heat.add_row(str(temperature), *check(f"softmax at temperature {temperature}", p, expected, 3))
    console.print(heat)


# --- 2. a classifier, the same lines on every library ----------------------------------------------------------------

STEPS, RATE = 40, 8.0
ACCURACY, TOLERANCE = 0.95, 1e-9  # held-out accuracy to exceed; how far float64 answers may lie from numpy's


def step(X: Any, labels: Any, W: Any, b: Any) -> tuple[Any, Any, Any]:
    """One step down the gradient. X (rows, pixels), labels (rows,), W (pixels, classes), b (classes,) -> loss, W, b."""
    xp = array_namespace(X)
    loss, gradient = softxp.value_and_grad(softxp.cross_entropy)(X @ W + b, labels)
    return loss, W - RATE * (X.T @ gradient), b - RATE * xp.sum(gradient, axis=0)


def accuracy(X: Any, labels: Any, W: Any, b: Any) -> Any:
    xp = array_namespace(X)
    return xp.mean(xp.astype(xp.argmax(X @ W + b, axis=1) == labels, xp.float64))


def everywhere() -> None:
    X, X_test, labels, labels_test, _ = digits()
    start = np.zeros((X.shape[1], 10)), np.zeros(10)

    console.print(f"\n[bold]a softmax classifier[/], {X.shape[0]} digits to learn from, {X_test.shape[0]} held out")
    done = table(
        f"{STEPS} steps of gradient descent, the same lines on each library",
        "library",
        ["dtype", "loss", "held-out", "from numpy", "seconds"],
    )
    skipped: dict[str, str] = {}
    truth: tuple[Any, float] | None = None  # numpy's weights and loss
    columns = TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        for name, library in loaded(LIBRARIES, skipped):
            put, get = library.asarray, library.asnumpy
            steps = progress.track(range(STEPS), description=name)
            began = perf_counter()
            data, run = (put(X), put(labels)), library.ready(step)
            loss, W, b = None, *map(put, start)
            for _ in steps:
                loss, W, b = run(*data, W, b)
            loss, seconds = float(get(loss)), perf_counter() - began
            right = float(get(accuracy(put(X_test), put(labels_test), W, b)))
            truth = truth or (get(W), loss)
            apart = max(abs(get(W) - truth[0]).max(), abs(loss - truth[1]))
            done.add_row(name, str(get(W).dtype), f"{loss:.6f}", f"{right:.2%}", f"{apart:.0e}", f"{seconds:.1f}")
            if not right > ACCURACY:
                raise SystemExit(f"{name} should be right on over {ACCURACY:.0%} of held-out digits, got {right:.2%}.")
            if not apart <= TOLERANCE:
                raise SystemExit(f"{name}'s weights and loss should be within {TOLERANCE} of numpy's, got {apart}.")
    console.print(done)
    console.print(f"Each is right on over {ACCURACY:.0%} of held-out digits and within {TOLERANCE} of numpy's answers.")
    for name, reason in skipped.items():
        console.print(f"skipped {name}: {reason}", style="yellow", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    worked_examples()
    everywhere()
