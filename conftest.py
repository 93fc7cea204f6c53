"""What holds for every test and every chapter under test."""

import importlib.util
import os
from pathlib import Path

import hypothesis
import pytest

# Sums of floats depend on the number of threads, and chapters were recorded with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Kernels inherit this one; it would keep figures out of the notebooks.
os.environ.pop("MPLBACKEND", None)

hypothesis.settings.register_profile("ganlab", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ganlab")


def pytest_sessionstart() -> None:
    """Refuse to test anything but the installed package."""
    spec = importlib.util.find_spec("ganlab")
    origin = spec.origin if spec else None
    if origin is None or Path(origin).parent.parent.name not in ("src", "site-packages"):
        found = origin or (
            f"a folder, {list(spec.submodule_search_locations or [])}" if spec else 0
        )
        pytest.exit(
            f"'import ganlab' finds {found or 'nothing'}; expected the installed package: "
            "pip install -e 'ganlab[test]'",
            returncode=4,
        )


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return Path(__file__).parent
