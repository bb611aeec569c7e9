"""A headless Chromium for the tests of pages, a run of phantoms, and the folder of made-up contents on the path."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(
    scope="module"
)  # while Playwright runs, no other event loop can be started in this process
def chromium() -> Iterator[Any]:
    """A Playwright browser (Chromium of the system, software WebGL), or a skip that says what is missing."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (extra dev)"
    )
    program = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if program is None:
        pytest.skip("no Chromium is installed: Debian's package is chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=program,
            args=[
                "--no-sandbox",
                "--use-angle=swiftshader",
                "--enable-unsafe-swiftshader",
            ],
        )
        yield browser
        browser.close()


HOSTILE_NAME = "<script>alert(1)</script>^=cmd()"


@pytest.fixture(scope="session")
def graded(tmp_path_factory):
    """A folder with two phantom studies of a hostile patient, one of them cut short, and the output of a run."""
    import pydicom

    from spine_engine import Engine
    from spine_engine.options import RunOptions
    from spine_engine.phantom import write_studies

    folder = tmp_path_factory.mktemp("report")
    for _ in write_studies(folder / "studies", 2, 5):
        pass
    for path in (folder / "studies").rglob("*.dcm"):
        header = pydicom.dcmread(path)
        header.PatientName, header.SeriesDescription = (
            HOSTILE_NAME,
            HOSTILE_NAME + "-series",
        )
        header.save_as(path)
    broken = folder / "studies" / "broken"
    broken.mkdir()
    source = next((folder / "studies").rglob("*.dcm"))
    header = pydicom.dcmread(source)
    header.StudyInstanceUID, header.PixelData = "1.2.3.4", header.PixelData[:40]
    del header.ImagePositionPatient
    header.save_as(broken / "1.dcm")
    Engine.open(options=RunOptions(workers=1)).run(
        folder / "studies", folder / "results"
    ).finish()
    return folder


class InThisProcess:
    """A pool without processes: pages are drawn where the test is, one after the other."""

    begun: ClassVar[list[tuple[int, float]]] = []

    def __init__(self, factory, *, workers, timeout_s):
        self.begun.append((workers, timeout_s))
        self._worker, _ = factory()

    @asynccontextmanager
    async def slot(self):
        yield self

    async def run(self, task):
        outcome, _ = self._worker.run(task)
        return outcome

    def close(self):
        self._worker._reader.close()


@pytest.fixture
def in_this_process(monkeypatch):
    """Starting a process takes longer than drawing all pages of two phantoms."""
    from spine_engine.report import write

    InThisProcess.begun.clear()
    monkeypatch.setattr(write, "WorkerPool", InThisProcess)
    return InThisProcess


@pytest.fixture
def output(graded, tmp_path, in_this_process):
    """A copy of the run's output, so that tests do not meet each other's reports."""
    return Path(shutil.copytree(graded / "results", tmp_path / "results"))
