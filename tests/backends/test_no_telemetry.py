"""Opening OpenVINO speaks to nobody and leaves the user's home as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino")
pytest.importorskip("openvino_telemetry")

_WATCHED = """
import sys

def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        print("network:", event, arguments[-1], flush=True)

sys.addaudithook(watch)
from spine_engine.backends import openvino
print("available" if openvino.status().available else "missing")
"""


def test_opening_openvino_looks_up_no_host_and_writes_nothing_into_an_empty_home(
    tmp_path: Path,
) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CI", "XDG_CACHE_HOME")
    }
    ran = subprocess.run(
        [sys.executable, "-c", _WATCHED],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout.splitlines() == ["available"]
    assert list(tmp_path.rglob("*")) == []
