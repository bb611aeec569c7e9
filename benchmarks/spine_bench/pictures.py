"""The pictures of the README and of docs/report.md, made by the commands they show.

Needs the extras ``viz`` and ``dev`` and a ``chromium`` on the path.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from PIL import Image

from spine_bench.findings import Findings, figures_found
from spine_bench.report import chromium

STUDIES: Final = "12"
# That of spine-engine demo.
SEED: Final = "2024"
WIDTH: Final = 1180

# Three dimensions without a graphics card.
FLAGS: Final = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")

LEVEL: Final = "document.querySelector('#level-4').scrollIntoView()"
SPACE: Final = "document.querySelector('[data-open]').click(); document.querySelector('.viewer').scrollIntoView()"


def measure(
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="Where the pictures go.")
    ] = Path("docs/pictures"),
) -> Findings:
    """Make phantoms, run the commands on them, photograph what they wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, chromium(*FLAGS) as browser:
        place = Path(made)
        spine_engine(
            "phantom",
            "--studies",
            STUDIES,
            "--seed",
            SEED,
            "--output",
            place / "studies",
        )
        spine_engine(
            "run",
            "--input",
            place / "studies",
            "--output",
            place / "results",
            "--report",
        )
        study, *_ = sorted((place / "studies" / "train_images").iterdir())
        spine_engine("view", study, "--output", place / "view")
        spine_engine("inspect", study, "--html", place / "inspect.html")
        report = place / "results" / "report"
        page = report / "studies" / f"{study.name}.html"
        for name, (shown, height, before) in {
            "report-run": (report / "index.html", 860, ""),
            "report-study": (page, 1500, ""),
            "report-level": (page, 610, LEVEL),
            "report-space": (page, 860, SPACE),
            "inspect": (place / "inspect.html", 1000, ""),
        }.items():
            shot(browser, shown, folder / f"{name}.webp", height=height, before=before)
        small(place / "view" / "cloud.png", folder / "view-cloud.webp")
        small(place / "view" / "grid_l4_l5.png", folder / "view-grid.webp")
    return figures_found(
        "Size, kB",
        {
            path.name: path.stat().st_size / 1000
            for path in sorted(folder.glob("*.webp"))
        },
    )


def spine_engine(*words: str | Path) -> None:
    """Run a command as a user does."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "spine_engine.cli",
            *map(str, words),
        ],
        check=True,
    )


def shot(
    browser: Any,
    page: Path,
    picture: Path,
    *,
    height: int,
    before: str = "",
) -> None:
    """Photograph the top of a page, after running ``before`` in it."""
    tab = browser.new_page(viewport={"width": WIDTH, "height": height})
    tab.goto(page.resolve().as_uri())
    if before:
        tab.evaluate(before)
        tab.wait_for_timeout(
            8000
        )  # three dimensions without a graphics card take a while
    raw = picture.with_suffix(".raw.png")
    tab.screenshot(path=raw)
    tab.close()
    small(raw, picture)
    raw.unlink()


def small(source: Path, picture: Path) -> None:
    """Keep a picture as WebP, at most ``WIDTH`` pixels wide."""
    with Image.open(source) as image:
        image.thumbnail((WIDTH, 10 * WIDTH))
        image.convert("RGB").save(picture, quality=82, method=6)
