"""Do shards, some of them killed and restarted, merge into the bytes of one run? And what does a large merge cost?"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random
from typing import Annotated, Any, Final

import typer

from spine_bench.acceptance import command, run
from spine_bench.findings import Findings, Table, progress
from spine_bench.scale import made_up_studies
from spine_engine import Engine
from spine_engine.phantom import write_studies
from spine_engine.run.ledger import LEDGER_FILE, Ledger
from spine_engine.run.run import RunIdentity
from spine_engine.run.shards import Shard

SEED: Final = 0
SHARES: Final = 16
"""Shards of the large merge."""


def measure(
    studies: Annotated[int, typer.Option(help="Phantoms.")] = 400,
    made_up: Annotated[
        int, typer.Option(help="Studies of the large merge, which are never read.")
    ] = 1_000_000,
) -> Findings:
    """Compare merged shards of phantoms with one run, byte for byte; measure a merge of made-up results."""
    with tempfile.TemporaryDirectory(prefix="spine-shards-") as folder:
        place = Path(folder)
        same = dict(_phantoms(place, studies))
        merge = _large_merge(place, made_up)
    return Findings(
        tables=(
            Table(
                title=f"{studies} phantoms in shards, against one run",
                columns=("shards", "killed and restarted", "predictions.csv"),
                rows=[
                    (str(count), str(killed), "same bytes" if equal else "differs")
                    for count, (killed, equal) in same.items()
                ],
            ),
            Table(
                title=f"A merge of {SHARES} shards of {made_up:,} made-up studies",
                columns=("", ""),
                rows=[(name, f"{value:,.1f}") for name, value in merge.items()],
            ),
        ),
        record={"same": {str(n): equal for n, (_, equal) in same.items()}, **merge},
        failure=""
        if all(equal for _, equal in same.values())
        else "predictions.csv differs",
    )


def _phantoms(place: Path, studies: int) -> Iterator[tuple[int, tuple[int, bool]]]:
    """Yield for 1, 4 and 16 shards how many were killed, and whether the merged table is that of one run."""
    source = place / "phantoms"
    deque(write_studies(source, studies, SEED), maxlen=0)
    run(source, place / "one")
    wanted = (place / "one" / "predictions.csv").read_bytes()
    random = Random(SEED)
    for count in (1, 4, 16):
        killed, outputs = 0, []
        for index in range(1, count + 1):
            progress(f"shard {index} of {count}")
            output = place / f"{count}" / f"{index}"
            options = ("--shard", f"{index}/{count}")
            if random.random() < 0.5:
                killed += _killed(source, output, options, random.uniform(0.5, 8.0))
            run(source, output, *options)
            outputs.append(output)
        merged = place / f"{count}" / "all"
        _merge(outputs, merged)
        yield count, (killed, (merged / "predictions.csv").read_bytes() == wanted)


def _killed(
    source: Path, output: Path, options: tuple[str, ...], after_s: float
) -> bool:
    """Start a run and kill its main process; return whether it was still running."""
    process = subprocess.Popen(
        command(source, output, *options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def _merge(outputs: list[Path], merged: Path) -> float:
    """Merge and return the peak resident memory in MB."""
    subprocess.run(
        [
            *(sys.executable, "-m", "spine_engine.cli", "merge"),
            *map(str, outputs),
            *("--output", str(merged)),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    record = json.loads((merged / "run.json").read_text())
    return float(record["peak_memory_bytes"]["main"]) / 1e6


def _large_merge(place: Path, count: int) -> dict[str, Any]:
    """Write the ledgers of shards of made-up studies, merge them, and return what that took."""
    source = place / "nothing"
    source.mkdir()
    engine = Engine.open()
    outputs = [place / "large" / str(index) for index in range(1, SHARES + 1)]
    with ExitStack() as stack:
        ledgers = []
        for index, output in enumerate(outputs, 1):
            output.mkdir(parents=True)
            identity = RunIdentity(
                bundle=engine.bundle.facts,
                options=engine.options,
                series_descriptions="none",
                shard=Shard(index, SHARES),
            )
            ledger = Ledger(output / LEDGER_FILE, identity.facts(source))
            ledgers.append(stack.enter_context(closing(ledger)))
        for number, (unit, result) in enumerate(made_up_studies(count)):
            ledger = ledgers[number % SHARES]
            ledger.meet(unit)
            ledger.finish(unit, [result], [])
        for ledger in ledgers:
            ledger.end()
    size = sum((output / LEDGER_FILE).stat().st_size for output in outputs)
    began = time.monotonic()
    peak_mb = _merge(outputs, place / "large" / "all")
    return {
        "seconds": time.monotonic() - began,
        "peak MB": peak_mb,
        "ledger, kB a study": size / count / 1e3,
    }
