"""How softxp's conformance suite speaks to pebble:

python -m softxp_conformance --target pebble.softxp_target:TARGET
"""

import pebble
from softxp_conformance.targets import Target

NO_SMALL_INTEGERS = "pebbles hold 32-bit integers alone: https://example.org/pebble/issues/7"


def _asarray(a):
    return pebble.asarray(a.astype("int32") if a.dtype == "int64" else a)


TARGET = Target(
    "pebble",
    module="pebble",
    asarray=_asarray,
    asnumpy=lambda a: a._strict._array,
    dtypes=("float32",),
    device="pebble:0",
    steps_back=False,
    xfail={
        "test_contract_integers[pebble-uint8": NO_SMALL_INTEGERS,
        "test_contract_integers[pebble-int8": NO_SMALL_INTEGERS,
        "test_contract_unsigned_label": NO_SMALL_INTEGERS,
        "-topk_softmax-": "pebble's argsort answers in int64, which its device has not",
    },
)
