"""The rows that every function is asked about, by name.

One batch holds them all side by side, each a row of 17 numbers (a prime, and past every vector width): so one call per
function answers for all of them, and a row that leaks into its neighbour shows.
"""

from typing import Any

import numpy as np

from .ulp import FORMATS, rounded

N = 17
INF, NAN = float("inf"), float("nan")


def rows(dtype: str, seed: int = 0) -> tuple[list[str], Any]:
    """(names, array (rows, 17)), already rounded to the dtype."""
    rng = np.random.default_rng(seed)
    bits, lowest, largest = FORMATS[dtype]
    normal = rng.standard_normal
    table: dict[str, Any] = {
        "normal": normal(N),
        "normal, 2": normal(N),
        "scale 10": 10 * normal(N),
        "scale 100": 100 * normal(N),
        "offset 1e4": 1e4 + 4 * normal(N),
        "offset -1e4": -1e4 + 4 * normal(N),
        "offset large": min(6e4, largest / 2) + 40 * normal(N),
        "ties": rng.integers(0, 3, N).astype(float),
        "all equal": np.full(N, 1.25),
        "zeros": np.zeros(N),
        "two levels": np.where(np.arange(N) % 2 == 0, 3.0, -4.0),
        "tail": np.linspace(0.0, -110.0 if bits < 30 else -750.0, N),
        "tail to subnormal": np.linspace(0.0, 0.6931 * (lowest - bits), N),
        "huge": np.where(np.arange(N) % 3 == 0, 1.0, -1.0) * largest / 4,
        "near largest": np.full(N, largest),
        "tiny": normal(N) * 2.0 ** (lowest + 2),
        "some -inf": np.where(np.arange(N) % 4 == 1, -INF, normal(N)),
        "one above -inf": np.where(np.arange(N) == 5, 2.0, -INF),
        "all -inf": np.full(N, -INF),
        "one +inf": np.where(np.arange(N) == 3, INF, normal(N)),
        "several +inf": np.where(np.arange(N) % 5 == 0, INF, np.where(np.arange(N) % 5 == 1, -INF, normal(N))),
        "all +inf": np.full(N, INF),
        "nan": np.where(np.arange(N) == 7, NAN, normal(N)),
        "nan and inf": np.where(np.arange(N) == 2, NAN, np.where(np.arange(N) == 9, INF, normal(N))),
        "after nan": normal(N),
    }
    for gap in (5, 15, 20, 40, 90):
        table[f"gap {gap}"] = np.where(np.arange(N) == gap % N, float(gap), normal(N) / 4)
        table[f"gap {gap} exact"] = np.where(np.arange(N) == gap % N, float(gap), 0.0)
        table[f"two at gap {gap}"] = np.where(np.arange(N) < 2, float(gap), normal(N) / 4)
    x = np.stack(list(table.values()))
    return list(table), rounded(x, dtype)


def long_row(n: int, dtype: str, kind: str, seed: int = 0) -> Any:
    """One row as long as a vocabulary, or longer."""
    rng = np.random.default_rng(seed)
    if kind == "normal":
        x = 4 * rng.standard_normal(n)
    elif kind == "equal":
        x = np.full(n, 0.5)
    else:  # one dominant logit far along the row, over a common offset
        x = (1e4 if dtype != "float16" else 1e3) + rng.standard_normal(n)
        x[2 * n // 3] += 16
    return rounded(x, dtype)


def block(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    """An ordinary array, for what is asked of shapes and axes."""
    return rounded(3 * np.random.default_rng(seed).standard_normal(shape), dtype)
