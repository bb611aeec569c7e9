"""Fixtures of the detection tests."""

from __future__ import annotations

import pytest
from conftest_detection import Scene, column, sagittal_stack


@pytest.fixture
def scene() -> Scene:
    """A straight whole lumbar column seen by one ordinary sagittal stack."""
    return Scene(column(), [sagittal_stack()])
