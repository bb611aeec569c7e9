"""Small, fast scans for the phantom's tests."""

import pytest

from spine_engine.phantom import Protocol


@pytest.fixture(scope="session")
def small() -> Protocol:
    """A protocol of few, coarse pixels with planes straight along the anatomy."""
    return Protocol(
        sagittal_slices=11, sagittal_matrix=96, sagittal_fov_mm=240, axial_slices=3, axial_matrix=64, axial_fov_mm=140,
        tilt_deg=0.0,
    )  # fmt: skip
