"""python -m softxp_conformance --target torch [pytest's own options]"""

import sys
from pathlib import Path

import pytest


def main() -> int:
    here = str(Path(__file__).parent)
    return pytest.main(
        ["-p", "softxp_conformance.plugin", "-p", "no:cacheprovider", "--rootdir", here, "-q", here, *sys.argv[1:]]
    )


if __name__ == "__main__":
    raise SystemExit(main())
