"""Do two revisions of the engine give the same bytes, and which is faster?"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import typer

from spine_bench.acceptance import run
from spine_bench.findings import Findings, Table
from spine_engine.phantom import write_studies

SEED: Final = 0
HERE: Final = Path(__file__).parents[2]


def measure(
    base: Annotated[
        str, typer.Option(metavar="REV", help="The git revision to compare with.")
    ],
    studies: Annotated[int, typer.Option(help="Phantoms.")] = 40,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Studies; $SPINE_REAL_DATA/studies by default."
        ),
    ] = None,
    rounds: int = 3,
) -> Findings:
    """Compare predictions.csv, byte for byte, and the studies a second of a git revision and of the present tree."""
    real_data = os.environ.get("SPINE_REAL_DATA")
    if data is None and real_data:
        data = Path(real_data) / "studies"
    found: dict[str, tuple[bool, float]] = {}
    with (
        revision(base) as old,
        tempfile.TemporaryDirectory(prefix="spine-same-") as made,
    ):
        phantoms = Path(made) / "phantoms"
        deque(write_studies(phantoms, studies, SEED), maxlen=0)
        folders = (
            {"phantoms": phantoms}
            if data is None
            else {"phantoms": phantoms, "data": data}
        )
        for name, folder in folders.items():
            runs = [
                (graded(old, folder), graded(HERE, folder)) for _ in range(rounds + 1)
            ]
            contents = {content for pair in runs for content, _ in pair}
            ratios = [
                new_rate / old_rate for (_, old_rate), (_, new_rate) in runs[1:]
            ]  # the first compiles kernels
            found[name] = (len(contents) == 1, median(ratios))
    return Findings(
        tables=[
            Table(
                title=f"The present tree against {base}",
                columns=(
                    "studies",
                    "predictions.csv",
                    "studies a second, new over old",
                ),
                rows=[
                    (name, "same bytes" if same else "different bytes", f"{ratio:.3f}")
                    for name, (same, ratio) in found.items()
                ],
            )
        ],
        record={
            name: {"same": same, "ratio": ratio}
            for name, (same, ratio) in found.items()
        },
        failure=""
        if all(same for same, _ in found.values())
        else "predictions.csv differs",
    )


@contextmanager
def revision(name: str) -> Iterator[Path]:
    """Check a revision out in a folder of its own, and remove it at the end."""
    git = ("git", "-C", str(HERE), "worktree")
    with tempfile.TemporaryDirectory(prefix="spine-revision-") as folder:
        tree = Path(folder) / "tree"
        subprocess.run(
            [
                *git,
                "add",
                "--quiet",
                "--detach",
                str(tree),
                name,
            ],
            check=True,
        )
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def graded(tree: Path, folder: Path) -> tuple[bytes, float]:
    """Run the engine of a tree over a folder; return its ``predictions.csv`` and the studies a second."""
    with tempfile.TemporaryDirectory(prefix="spine-same-") as out:
        record = run(folder, Path(out), PYTHONPATH=str(tree / "engine"))
        return (Path(out) / "predictions.csv").read_bytes(), record["studies_per_s"]
