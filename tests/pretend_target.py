"""cupy on a GPU that is not there, as a conformance target: softxp_conformance --target pretend_target:TARGET."""

import pretend

from softxp_conformance.targets import Target

gpu = pretend.gpu()  # for as long as the process lives
cupy = gpu.__enter__().cupy

TARGET = Target(
    "cupy-pretended", "cupy", asarray=cupy.asarray, asnumpy=cupy.asnumpy, device="cuda",
    wide=lambda function, kind, dtype, long: True,
    # what the kernels serve; the rest is the formula's, as on numpy
    only=(r"test_(rows|vjp|axis|long|contract_(views|empty|threads|label)).*-(softmax|log_softmax|logsumexp|cross_entropy)(-|\])",),
)  # fmt: skip
