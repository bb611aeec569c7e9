"""What every test may ask for."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real exams (``studies/`` with ``truth.json``, ``lumbar-mri/``, ``spider-slices/``), or a skip."""
    folder = os.environ.get("SPINE_REAL_DATA")
    if not folder:
        pytest.skip("SPINE_REAL_DATA is not set: the real exams are not part of the repository")
    path = Path(folder)
    assert (path / "studies" / "truth.json").is_file(), f"SPINE_REAL_DATA={folder} holds no studies/truth.json"
    return path
