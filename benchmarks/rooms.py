"""python -m benchmarks.rooms: losses of products, attention and the sparse maps beside their peers. Part of `make bench`.

Time as in `python -m benchmarks`: interleaved, medians, one number of threads. Memory: the peak resident size of a
process of its own, beside what stood there before the call. Linux.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import softxp

from .__main__ import duel, machine

IMPORTS = """
import numpy as np, softxp
from softxp import value_and_grad
try:
    import torch
    from torch.nn import functional as tf
except ImportError: pass
try:
    import entmax
except ImportError: pass
try:
    import jax, jax.numpy as jnp
except ImportError: pass
def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
def leaf(a):
    return torch.from_numpy(a).requires_grad_()
def backward(y, *leaves):
    y.sum().backward()
    for t in leaves:
        t.grad = None
"""

# name, and the words of it, ours and theirs
CAUSAL = (("attention", "", ""), ("causal attention", ", causal=True", ", is_causal=True"))

# title -> (sizes, what is set up, contender -> call). The first contender's time is what the others' is divided by.
DUELS: dict[str, tuple[tuple[int, ...], tuple[int, ...], str, dict[str, str]]] = {
    "linear cross-entropy and gradients, rows × h × vocabulary": (
        (4096, 512, 32768), (512, 64, 8192),
        """
rows, h, vocabulary = sizes
hidden, kernel = normal(rows, h), normal(vocabulary, h) / np.float32(h**0.5)
labels = np.arange(rows) * 7 % vocabulary
both = value_and_grad(softxp.linear_cross_entropy, argnums=(0, 1))
def whole():
    loss, g = value_and_grad(softxp.cross_entropy)(hidden @ kernel.T, labels)
    return loss, g @ kernel, g.T @ hidden
if "torch" in globals():
    th, tk, tl = leaf(hidden), leaf(kernel), torch.from_numpy(labels)
if "jax" in globals():
    jh, jk, jl = jnp.asarray(hidden), jnp.asarray(kernel), jnp.asarray(labels)
    def plain(h, k):
        return -jnp.take_along_axis(jax.nn.log_softmax(h @ k.T), jl[:, None], 1).mean()
    jitted, mine = (jax.jit(jax.value_and_grad(f, argnums=(0, 1))) for f in (
        plain, lambda h, k: softxp.linear_cross_entropy(h, k, jl)))
""",
        {
            "softxp": "both(hidden, kernel, labels)",
            "softxp, logits whole": "whole()",
            "softxp on torch": "backward(softxp.linear_cross_entropy(th, tk, tl), th, tk)",
            "torch": "backward(tf.cross_entropy(th @ tk.T, tl), th, tk)",
            "softxp on jax": "jax.block_until_ready(mine(jh, jk))",
            "jax": "jax.block_until_ready(jitted(jh, jk))",
        },
    ),
    "contrastive loss (CLIP) and gradients, pairs × h": (
        (8192, 256), (256, 32),
        """
pairs, h = sizes
a, b = normal(pairs, h), normal(pairs, h)[::-1].copy()
both = value_and_grad(softxp.contrastive_loss, argnums=(0, 1))
if "torch" in globals():
    ta, tb, tl = leaf(a), leaf(b), torch.arange(pairs)
    def clip():
        s = ta @ tb.T / 8
        return (tf.cross_entropy(s, tl) + tf.cross_entropy(s.T, tl)) / 2
""",
        {
            "softxp": "both(a, b, temperature=8.0, loss='clip')",
            "softxp on torch": "backward(softxp.contrastive_loss(ta, tb, temperature=8.0, loss='clip'), ta, tb)",
            "torch": "backward(clip(), ta, tb)",
        },
    ),
    **{
        f"{name}, heads × length × d": (
            (8, 2048, 64), (2, 64, 16),
            f"""
q, k, v = normal(1, *sizes), normal(1, *sizes)[..., ::-1].copy(), normal(1, *sizes)
if "torch" in globals():
    tq, tk, tv = (torch.from_numpy(a) for a in (q, k, v))
    from torch.nn.attention import SDPBackend, sdpa_kernel
    def plain():
        with sdpa_kernel(SDPBackend.MATH):
            return tf.scaled_dot_product_attention(tq, tk, tv{theirs})
if "jax" in globals():
    js = [jnp.asarray(a).swapaxes(1, 2) for a in (q, k, v)]
    theirs = jax.jit(lambda *js: jax.nn.dot_product_attention(*js{theirs}))
""",
            {
                "softxp": f"softxp.attention(q, k, v{ours})",
                "softxp on torch": f"softxp.attention(tq, tk, tv{ours})",
                "torch": f"tf.scaled_dot_product_attention(tq, tk, tv{theirs})",
                "torch, its plain road": "plain()",
                "jax": "jax.block_until_ready(theirs(*js))",
            },
        )
        for name, ours, theirs in CAUSAL
    },
    **{
        f"{name} and gradients, heads × length × d": (
            (8, 2048, 64), (2, 64, 16),
            f"""
q, k, v = (leaf(a) for a in (normal(1, *sizes), normal(1, *sizes)[..., ::-1].copy(), normal(1, *sizes)))
from torch.nn.attention import SDPBackend, sdpa_kernel
def plain():
    with sdpa_kernel(SDPBackend.MATH):
        return tf.scaled_dot_product_attention(q, k, v{theirs})
""",
            {
                "softxp on torch": f"backward(softxp.attention(q, k, v{ours}), q, k, v)",
                "torch": f"backward(tf.scaled_dot_product_attention(q, k, v{theirs}), q, k, v)",
                "torch, its plain road": "backward(plain(), q, k, v)",
            },
        )
        for name, ours, theirs in CAUSAL
    },
    **{
        f"{name}, rows × n": (
            (4096, 1000), (64, 100), "x = normal(*sizes)\nt = torch.from_numpy(x)",
            {"softxp on torch": ours, "entmax": theirs, "softxp": ours.replace("(t", "(x")},
        )
        for name, ours, theirs in (
            ("sparsemax", "softxp.sparsemax(t)", "entmax.sparsemax(t)"),
            ("entmax, alpha 1.5", "softxp.entmax(t)", "entmax.entmax15(t)"),
            ("entmax, alpha 1.25", "softxp.entmax(t, alpha=1.25)", "entmax.entmax_bisect(t, alpha=1.25)"),
        )
    },
    **{
        f"{name} and gradient, rows × n": (
            (4096, 1000), (64, 100), "t, ct = leaf(normal(*sizes)), torch.from_numpy(normal(*sizes))",
            {
                "softxp on torch": f"backward(softxp.{ours} * ct, t)", "entmax": f"backward(entmax.{theirs} * ct, t)"
            },
        )
        for name, ours, theirs in (
            ("sparsemax", "sparsemax(t)", "sparsemax(t)"),
            ("entmax, alpha 1.5", "entmax(t)", "entmax15(t)"),
            ("entmax, alpha 1.25", "entmax(t, alpha=1.25)", "entmax_bisect(t, 1.25)"),
        )
    },
    **{
        f"{name} and gradient, rows × n": (
            (4096, 1000), (64, 100), "x = normal(*sizes)\nt, labels = leaf(x), torch.arange(sizes[0]) % sizes[1]",
            {
                "softxp on torch": f"backward(softxp.{ours}(t, labels{more}), t)",
                "entmax": f"backward(entmax.{theirs}.mean(), t)",
                "softxp": f"value_and_grad(softxp.{ours})(x, labels.numpy(){more})",
            },
        )
        for name, ours, more, theirs in (
            ("sparsemax_loss", "sparsemax_loss", "", "sparsemax_loss(t, labels)"),
            ("entmax_loss, alpha 1.5", "entmax_loss", "", "entmax15_loss(t, labels)"),
            ("entmax_loss, alpha 1.25", "entmax_loss", ", alpha=1.25", "entmax_bisect_loss(t, labels, 1.25)"),
        )
    },
}  # fmt: skip

CHILD = """
import sys, json
def peak():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) * 1024
imports, setup, small, sizes, call, threads = json.loads(sys.argv[1])
exec(imports)
softxp.set_num_threads(threads)
if "torch" in globals(): torch.set_num_threads(threads)
full, sizes = sizes, small
exec(setup)
eval(call)  # compiles, loads, starts threads
sizes = full
exec(setup)
before = peak()
y = eval(call)
print(peak() - before)
"""


def installed(call: str, space: dict[str, Any]) -> bool:
    names = {
        "torch": ("torch", "tf.", "leaf", "(t"),
        "jax": ("jax",),
        "entmax": ("entmax.entmax", "entmax.sparsemax"),
    }
    return all(m in space or not any(n in call for n in hints) for m, hints in names.items())


def measured(title: str, rounds: int, threads: int) -> dict[str, Any]:
    sizes, small, setup, calls = DUELS[title]
    space: dict[str, Any] = {}
    exec(IMPORTS, space)
    space["sizes"] = sizes
    exec(setup, space)
    calls = {name: call for name, call in calls.items() if installed(call, space)}
    took = duel({name: eval(f"lambda: {call}", space) for name, call in calls.items()}, rounds)
    peaks = {}
    for name, call in calls.items():
        argument = json.dumps([IMPORTS, setup, small, sizes, call, threads])
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CHILD, argument], capture_output=True, text=True, check=True
        )
        peaks[name] = int(done.stdout)
    return {"title": title, "sizes": sizes, "seconds": took, "peak": peaks}


def text(report: dict[str, Any]) -> str:
    on = report["machine"]
    lines = [
        "# Speed of losses of products, attention and the sparse maps",
        "",
        "Measured by `make bench` (`python -m benchmarks.rooms`): every contender in turn within each round, medians, the",
        "same number of threads for all. The ratio is a contender's time divided by that of the first in its table. Peak",
        "memory is what a process of its own took beside arguments and libraries, answer and gradients included.",
        "",
        f"On {on['processor']}, {on['threads']} threads, float32: "
        + ", ".join(f"{k} {v}" for k, v in on.items() if k not in ("processor", "threads", "machine", "system"))
        + ". Nothing here was measured on a GPU.",
    ]
    for row in report["rooms"]:
        ours = next(iter(row["seconds"].values()))
        lines += ["", f"## {row['title'].rpartition(', ')[0]}", ""]
        lines += [f"{row['title'].rpartition(', ')[2]}: {' × '.join(map(str, row['sizes']))}", ""]
        lines += ["| | ms | time / first | peak memory, MB |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {s * 1e3:.1f} | {s / ours:.2f} | {row['peak'][name] / 1e6:.0f} |"
            for name, s in row["seconds"].items()
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rooms", description="Losses, attention, sparse maps.")
    parser.add_argument("--only", help="titles that hold this (default: all)", default="")
    parser.add_argument("--rounds", type=int, default=5, help="of a duel (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--page", type=Path, help="write the page there")
    args = parser.parse_args()
    softxp.set_num_threads(args.threads)
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(args.threads)
    rooms = []
    for title in DUELS:
        if args.only in title:
            rooms.append(measured(title, args.rounds, args.threads))
            first = next(iter(rooms[-1]["seconds"].values()))
            for name, s in rooms[-1]["seconds"].items():
                peak = rooms[-1]["peak"][name] / 1e6
                print(f"{title:58} {name:24} {s * 1e3:9.1f} ms {s / first:6.2f} {peak:8.0f} MB", flush=True)
    report = {"rooms": rooms, "machine": machine(args.threads)}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.page:
        args.page.write_text(text(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
