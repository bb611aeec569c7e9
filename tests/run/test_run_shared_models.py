"""Workers that share the models of one process: the same answers, and every way that process can fail."""

import os
import signal
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fakes import graded, start, write_exam

from spine_engine.backends.base import Device, TensorInfo
from spine_engine.engine import Engine
from spine_engine.errors import BackendError, Reason
from spine_engine.options import RunOptions
from spine_engine.phantom import write_studies
from spine_engine.pipeline.outcome import UnitOutcome
from spine_engine.results import Status
from spine_engine.scheduler.batching.batcher import BatchPolicy
from spine_engine.scheduler.batching.client import ServedBackend
from spine_engine.scheduler.batching.server import ModelServer
from spine_engine.scheduler.task import CompanionLostError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="shared models need Linux"
)


class Squares:
    """Squares; does what the first number says: 1 raises, 2 kills its process once a marker is gone, 3 hangs."""

    inputs = (TensorInfo("x", (None, None)),)
    outputs = (TensorInfo("y", (None, None)),)
    device = Device("fake", "GPU.0", "f16")

    def __init__(self, marker):
        self.marker = Path(marker)

    def run(self, inputs):
        x = inputs["x"]
        if (x[:, 0] == 1).any():
            raise FloatingPointError("one")
        if (x[:, 0] == 2).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (x[:, 0] == 5.5).any() and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if (x[:, 0] == 3).any() and not self.marker.exists():
            self.marker.touch()
            time.sleep(600)
        return {"y": x * x}

    def close(self):
        pass


class Opener:
    def __init__(self, marker):
        self.marker = marker

    def __call__(self, role):
        return Squares(self.marker), BatchPolicy(sizes=(1, 2, 4, 8), max_delay_ms=5.0)


@pytest.fixture
def models(tmp_path):
    process = ModelServer(partial(Opener, str(tmp_path / "hung")), call_timeout_s=1.0)
    yield process
    process.close()


def ask(backend, *values):
    return (
        backend.run({"x": np.array([[value] for value in values], np.float32)})["y"]
        .ravel()
        .tolist()
    )


@pytest.mark.slow
def test_a_process_that_dies_or_hangs_is_told_apart_from_the_study_and_replaced(models):
    models.ensure()
    backend = ServedBackend(models.address, "squares")
    large = np.random.default_rng(0).random(
        (3, 700_000), np.float32
    )  # memory grows on both sides
    np.testing.assert_array_equal(backend.run({"x": large})["y"], large * large)
    assert models.peak_memory_bytes > 10 << 20
    for deed in (2, 3):
        with pytest.raises(CompanionLostError):
            ask(backend, deed)
        models._process.join(10)
        models.ensure()
        assert ask(backend, 5) == [25]
        backend.close()
    assert models.generation == 3
    models.close()
    with pytest.raises(CompanionLostError):
        ServedBackend(models.address, "squares")


@pytest.mark.slow
def test_a_process_that_cannot_start_is_a_backend_error():
    process = ModelServer(dies, call_timeout_s=1.0)
    with pytest.raises(BackendError, match="died twice while it started"):
        process.ensure()


def dies():
    os._exit(7)


# -- whole runs --------------------------------------------------------------------------------------------------------


class SharingWorker:
    """Asks the shared model for each exam's number: 1 raises there, 2 kills the process, anything else is graded."""

    def __init__(self, root, address):
        self.root = root
        self.backend = ServedBackend(address, "squares")
        self.facts = {"grader": asdict(self.backend.device)}

    def run(self, task):
        return self.outcome(task), self.facts

    def outcome(self, unit):
        study_id, deed = (self.root / unit.files[0].path).read_text().split("\n")
        answer = ask(self.backend, float(deed))
        assert answer == [float(deed) ** 2]
        return UnitOutcome(results=(graded(study_id, study_id.encode()),))


def made(kind, root, address):
    worker = kind(root, address)
    return worker, worker.facts


def shared(root, output, kind, models):
    """A run of two workers that share ``models``."""
    factory = partial(made, kind, root, models.address)
    return start(
        root, output, factory=factory, companion=models, workers=2, schedule="batch"
    )


class TwoRolesWorker(SharingWorker):
    """Asks two models, one after the other, as a study asks the detector and the grader."""

    def __init__(self, root, address):
        super().__init__(root, address)
        self.other = ServedBackend(address, "other")

    def outcome(self, unit):
        try:
            assert ask(self.other, 6.0) == [36.0]
            return super().outcome(unit)
        except CompanionLostError:
            self.backend.close()
            self.other.close()
            raise


def test_one_death_of_the_models_costs_no_study_and_one_process(tmp_path, models):
    root = tmp_path / "in"
    for number in range(6):
        write_exam(
            root, f"{number:02}", f"s{number:02}", "5.5" if number == 4 else "7.0"
        )
    run = shared(root, tmp_path / "out", TwoRolesWorker, models)
    assert {result.status for result in run} == {Status.GRADED}
    assert models.generation == 2
    assert run.summary.record()["options"]["schedule"] == "batch"
    peaks = run.summary.peak_memory_bytes["workers"]
    assert len(peaks) == 3, "two workers, and last the process of the models"
    assert peaks[-1] > 10 << 20


@pytest.mark.slow
def test_each_fault_in_the_shared_model_costs_its_own_study_alone(tmp_path, models):
    root = tmp_path / "in"
    deeds = [7.0] * 8
    deeds[1], deeds[4], deeds[6] = (
        1.0,
        2.0,
        3.0,
    )  # raises always, kills always, hangs once
    for number, deed in enumerate(deeds):
        write_exam(root, f"{number:02}", f"s{number:02}", str(deed))
    run = shared(root, tmp_path / "out", SharingWorker, models)
    results = {result.study_id: result for result in run}
    failed = {
        name: result.reason
        for name, result in results.items()
        if result.status is not Status.GRADED
    }
    assert failed == {"s01": Reason.INTERNAL_ERROR, "s04": Reason.WORKER_DIED}
    assert len(results) == 8
    assert run.summary.record()["options"]["schedule"] == "batch"
    peaks = run.summary.peak_memory_bytes["workers"]
    assert len(peaks) == 3, "two workers, and last the process of the models"
    assert peaks[-1] > 10 << 20


@pytest.mark.slow
def test_shared_models_grade_like_ones_own(tmp_path):
    for _ in write_studies(tmp_path / "studies", 2, 9):
        pass
    rows = {}
    for schedule in ("study", "batch"):
        run = Engine.open(options=RunOptions(workers=2, schedule=schedule)).run(
            tmp_path / "studies"
        )
        rows[schedule] = {
            result.study_id: np.array(result.rows) / 1e6 for result in run
        }
        assert {device["backend"] for device in run.summary.devices.values()} == {
            "openvino"
        }
    assert len(rows["study"]) == 2
    for name, own in rows["study"].items():
        assert np.abs(own - rows["batch"][name]).max() < 1e-3
