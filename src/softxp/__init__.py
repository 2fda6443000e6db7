"""softxp: the softmax family for any array.

One set of formulas, written against the Python array API standard, serves numpy, torch, cupy, JAX, Dask, ndonnx and any
conforming array, and agrees with a high-precision truth within a stated number of ulp. See docs/semantics.md for what
every corner gives.
"""

from importlib.metadata import version as _version

from . import streaming
from ._backends import register
from ._backends._threads import set_num_threads
from ._backends._warm import use_kernels, warmup
from .attention import attention, merge_attention
from .calibrate import expected_calibration_error, fit_temperature, perplexity, reliability_curve
from .contrastive import contrastive_loss
from .core import cross_entropy, log_softmax, logcumsumexp, logmeanexp, logsumexp, softmax
from .decode import gumbel_softmax, mask_logits, sample
from .linear import VocabularyShard, linear_cross_entropy
from .losses import distillation_loss, entropy, kl_divergence
from .routing import balance_loss, router_z_loss, topk_softmax
from .sparse import entmax, entmax_loss, sparsemax, sparsemax_loss
from .transform import jvp, value_and_grad, vjp

__version__ = _version("softxp")

__all__ = [
    "VocabularyShard",
    "attention",
    "balance_loss",
    "contrastive_loss",
    "cross_entropy",
    "distillation_loss",
    "entmax",
    "entmax_loss",
    "entropy",
    "expected_calibration_error",
    "fit_temperature",
    "gumbel_softmax",
    "jvp",
    "kl_divergence",
    "linear_cross_entropy",
    "log_softmax",
    "logcumsumexp",
    "logmeanexp",
    "logsumexp",
    "mask_logits",
    "merge_attention",
    "perplexity",
    "register",
    "reliability_curve",
    "router_z_loss",
    "sample",
    "set_num_threads",
    "softmax",
    "sparsemax",
    "sparsemax_loss",
    "streaming",
    "topk_softmax",
    "use_kernels",
    "value_and_grad",
    "vjp",
    "warmup",
]
