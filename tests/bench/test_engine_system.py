"""The engine as a system gives the grades that the engine gives, and its stages are measured on the same studies."""

import queue
from dataclasses import replace

import numpy as np
import pytest

from spine_bench.harness.engine_system import EngineSystem, answer_of
from spine_bench.harness.interfaces import folder_library, phantom_library
from spine_bench.harness.stages import STAGES, StageBench, check_runtime
from spine_engine.anatomy import CONDITIONS, LEVELS, prior
from spine_engine.engine import Engine
from spine_engine.errors import Reason, UsageError
from spine_engine.options import RunOptions
from spine_engine.phantom import Protocol, write_studies
from spine_engine.pipeline.outcome import UnitOutcome
from spine_engine.results import Status, ungraded


def test_rows_in_file_order_become_levels_conditions_severities():
    result = ungraded(
        "1.2.3", Status.PRIOR, Reason.NO_SAGITTAL, timings_ms={"read": 250.0}
    )
    graded = replace(result, status=Status.GRADED, reason=None, not_assessed=())
    answer = answer_of(UnitOutcome(results=(graded,)))
    wanted = [[prior(condition, level) for condition in CONDITIONS] for level in LEVELS]
    np.testing.assert_allclose(answer.probabilities, wanted, atol=1e-6)
    assert answer.stage_seconds == {"read": 0.25}
    assert answer.failure is None


def test_a_study_without_a_grade_is_a_failure_with_its_reason():
    answer = answer_of(
        UnitOutcome(results=(ungraded("1.2.3", Status.PRIOR, Reason.NO_SAGITTAL),))
    )
    assert (answer.probabilities, answer.failure) == (None, "no_sagittal")
    assert answer_of(UnitOutcome()).failure == "0 studies in the sample's files"


def test_a_folder_without_studies_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(UsageError, match="no study"):
        folder_library(tmp_path)


def test_the_first_studies_of_a_folder_are_taken(phantoms):
    first = folder_library(phantoms.root, 1)
    assert first.units == phantoms.units[:1]
    assert phantoms.files > len(phantoms) * 20


@pytest.mark.slow
def test_the_engine_as_a_system_gives_the_engines_grades(phantoms):
    wanted = {
        study.study_id: study
        for study in Engine.open(options=RunOptions(workers=1)).run(phantoms.root)
    }
    system = EngineSystem(phantoms, None, RunOptions(workers=1))
    answers = queue.Queue()
    system.open()
    try:
        for k in range(2):
            system.submit(phantoms[k], lambda answer, k=k: answers.put((k, answer)))
        got = dict(answers.get(timeout=120) for _ in range(2))
        facts = system.facts()
    finally:
        system.close()
    for k, unit in enumerate(phantoms.units):
        expected = answer_of(UnitOutcome(results=(wanted[unit.study_id],)))
        np.testing.assert_array_equal(got[k].probabilities, expected.probabilities)
        assert set(got[k].stage_seconds) == {"read", "detect", "voxelize", "grade"}
    assert facts["models"]["grader"].startswith("openvino CPU")


@pytest.mark.slow
def test_the_stages_are_measured_alone(phantoms):
    bench = StageBench(phantoms, None, processes=1)
    try:
        times = bench.measure(0.1)
    finally:
        bench.close()
    assert set(times.alone_s) == set(times.together_s) == set(STAGES)
    assert all(0 < seconds < 30 for seconds in times.alone_s.values())
    assert 0 < times.inference_studies_per_s < 1000
    assert set(bench.ways) == {"detector", "grader"}


def test_stages_are_for_an_engine_on_the_cpu():
    check_runtime({"backend": "openvino", "device": "cpu"})
    with pytest.raises(UsageError, match="engine runs tensorrt on cuda:0"):
        check_runtime({"backend": "tensorrt", "device": "cuda:0"})


def test_phantoms_are_made_once_and_kept(tmp_path, monkeypatch):
    asked = []

    def small(folder, count, seed, *, rle):
        asked.append((count, seed, rle))
        tiny = Protocol(axial="none", sagittal=("t2",), sagittal_matrix=96)
        yield from write_studies(folder, count, seed, protocol=tiny)

    monkeypatch.setattr("spine_bench.harness.interfaces.write_studies", small)
    made = phantom_library(1, tmp_path)
    assert [path.name[0] for path in tmp_path.iterdir()] == ["p"]  # no draft is left
    stamp = made.root.stat().st_mtime_ns
    again = phantom_library(1, tmp_path)
    assert (again, again.root.stat().st_mtime_ns) == (made, stamp)
    assert len(made) == 1
    assert asked == [(1, 920_000, True)]
    with pytest.raises(UsageError, match="cannot make phantoms"):
        phantom_library(1, made.root / made[0].unit.files[0].path)
