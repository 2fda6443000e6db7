"""What conformance cannot see: our insides, and how we sit in each library."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    """The machine's other core may be another worker's."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
