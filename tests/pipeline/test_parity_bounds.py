"""The gate that precisions pass or not, at its bounds; what is told, kept and asked, without a model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from spine_engine.anatomy import LEVELS
from spine_engine.backends.base import Device
from spine_engine.bundle import Bundle
from spine_engine.detection.levels import Detection, DiscLevel
from spine_engine.errors import BackendError, OutputError, UsageError
from spine_engine.options import RunOptions
from spine_engine.phantom import samples as samples_room
from spine_engine.phantom.samples import Sample, phantom_samples
from spine_engine.pipeline import parity as room
from spine_engine.pipeline.parity import (
    LevelParity,
    Parity,
    answers,
    ask,
    bundle_parity,
    compare,
    compare_levels,
    compare_probabilities,
    keep_worst,
)
from spine_engine.study import Role, Series, Study

SURE, OTHER = [0.9, 0.1, 0.0], [0.1, 0.9, 0.0]


def table(*rows):
    return np.array([[row] for row in rows])


@pytest.mark.parametrize(
    ("mean", "changed", "passed"),
    [
        (0.0, 0, True),
        (0.005, 0, True),
        (0.00501, 0, False),
        (0.0, 1, False),
        (0.005, 1, False),
        (float("nan"), 0, False),
    ],
)
def test_the_mean_may_be_half_a_hundredth_and_no_sure_grade_may_change(
    mean, changed, passed
):
    assert Parity(mean=mean, largest=0.9, changed=changed).passed is passed


def test_one_sure_grade_among_thousands_is_refused():
    reference = np.tile(np.array(SURE), (1000, 5, 1))
    other = reference.copy()
    other[777, 3] = OTHER
    found = compare_probabilities(reference, other)
    assert found.mean < 0.005
    assert (found.changed, found.passed) == (1, False)
    assert found.largest == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("reference", "other", "changed"),
    [
        ([0.5255, 0.4745, 0.0], [0.47, 0.53, 0.0], 1),  # leads by 0.051
        ([0.5245, 0.4755, 0.0], [0.47, 0.53, 0.0], 0),  # leads by 0.049
        ([0.40, 0.34, 0.26], [0.34, 0.40, 0.26], 1),  # the second counts, not the last
        ([0.40, 0.36, 0.24], [0.0, 0.0, 1.0], 0),  # however far it goes
        ([0.0, 0.3, 0.7], [0.0, 0.7, 0.3], 1),
        ([0.51, 0.49, 0.0], [0.1, 0.9, 0.0], 0),  # the reference decides what is sure
        ([0.9, 0.1, 0.0], [0.49, 0.51, 0.0], 1),
        ([0.9, 0.1, 0.0], [0.51, 0.49, 0.0], 0),  # the same grade, less sure
    ],
)
def test_a_grade_that_leads_by_more_than_a_twentieth_is_sure(reference, other, changed):
    assert compare_probabilities(table(reference), table(other)).changed == changed


def test_changed_grades_are_counted_head_by_head():
    reference, other = np.array([[SURE, SURE, SURE]]), np.array([[OTHER, SURE, OTHER]])
    found = compare_probabilities(reference, other)
    assert found.changed == 2
    assert found.mean == pytest.approx((0.8 * 4) / 9)


def test_differences_are_taken_in_double_precision():
    one = np.full((1, 1, 3), 1 / 3, np.float32)
    assert compare_probabilities(one, one.astype(np.float64) + 1e-9).largest > 0


@pytest.mark.parametrize(
    ("first", "second"),
    [((1, 5, 3), (1, 25, 3)), ((1, 5, 3), (2, 5, 3)), ((0, 5, 3), (0, 5, 3))],
)
def test_tables_of_other_shapes_or_of_nothing_are_refused(first, second):
    with pytest.raises(ValueError) as caught:
        compare_probabilities(np.zeros(first), np.zeros(second))
    assert (
        str(caught.value)
        == f"want two tables of the same shape and not empty, got {first} and {second}"
    )


def test_figures_have_three_digits_and_are_numbers_that_json_knows():
    assert Parity(mean=0.00123456, largest=0.98765, changed=2).figures == {
        "mean": 0.00123,
        "largest": 0.988,
        "changed": 2.0,
    }
    assert Parity(mean=float("nan"), largest=float("inf"), changed=0).figures == {
        "mean": 1e6,
        "largest": 1e6,
        "changed": 0.0,
    }
    assert LevelParity(largest_mm=float("inf"), found=3).figures == {
        "largest_mm": 1e6,
        "found": 3,
    }
    assert LevelParity(largest_mm=0.12345, found=0).figures == {
        "largest_mm": 0.123,
        "found": 0,
    }


def test_what_people_read():
    assert str(Parity(mean=0.00123, largest=0.0456, changed=2)) == (
        "probabilities moved by 0.0012 on average, 0.046 at most, 2 grades"
    )
    assert (
        str(LevelParity(largest_mm=0.1234, found=7))
        == "7 levels moved by 0.12 mm at most"
    )
    assert str(LevelParity(largest_mm=0.0, found=0)) == "found no level"


@pytest.mark.parametrize(
    ("largest_mm", "found", "passed"),
    [
        (0.0, 1, True),
        (0.5, 1, True),
        (0.501, 5, False),
        (float("inf"), 5, False),
        (0.0, 0, False),
    ],
)
def test_a_disc_may_move_half_a_millimetre_and_something_must_be_found(
    largest_mm, found, passed
):
    assert LevelParity(largest_mm=largest_mm, found=found).passed is passed


def detection(moved=None, by=(0.0, 0.0, 0.0), sources=("detector",) * 5):
    levels = {}
    for k, (level, source) in enumerate(zip(LEVELS, sources, strict=True)):
        center = np.array([0.0, 0.0, -30.0 * k]) + (np.array(by) if k == moved else 0)
        levels[level] = DiscLevel(level, center, np.eye(3), np.ones(3), 1.0, source)
    return Detection(levels, (), ())


@pytest.mark.parametrize("place", range(5))
def test_the_farthest_disc_of_all_studies_counts_whichever_level_it_is(place):
    first = [detection(), detection()]
    second = [detection(place, (0.0, 0.3, 0.4)), detection(0, (0.1, 0.0, 0.0))]
    for order in (slice(None), slice(None, None, -1)):
        found = compare_levels(first[order], second[order])
        assert found == LevelParity(largest_mm=pytest.approx(0.5), found=10)


def test_levels_that_the_reference_found_are_counted_and_a_level_found_in_one_way_alone_is_infinitely_far():
    three = ("detector", "detector", "interpolated", "detector", "prior")
    assert (
        compare_levels([detection(sources=three)], [detection(sources=three)]).found
        == 3
    )
    other = compare_levels([detection(sources=three)], [detection()])
    assert (other.largest_mm, other.found) == (float("inf"), 3)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        compare_levels([detection()], [detection(), detection()])


def test_a_grader_is_not_compared_with_a_detector():
    for pair in ((table(SURE), [detection()]), ([detection()], table(SURE))):
        with pytest.raises(
            ValueError, match="a grader's answers cannot be compared with a detector's"
        ):
            compare(*pair)
    assert isinstance(compare(table(SURE), table(SURE)), Parity)
    assert isinstance(compare([detection()], [detection()]), LevelParity)


GRADER = Bundle.open().grader
WHOLE = replace(GRADER, output_channels=("a", "b", "c", "d", "e"))


@pytest.mark.parametrize(("entry", "calls"), [(GRADER, [5, 5, 2]), (WHOLE, [1] * 12)])
def test_a_grader_is_asked_as_a_run_asks_it(entry, calls):
    class Runner:
        def __init__(self):
            self.sizes = []

        def run(self, inputs):
            grids = inputs[entry.inputs[0].name]
            assert grids.flags.c_contiguous
            self.sizes.append(len(grids))
            return {
                "other": None,
                entry.outputs[0].name: np.repeat(grids[:, None, :1], 5, 1),
            }

    runner, grids = Runner(), np.arange(24, dtype=np.float32).reshape(12, 2)[:, ::-1]
    assert answers(runner, entry, grids)[:, 0, 0].tolist() == list(range(1, 24, 2))
    assert runner.sizes == calls


def test_a_model_that_gives_no_answer_by_itself_is_refused():
    facts = {
        name: getattr(GRADER, name)
        for name in ("file", "sha256", "size_bytes", "inputs", "outputs")
    }
    with pytest.raises(TypeError, match=f"{GRADER.file} gives no answer by itself"):
        ask(room.ModelEntry(**facts), [], [])


def test_phantoms_are_those_that_no_training_sees_and_their_places_are_the_true_ones(
    monkeypatch,
):
    drawn = []

    def draw(seed):
        drawn.append(seed)
        return SimpleNamespace(
            disc_center_mm=[np.full(3, 10.0 * k) for k in range(5)],
            disc_axes=[np.eye(3) * (k + 1) for k in range(5)],
        )

    monkeypatch.setattr(samples_room, "draw_spine", draw)
    monkeypatch.setattr(
        samples_room,
        "render",
        lambda spine, seed: SimpleNamespace(
            spine=spine, as_study=lambda: f"study {seed}"
        ),
    )
    samples = phantom_samples(3, start=2)
    assert drawn == [20_000_002, 20_000_003, 20_000_004]
    assert [sample.study for sample in samples] == [f"study {seed}" for seed in drawn]
    for k, (level, disc) in enumerate(samples[0].levels.items()):
        assert level is LEVELS[k]
        assert disc.level is level
        assert disc.center_mm.tolist() == [10.0 * k] * 3
        assert disc.axes[0, 0] == k + 1
        assert (disc.confidence, disc.source) == (1.0, "detector")
    drawn.clear()
    assert len(phantom_samples()) == 8
    assert drawn == list(range(20_000_000, 20_000_008))


def test_detectors_take_the_sagittal_series_t1_first():
    given = {
        "c": Role.SAGITTAL_T2,
        "a": Role.SAGITTAL_T1,
        "d": Role.AXIAL_T2,
        "b": Role.SAGITTAL_T1,
    }
    study = Study(
        "1", tuple(Series(name, role, "", (name,), 1) for name, role in given.items())
    )
    assert Sample(study, {}).study.sagittal_stacks == [("a",), ("b",), ("c",)]


@pytest.mark.parametrize("worst", [0, 2])
def test_the_case_that_moved_most_is_kept(tmp_path, monkeypatch, worst):
    monkeypatch.setattr(
        room,
        "grader_inputs",
        lambda entry, samples: np.arange(3.0)[:, None] + np.zeros((3, 4)),
    )
    first = np.tile(np.array(SURE), (3, 5, 1))
    second = first.copy()
    second[1, :3] += [-0.1, 0.1, 0.0]
    second[worst, 4] += [-0.2, 0.2, 0.0]  # farther in one head, nearer on average
    keep_worst(tmp_path / "a" / "b" / "w.npz", GRADER, [], first, second)
    with np.load(tmp_path / "a" / "b" / "w.npz") as kept:
        assert kept["image"].tolist() == [worst] * 4
        np.testing.assert_array_equal(kept["reference"], first[worst])
        np.testing.assert_array_equal(kept["other"], second[worst])
    one, two = (
        [detection()] * 3,
        [detection(), detection(1, (0.0, 0.1, 0.0)), detection()],
    )
    two[worst] = detection(4, (0.0, 0.0, 7.0))
    keep_worst(tmp_path / "d.npz", Bundle.open().detector, [], one, two)
    with np.load(tmp_path / "d.npz") as kept:
        assert kept["sample"] == worst
        assert kept["reference"][:, 2].tolist() == [0, -30, -60, -90, -120]
        assert kept["other"][:, 2].tolist() == [0, -30, -60, -90, -113]


def test_a_worst_case_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "w.npz"
    with pytest.raises(
        OutputError,
        match=f"cannot write {path}: Not a directory|cannot write {path}: File exists",
    ):
        keep_worst(path, Bundle.open().detector, [], [detection()], [detection()])


class Opened:
    """Stands for the models of a bundle, opened one way."""

    made: list[Opened]

    def __init__(self, bundle, options):
        self.options, self.closed = options, 0
        self.devices = {
            "grader": Device(options.backend, options.device, options.precision)
        }
        self.detector = SimpleNamespace(entry=Bundle.open().detector)
        self.grader = SimpleNamespace(entry=GRADER, says=table(SURE))
        self.made.append(self)

    def find_levels(self, sagittal):
        if self.options.precision == "bf16":
            raise BackendError("not to be had")
        return detection(
            3, (0.0, 0.0, 0.2 if self.options.backend == "onnxruntime" else 0.0)
        )

    def whole_study_grader(self):
        return SimpleNamespace(
            entry=WHOLE,
            says=table(SURE if self.options.backend == "openvino" else OTHER),
        )

    def close(self):
        self.closed += 1


@pytest.fixture
def opened(monkeypatch):
    Opened.made = []
    monkeypatch.setattr(room, "PipelineModels", Opened)
    monkeypatch.setattr(
        room, "phantom_samples", lambda count: [Sample(Study("1", ()), {})] * count
    )
    monkeypatch.setattr(room, "ask", lambda entry, models, samples: models[0].says)
    return Opened.made


def test_every_model_of_a_bundle_is_compared_and_both_ways_are_closed(
    opened, tmp_path, monkeypatch
):
    kept = []
    monkeypatch.setattr(
        room, "keep_worst", lambda path, entry, *_: kept.append((path, entry))
    )
    one, two = (
        RunOptions(precision="f32"),
        RunOptions(backend="onnxruntime", precision="f32"),
    )
    found = bundle_parity(Bundle.open(), one, two, 3, tmp_path)
    assert list(found) == ["detector", "grader", "whole_study_grader"]
    assert found["detector"] == LevelParity(largest_mm=pytest.approx(0.2), found=15)
    assert (found["grader"].changed, found["whole_study_grader"].changed) == (0, 1)
    assert [each.options for each in opened] == [one, two]
    assert [each.closed for each in opened] == [1, 1]
    assert [path.name for path, _ in kept] == [
        "detector.npz",
        "grader.npz",
        "whole_study_grader.npz",
    ]


def test_models_are_closed_when_one_cannot_be_had(opened):
    with pytest.raises(BackendError, match="not to be had"):
        bundle_parity(
            Bundle.open(), RunOptions(precision="f32"), RunOptions(precision="bf16"), 1
        )
    assert [each.closed for each in opened] == [1, 1]


def test_a_way_is_not_compared_with_itself_and_the_way_is_named(opened):
    with pytest.raises(UsageError) as caught:
        bundle_parity(
            Bundle.open(), RunOptions(precision="f32"), RunOptions(precision="f32"), 1
        )
    assert (
        str(caught.value)
        == "both ways are openvino cpu in f32: name another --reference"
    )
