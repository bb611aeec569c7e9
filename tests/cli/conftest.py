"""Makes the command callable."""

import pytest
from typer.testing import CliRunner

from spine_engine import cli


@pytest.fixture
def call(monkeypatch):
    """Call the command line in this process, on a terminal of 200 columns."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])
