"""The rows that every function is asked about, by name and by family.

One batch holds them all side by side, each a row of 17 numbers (a prime, and past every vector width): so one call per
function answers for all of them, and a row that leaks into its neighbour shows.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .ulp import FORMATS, rounded

N = 17
INF, NAN = float("inf"), float("nan")
GAPS = (5, 15, 17, 20, 40, 90)

# beside the families of named rows: drawn by hypothesis, as long as vocabularies, and one answer for all named rows
DRAWN, VOCABULARY, ALL = "drawn", "vocabulary", "all"


class Batch(NamedTuple):
    names: list[str]
    families: list[str]  # of each row
    x: Any  # (rows, 17), already rounded to the dtype

    def of(self, family: str) -> Any:
        """Which rows are of the family."""
        return np.asarray([f == family for f in self.families])


def _families(dtype: str, rng: Any) -> dict[str, dict[str, Any]]:
    bits, lowest, largest = FORMATS[dtype]
    i = np.arange(N)

    def normal() -> Any:
        return rng.standard_normal(N)

    return {
        "normal": {"normal": normal(), "normal again": normal(), "normal once more": normal()},
        "scale-10": {"scale 10": 10 * normal(), "scale 10 again": 10 * normal()},
        "scale-100": {"scale 100": 100 * normal(), "scale 100 again": 100 * normal()},
        "offset": {
            "offset 1e4": 1e4 + 4 * normal(),
            "offset -1e4": -1e4 + 4 * normal(),
            "offset 6e4": min(6e4, largest / 2 if dtype != "float16" else 6e4) + 40 * normal(),
        },
        "dominant": {
            name: row
            for gap in GAPS
            for name, row in {
                f"gap {gap}": np.where(i == gap % N, float(gap), normal() / 4),
                f"gap {gap} exact": np.where(i == gap % N, float(gap), 0.0),
                f"two at gap {gap}": np.where(i < 2, float(gap), normal() / 4),
            }.items()
        },
        "ties": {"ties": rng.integers(0, 3, N).astype(float), "ties far apart": 30.0 * rng.integers(0, 3, N)},
        "equal": {"all equal": np.full(N, 1.25), "zeros": np.zeros(N), "equal but one": np.where(i == 4, 1.0, 1.25)},
        "two-levels": {
            "two levels": np.where(i % 2 == 0, 3.0, -4.0),
            "two levels far apart": np.where(i % 3 == 0, 8.0, -40.0),
        },
        "tails": {
            "tail": np.linspace(0.0, -110.0 if bits < 30 else -750.0, N),
            "tail to subnormal": np.linspace(0.0, 0.6931 * (lowest - bits), N),
            "tail above subnormal": np.linspace(0.0, 0.69 * lowest, N),
        },
        "extreme": {
            "huge": np.where(i % 3 == 0, 1.0, -1.0) * largest / 4,
            "near largest": np.full(N, largest),
            "tiny": normal() * 2.0 ** (lowest + 2),
        },
        "masked": {
            "some -inf": np.where(i % 4 == 1, -INF, normal()),
            "one above -inf": np.where(i == 5, 2.0, -INF),
            "all -inf": np.full(N, -INF),
        },
        "infinities": {
            "one +inf": np.where(i == 3, INF, normal()),
            "several +inf": np.where(i % 5 == 0, INF, np.where(i % 5 == 1, -INF, normal())),
            "all +inf": np.full(N, INF),
        },
        "nan": {
            "nan": np.where(i == 7, NAN, normal()),
            "nan and inf": np.where(i == 2, NAN, np.where(i == 9, INF, normal())),
            "after nan": normal(),
        },
    }


@lru_cache
def rows(dtype: str, seed: int = 0) -> Batch:
    table = [
        (name, family, row)
        for family, named in _families(dtype, np.random.default_rng(seed)).items()
        for name, row in named.items()
    ]
    names, families, x = zip(*table, strict=True)
    x = rounded(np.stack(x), dtype)
    x.flags.writeable = False
    return Batch(list(names), list(families), x)


ROW_FAMILIES = tuple(dict.fromkeys(rows("float32").families))
FAMILIES = (*ROW_FAMILIES, DRAWN, VOCABULARY, ALL)


def drawn(dtype: str, shape: tuple[int, int] = (4, 11)) -> Any:
    """A strategy for rows of any finite numbers of the dtype, small and large, and -inf; far more often near each other."""
    from hypothesis import strategies as st  # not before pytest has made ready for it
    from hypothesis.extra import numpy as numpy_strategies

    largest = FORMATS[dtype][2]
    entry = st.one_of(
        st.floats(-8, 8),
        st.integers(-3, 3).map(float),
        st.floats(-100, 100),
        st.floats(-largest / 4, largest / 4),
        st.just(-INF),
    )
    return numpy_strategies.arrays(np.float64, shape, elements=entry).map(lambda x: rounded(x, dtype))


@lru_cache
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
    x = rounded(x, dtype)
    x.flags.writeable = False
    return x


def block(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    """An ordinary array, for what is asked of shapes and axes."""
    return rounded(3 * np.random.default_rng(seed).standard_normal(shape), dtype)


def halves(n: int, dtype: str, seed: int = 0) -> Any:
    """Multiples of a half within [-8, 8]: adding 32 to them, or halving them, is exact in every dtype."""
    return rounded(np.random.default_rng(seed).integers(-16, 17, n) / 2, dtype)
