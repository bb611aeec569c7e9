"""Makes ``fakes`` importable for the tests and for the worker processes they start."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items):
    """Give runs without processes 40 s: one that waits for ever is noticed soon."""
    for item in items:
        if "in_process" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(40))


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


@pytest.fixture
def in_process(monkeypatch):
    """Workers without processes; see ``inprocess``."""
    from fakes import end_all
    from inprocess import Workers

    workers = Workers()
    monkeypatch.setattr("spine_engine.scheduler.slots.ProcessPoolExecutor", workers.pool)
    monkeypatch.setattr("spine_engine.scheduler.slots.limit_memory", workers.limit_memory)
    yield workers
    end_all()
