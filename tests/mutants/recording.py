"""Pytest plugin that records which test runs which lines, in the processes that tests start too.

``COVERAGE_PROCESS_START`` starts coverage in every process; this plugin names the context. A fixture that several tests
share has a context of its own, because its lines belong to each of them and run in the first alone.
"""

import json
import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage

_seconds: dict[str, float] = defaultdict(float)
_shared: dict[str, list[str]] = {}
_running = ""


def _name(context: str) -> None:
    global _running
    _running = context
    os.environ["RECORDED_TEST"] = (
        context  # processes started from here on have it as their static context
    )
    coverage = Coverage.current()
    if coverage is not None:
        coverage.switch_context(context)


def _label(fixture: Any) -> str:
    return f"fixture {fixture.baseid}::{fixture.argname}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: Any) -> Generator[None, object, object]:
    """Put everything that runs for a test, set-up included, under the test's name without its parameters."""
    test = item.nodeid.split("[")[0]
    fixtures = [
        definition
        for definitions in item._fixtureinfo.name2fixturedefs.values()
        for definition in definitions
    ]
    _shared[test] = [
        _label(fixture) for fixture in fixtures if fixture.scope != "function"
    ]
    _name(test)
    try:
        return (yield)
    finally:
        _name("")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Generator[None, object, object]:
    """Put the set-up of a shared fixture under the fixture's name."""
    before = _running
    if fixturedef.scope != "function":
        _name(_label(fixturedef))
    try:
        return (yield)
    finally:
        _name(before)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the seconds of a test's parameters."""
    _seconds[report.nodeid.split("[")[0]] += report.duration


def pytest_sessionfinish() -> None:
    """Leave what was recorded beside coverage's own files."""
    record = {"seconds": _seconds, "shared": _shared}
    Path(os.environ["RECORDED_TO"], f"tests-{os.getpid()}.json").write_text(
        json.dumps(record)
    )
