"""Seeded trials of everything going wrong at once: is every study recorded, once, whatever happens?

A trial is a run over made-up studies, with real worker processes, a real ledger and real result files. By its seed each
attempt at a study may kill its worker, raise, or hang; processes of the run are killed from outside beside that, every
second trial shares its models in one process that faults as well, and two in four are broken off in the middle and
taken up again. What a trial must show is checked on the files.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

from spine_bench.findings import Findings, Table, progress
from spine_bench.harness.interfaces import F32
from spine_engine import Run, RunOptions, Status, StudyResult
from spine_engine.backends.base import Device, TensorInfo
from spine_engine.dicom import WorkUnit
from spine_engine.dicom.discovery import InputFile
from spine_engine.pipeline.outcome import UnitOutcome
from spine_engine.results import ROW_ORDER, SeriesResult, in_millionths, prediction_rows
from spine_engine.run.memory import Resources
from spine_engine.run.plan import RunPlan
from spine_engine.run.run import RunIdentity
from spine_engine.scheduler import Facts
from spine_engine.scheduler.batching.batcher import BatchPolicy
from spine_engine.scheduler.batching.client import ServedBackend
from spine_engine.scheduler.batching.server import ModelServer

STUDIES: Final = 16
WORKERS: Final = 3
# How long a made-up study may take.
TIMEOUT_S: Final = 1.5
# How long a sound one takes at most.
STUDY_S: Final = 0.2
# How often an attempt at a study kills its worker, raises, or hangs: with 16 studies most trials have all three.
DEADLY: Final = 0.06
RAISING: Final = 0.06
HANGING: Final = 0.03
# How often the shared model faults, as a share of that: it takes all studies in flight along.
MODEL_RATE: Final = 0.25
# How often, on average, a process of the run is killed from outside.
KILL_EVERY_S: Final = 0.7
# A file that a worker leaves when it was given another study's answer.
MIXED_UP: Final = "mixed up"
DEVICE: Final = Device("fake", "CPU", "f32")
FACTS: Final[Facts] = {"grader": asdict(DEVICE)}
# The reasons that these faults may end in.
RECORDED: Final = {"worker_died", "timeout", "internal_error"}


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


class _FaultyModel:
    """Gives back its input, or faults."""

    def __init__(self, seed: int, working: Path) -> None:
        self.inputs = (TensorInfo("x", (None, None)),)
        self.outputs = (TensorInfo("y", (None, None)),)
        self.device = DEVICE
        self._dice = random.Random(f"{seed} model {len(list(working.glob('model*')))}")
        (working / str(os.getpid())).touch()
        (working / f"model{os.getpid()}").touch()

    def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
        fault(self._dice, MODEL_RATE)
        return {"y": inputs["x"].copy()}

    def close(self) -> None:
        pass


def opener(seed: int, working: Path) -> Callable[[str], tuple[Any, BatchPolicy]]:
    """Return what opens the shared model."""
    return lambda role: (
        _FaultyModel(seed, working),
        BatchPolicy(sizes=(1, 2, 4), max_delay_ms=5.0),
    )


class _FaultyWorker:
    """Grades a study of one line, or faults."""

    def __init__(self, seed: int, working: Path, address: str | None) -> None:
        self._seed = seed
        self._working = working
        self._model = None if address is None else ServedBackend(address, "model")

    def run(self, task: WorkUnit) -> tuple[UnitOutcome, Facts]:
        (self._working / str(os.getpid())).touch()
        attempts = self._working / f"attempts{task.key}"
        with attempts.open("a") as file:
            file.write(".")
        fault(random.Random(f"{self._seed} {task.key} {attempts.stat().st_size}"))
        if self._model is not None:
            number = np.array([[float(task.key)]], np.float32)
            if not np.array_equal(self._model.run({"x": number})["y"], number):
                (
                    self._working / MIXED_UP
                ).touch()  # an answer to somebody else's question
        return UnitOutcome(results=(graded(task.key),)), FACTS


def faulty_worker(
    seed: int, working: Path, address: str | None
) -> tuple[_FaultyWorker, Facts]:
    """Make the worker in its process."""
    return _FaultyWorker(seed, working, address), FACTS


def graded(study_id: str) -> StudyResult:
    """Return a result whose rows can be told from every other study's."""
    return StudyResult(
        study_id=study_id,
        status=Status.GRADED,
        rows=tuple(
            in_millionths((1 + int(study_id), 7 + row, 3))
            for row in range(len(ROW_ORDER))
        ),
        series=(
            SeriesResult(
                path="s", role="sagittal_t2", evidence="made up", stacks=1, slices=15
            ),
        ),
    )


def discover(root: Path) -> Iterator[WorkUnit]:
    """Yield the studies of the input: a file each."""
    for path in sorted(root.iterdir()):
        yield WorkUnit(
            path.name, (InputFile(path.name, path.stat().st_size),), path.name
        )


def kill_at_random(dice: random.Random, working: Path, ended: threading.Event) -> None:
    """Kill one of the run's processes now and then: workers that have begun to walk, and the shared models."""
    while not ended.wait(dice.expovariate(1 / KILL_EVERY_S)):
        begun = {int(path.name) for path in working.iterdir() if path.name.isdecimal()}
        processes = [
            child for child in multiprocessing.active_children() if child.pid in begun
        ]
        if processes:
            dice.choice(processes).kill()


def one_run(seed: int, folder: Path, stop_after: int | None) -> list[str]:
    """Run over the studies, to the end or until ``stop_after`` results; return the ids of the results that came."""
    working = folder / "working"
    server = (
        ModelServer(partial(opener, seed, working), call_timeout_s=TIMEOUT_S / 2)
        if seed % 2
        else None
    )
    options = RunOptions(
        workers=WORKERS, timeout_s=TIMEOUT_S, schedule="batch" if server else "study"
    )
    plan = RunPlan(
        root=folder / "in",
        discover=discover,
        factory=partial(
            faulty_worker, seed, working, server.address if server else None
        ),
        resources=Resources(workers=WORKERS, memory=None),
        timeout_s=TIMEOUT_S,
        max_attempts=options.max_attempts,
        companion=server,
    )
    identity = RunIdentity(
        bundle={"name": "faults", "version": "1", "digest": str(seed)},
        options=options,
        series_descriptions="none",
    )
    return [
        result.study_id
        for result in islice(Run(plan, folder / "out", identity=identity), stop_after)
    ]


def trial(seed: int, folder: Path) -> Counter[str]:
    """Carry one trial out and return how its studies ended.

    Raises:
        AssertionError: a study was lost, came twice, or has an outcome that none of the faults explains.
    """
    working = folder / "working"
    working.mkdir()
    (folder / "in").mkdir()
    names = [f"{number:04}" for number in range(1, STUDIES + 1)]
    for name in names:
        (folder / "in" / name).write_text(name)
    dice = random.Random(seed)
    ended = threading.Event()
    killer = threading.Thread(target=kill_at_random, args=(dice, working, ended))
    killer.start()
    try:
        came = (
            one_run(seed, folder, stop_after=dice.randrange(1, STUDIES))
            if seed % 4 < 2
            else []
        )
        came += one_run(seed, folder, None)
    finally:
        ended.set()
        killer.join()
    assert not (working / MIXED_UP).exists(), (
        "a shared model's answer went to another study"
    )
    return checked(names, came, folder / "out")


def checked(names: list[str], came: list[str], out: Path) -> Counter[str]:
    """Compare the files of a trial with what was to be recorded."""
    lines = [
        json.loads(line) for line in (out / "studies.jsonl").read_text().splitlines()
    ]
    assert [line["study_id"] for line in lines] == names, (
        "studies.jsonl lost a study or has one twice"
    )
    twice = [name for name, number in Counter(came).items() if number > 1]
    assert not twice, f"{twice} came twice"
    _, *table = (out / "predictions.csv").read_text().splitlines()
    rows = Counter(row.partition("_")[0] for row in table)
    assert rows == dict.fromkeys(names, len(ROW_ORDER)), (
        "predictions.csv lost a row or has one twice"
    )
    for line in lines:
        name = line["study_id"]
        assert line["status"] == "graded" or line["reason"] in RECORDED, (
            f"{name}: {line['reason']}"
        )
        own = {row for row in table if row.startswith(f"{name}_")}
        right = own == set(prediction_rows(name, graded(name).rows))
        assert right == (line["status"] == "graded"), (
            f"the rows of {name} are not its own"
        )
    return Counter(line["reason"] or line["status"] for line in lines)


def measure(
    trials: int = 200,
    first: Annotated[int, typer.Option(help="Seed of the first trial.")] = 0,
) -> Findings:
    """Run the trials, until one fails, and count how their studies ended."""
    total: Counter[str] = Counter()
    failure = ""
    for seed in range(first, first + trials):
        with tempfile.TemporaryDirectory(prefix="spine-faults-") as folder:
            try:
                total += trial(seed, Path(folder))
            except AssertionError as error:
                failure = f"trial {seed}: {error}"
                break
        progress(f"{seed + 1 - first} of {trials} trials")
    return Findings(
        tables=[
            Table(
                title="Faults",
                columns=("how studies ended", "studies"),
                rows=[(end, str(number)) for end, number in sorted(total.items())],
            )
        ],
        notes=[]
        if failure
        else [f"{trials} trials, {sum(total.values())} studies, none lost, none twice"],
        record=dict(total),
        failure=failure,
    )
