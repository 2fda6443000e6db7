"""Has this machine what `make gpu` needs? One sentence on what it lacks, and exit code 2; or a line on what there is."""

import importlib
import sys
import warnings

# module, and how to have it: array-api-compat is softxp's, the rest are the tests'
NEEDED = {
    "numpy": "numpy", "array_api_compat": "array-api-compat", "cuda.bindings": "cuda-bindings", "pytest": "pytest",
    "hypothesis": "hypothesis", "mpmath": "mpmath", "ml_dtypes": "ml_dtypes",
}  # fmt: skip
WELCOME = {
    "xdist": "workers",
    "cupy": "a library to serve",
    "cupyx": "a peer",
    "jax": "a peer",
    "gmpy2": "a faster truth",
}


def stop(why: str) -> None:
    print(f"make gpu {why}", file=sys.stderr)
    raise SystemExit(2)


def missing(modules: dict[str, str]) -> list[str]:
    out = []
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:
            out.append(module)
    return out


def main() -> None:
    try:
        import torch

        sees = torch.cuda.is_available()
        torch.zeros(1).cuda()
    except Exception:
        sees = False
    if not sees:
        stop(
            f"needs an NVIDIA GPU and a Python whose torch sees it, which {sys.executable} has not; name one: make gpu "
            "PYTHON=..."
        )
    lacks = missing(NEEDED)
    if lacks:
        how = " ".join(NEEDED[each] for each in lacks)
        stop(f"needs {', '.join(lacks)}, which {sys.executable} cannot import: {sys.executable} -m pip install {how}")

    import softxp
    from softxp._backends import _warm
    from softxp._kernels import cuda

    softxp.use_kernels(True, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = softxp.softmax(torch.ones(3).cuda()).cpu()
    if _warm.cuda_closed or not any(gpu.kernels for gpu in cuda._gpus.values()):
        stop(f"needs softxp's CUDA kernels, which do not work here: {_warm.cuda_closed or 'none was launched'}")
    if not torch.allclose(y, torch.full((3,), 1 / 3)):
        stop(f"needs a kernel that answers rightly: softmax of three ones came out as {y.tolist()}")
    print(f"{torch.cuda.get_device_name()}: {cuda.versions()}, torch {torch.__version__}, cuda-bindings are there")
    for module in missing(WELCOME):
        print(f"without {module}: {WELCOME[module]}")


if __name__ == "__main__":
    main()
