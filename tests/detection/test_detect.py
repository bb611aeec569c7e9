"""Decode on synthetic heat maps: the right levels, whatever the storage, pose, gaps and doubts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest_detection import (
    Scene,
    SceneBackend,
    column,
    rotation,
    sagittal_stack,
    turned,
)

from spine_engine.anatomy import Level
from spine_engine.detection import detect, numbering
from spine_engine.detection.labelling import label_column
from spine_engine.detection.levels import RANK_OF_LEVEL
from spine_engine.detection.slices import slices_of_pair
from spine_engine.errors import StudyError, Warn


def check(detection, discs, within_mm=1.5, skip=()) -> None:
    truth = {d.rank: d for d in discs}
    for level, entry in detection.levels.items():
        rank = RANK_OF_LEVEL[level]
        if rank in skip:
            continue
        assert entry.source == "detector", level
        assert np.linalg.norm(entry.center_mm - truth[rank].center_mm) < within_mm, (
            level
        )
        h = truth[rank].direction
        assert entry.axes[1] @ h > 0.98
        assert np.allclose(entry.axes @ entry.axes.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(entry.axes) == pytest.approx(1.0)


def test_all_five_levels_are_found_and_framed(scene):
    result = detect([scene.stacks], scene.backend())
    check(result, scene.discs)
    assert list(result.levels) == list(Level)
    assert result.warnings == ()
    assert min(entry.confidence for entry in result.levels.values()) > 0.8
    axes = result.levels[Level.L3_L4].axes
    assert axes[0, 2] < -0.8
    assert axes[1, 1] > 0.8
    assert axes[2, 0] > 0.99


STORAGES = {
    "mirrored": {"right": (0, -1, 0)},
    "head down": {"down": (0, 0, 1)},
    "turned": {"down": (0, 1, 0), "right": (0, 0, -1)},
    "turned back": {"down": (0, -1, 0), "right": (0, 0, 1)},
    "fine pixels": {"spacing_mm": 0.5},
    "few slices": {"slices": 7, "step_mm": 6.0},
    "thin slices": {"slices": 60, "step_mm": 1.0},
}


@pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES.keys())
def test_storage_of_the_picture_does_not_matter(storage):
    scene = Scene(column(), [sagittal_stack(**storage)])
    check(detect([scene.stacks], scene.backend()), scene.discs)


def test_oblique_pose():
    turn = rotation(pitch=12.0, yaw=-9.0, roll=7.0)
    scene = Scene(turned(column(), turn), [sagittal_stack(turn=turn)])
    result = detect([scene.stacks], scene.backend())
    check(result, scene.discs)
    assert result.levels[Level.L3_L4].axes[2] @ turn[:, 0] > 0.999


def test_scoliosis_gives_each_disc_its_own_lateral_place():
    scene = Scene(column(scoliosis_mm=22.0), [sagittal_stack(slices=25)])
    check(detect([scene.stacks], scene.backend()), scene.discs, within_mm=2.5)


def test_one_doubtful_disc_is_carried_by_the_column(scene):
    discs = [
        replace(d, belief={d.rank: 0.3, d.rank + 1: 0.6}) if d.rank in (2, 3) else d
        for d in scene.discs
    ]
    scene = Scene(discs, scene.stacks)
    check(detect([scene.stacks], scene.backend()), discs)


def test_an_undecided_column_is_said_to_be_undecided(scene):
    discs = [
        replace(d, belief={d.rank: 0.5, d.rank + 1: 0.5}) for d in column(range(1, 6))
    ]
    scene = Scene(discs, [sagittal_stack(height_mm=200.0, middle_mm=(0, 0, 20))])
    result = detect([scene.stacks], scene.backend())
    assert max(entry.confidence for entry in result.levels.values()) < 0.9
    assert Warn.LOW_CONFIDENCE in result.warnings


def test_a_second_series_settles_the_doubt():
    doubtful = [replace(d, belief={d.rank: 0.4, d.rank + 1: 0.6}) for d in column()]
    sure = column()
    first, second = sagittal_stack(1), sagittal_stack(2)
    backend = SceneBackend(Scene(doubtful, [first]))
    backend.maps |= SceneBackend(Scene(sure, [second])).maps
    one, two = (
        detect([[first], [second]], backend),
        detect([[second], [first]], backend),
    )
    check(one, sure)
    for level in Level:
        assert (
            one.levels[level].center_mm.tobytes()
            == two.levels[level].center_mm.tobytes()
        )
        assert one.levels[level].confidence == two.levels[level].confidence


def test_a_missing_disc_is_interpolated_and_flagged(scene):
    scene = Scene([d for d in scene.discs if d.rank != 2], scene.stacks)
    result = detect([scene.stacks], scene.backend())
    check(result, scene.discs, skip={2})
    entry = result.levels[Level.L3_L4]
    assert entry.source == "interpolated"
    assert np.linalg.norm(entry.center_mm - column()[2].center_mm) < 6.0
    assert Warn.LEVEL_INTERPOLATED in result.warnings


def test_a_missing_last_disc_is_extrapolated_with_little_confidence(scene):
    scene = Scene([d for d in scene.discs if d.rank > 0], scene.stacks)
    result = detect([scene.stacks], scene.backend())
    check(result, scene.discs, skip={0})
    entry = result.levels[Level.L5_S1]
    assert entry.source == "interpolated"
    assert entry.confidence < 0.5
    assert np.linalg.norm(entry.center_mm - column()[0].center_mm) < 12.0


def test_a_sacral_disc_and_a_false_peak_are_left_out(scene):
    sacral = replace(
        scene.discs[0],
        center_mm=np.array([0, 30.0, -98.0]),
        heat=0.5,
        rank=-1,
        belief={-1: 0.9},
    )
    false = replace(
        scene.discs[0],
        center_mm=np.array([0, -70.0, 10.0]),
        heat=0.3,
        rank=3,
        belief={3: 0.3, 4: 0.3},
    )
    noisy = Scene([*scene.discs, sacral, false], scene.stacks)
    check(detect([scene.stacks], noisy.backend()), scene.discs)


def test_nothing_found_gives_the_prior(scene):
    empty = Scene([], scene.stacks)
    result = detect([scene.stacks], empty.backend())
    assert {entry.source for entry in result.levels.values()} == {"prior"}
    assert max(entry.confidence for entry in result.levels.values()) < 0.1
    assert Warn.LOW_CONFIDENCE in result.warnings
    heights = [result.levels[level].center_mm[2] for level in Level]
    assert heights == sorted(heights, reverse=True)


def test_the_mirrored_patient_gives_the_mirrored_levels():
    discs = column(scoliosis_mm=15.0)
    flip = np.array([-1.0, 1.0, 1.0])
    mirrored = [
        replace(d, center_mm=d.center_mm * flip, direction=d.direction * flip)
        for d in discs
    ]
    one = Scene(discs, [sagittal_stack()])
    two = Scene(mirrored, [sagittal_stack()])
    a, b = detect([one.stacks], one.backend()), detect([two.stacks], two.backend())
    for level in Level:
        assert np.allclose(
            a.levels[level].center_mm * flip, b.levels[level].center_mm, atol=1e-4
        )


class CountingBackend(SceneBackend):
    """Keeps how many slices it was asked for."""

    asked = 0

    def run(self, inputs):
        self.asked += len(inputs["slices"])
        return super().run(inputs)


@pytest.mark.parametrize(
    ("step_mm", "alone", "each_of_two"),
    [(4.0, 15, (8, 7)), (1.0, 20, (10, 10)), (7.0, 15, (15, 15))],
)
def test_two_series_share_the_slices_out(step_mm, alone, each_of_two):
    count = 60 if step_mm == 1.0 else 15
    one, two = (sagittal_stack(seed, slices=count, step_mm=step_mm) for seed in (1, 2))
    scene = Scene(column(), [one, two])
    lone, both = CountingBackend(scene), CountingBackend(scene)
    detect([[one]], lone)
    check(detect([[one], [two]], both), scene.discs)
    assert lone.asked == alone
    assert both.asked == sum(each_of_two)
    chosen = [
        slices_of_pair(stack.positions_mm, n) for n, stack in enumerate(scene.stacks)
    ]
    assert tuple(map(len, chosen)) == each_of_two
    if step_mm == 4.0:
        assert set(chosen[0]) | set(chosen[1]) == set(range(count))
        assert not set(chosen[0]) & set(chosen[1])


def test_the_model_gets_one_slice_at_a_time(scene):
    class One(SceneBackend):
        def run(self, inputs):
            assert len(inputs["slices"]) == 1
            return super().run(inputs)

    check(detect([scene.stacks], One(scene)), scene.discs)


def test_no_sagittal_stack_is_refused(scene):
    with pytest.raises(StudyError, match="no_sagittal"):
        detect([[]], scene.backend())


class Numbers:
    """Answers every slice with the same number, or with noise."""

    def __init__(self, number=None, seed=0):
        self.number, self.rng = number, np.random.default_rng(seed)

    def run(self, inputs):
        count, _, height, width = inputs["slices"].shape
        shape = (count, 14, height // 2, width // 2)
        if self.number is None:
            return {"heatmaps": self.rng.random(shape, np.float32)}
        return {"heatmaps": np.full(shape, self.number, np.float32)}


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_model_whose_numbers_are_none_is_an_error_of_the_study(scene, number):
    with pytest.raises(StudyError, match="not finite"):
        detect([scene.stacks], Numbers(number))


def test_of_noise_no_more_is_labelled_than_a_spine_might_have(scene, monkeypatch):
    labelled = []

    def counted(candidates, *rest):
        labelled.append(len(candidates))
        return label_column(candidates, *rest)

    monkeypatch.setattr(numbering, "label_column", counted)
    result = detect([scene.stacks, scene.stacks], Numbers())
    assert labelled[0] == 64
    assert len(result.levels) == 5
