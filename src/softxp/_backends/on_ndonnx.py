"""ndonnx: the formula as an ONNX graph. ONNX has no log1p or expm1, and the plain ones round small arguments away."""

from functools import partial

import ndonnx as ndx

from . import Backend
from ._namespace import careful, expm1, log1p

XP = careful(ndx, log1p=partial(log1p, ndx), expm1=partial(expm1, ndx))
del XP.sort  # it wants sizes that are known already

BACKEND = Backend(
    name="ndonnx",
    xp=XP,
    double=lambda x: True,
    road="formula as an ONNX graph",
    put=lambda value, like: ndx.asarray(value),
    arange=lambda n, dtype, like: ndx.arange(n, dtype=dtype),
    default_float=lambda like: ndx.float64,
    default_int=lambda like: ndx.int64,
)
