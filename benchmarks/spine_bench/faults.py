"""Seeded trials of everything going wrong at once: is every study recorded, once, whatever happens?

Run ``python -m spine_bench.faults --trials 200``. A trial is a run over made-up studies, with real worker processes, a
real ledger and real result files. By its seed each attempt at a study may kill its worker, raise, or hang; processes
of the run are killed from outside beside that, every second trial shares its models in one process that faults as well,
and two in four are broken off in the middle and taken up again. What a trial must show is checked on the files.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from spine_engine.backends.base import Backend, Device, TensorInfo
from spine_engine.dicom import WorkUnit
from spine_engine.dicom.discovery import FileEntry
from spine_engine.engine import Run, RunIdentity
from spine_engine.options import RunOptions
from spine_engine.results import ROW_ORDER, SeriesResult, Status, StudyResult, in_millionths, prediction_rows
from spine_engine.scheduler import ModelProcess, UnitOutcome, WalkFactory
from spine_engine.scheduler.batching import BatchPolicy
from spine_engine.scheduler.remote import RemoteBackend

STUDIES: Final = 16
WORKERS: Final = 3
TIMEOUT_S: Final = 1.5
"""How long a made-up study may take."""
STUDY_S: Final = 0.2
"""How long a sound one takes at most."""
DEADLY, RAISING, HANGING = 0.06, 0.06, 0.03
"""How often an attempt at a study kills its worker, raises, or hangs: with 16 studies most trials have all three."""
MODEL_RATE: Final = 0.25
"""How often the shared model faults, as a share of that: it takes all studies in flight along."""
KILL_EVERY_S: Final = 0.7
"""How often, on average, a process of the run is killed from outside."""
MIXED_UP: Final = "mixed up"
"""A file that a worker leaves when it was given another study's answer."""
RECORDED: Final = {"worker_died", "timeout", "internal_error"}
"""The reasons that these faults may end in."""


def fault(dice: random.Random, rate: float = 1.0) -> None:
    """Do what the dice say: nothing, mostly."""
    thrown = dice.random() / rate
    if thrown < DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)
    elif thrown < DEADLY + RAISING:
        raise ZeroDivisionError
    elif thrown < DEADLY + RAISING + HANGING:
        time.sleep(600)
    time.sleep(dice.random() * STUDY_S)


class FaultyModel:
    """Gives back its input, or faults."""

    inputs = (TensorInfo("x", (None, None)),)
    outputs = (TensorInfo("y", (None, None)),)
    device = Device("fake", "CPU", "f32")

    def __init__(self, seed: int, working: Path) -> None:
        self._dice = random.Random(f"{seed} model {len(list(working.glob('model*')))}")
        for name in (str(os.getpid()), f"model{os.getpid()}"):
            (working / name).touch()

    def run(self, inputs: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Return ``x`` as ``y``."""
        fault(self._dice, MODEL_RATE)
        return {"y": inputs["x"].copy()}

    def close(self) -> None:
        """Nothing to do."""


def served(seed: int, working: Path, role: str) -> tuple[Backend, BatchPolicy]:
    """Open the shared model."""
    return FaultyModel(seed, working), BatchPolicy(sizes=(1, 2, 4), max_delay_ms=5.0)  # type: ignore[return-value]


def opener(seed: int, working: Path) -> partial[tuple[Backend, BatchPolicy]]:
    """Return the opener of shared models."""
    return partial(served, seed, working)


class FaultyWalk:
    """Grades a study of one line, or faults."""

    def __init__(self, seed: int, working: Path, address: str | None) -> None:
        self._seed, self._working = seed, working
        self._model = None if address is None else RemoteBackend(address, "model")
        self.devices = {"grader": FaultyModel.device}

    def __call__(self, unit: WorkUnit) -> UnitOutcome:
        """Walk one study."""
        (self._working / str(os.getpid())).touch()
        attempts = self._working / f"attempts{unit.key}"
        with attempts.open("a") as file:
            file.write(".")
        fault(random.Random(f"{self._seed} {unit.key} {attempts.stat().st_size}"))
        if self._model is not None:
            number = np.array([[float(unit.key)]], np.float32)
            if not np.array_equal(self._model.run({"x": number})["y"], number):
                (self._working / MIXED_UP).touch()  # an answer to somebody else's question
        return UnitOutcome(results=(graded(unit.key),))


def graded(study_id: str) -> StudyResult:
    """Return a result whose rows can be told from every other study's."""
    rows = tuple(in_millionths((1 + int(study_id), 7 + row, 3)) for row in range(len(ROW_ORDER)))
    series = (SeriesResult(path="s", role="sagittal_t2", evidence="made up", stacks=1, slices=15),)
    return StudyResult(study_id=study_id, status=Status.GRADED, rows=rows, series=series)


def discover(root: Path) -> Iterator[WorkUnit]:
    """Yield the studies of the input: a file each."""
    for path in sorted(root.iterdir()):
        yield WorkUnit(path.name, (FileEntry(path.name, path.stat().st_size),), path.name)


def kill_at_random(dice: random.Random, working: Path, ended: threading.Event) -> None:
    """Kill one of the run's processes now and then: workers that have begun to walk, and the shared models."""
    while not ended.wait(dice.expovariate(1 / KILL_EVERY_S)):
        begun = {int(path.name) for path in working.iterdir() if path.name.isdecimal()}
        processes = [child for child in multiprocessing.active_children() if child.pid in begun]
        if processes:
            dice.choice(processes).kill()


def one_run(seed: int, folder: Path, stop_after: int | None) -> list[str]:
    """Run over the studies, to the end or until ``stop_after`` results; return the ids of the results that came."""
    root, working = folder / "in", folder / "working"
    models = ModelProcess(partial(opener, seed, working), call_timeout_s=TIMEOUT_S / 2) if seed % 2 else None
    run = Run(
        root,
        folder / "out",
        identity=RunIdentity(
            bundle={"name": "faults", "version": "1", "digest": str(seed)},
            options=RunOptions(workers=WORKERS, timeout_s=TIMEOUT_S, schedule="batch" if models else "study"),
            series_descriptions="none",
        ),
        discover=discover,
        factory=cast(WalkFactory, partial(FaultyWalk, seed, working, models.address if models else None)),
        models=models,
    )
    came = []
    for result in run:
        came.append(result.study_id)
        if len(came) == stop_after:
            break
    return came


def trial(seed: int, folder: Path) -> Counter[str]:
    """Carry one trial out and return how its studies ended.

    Raises:
        AssertionError: a study was lost, came twice, or has an outcome that none of the faults explains.
    """
    for name in ("in", "working"):
        (folder / name).mkdir()
    names = [f"{number:04}" for number in range(1, STUDIES + 1)]
    for name in names:
        (folder / "in" / name).write_text(name)
    dice, ended = random.Random(seed), threading.Event()
    killer = threading.Thread(target=kill_at_random, args=(dice, folder / "working", ended))
    killer.start()
    try:
        came = one_run(seed, folder, stop_after=dice.randrange(1, STUDIES)) if seed % 4 < 2 else []
        came += one_run(seed, folder, None)
    finally:
        ended.set()
        killer.join()
    assert not (folder / "working" / MIXED_UP).exists(), "a shared model's answer went to another study"
    return checked(names, came, folder / "out")


def checked(names: list[str], came: list[str], out: Path) -> Counter[str]:
    """Compare the files of a trial with what was to be recorded."""
    lines = [json.loads(line) for line in (out / "studies.jsonl").read_text().splitlines()]
    assert [line["study_id"] for line in lines] == names, "studies.jsonl lost a study or has one twice"
    twice = [name for name, number in Counter(came).items() if number > 1]
    assert not twice, f"{twice} came twice"
    with (out / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    rows = Counter(row["row_id"].split("_")[0] for row in table)
    assert rows == dict.fromkeys(names, len(ROW_ORDER)), "predictions.csv lost a row or has one twice"
    wanted = {row.rsplit(",", 3)[0]: row for name in names for row in prediction_rows(name, graded(name).rows)}
    given = {row["row_id"]: ",".join(row.values()) for row in table}
    for line in lines:
        name = line["study_id"]
        assert line["status"] == "graded" or line["reason"] in RECORDED, f"{name}: {line['reason']}"
        own = [row for row in given if row.startswith(f"{name}_")]
        right = all(given[row] == wanted[row] for row in own)
        assert right == (line["status"] == "graded"), f"the rows of {name} are not its own"
    return Counter(line["reason"] or line["status"] for line in lines)


def main() -> None:
    """Run the trials and print what came of them; exit 1 at the first that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first trial")
    arguments = parser.parse_args()
    total: Counter[str] = Counter()
    begun = time.monotonic()
    for seed in range(arguments.first, arguments.first + arguments.trials):
        with tempfile.TemporaryDirectory(prefix="spine-faults-") as folder:
            try:
                total += trial(seed, Path(folder))
            except AssertionError as error:
                sys.exit(f"trial {seed}: {error}")
        print(f"\r{seed + 1 - arguments.first} of {arguments.trials} trials", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    ends = ", ".join(f"{name} {number}" for name, number in sorted(total.items()))
    print(f"{arguments.trials} trials, {sum(total.values())} studies, none lost, none twice: {ends}")
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    from spine_bench import faults  # the workers find the walk under the module's own name

    faults.main()
