"""What every test may ask for, and what a run of the suite says at its end."""

import gc
import os
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# For the tests, and for the worker processes that they start: those inherit it.
sys.path.insert(0, str(Path(__file__).parent / "shared"))

# The same examples every time: a failure tells of the change. `--hypothesis-profile search` draws others.
settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, max_examples=40
)
settings.register_profile(
    "search",
    deadline=None,
    max_examples=1000,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real exams (``studies/`` with ``truth.json``, ``lumbar-mri/``, ``spider-slices/``), or a skip."""
    folder = os.environ.get("SPINE_REAL_DATA")
    if not folder:
        pytest.skip(
            "SPINE_REAL_DATA is not set: the real exams are not part of the repository"
        )
    path = Path(folder)
    assert (path / "studies" / "truth.json").is_file(), (
        f"SPINE_REAL_DATA={folder} holds no studies/truth.json"
    )
    return path


@pytest.fixture
def in_process(monkeypatch):
    """Workers without processes; see ``shared/inprocess.py``."""
    from fakes import end_all
    from inprocess import Workers

    workers = Workers()
    monkeypatch.setattr("spine_engine.scheduler.pool.ProcessPoolExecutor", workers.pool)
    monkeypatch.setattr(
        "spine_engine.scheduler.pool.limit_memory", workers.limit_memory
    )
    yield workers
    end_all()


def pytest_collection_modifyitems(items) -> None:
    """Give runs without processes 40 s: one that waits for ever is noticed soon."""
    for item in items:
        if (
            "in_process" in getattr(item, "fixturenames", ())
            and item.get_closest_marker("timeout") is None
        ):
            item.add_marker(pytest.mark.timeout(40))


def pytest_terminal_summary(terminalreporter) -> None:
    """Say what this run did not show, a line for each reason."""
    skipped = defaultdict(set)
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        skipped[reason].add(report.nodeid)
    if skipped:
        terminalreporter.section("not shown here")
    for reason, places in sorted(skipped.items()):
        names = sorted(places)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        terminalreporter.write_line(f"{reason}: {names[0]}{more}")


def pytest_collection_finish() -> None:
    """Leave the tests themselves, and all they import, out of every later search for garbage."""
    gc.collect()
    gc.freeze()
