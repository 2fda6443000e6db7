"""What conformance cannot see: our insides, and how we sit in each library."""

import pytest

collect_ignore = [
    "pretend_target.py"
]  # importing it, as the search for examples does, puts a GPU that is not there in place


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    """The machine's other core may be another worker's."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
