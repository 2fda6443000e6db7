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


def unit(size: Any, dtype: str, lost: float = 0) -> Any:
    """The spacing of the dtype's numbers around |size|.

    `lost`: the library turns subnormals into 0, so that it is never less than so many of the smallest normal number.
    """
    bits, lowest, _ = FORMATS[dtype]
    _, exponent = np.frexp(np.where(np.isfinite(size), np.abs(size), 1.0))
    exponent = np.where(np.equal(size, 0), lowest, exponent - 1)
    exponent = np.maximum(exponent, lowest + (bits - 1 + int(np.log2(lost)) if lost else 0))
    return np.ldexp(1.0, exponent - bits + 1)


def distance(got: Any, truth: DD, dtype: str, scale: Any = 0.0, lost: float = 0) -> Any:
    """|got - truth| in ulp of the larger of the truth and `scale`, entry by entry.

    Infinities and NaN must be met exactly; an infinity is right where the truth would round to one.
    """
    got = np.asarray(got, dtype=np.float64)
    hi = np.broadcast_to(truth.hi, got.shape)
    with np.errstate(all="ignore"):
        error = np.abs((got - hi) - truth.lo)
        size = np.maximum(np.abs(hi), np.where(np.isfinite(scale), scale, 0.0))
        out = error / unit(size, dtype, lost)
        largest = FORMATS[dtype][2]
        past = np.abs(hi) - largest + np.sign(hi) * truth.lo
        beyond = np.isfinite(hi) & (past >= unit(largest, dtype) / 2) & np.isinf(got) & (np.sign(got) == np.sign(hi))
        met = beyond | (np.isinf(hi) & (got == hi)) | (np.isnan(got) & np.isnan(hi))
    return np.where(met, 0.0, np.where(np.isfinite(got) & np.isfinite(hi), out, np.inf))


def rounded(x: Any, dtype: str) -> Any:
    """x rounded to the dtype's numbers, as float64: what the library is given, and so what the truth is of."""
    x = np.asarray(x, dtype=np.float64)
    with np.errstate(all="ignore"):
        if dtype == "bfloat16":
            import ml_dtypes

            return x.astype(ml_dtypes.bfloat16).astype(np.float64)
        return x.astype(dtype).astype(np.float64)
