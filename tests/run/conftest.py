"""The folders of a run."""

import pytest


@pytest.fixture
def root(tmp_path):
    """An empty input folder."""
    folder = tmp_path / "input"
    folder.mkdir()
    return folder


@pytest.fixture
def out(tmp_path):
    """The output folder, not there yet."""
    return tmp_path / "out"
