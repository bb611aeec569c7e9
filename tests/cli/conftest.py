"""Makes ``fakes`` importable for the tests and for the worker processes they start, and the command callable."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spine_engine import cli

sys.path.insert(0, str(Path(__file__).parent.parent / "run"))


def pytest_collection_modifyitems(items):
    """Give runs without processes 40 s: one that waits for ever is noticed soon."""
    for item in items:
        if "in_process" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(40))


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


@pytest.fixture
def call(monkeypatch):
    """Call the command line in this process, on a terminal of 200 columns."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])
