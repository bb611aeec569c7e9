"""How long the report of a run takes, how large its pages are, and how soon the page of the run opens.

The studies are copies of whole phantoms under identifiers of their own; 1,000 of them are 8 GB. They are graded first,
by the packaged models. Opening is measured in headless Chromium, where Playwright and a ``chromium`` on the path are
installed: from the call to the page's ``load`` event, and to its first picture.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from spine_bench.findings import Findings, Work, figures_found
from spine_bench.harness.interfaces import PHANTOMS, phantom_library, write_copies
from spine_engine import Engine
from spine_engine.report.write import write_report

ROUNDS: Final = 3

TIMES: Final = """() => [performance.getEntriesByType('navigation')[0].loadEventEnd,
performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0]"""


def measure(studies: int = 1000, folder: Work = None) -> Findings:
    """Measure the report of a run: seconds, the sizes of its pages, opening in a browser."""
    with (
        nullcontext(folder)
        if folder
        else TemporaryDirectory(prefix="spine-report-") as place
    ):
        return figures_found("Report", measured(Path(place), studies))


def measured(folder: Path, studies: int) -> dict[str, float]:
    """Make and grade the studies, unless that was done, write the report, and return the figures by name.

    Raises:
        RuntimeError: a study was not graded, or a page has no pictures.
    """
    copies = folder / f"studies-{studies}"
    output = folder / f"results-{studies}"
    if not copies.exists():
        write_copies(phantom_library(PHANTOMS), copies, studies)
    summary = Engine.open().run(copies, output).finish()
    began = time.perf_counter()
    written = write_report(output)
    seconds = time.perf_counter() - began
    if summary.statuses["graded"] != studies or written.without_pictures:
        raise RuntimeError(
            f"{summary.statuses}, {written.without_pictures} pages without pictures"
        )
    sizes = sorted(
        page.stat().st_size for page in (output / "report" / "studies").glob("*.html")
    )
    return {
        f"report over {studies} studies, s": seconds,
        "a study, ms": 1e3 * seconds / studies,
        "page of a study, median, MB": median(sizes) / 1e6,
        "page of a study, largest, MB": sizes[-1] / 1e6,
        "page of the run, MB": written.index.stat().st_size / 1e6,
        **opening_s(written.index),
    }


def chromium_path() -> str | None:
    """Return where Chromium lies; None where there is none on the path."""
    return (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """Start Chromium without a window under Playwright, and close it at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(), args=["--no-sandbox", *flags]
        )
        try:
            yield browser
        finally:
            browser.close()


def opening_s(page: Path) -> dict[str, float]:
    """Return the median seconds until a page has loaded and until it was first painted; nothing without a browser."""
    if importlib.util.find_spec("playwright") is None or chromium_path() is None:
        return {}
    times = []
    with chromium() as browser:
        for _ in range(ROUNDS + 1):
            tab = browser.new_page()
            tab.goto(page.resolve().as_uri())
            times.append(tab.evaluate(TIMES))
            tab.close()
    loaded_ms, painted_ms = zip(*times[1:], strict=True)  # the first starts the browser
    return {
        "page of the run, until loaded, s": median(loaded_ms) / 1e3,
        "page of the run, until painted, s": median(painted_ms) / 1e3,
    }
