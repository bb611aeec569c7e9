"""The grid of a whole study and its grades: where it lies, which head is which, and what nothing shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from test_grading import (
    ALL_ROLES,
    AXIAL,
    FORAMINA,
    RECESSES,
    T1,
    T2,
    Recorder,
    axial,
    calibration,
    stack,
    study,
)

from spine_engine.anatomy import CONDITIONS, LEVELS, prior
from spine_engine.bundle.manifest import GraderEntry, GridEntry, TensorEntry
from spine_engine.errors import Reason, StudyError, Warn
from spine_engine.pipeline.grading import calibrated, grade_whole_study
from spine_engine.pipeline.level_grids import level_grids, study_grid, study_pose
from spine_engine.study import Role, Series, Stack, Study

GRID = GridEntry(shape=(10, 8, 12), spacing_mm=(20.0, 20.0, 8.0))
ENTRY = GraderEntry(
    file="whole.onnx",
    sha256="0" * 64,
    size_bytes=1,
    inputs=(TensorEntry(name="image", shape=(1, 3, 10, 8, 12)),),
    outputs=(TensorEntry(name="probabilities", shape=(1, 25, 3)),),
    channels=ALL_ROLES,
    grid=GRID,
    output_channels=tuple(
        f"{condition}_{level}" for condition in CONDITIONS for level in LEVELS
    ),
)


def answer(seed: int = 5) -> NDArray[np.float32]:
    raw = np.random.default_rng(seed).random((1, 25, 3))
    return (raw / raw.sum(-1, keepdims=True)).astype(np.float32)


def marked(role: Role, axes: np.ndarray, mark: tuple[int, int]) -> Series:
    """A sagittal series, stored along ``axes``, whose brightest place lies at the sign of ``mark`` along (z, y) and on
    the patient's left.
    """
    one = stack(axes, 17, 5.0, 1, (0, 0, 0))
    indices = np.meshgrid(*(np.arange(n) for n in one.pixels.shape), indexing="ij")
    steps = np.stack(indices, axis=-1) * (5.0, 3.0, 3.0)
    x, y, z = np.moveaxis(one.origins_mm[0] + steps @ one.axes, -1, 0)
    one.pixels[:] = 100 + 900 * ((x > 0) & (y * mark[1] > 0) & (z * mark[0] > 0))
    return Series("s", role, "", (one,), 17)


STORAGES = {
    "right to left": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "left to right": ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),
    "head down": ((-1, 0, 0), (0, 0, 1), (0, 1, 0)),
    "lying": ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
}


@pytest.mark.parametrize("axes", STORAGES.values(), ids=STORAGES.keys())
def test_the_patients_left_stays_left_however_the_series_is_stored(
    axes: np.ndarray,
) -> None:
    one = marked(Role.SAGITTAL_T1, axes, (1, -1))  # up, front, left
    grid, _ = study_grid(study(one), ENTRY.layout)
    want = np.zeros((10, 8, 12), np.bool_)
    want[:5, :4, 6:11] = (
        True  # D superior to inferior, H anterior to posterior, W right to left; the last is outside
    )
    np.testing.assert_array_equal(grid[0] > 0.5, want)


def test_the_pose_is_the_middle_of_the_sagittal_views_in_the_spines_frame() -> None:
    t1 = replace(
        T1,
        stacks=(stack(((1, 0, 0), (0, 0, -1), (0, 1, 0)), 17, 5.0, 1, (4, 10, -20)),),
    )
    t2 = replace(
        T2,
        stacks=(stack(((-1, 0, 0), (0, 0, -1), (0, -1, 0)), 17, 5.0, 2, (0, 30, -40)),),
    )
    pose = study_pose(study(t1, t2, axial(center=(0, 0, 500))))
    np.testing.assert_allclose(pose.center_mm, (2, 20, -30), atol=1e-9)
    np.testing.assert_allclose(
        pose.axes, ((0, 0, -1), (0, 1, 0), (1, 0, 0)), atol=1e-12
    )
    again = study_pose(study(t2, t1))
    assert (
        again.center_mm.tobytes() + again.axes.tobytes()
        == pose.center_mm.tobytes() + pose.axes.tobytes()
    )
    with pytest.raises(StudyError) as caught:
        study_pose(study(axial()))
    assert caught.value.reason is Reason.NO_SAGITTAL


def test_an_oblique_patient_gets_an_oblique_grid() -> None:
    angle = np.radians(14)
    turn = np.array(
        [
            [np.cos(angle), -np.sin(angle), 0],
            [np.sin(angle), np.cos(angle), 0],
            [0, 0, 1],
        ]
    )
    turned = np.array(((1, 0, 0), (0, 0, -1), (0, 1, 0))) @ turn.T
    pose = study_pose(
        study(replace(T1, stacks=(stack(turned, 17, 5.0, 1, (0, 0, 0)),)))
    )
    np.testing.assert_allclose(pose.axes[2], turn @ (1, 0, 0), atol=1e-12)
    assert np.linalg.det(pose.axes) == pytest.approx(1)


def test_the_offset_of_the_manifest_moves_the_grid_along_its_own_axes() -> None:
    bright = stack(AXIAL, 40, 5.0, 9, (0, 0, 0))
    bright.pixels[:] = 100
    bright.pixels[:, 46:] = 1000  # posterior beyond y = 46 * 3 - 118.5 = 19.5 mm
    moved = replace(ENTRY, grid=replace(GRID, center_offset_mm=(0.0, 40.0, 0.0)))
    grid, coverage = study_grid(
        study(T1, Series("a", Role.AXIAL_T2, "", (bright,), 40)), moved.layout
    )
    y_mm = 40.0 + (np.arange(8) - 3.5) * 20.0
    seen = y_mm < 120
    np.testing.assert_array_equal((grid[1, 5, :, 6] > 0.5)[seen], (y_mm > 19)[seen])
    assert coverage.shape == (3,)
    assert coverage[1] == 1
    assert coverage[2] == 0


def test_intensities_are_those_of_the_level_grids() -> None:
    from test_grading import ENTRY as LEVEL_ENTRY
    from test_grading import discs

    whole = study(T1, T2, axial())
    level, disc = LEVELS[2], discs()[LEVELS[2]]
    grids, _ = level_grids(whole, discs(), LEVEL_ENTRY.layout)
    pose = study_pose(whole)
    assert np.allclose(pose.axes, disc.axes)
    assert np.allclose(pose.center_mm, disc.center_mm, atol=1e-9)
    entry = replace(
        LEVEL_ENTRY, output_channels=ENTRY.output_channels, outputs=ENTRY.outputs
    )
    grid, _ = study_grid(whole, entry.layout)
    np.testing.assert_allclose(grid, grids[LEVELS.index(level)], atol=1e-5)


def test_head_k_is_condition_major_and_level_minor() -> None:
    backend = Recorder(answer())
    grades = grade_whole_study(study(T1, T2, axial()), backend, ENTRY)
    assert [asked.shape for asked in backend.asked] == [(1, 3, 10, 8, 12)]
    assert grades.assessed.all()
    for c in range(5):
        for j in range(5):
            np.testing.assert_allclose(
                grades.probabilities[j, c], backend.answer[0, c * 5 + j], atol=1e-6
            )


def test_calibration_is_applied_per_condition_and_level() -> None:
    table = calibration(2.0, 0.3, condition=4, level=1)
    whole = study(T1, T2, axial())
    plain = grade_whole_study(whole, Recorder(answer()), ENTRY).probabilities
    moved = grade_whole_study(
        whole, Recorder(answer()), replace(ENTRY, calibration=table)
    ).probabilities
    np.testing.assert_allclose(moved, calibrated(plain, table), atol=1e-12)
    assert np.abs(moved - plain)[1, 4].max() > 0.01


@pytest.mark.parametrize(
    ("series", "graded", "said"),
    [
        ((T1,), FORAMINA, {Warn.NO_SAGITTAL_T2, Warn.NO_AXIAL_T2}),
        ((T1, axial(5)), range(5), set()),  # what a few axial slices show, they show
        ((T1, T2, axial(3, (0, 0, 900))), sorted(set(range(5)) - set(RECESSES)), set()),
    ],
    ids=["t1", "few axial slices", "axial slices elsewhere"],
)
def test_what_no_series_shows_keeps_the_prior(
    series: tuple[Series, ...], graded: list[int], said: set[Warn]
) -> None:
    backend = Recorder(answer())
    grades = grade_whole_study(study(*series), backend, ENTRY)
    assert [k for k in range(5) if grades.assessed[:, k].all()] == sorted(graded)
    assert {warning for _, warning in grades.not_assessed} == said
    for k, condition in enumerate(CONDITIONS):
        for j, level in enumerate(LEVELS):
            want = (
                backend.answer[0, k * 5 + j] if k in graded else prior(condition, level)
            )
            np.testing.assert_allclose(grades.probabilities[j, k], want, atol=1e-6)
    assert grades.not_covered == (LEVELS if len(series) == 3 else ())


def test_the_buffer_and_the_pose_given_are_used() -> None:
    whole = study(T1, T2)
    out = np.full((3, 10, 8, 12), 9.0, np.float32)
    fresh, _ = study_grid(whole, ENTRY.layout)
    grid, _ = study_grid(whole, ENTRY.layout, out)
    assert grid is out
    np.testing.assert_array_equal(grid, fresh)
    pose = study_pose(whole)
    moved = replace(pose, center_mm=pose.center_mm - 20.0 * pose.axes[0])
    up, _ = study_grid(whole, ENTRY.layout, pose=moved)
    np.testing.assert_allclose(up[:, 1:], fresh[:, :-1], atol=1e-4)


def test_wrong_heads_are_an_error_of_the_study() -> None:
    with pytest.raises(StudyError) as caught:
        grade_whole_study(study(T1), Recorder(answer()[:, :24]), ENTRY)
    assert caught.value.reason is Reason.INTERNAL_ERROR


def test_a_mirrored_patient_gives_a_mirrored_grid() -> None:
    def mirrored(series: Series) -> Series:
        flipped: list[Stack] = []
        for one in series.stacks:
            across = int(np.abs(one.axes[:, 0]).argmax())
            flipped.append(
                replace(one, pixels=np.ascontiguousarray(np.flip(one.pixels, across)))
            )
        return replace(series, stacks=tuple(flipped))

    whole = (T1, T2, axial())
    plain, _ = study_grid(study(*whole), ENTRY.layout)
    other, _ = study_grid(Study("1", tuple(map(mirrored, whole))), ENTRY.layout)
    np.testing.assert_allclose(other, plain[..., ::-1], atol=2e-3)
