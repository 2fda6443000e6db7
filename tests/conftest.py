"""What conformance cannot see: our insides, and how we sit in each library."""

import pytest

# importing it, as the search for examples does, puts a GPU that is not there in place
collect_ignore = ["pretend_target.py", "rehearsal.py"]


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    """The machine's other core may be another worker's."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
