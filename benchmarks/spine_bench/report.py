"""How long the report of a run takes, how large its pages are, and how soon the page of the run opens.

Run ``python -m spine_bench.report``. The studies are copies of whole phantoms under identifiers of their own; 1,000 of
them are 8 GB. They are graded first, by the packaged models. Opening is measured in headless Chromium, where Playwright
and a ``chromium`` on the path are installed: from the call to the page's ``load`` event, and to its first picture.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from spine_bench.harness.library import StudyLibrary, phantom_library
from spine_engine import Engine
from spine_engine.report.write import write_report

PHANTOMS: Final = 16
ROUNDS: Final = 3


def write_copies(library: StudyLibrary, folder: Path, count: int) -> None:
    """Write ``count`` studies: the library's in turns, each copy with a StudyInstanceUID of its own, a folder each."""
    for number, unit in enumerate(islice(cycle(library.units), count)):
        assert unit.study_id is not None
        name = f"{unit.study_id[:-8]}{number:08}"  # as long as the other, so that it fits in its place
        place = folder / f"study{number:05}"
        place.mkdir(parents=True)
        for index, file in enumerate(unit.files):
            content = (library.root / file.path).read_bytes()
            (place / f"{index:03}.dcm").write_bytes(content.replace(unit.study_id.encode(), name.encode()))


def opening_s(page: Path) -> tuple[float, float] | None:
    """Return the median seconds until a page has loaded and until it was first painted; None without a browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        return None
    loaded, painted = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(ROUNDS + 1):
            tab = browser.new_page()
            tab.goto(page.resolve().as_uri())
            times = tab.evaluate(
                "() => [performance.getEntriesByType('navigation')[0].loadEventEnd, "
                "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0]"
            )
            loaded.append(times[0] / 1e3)
            painted.append(times[1] / 1e3)
            tab.close()
        browser.close()
    return statistics.median(loaded[1:]), statistics.median(painted[1:])  # the first starts the browser


def measured(folder: Path, studies: int) -> dict[str, float]:
    """Make and grade the studies, unless that was done, write the report, and return the figures by name."""
    copies, output = folder / f"studies-{studies}", folder / f"results-{studies}"
    if not copies.exists():
        write_copies(phantom_library(PHANTOMS), copies, studies)
    summary = Engine.open().run(copies, output).finish()
    if summary.statuses["graded"] != studies:
        raise SystemExit(f"{summary.statuses}: every study was to be graded")
    begun = time.perf_counter()
    written = write_report(output)
    seconds = time.perf_counter() - begun
    if written.without_pictures:
        raise SystemExit(f"{written.without_pictures} pages have no pictures")
    sizes = sorted(page.stat().st_size for page in (output / "report" / "studies").glob("*.html"))
    figures = {
        f"report over {studies} studies, s": seconds,
        "a study, ms": 1e3 * seconds / studies,
        "page of a study, median, MB": statistics.median(sizes) / 1e6,
        "page of a study, largest, MB": sizes[-1] / 1e6,
        "page of the run, MB": written.index.stat().st_size / 1e6,
    }
    opened = opening_s(written.index)
    if opened is not None:
        figures["page of the run, until loaded, s"], figures["page of the run, until painted, s"] = opened
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where studies and results are kept; a temporary one if not given")
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="spine-report-"))
    try:
        figures = measured(folder, arguments.studies)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    if arguments.as_json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:45} {value:10.3f}")


if __name__ == "__main__":
    main()
