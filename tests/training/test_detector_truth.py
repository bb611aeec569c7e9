"""Truth of the detector's exams: discs from masks, folds by patient, phantoms in any storage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

nib = pytest.importorskip("nibabel", reason="the training extra is not installed")
pytest.importorskip("scipy", reason="the training extra is not installed")

from spine_training.detector.data import fold_of  # noqa: E402
from spine_training.detector.exam import Exam  # noqa: E402
from spine_training.detector.truth import Column, column_from_bodies, column_from_spider  # noqa: E402


def bodies(labels=(5, 4, 3, 2, 1), *, sacrum=False, tilt_deg=0.0):
    """Boxes 34 mm deep, 25 mm high and 20 mm wide, 35 mm apart, the lowest at row 200."""
    volume = np.zeros((240, 120, 30), np.uint8)
    rows, columns, lateral = np.mgrid[:240, :120, :30].astype(float)
    angle = np.deg2rad(tilt_deg)
    along = np.cos(angle) * (rows - 120) + np.sin(angle) * (columns - 60)
    across = -np.sin(angle) * (rows - 120) + np.cos(angle) * (columns - 60)
    everything = [*labels, 6] if sacrum else list(labels)
    for label in everything:
        rank = {6: -1, 5: 0, 4: 1, 3: 2, 2: 3, 1: 4}[label]
        height = 62.5 - 35 * rank
        inside = (
            (np.abs(along - height) <= 12)
            & (np.abs(across) <= 17)
            & (np.abs(lateral - 15) <= 10)
        )
        volume[inside] = label
    return volume


@pytest.mark.parametrize("tilt_deg", [0.0, 15.0, -20.0])
def test_a_disc_lies_midway_between_facing_endplates(tilt_deg):
    column = column_from_bodies(bodies(tilt_deg=tilt_deg))
    angle = np.deg2rad(tilt_deg)
    down, back = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )
    by_rank = {disc.rank: disc for disc in column.discs}
    for rank in (1, 2, 3, 4):
        expected = np.array([120, 60]) + (62.5 - 35 * rank + 17.5) * down
        assert np.linalg.norm(by_rank[rank].center_mm[:2] - expected) <= 1.0
        assert abs(by_rank[rank].center_mm[2] - 15) <= 1.0  # cells of 2 mm
        assert by_rank[rank].direction @ back > 0.995
        assert by_rank[rank].known
        assert not by_rank[rank].weak


def test_the_lowest_disc_is_weak_without_a_sacrum_and_true_with_one():
    weak = column_from_bodies(bodies()).discs[0]
    assert weak.weak
    with_sacrum = column_from_bodies(bodies(sacrum=True)).discs[0]
    assert not with_sacrum.weak
    assert np.linalg.norm(weak.center_mm - with_sacrum.center_mm) < 3.0


def test_an_endplate_that_runs_against_the_lordosis_gives_no_place():
    volume = bodies()
    rows, columns, _ = np.mgrid[:240, :120, :30]
    volume[(volume == 5) & (rows > 182 + (columns - 43) * 0.5)] = (
        0  # L5 loses its lower front corner
    )
    lowest = column_from_bodies(volume).discs[0]
    assert not lowest.known
    assert lowest.weak
    assert np.linalg.norm(lowest.center_mm[:2] - [200.0, 60.0]) < 8.0


def test_a_body_without_mask_leaves_discs_of_unknown_place():
    column = column_from_bodies(bodies((5, 4, 2, 1)))
    assert [disc.known for disc in column.discs] == [True, True, False, False, True]
    assert [disc.rank for disc in column.discs] == [0, 1, 2, 3, 4]


def test_spider_discs_are_numbered_from_the_bottom():
    masks = np.zeros((200, 120, 5), np.uint8)
    for row in (30, 70, 110, 150):
        masks[row : row + 8, 40:70] = 29
    masks[:, 80:90] = 150
    column = column_from_spider(masks, (1.0, 1.0, 1.8))
    assert [disc.rank for disc in column.discs] == [0, 1, 2, 3]
    assert column.discs[0].center_mm[0] == pytest.approx(153.5)
    assert abs(column.discs[0].direction[1]) > 0.999


def test_a_wedge_shaped_disc_has_its_middle_between_its_faces():
    masks = np.zeros((200, 120, 5), np.uint8)
    for row in (40, 100, 160):  # 16 mm high in front, 4 mm behind
        for column in range(40, 76):
            half = 8 - 6 * (column - 40) / 35
            masks[round(row - half) : round(row + half), column] = 29
    masks[:, 80:90] = 150
    column = column_from_spider(masks, (1.0, 1.0, 1.8))
    for disc, row in zip(column.discs, (160, 100, 40), strict=True):
        assert np.allclose(disc.center_mm[:2], [row - 0.5, 57.5], atol=0.6)
        assert abs(disc.direction[1]) > 0.999
    assert [rank for rank, _ in column.bodies] == [0, 1, 2]
    assert column.bodies[2][1][0] == pytest.approx(
        10.0, abs=1.0
    )  # above the topmost disc


def test_contrasts_of_one_patient_share_a_fold():
    def exam(name, source, patient):
        return Exam(
            name,
            source,
            patient,
            np.zeros((1, 1, 1), np.uint8),
            (1, 1, 1),
            Column((), ()),
        )

    exams = [exam(f"A-{i}", "A", f"A-{i - i % 2}") for i in range(20)] + [
        exam("B-1", "B", "B-1")
    ]
    fold = fold_of(exams)
    assert all(fold[f"A-{i}"] == fold[f"A-{i + 1}"] for i in range(0, 20, 2))
    assert set(fold.values()) == set(range(5))


def test_a_phantom_exam_does_not_depend_on_how_its_stack_is_stored():
    pytest.importorskip("torch", reason="the training extra is not installed")
    from spine_engine.phantom import Protocol, render
    from spine_training.detector.phantoms import exam_from_stack, posed_spine

    spine = posed_spine(5)
    protocol = Protocol(
        axial="none", sagittal=("t2",), sagittal_matrix=128, sagittal_slices=7
    )
    stack = render(spine, seed=5, protocol=protocol).series[0].stacks[0]
    mirrored = replace(
        stack,
        pixels=np.ascontiguousarray(stack.pixels[::-1, :, ::-1]),
        origins_mm=(
            stack.origins_mm
            + stack.axes[2] * stack.spacing_mm[1] * (stack.pixels.shape[2] - 1)
        )[::-1],
        axes=stack.axes * np.array([[-1.0], [1.0], [-1.0]]),
    )
    one, two = exam_from_stack("a", stack, spine), exam_from_stack("a", mirrored, spine)
    assert np.array_equal(one.volume, two.volume)
    for a, b in zip(one.column.discs, two.column.discs, strict=True):
        assert np.allclose(a.center_mm, b.center_mm)
        assert np.allclose(a.direction, b.direction)
    rows = [disc.center_mm[0] for disc in one.column.discs]
    assert rows == sorted(rows, reverse=True)
