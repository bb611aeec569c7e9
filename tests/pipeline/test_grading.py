"""From a study and its levels to probabilities: what the model sees, what it may not grade, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from spine_engine.anatomy import (
    CONDITIONS,
    LEVELS,
    MIRRORED_CONDITION,
    Condition,
    Level,
    prior,
)
from spine_engine.backends import Device, TensorInfo
from spine_engine.bundle.manifest import (
    Calibration,
    GraderEntry,
    GridEntry,
    TensorEntry,
)
from spine_engine.detection.levels import DiscLevel
from spine_engine.errors import Reason, StudyError, Warn
from spine_engine.pipeline.grading import calibrated, checked, grade
from spine_engine.pipeline.level_grids import level_grids
from spine_engine.study import Role, Series, Stack, Study
from spine_engine.voxels import GridPose, IntensityWindow, WindowedStack, voxelize

CANAL = CONDITIONS.index(Condition.SPINAL_CANAL_STENOSIS)
FORAMINA = [k for k, condition in enumerate(CONDITIONS) if "foraminal" in condition]
RECESSES = [k for k, condition in enumerate(CONDITIONS) if "subarticular" in condition]
ALL_ROLES = (Role.SAGITTAL_T1, Role.AXIAL_T2, Role.SAGITTAL_T2)
GRID = GridEntry(
    shape=(6, 8, 10), spacing_mm=(6.0, 6.0, 6.0), center_offset_mm=(0.0, 18.0, 0.0)
)
ENTRY = GraderEntry(
    file="grader.onnx",
    sha256="0" * 64,
    size_bytes=1,
    inputs=(TensorEntry(name="image", shape=(None, 3, 6, 8, 10)),),
    outputs=(TensorEntry(name="probabilities", shape=(None, 5, 3)),),
    channels=ALL_ROLES,
    grid=GRID,
    output_channels=tuple(CONDITIONS),
)


class Recorder:
    """A backend that answers with a given table and keeps what it was asked."""

    inputs = (TensorInfo("image", (None, 3, 6, 8, 10)),)
    outputs = (TensorInfo("probabilities", (None, 5, 3)),)
    device = Device("recorder", "CPU", "f32")

    def __init__(self, answer: NDArray[np.float32] | None = None) -> None:
        rng = np.random.default_rng(3)
        raw = rng.random((5, 5, 3)) if answer is None else answer
        self.answer = (
            raw / raw.sum(-1, keepdims=True) if answer is None else raw
        ).astype(np.float32)
        self.asked: list[NDArray[np.float32]] = []

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        self.asked.append(inputs["image"].copy())
        return {"probabilities": self.answer}

    def close(self) -> None:
        pass


def stack(
    axes: Sequence[Sequence[float]],
    slices: int,
    step_mm: float,
    seed: int,
    center: Sequence[float],
) -> Stack:
    """Return a stack of 80 x 80 pixels of 3 mm, centred on ``center``."""
    rows = np.array(axes, float)
    corner = (
        np.array(center)
        - (rows[1] + rows[2]) * 3.0 * 79 / 2
        - rows[0] * step_mm * (slices - 1) / 2
    )
    origins = corner + np.arange(slices)[:, None] * step_mm * rows[0]
    pixels = (
        np.random.default_rng(seed)
        .integers(0, 4096, (slices, 80, 80))
        .astype(np.uint16)
    )
    ones = np.ones(slices, np.float32)
    return Stack(pixels, ones, 0 * ones, origins, rows, (3.0, 3.0))


SAGITTAL = ((1, 0, 0), (0, 0, -1), (0, 1, 0))
AXIAL = ((0, 0, 1), (0, 1, 0), (1, 0, 0))


def sagittal(role: Role, seed: int) -> Series:
    return Series(
        f"s{seed}", role, "", (stack(SAGITTAL, 17, 5.0, seed, (0, 0, 0)),), 17
    )


def axial(slices: int = 40, center: Sequence[float] = (0, 0, 0)) -> Series:
    return Series(
        "ax", Role.AXIAL_T2, "", (stack(AXIAL, slices, 5.0, 9, center),), slices
    )


def study(*series: Series) -> Study:
    return Study("1.2.3", series)


def discs(prior_levels: Sequence[Level] = ()) -> dict[Level, DiscLevel]:
    """Return five upright levels, 35 mm apart, L3/L4 at the origin."""
    axes = np.array([[0.0, 0, -1], [0, 1, 0], [-1, 0, 0]]) * np.array([[1], [1], [-1]])
    return {
        level: DiscLevel(
            level,
            np.array([0.0, 0, 35.0 * (2 - k)]),
            axes,
            np.array([36.0, 48, 60]),
            0.9,
            "prior" if level in prior_levels else "detector",
        )
        for k, level in enumerate(LEVELS)
    }


T1, T2 = sagittal(Role.SAGITTAL_T1, 1), sagittal(Role.SAGITTAL_T2, 2)


def test_a_whole_study_is_graded_in_one_call_of_five() -> None:
    backend = Recorder()
    grades = grade(study(T1, T2, axial()), discs(), backend, ENTRY)
    assert [asked.shape for asked in backend.asked] == [(5, 3, 6, 8, 10)]
    assert grades.assessed.all()
    assert (grades.not_assessed, grades.not_covered) == ((), ())
    np.testing.assert_allclose(grades.probabilities, backend.answer, atol=1e-6)
    assert np.abs(grades.probabilities.sum(-1) - 1).max() < 1e-15


def test_grids_lie_behind_the_disc_along_its_own_axes() -> None:
    bright = stack(AXIAL, 40, 5.0, 9, (0, 0, 0))
    bright.pixels[:] = 100
    bright.pixels[:, 46:] = (
        1000  # rows grow with +y: posterior beyond y = 46 * 3 - 118.5 = 19.5 mm
    )
    grids, coverage = level_grids(
        study(Series("a", Role.AXIAL_T2, "", (bright,), 40)), discs(), ENTRY.layout
    )
    profile = grids[2, 1, 3, :, 5]
    y_mm = 18.0 + (np.arange(8) - 3.5) * 6.0
    np.testing.assert_array_equal(profile > 0.5, y_mm > 18)
    assert coverage[:, 1].min() == 1
    assert not coverage[:, [0, 2]].any()
    assert 0 <= grids.min() < grids.max() <= 1


def test_the_range_of_the_grid_keeps_the_channels_apart() -> None:
    entry = replace(ENTRY, normalisation="grid_range")
    dark, bright = sagittal(Role.SAGITTAL_T1, 1), sagittal(Role.SAGITTAL_T2, 1)
    dark.stacks[0].pixels[:] //= 4
    grids, _ = level_grids(study(dark, bright), discs(), entry.layout)
    assert (
        grids.min(axis=(1, 2, 3, 4)).tolist() == [0] * 5
    )  # the axial channel is empty
    assert grids.max(axis=(1, 2, 3, 4)).tolist() == [1] * 5
    ratio = np.polynomial.polynomial.polyfit(
        grids[:, 2].ravel(), grids[:, 0].ravel(), 1
    )
    np.testing.assert_allclose(ratio, [0, 0.25], atol=2e-3)
    window = IntensityWindow(0.0, 1e4)
    raw = voxelize(
        [[WindowedStack(s.stacks[0], window)] for s in (dark, bright)],
        entry.grid.spec,
        GridPose(
            discs()[LEVELS[2]].center_mm + np.array([0, 18.0, 0]),
            discs()[LEVELS[2]].axes,
        ),
    ).values
    np.testing.assert_allclose(grids[2][[0, 2]], raw / raw.max(), atol=1e-6)


@pytest.mark.parametrize(
    ("series", "graded", "said"),
    [
        ((T1,), FORAMINA, {Warn.NO_SAGITTAL_T2, Warn.NO_AXIAL_T2}),
        ((T2,), [*FORAMINA, CANAL], {Warn.NO_AXIAL_T2}),
        ((T1, T2), [*FORAMINA, CANAL], {Warn.NO_AXIAL_T2}),
        ((axial(),), [*RECESSES, CANAL], {Warn.NO_SAGITTAL_T1}),
        ((T1, axial()), range(5), set()),
    ],
    ids=["t1", "t2", "t1+t2", "axial", "t1+axial"],
)
def test_what_no_series_shows_keeps_the_prior_and_is_named(
    series: tuple[Series, ...], graded: Sequence[int], said: set[Warn]
) -> None:
    backend = Recorder()
    grades = grade(study(*series), discs(), backend, ENTRY)
    assert {k for k in range(5) if grades.assessed[:, k].all()} == set(graded)
    assert {k for k in range(5) if grades.assessed[:, k].any()} == set(graded)
    assert {reason for _, reason in grades.not_assessed} == said
    assert {CONDITIONS.index(condition) for condition, _ in grades.not_assessed} == set(
        range(5)
    ) - set(graded)
    for k, condition in enumerate(CONDITIONS):
        for j, level in enumerate(LEVELS):
            want = backend.answer[j, k] if k in graded else prior(condition, level)
            np.testing.assert_allclose(grades.probabilities[j, k], want, atol=1e-6)
    assert grades.not_covered == ()


def test_a_level_that_the_axial_series_does_not_reach() -> None:
    grades = grade(study(T1, T2, axial(10, (0, 0, -50))), discs(), Recorder(), ENTRY)
    assert grades.assessed[:, [*FORAMINA, CANAL]].all()
    assert grades.assessed[:, RECESSES].all(axis=1).tolist() == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert grades.not_covered == (Level.L1_L2, Level.L2_L3, Level.L3_L4)
    assert grades.not_assessed == ()


def test_levels_without_a_place_keep_the_prior_and_do_not_change_the_others() -> None:
    backend = Recorder()
    grades = grade(study(T1, T2, axial()), discs([Level.L1_L2]), backend, ENTRY)
    assert grades.assessed[1:].all()
    assert not grades.assessed[0].any()
    assert not backend.asked[0][0].any()
    assert backend.asked[0].shape[0] == 5
    assert grades.not_covered == ()
    np.testing.assert_allclose(
        grades.probabilities[0, CANAL], prior(CONDITIONS[CANAL], Level.L1_L2)
    )


def test_nothing_to_look_at_means_no_call() -> None:
    backend = Recorder()
    grades = grade(study(T1, T2, axial()), discs(LEVELS), backend, ENTRY)
    assert backend.asked == []
    assert not grades.assessed.any()


def test_the_buffer_given_is_used_and_leaves_no_trace() -> None:
    out = np.full((5, 3, 6, 8, 10), 9.0, np.float32)
    backend, fresh = Recorder(), Recorder()
    grade(study(T1), discs([Level.L5_S1]), backend, ENTRY, out=out)
    grade(study(T1), discs([Level.L5_S1]), fresh, ENTRY)
    np.testing.assert_array_equal(backend.asked[0], fresh.asked[0])
    np.testing.assert_array_equal(out, backend.asked[0])


def test_series_order_does_not_matter() -> None:
    second = replace(axial(10, (0, 0, -40)), path="ax2")
    one, two = Recorder(), Recorder()
    grade(study(T1, T2, axial(), second), discs(), one, ENTRY)
    grade(study(second, T2, axial(), T1), discs(), two, ENTRY)
    np.testing.assert_array_equal(one.asked[0], two.asked[0])


def test_a_mirrored_patient_gives_mirrored_grids() -> None:
    def mirrored(series: Series) -> Series:
        """Reflect the patient in the plane x = 0; the slices of a sagittal stack change order."""
        flipped = []
        for one in series.stacks:
            across = int(np.abs(one.axes[:, 0]).argmax())
            flipped.append(
                replace(one, pixels=np.ascontiguousarray(np.flip(one.pixels, across)))
            )
        return replace(series, stacks=tuple(flipped))

    whole = (T1, T2, axial())
    plain, _ = level_grids(study(*whole), discs(), ENTRY.layout)
    other, _ = level_grids(study(*map(mirrored, whole)), discs(), ENTRY.layout)
    np.testing.assert_allclose(other, plain[..., ::-1], atol=2e-3)
    assert MIRRORED_CONDITION[CONDITIONS[0]] == CONDITIONS[2]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p[:4],
        lambda p: np.where(np.arange(3) == 1, np.nan, p),
        lambda p: p * 1.01,
        lambda p: p + np.array([0.5, -0.5, 0]) * 2,
    ],
    ids=["shape", "nan", "sum", "negative"],
)
def test_what_is_no_probabilities_is_an_error_of_the_study(
    spoil: Callable[..., NDArray[np.float32]],
) -> None:
    backend = Recorder()
    backend.answer = spoil(backend.answer).astype(np.float32)
    with pytest.raises(StudyError) as caught:
        grade(study(T1), discs(), backend, ENTRY)
    assert caught.value.reason is Reason.INTERNAL_ERROR


def test_rounding_is_forgiven_and_normalised() -> None:
    raw = np.tile(np.array([1.0 + 5e-4, -2e-4, 0.0], np.float32), (5, 5, 1))
    values = checked(raw, (5, 5, 3))
    assert values.min() == 0
    np.testing.assert_array_equal(values.sum(-1), 1)


def calibration(
    temperature: float, shift: float, *, condition: int, level: int
) -> Calibration:
    tables = {"temperature": np.ones((5, 5)), "shift": np.zeros((5, 5))}
    tables["temperature"][condition, level] = temperature
    tables["shift"][condition, level] = shift
    return Calibration(
        **{name: tuple(map(tuple, table.tolist())) for name, table in tables.items()}
    )


def test_calibration_moves_the_cumulative_logits_of_its_condition_and_level_alone() -> (
    None
):
    p = checked(Recorder().answer, (5, 5, 3))
    same = calibrated(p, calibration(1.0, 0.0, condition=0, level=0))
    np.testing.assert_allclose(same, p, atol=1e-9)
    moved = calibrated(p, calibration(2.0, 0.3, condition=4, level=1))
    logit = np.log(np.cumsum(p[1, 4])[:2] / (1 - np.cumsum(p[1, 4])[:2]))
    want = np.diff([0, *(1 / (1 + np.exp(-(logit / 2 + 0.3)))), 1])
    np.testing.assert_allclose(moved[1, 4], want, atol=1e-12)
    others = np.ones((5, 5), bool)
    others[1, 4] = False
    np.testing.assert_allclose(moved[others], p[others], atol=1e-9)
    assert moved.min() >= 0
    np.testing.assert_allclose(moved.sum(-1), 1, atol=1e-15)


def test_calibration_is_applied_and_certain_rows_survive_it() -> None:
    certain = np.zeros((5, 5, 3), np.float32)
    certain[..., 2] = 1
    table = tuple((3.0,) * 5 for _ in range(5))
    entry = replace(
        ENTRY,
        calibration=Calibration(
            temperature=table, shift=tuple((0.0,) * 5 for _ in range(5))
        ),
    )
    grades = grade(study(T1, T2, axial()), discs(), Recorder(certain), entry)
    assert np.isfinite(grades.probabilities).all()
    assert (grades.probabilities[..., 2] < 1).all()
    assert (grades.probabilities[..., 2] > 0.9).all()
