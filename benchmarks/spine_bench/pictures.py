"""The pictures of the README and of docs/report.md, made by the commands they show: ``python -m spine_bench.pictures``.

Needs the extras ``viz`` and ``dev`` and a ``chromium`` on the path.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

STUDIES: Final = 12
SEED: Final = 2024
"""That of ``spine-engine demo``."""
WIDTH: Final = 1180


def spine_engine(*words: str | Path) -> None:
    """Run a command as a user does."""
    subprocess.run([sys.executable, "-m", "spine_engine.cli", *map(str, words)], check=True)


def shot(browser: Browser, page: Path, picture: Path, *, height: int, before: str = "") -> None:
    """Photograph the top of a page, after running ``before`` in it."""
    tab = browser.new_page(viewport={"width": WIDTH, "height": height})
    tab.goto(page.resolve().as_uri())
    if before:
        tab.evaluate(before)
        tab.wait_for_timeout(8000)  # three dimensions without a graphics card take a while
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


def main() -> None:
    """Make phantoms, run the commands on them, photograph what they wrote."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        folder = Path(made)
        spine_engine("phantom", "--studies", str(STUDIES), "--seed", str(SEED), "--output", folder / "studies")
        spine_engine("run", "--input", folder / "studies", "--output", folder / "results", "--report")
        studies = sorted((folder / "studies" / "train_images").iterdir())
        spine_engine("view", studies[0], "--output", folder / "view")
        spine_engine("inspect", studies[0], "--html", folder / "inspect.html")
        flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        report = folder / "results" / "report"
        shot(browser, report / "index.html", out / "report-run.webp", height=860)
        page = report / "studies" / f"{studies[0].name}.html"
        shot(browser, page, out / "report-study.webp", height=1500)
        shot(
            browser,
            page,
            out / "report-level.webp",
            height=610,
            before="document.querySelector('#level-4').scrollIntoView()",
        )
        opened = "document.querySelector('[data-open]').click(); document.querySelector('.viewer').scrollIntoView()"
        shot(browser, page, out / "report-space.webp", height=860, before=opened)
        shot(browser, folder / "inspect.html", out / "inspect.webp", height=1000)
        browser.close()
        small(folder / "view" / "cloud.png", out / "view-cloud.webp")
        small(folder / "view" / "grid_l4_l5.png", out / "view-grid.webp")
    for picture in sorted(out.glob("*.webp")):
        print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
