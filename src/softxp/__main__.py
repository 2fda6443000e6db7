"""python -m softxp: the doctor. Which libraries there are, what serves each function on them, and whether they agree."""

import importlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import softxp

from ._backends import _warm, find
from ._op import OP_OF

# module, distribution, how to install it, how to make an array of a list
LIBRARIES = [
    ("numpy", "numpy", "softxp[numpy]"),
    ("torch", "torch", "softxp[torch]"),
    ("jax.numpy", "jax", "softxp[jax]"),
    ("cupy", "cupy", "softxp[cupy]"),
    ("dask.array", "dask", "softxp[dask]"),
    ("ndonnx", "ndonnx", "softxp[onnx]"),
    ("array_api_strict", "array-api-strict", "array-api-strict"),
    ("ml_dtypes", "ml_dtypes", "softxp[bfloat16]"),
    ("numba", "numba", "softxp[cpu]"),
]
BESIDE = {"ml_dtypes": "bfloat16 for numpy", "numba": "row kernels for numpy, and for torch on the CPU"}
DTYPES = ("float16", "bfloat16", "float32", "float64")
LOGITS = [2.0, 1.2, 0.5, -0.3, -1.0, -2.0]
TRUTH = {  # of LOGITS, to 17 digits
    "softmax[0]": 0.54323596722254233,
    "logsumexp": 2.61021149133883734,
    "cross_entropy": 1.41021149133883734,
}


def main() -> int:
    print(
        f"softxp {softxp.__version__}, Python {platform.python_version()}, {platform.machine()} {platform.system()}\n"
    )
    found, missing = [], []
    for module, name, install in LIBRARIES:
        try:
            importlib.import_module(module)
            found.append((module, name, _version(name)))
        except Exception as error:
            missing.append((name, install, f"{type(error).__name__}: {error}".splitlines()[0]))
    arrays = {}
    print(_line("library", "version", "device", "dtypes"))
    for module, name, ver in found:
        if module in BESIDE:
            print(_line(name, ver, "", BESIDE[module]))
            continue
        xp: Any = importlib.import_module(module)
        try:
            for device, x in _arrays(xp, module):
                arrays[f"{name} {device}".strip()] = (xp, x)
                print(_line(name, ver, device, ", ".join(d for d in DTYPES if hasattr(xp, d))))
        except Exception as error:
            print(_line(name, ver, "", f"does not work: {type(error).__name__}: {error}".splitlines()[0]))

    print("\nWhich road each function takes (an earlier one may hand a call on to the next)\n")
    for label, (_, x) in arrays.items():
        backend = find(x)
        together: dict[str, list[str]] = {}
        for name in sorted(fn.__name__ for fn in OP_OF):
            first = backend.kernels[name].__doc__ if name in backend.kernels and backend.serves(name, x) else None
            road = "; then ".join(part for part in (first, backend.roads.get(name), backend.road) if part)
            together.setdefault(road, []).append(name)
        for road, names in together.items():
            print(f"  {label:18} {', '.join(names)}: {road}")

    print(f"\nCUDA kernels, for cupy and torch on a GPU: {_warm.state_of_cuda()}")

    print("\nDo they agree? Difference from the truth, relative, in float32\n")
    print(_line("library", *TRUTH))
    worst = 0.0
    for label, (_, x) in arrays.items():
        got = [softxp.softmax(x)[0], softxp.logsumexp(x), softxp.cross_entropy(x, 1)]
        errors = [abs(_number(g) / t - 1) for g, t in zip(got, TRUTH.values(), strict=True)]
        worst = max(worst, *errors)
        print(_line(label, *(f"{e:.1e}" for e in errors)))
    agrees = worst < 1e-6
    print(f"\n{'All agree.' if agrees else 'THEY DO NOT AGREE: please report this output.'}")
    if missing:
        print("\nNot here, and how to have it\n")
        for name, install, why in missing:
            print(f"  {name:18} pip install '{install}'   ({why})")
    return 0 if agrees else 1


def _arrays(xp: Any, module: str) -> list[tuple[str, Any]]:
    """The worked example's logits, once for each kind of device."""
    if module == "torch":
        out = [("cpu", xp.tensor(LOGITS))]
        return out + ([("cuda", xp.tensor(LOGITS, device="cuda"))] if xp.cuda.is_available() else [])
    if module == "dask.array":
        return [("", xp.from_array(importlib.import_module("numpy").asarray(LOGITS, dtype="float32"), chunks=4))]
    x = xp.asarray(LOGITS, dtype=xp.float32)
    if module == "jax.numpy":
        return [(next(iter(x.devices())).platform, x)]
    return [("cuda" if module == "cupy" else "", x)]


def _number(x: Any) -> float:
    return float(x.unwrap_numpy() if hasattr(x, "unwrap_numpy") else x)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def _line(first: str, *rest: str) -> str:
    return f"  {first:18} " + " ".join(f"{r:14}" for r in rest).rstrip()


if __name__ == "__main__":
    raise SystemExit(main())
