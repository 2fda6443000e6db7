"""How much memory a call takes beside its input: the peak resident size of a process of its own, before and after. Linux."""

import subprocess
import sys
from typing import Any

SHAPE = (512, 50_257)  # 103 MB of float32

CALLS = {
    "numpy softmax": "softxp.softmax(x)",
    "numpy log_softmax": "softxp.log_softmax(x)",
    "numpy softmax, axis 0": "softxp.softmax(x, axis=0)",
    "numpy softmax of one row": "softxp.softmax(x.reshape(-1))",
    "numpy logsumexp": "softxp.logsumexp(x, axis=1)",
    "numpy cross_entropy": "softxp.cross_entropy(x, labels)",
    "numpy cross_entropy and gradient": "softxp.value_and_grad(softxp.cross_entropy)(x, labels)",
    "numpy softmax pullback": "softxp.vjp(softxp.softmax, x)[1](x)",
    "torch softmax": "softxp.softmax(t)",
    "torch cross_entropy": "softxp.cross_entropy(t, tl)",
    "torch cross_entropy and backward": "softxp.cross_entropy(t.requires_grad_(), tl).backward()",
    "torch's own cross_entropy and backward": "torch.nn.functional.cross_entropy(t.requires_grad_(), tl).backward()",
}

CODE = """
import sys, numpy as np, softxp
def peak():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) * 1024
call = sys.argv[1]
small = np.zeros((64, 50257), np.float32)
x, labels = small, np.zeros(64, int)
if "torch" in call or "(t" in call:
    import torch
    t, tl = torch.from_numpy(small), torch.from_numpy(labels)
eval(call)  # compiles, loads, starts threads
x = np.random.default_rng(0).standard_normal(({rows}, {n}), dtype=np.float32)
labels = np.zeros({rows}, int)
if "torch" in sys.modules:
    t, tl = torch.from_numpy(x), torch.from_numpy(labels)
before = peak()
y = eval(call)
print((peak() - before) / x.nbytes)
"""


def peaks() -> dict[str, float]:
    """Call -> peak beside the input, in sizes of the input."""
    code = CODE.format(rows=SHAPE[0], n=SHAPE[1])
    out: dict[str, Any] = {}
    for name, call in CALLS.items():
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, call], capture_output=True, text=True, check=True
        )
        out[name] = float(done.stdout)
    return out


if __name__ == "__main__":
    for name, sizes in peaks().items():
        print(f"{name:42} {sizes:6.3f}")
