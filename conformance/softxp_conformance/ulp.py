"""How far an answer is from the truth, in units in the last place of its dtype."""

from typing import Any

import numpy as np

from .double_double import DD

# dtype: bits of the significand, smallest normal exponent, largest number
FORMATS = {
    "float16": (11, -14, 65504.0),
    "bfloat16": (8, -126, float.fromhex("0x1.fep127")),
    "float32": (24, -126, float.fromhex("0x1.fffffep127")),
    "float64": (53, -1022, np.finfo(np.float64).max),
}


def unit(size: Any, dtype: str, flushes: bool = False) -> Any:
    """The spacing of the dtype's numbers around |size|.

    `flushes`: the library turns subnormals into 0, so that a sum of a row of them may be off by some smallest normals.
    """
    bits, lowest, _ = FORMATS[dtype]
    _, exponent = np.frexp(np.where(np.isfinite(size), np.abs(size), 1.0))
    exponent = np.maximum(exponent - 1, lowest + (bits + 4 if flushes else 0))
    return np.ldexp(1.0, exponent - bits + 1)


def distance(got: Any, truth: DD, dtype: str, scale: Any = 0.0, flushes: bool = False) -> Any:
    """|got - truth| in ulp of the larger of the truth and `scale`, entry by entry.

    Infinities and NaN must be met exactly (inf counts as met where the truth lies beyond the dtype's range).
    """
    got = np.asarray(got, dtype=np.float64)
    hi = np.broadcast_to(truth.hi, got.shape)
    with np.errstate(all="ignore"):
        error = np.abs((got - hi) - truth.lo)
        size = np.maximum(np.abs(hi), np.where(np.isfinite(scale), scale, 0.0))
        out = error / unit(size, dtype, flushes)
        largest = FORMATS[dtype][2]
        beyond = np.isfinite(hi) & ((np.abs(hi) > largest) | ((np.abs(hi) == largest) & (hi * truth.lo > 0)))
        met = (got == hi) | (np.isnan(got) & np.isnan(hi)) | (beyond & np.isinf(got) & (np.sign(got) == np.sign(hi)))
    return np.where(met, 0.0, np.where(np.isfinite(got) & np.isfinite(hi), out, np.inf))


def rounded(x: Any, dtype: str) -> Any:
    """x rounded to the dtype's numbers, as float64: what the library is given, and so what the truth is of."""
    x = np.asarray(x, dtype=np.float64)
    with np.errstate(all="ignore"):
        if dtype == "bfloat16":
            import ml_dtypes

            return x.astype(ml_dtypes.bfloat16).astype(np.float64)
        return x.astype(dtype).astype(np.float64)
