"""A pytest plugin: test_on_gpu.py without a GPU. `pytest -p rehearsal tests/test_on_gpu.py -k small`. torch's CPU tensors
stand in for a GPU's, and launches are run by the formulas (pretend.py): so its lines are seen to run, and no more than that.
Streams and graphs cannot be had so.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pretend
import pytest
import torch


def on_cpu(make: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(make)
    def made(*given: Any, **how: Any) -> Any:
        return make(*given, **{k: "cpu" if k == "device" and v == "cuda" else v for k, v in how.items()})

    return made


def warned(mode: str) -> None:
    """As torch does."""
    warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all", stacklevel=2)


def pytest_configure() -> None:
    for name in ("zeros", "ones", "arange", "tensor", "full", "randn", "empty"):
        setattr(torch, name, on_cpu(getattr(torch, name)))
    torch.Tensor.cuda = lambda self: self  # type: ignore[method-assign]
    stand_ins: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True, "device_count": lambda: 1, "synchronize": lambda: None,
        "mem_get_info": lambda: (0, 0), "set_sync_debug_mode": warned,
    }  # fmt: skip
    for name, stand_in in stand_ins.items():
        setattr(torch.cuda, name, stand_in)


@contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's tensors on the CPU go the way of a GPU's."""
    on_torch = pretend.stand_in(monkeypatch)
    look = on_torch.BACKEND.look
    monkeypatch.setattr(on_torch, "_MIXED", False)  # torch multiplies so on CUDA alone
    object.__setattr__(on_torch.BACKEND, "look", lambda of, x: None)  # (a record that is frozen)
    try:
        yield
    finally:
        object.__setattr__(on_torch.BACKEND, "look", look)


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as kept, pretend.gpu(), stand_in(monkeypatch):
        monkeypatch.setitem(os.environ, "SOFTXP_CACHE_DIR", kept)
        yield
