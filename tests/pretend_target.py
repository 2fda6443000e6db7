"""cupy on a GPU that is not there, as a conformance target: softxp_conformance --target pretend_target:TARGET. The driver of
FAILING refuses every launch.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pretend

from softxp_conformance.targets import TARGETS, Target

kept = tempfile.TemporaryDirectory()
os.environ["SOFTXP_CACHE_DIR"] = kept.name  # what is pretended to be compiled has no place in the user's folder
driver = pretend.Driver()
gpu = pretend.gpu(driver)  # for as long as the process lives
cupy = gpu.__enter__().cupy
with_kernels = TARGETS["cupy-kernels"].context

TARGET = Target(
    "cupy-pretended", "cupy", asarray=cupy.asarray, asnumpy=cupy.asnumpy, device="cuda", context=with_kernels,
    wide=lambda function, kind, dtype, long: True,
    # what the kernels serve; the rest is the formula's, as on numpy
    only=(r"test_(rows|vjp|axis|long|contract_(views|empty|threads|label)).*-(softmax|log_softmax|logsumexp|cross_entropy)(-|\])",),
)  # fmt: skip


@contextmanager
def refused(dtype: str) -> Iterator[None]:
    driver.launch_error = 701
    try:
        with with_kernels(dtype):
            yield
    finally:
        driver.launch_error = 0


FAILING = replace(TARGET, name="cupy-refused", context=refused)
