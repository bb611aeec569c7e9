"""What stands beside the slices of a montage and of a scene: distances, sides, shares, and which slices are chosen."""

from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
from made_space import AXIAL, SAGITTAL, a_series, a_study, oblique, some_levels

from spine_engine.anatomy import Level
from spine_engine.bundle.manifest import GraderEntry, GridEntry, TensorEntry
from spine_engine.report import montage
from spine_engine.report.cloud import study_cloud
from spine_engine.report.ply import point_colours
from spine_engine.report.scene import (
    confidence_words,
    disc_slices,
    middle_slice,
    study_scene,
)
from spine_engine.results import LevelResult
from spine_engine.study import Role

CHANNELS = (Role.SAGITTAL_T1, Role.AXIAL_T2, Role.SAGITTAL_T2)


def an_entry(shape=(24, 10, 48), spacing=(1.6, 1.2, 1.5), offset=(4.0, 18.0, -3.0)):
    return GraderEntry(
        file="g.onnx",
        sha256="0" * 64,
        size_bytes=1,
        inputs=(TensorEntry(name="x", shape=(None, 3, *shape)),),
        outputs=(TensorEntry(name="y", shape=(None, 1, 3)),),
        channels=CHANNELS,
        grid=GridEntry(shape=shape, spacing_mm=spacing, center_offset_mm=offset),
        output_channels=("any",),
    )


def place(
    axes=((0.0, 0, -1), (0, 1, 0), (1, 0, 0)), confidence=0.41, source="interpolated"
):
    return LevelResult(
        center_mm=(0.0, 0.0, 0.0),
        axes=axes,
        size_mm=(40.0, 96.0, 96.0),
        confidence=confidence,
        source=source,
    )


@pytest.mark.parametrize(
    ("offset", "along", "axes", "said"),
    [
        (5.04, 2, ((0.0, 0, -1), (0, 1, 0), (1, 0, 0)), "L 5.0 mm"),
        (-5.06, 2, ((0.0, 0, -1), (0, 1, 0), (1, 0, 0)), "R 5.1 mm"),
        (5.0, 2, ((0.0, 0, -1), (0, 1, 0), (-1, 0, 0)), "R 5.0 mm"),
        (7.0, 0, ((0.0, 0, -1), (0, 1, 0), (1, 0, 0)), "F 7.0 mm"),
        (-7.0, 0, ((0.0, 0, -1), (0, 1, 0), (1, 0, 0)), "H 7.0 mm"),
        (7.0, 0, ((0.0, 0, 1), (0, 1, 0), (1, 0, 0)), "H 7.0 mm"),
    ],
)
def test_a_slice_says_how_far_it_lies_to_which_side_of_the_patient(
    offset, along, axes, said
):
    assert montage._distance(offset, along, place(axes)) == said


@pytest.fixture
def written(monkeypatch):
    """What a montage writes, in order."""
    draw = pytest.importorskip(
        "PIL.ImageDraw", reason="Pillow is not installed (extra viz)"
    )
    said, text = [], draw.ImageDraw.text

    def noted(self, xy, words, *more, **named):
        said.append(words)
        return text(self, xy, words, *more, **named)

    monkeypatch.setattr(draw.ImageDraw, "text", noted)
    return said


def test_every_third_of_forty_eight_and_every_other_of_twenty_four_slices_are_shown_with_their_distances(
    written,
):
    grid = np.ones((3, 24, 10, 48), np.float32)
    montage.montage(grid, np.array([0.5, 0.996, 0.0]), an_entry(), Level.L4_L5, place())
    t1, axial = written[:16], written[16:28]
    numbers = [(k - 23.5) * 1.5 - 3.0 for k in range(1, 48, 3)]
    assert t1 == [f"{'L' if x > 0 else 'R'} {abs(x):.1f} mm" for x in numbers]
    numbers = [(k - 11.5) * 1.6 + 4.0 for k in range(0, 24, 2)]
    assert axial == [f"{'F' if x > 0 else 'H'} {abs(x):.1f} mm" for x in numbers]
    assert written[28:] == [
        "L4/L5   41 %, interpolated   24 x 10 x 48 voxels of 1.6 x 1.2 x 1.5 mm",
        "Sagittal T1: covers 50 % of the grid",
        "Axial T2: covers 100 % of the grid",
        "Sagittal T2: the study has none here",
    ]


@pytest.mark.parametrize(
    ("confidence", "source", "said"),
    [
        (1.0, "detector", "100 %"), (0.999, "detector", ">99 %"), (0.5, "interpolated", "50 %, interpolated"),
        (0.001, "prior", "<1 %, by the field of view"), (0.25, "", "25 %"),
    ],
)  # fmt: skip
def test_a_confidence_in_short(confidence, source, said):
    assert confidence_words(confidence, source) == said


# -- which slices a scene has ------------------------------------------------------------------------------------------


def straight(axes, **more):
    """A stack of slices 4 mm apart round the origin, upright."""
    made = oblique(1, axes, **more)
    along = (np.arange(len(made.pixels)) - (len(made.pixels) - 1) / 2) * 4.0
    rows, columns = made.pixels.shape[1:]
    corner = (
        -axes[1] * made.spacing_mm[0] * (rows - 1) / 2
        - axes[2] * made.spacing_mm[1] * (columns - 1) / 2
    )
    return replace(made, axes=axes, origins_mm=corner + along[:, None] * axes[0])


def level_at(x, y, z):
    return LevelResult(
        center_mm=(x, y, z),
        axes=place().axes,
        size_mm=(9.0, 9.0, 9.0),
        confidence=1.0,
        source="detector",
    )


@pytest.mark.parametrize(
    ("z", "index"),
    [(0.0, 2), (5.9, 3), (8.0, 4), (12.0, 4), (12.1, None), (-12.1, None)],
)
def test_a_disc_is_shown_by_the_nearest_slice_at_most_one_distance_away(z, index):
    stack = straight(AXIAL, shape=(5, 30, 30))  # at -8, -4, 0, 4 and 8 mm
    found = disc_slices(
        a_series(Role.AXIAL_T2, stack), {Level.L1_L2: level_at(0, 0, z)}
    )
    assert (found[Level.L1_L2][1] if found else None) == index


@pytest.mark.parametrize(
    ("y", "held"), [(19.4, True), (19.6, False), (-19.4, True), (-19.6, False)]
)
def test_a_disc_beside_the_picture_is_not_shown(y, held):
    stack = straight(
        AXIAL, shape=(5, 30, 30)
    )  # rows of 1.3 mm: 39 mm from edge to edge
    found = disc_slices(
        a_series(Role.AXIAL_T2, stack), {Level.L1_L2: level_at(0, y, 0)}
    )
    assert bool(found) is held


def test_the_middle_slice_is_the_nearest_to_the_mean_of_the_discs():
    stack = straight(SAGITTAL, shape=(5, 30, 30))
    levels = {Level.L1_L2: level_at(2.0, 0, 0), Level.L2_L3: level_at(5.0, 0, 0)}
    assert middle_slice(a_series(Role.SAGITTAL_T2, stack), levels)[1] == 3
    assert middle_slice(a_series(Role.SAGITTAL_T2, stack), {})[1] == 2


def test_slices_are_made_small_enough_for_a_page_sagittal_ones_less():
    def shape(role, axes, size):
        stack = straight(axes, shape=(2, size, size))
        one = study_scene(
            a_study(a_series(role, stack)), {Level.L1_L2: level_at(0, 0, 0)}
        ).slices[0]
        return imagecodecs.jpeg8_decode(one.jpeg).shape

    assert shape(Role.SAGITTAL_T2, SAGITTAL, 400) == (400, 400)
    assert shape(Role.SAGITTAL_T2, SAGITTAL, 401) == (200, 200)
    assert shape(Role.AXIAL_T2, AXIAL, 256) == (256, 256)
    assert shape(Role.AXIAL_T2, AXIAL, 257) == (128, 128)


def test_a_scene_holds_at_most_twenty_five_thousand_points():
    stacks = [straight(SAGITTAL, shape=(12, 90, 90)) for _ in range(2)]
    study = a_study(
        a_series(Role.SAGITTAL_T2, stacks[0]), a_series(Role.SAGITTAL_T1, stacks[1])
    )
    assert len(study_cloud(study).values) > 50_000
    assert 15_000 < study_scene(study, {}).points <= 25_000


def test_series_in_a_scene_bear_their_colours():
    scene = study_scene(a_study(), some_levels())
    assert [one.colour for one in scene.series] == [
        "#58b4f5",
        "#f5a742",
        "#4fd08a",
        "#dd8fe6",
    ]


def test_a_point_is_as_bright_as_its_value_lifted_and_never_black():
    cloud = study_cloud(a_study(a_series(Role.SAGITTAL_T2, oblique(1, SAGITTAL))))
    cloud = replace(cloud, values=np.array([0.0, 0.25, 1.0], np.float32), series=np.zeros(3, np.uint8),
                    points_mm=np.zeros((3, 3), np.float32))  # fmt: skip
    brightness = np.array([0.1, 0.1 + 0.9 * 0.25**0.75, 1.0])
    assert (
        point_colours(cloud).tolist()
        == np.round(brightness[:, None] * [88, 180, 245]).tolist()
    )


def test_pixels_brighter_than_the_window_are_one_and_air_is_left_out():
    """Air is a twentieth of the window."""
    study = a_study(a_series(Role.SAGITTAL_T2, oblique(1, SAGITTAL)))
    cloud = study_cloud(study)
    assert cloud.values.max() == 1.0
    assert cloud.values.min() > 0.05
