"""Pictures: turned by geometry, the right side on the right side, outlines where the boxes are, voxels as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from spine_engine.anatomy import LEVELS, Level
from spine_engine.bundle.manifest import GraderEntry, GridEntry, TensorEntry
from spine_engine.dicom import RefusedFile, RoleOverrides, discover, read_unit
from spine_engine.report.content import Picture
from spine_engine.report.pictures import (
    FORAMEN_MM,
    OVERVIEW_PX,
    THUMBNAIL_PX,
    box_section,
    crops,
    overview,
    plane_of,
    thumbnail,
)
from spine_engine.results import LevelResult
from spine_engine.study import Role, Series, Stack, Study
from spine_engine.voxels import IntensityWindow, robust_window

SAGITTAL_AXES = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""Slices from the patient's right to the left, rows downwards, columns backwards: as it is shown."""
AXIAL_AXES = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
CORONAL_AXES = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])


def turned(degrees: tuple[float, float, float]) -> NDArray[np.float64]:
    """A rotation about z, y and x."""
    matrix = np.eye(3)
    for (i, j), angle in zip(
        ((0, 1), (0, 2), (1, 2)), np.deg2rad(degrees), strict=True
    ):
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        matrix = one @ matrix
    return matrix


OBLIQUE = turned((9.0, -7.0, 12.0))


def stored_orders(
    volume: NDArray[np.uint16],
    axes: NDArray[np.float64],
    spacing: tuple[float, float],
    gap: float,
):
    """Yield 16 ways to store ``volume (S, R, C)`` round the origin: reversed along any axis, rows for columns."""
    for flips, swap in product(product((False, True), repeat=3), (False, True)):
        pixels = volume[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
        own = axes * np.where(flips, -1.0, 1.0)[:, None]
        steps = spacing
        if swap:
            pixels, own, steps = (
                pixels.transpose(0, 2, 1),
                own[[0, 2, 1]],
                (spacing[1], spacing[0]),
            )
        count, rows, columns = pixels.shape
        along = (np.arange(count) - (count - 1) / 2) * gap
        corner = (
            -own[1] * steps[0] * (rows - 1) / 2 - own[2] * steps[1] * (columns - 1) / 2
        )
        yield Stack(
            np.ascontiguousarray(pixels),
            np.ones(count, np.float32),
            np.zeros(count, np.float32),
            corner + along[:, None] * own[0],
            own,
            steps,
        )


def a_stack(
    volume: NDArray[np.uint16],
    axes: NDArray[np.float64],
    *,
    spacing=(1.0, 1.0),
    gap=4.0,
) -> Stack:
    return next(stored_orders(volume, axes, spacing, gap))


def noise(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 4096, shape).astype(np.uint16)


def a_study(*stacks: tuple[Role, Stack], contrast: str | None = None) -> Study:
    series = [
        Series(f"series {i}", role, "made up", (s,), len(s.pixels), contrast)
        for i, (role, s) in enumerate(stacks)
    ]
    return Study("1.2.3", tuple(series))


def a_level(
    center=(0.0, 0.0, 0.0), axes=None, size=(40.0, 96.0, 96.0), source="detector"
) -> LevelResult:
    rows = (
        np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        if axes is None
        else axes
    )
    return LevelResult(
        center_mm=tuple(center),
        axes=tuple(tuple(row) for row in np.asarray(rows).tolist()),
        size_mm=size,
        confidence=0.9,
        source=source,
    )


def pixels_of(picture: Picture) -> NDArray[np.uint8]:
    decoded: NDArray[np.uint8] = imagecodecs.png_decode(picture.png)
    assert decoded.shape == (picture.height, picture.width)
    return decoded


# Turning


@pytest.mark.parametrize("rotation", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
def test_the_overview_looks_alike_however_the_file_stores_it(
    rotation: NDArray[np.float64],
) -> None:
    volume = noise((5, 24, 30))
    axes = SAGITTAL_AXES @ rotation.T
    levels = {Level.L3_L4: a_level(rotation @ np.array([0.5, 2.0, -3.0]))}
    seen = set()
    for stack in stored_orders(volume, axes, (0.8, 1.25), 4.0):
        (picture,) = overview(a_study((Role.SAGITTAL_T2, stack)), levels)
        assert picture.pixel_mm == (0.8, 1.25)
        assert picture.edges == ("A", "P", "H", "F")
        assert picture.name == "Sagittal T2, slice 3 of 5 from the right"
        seen.add((pixels_of(picture).tobytes(), picture.outlines))
    assert len(seen) == 1
    window = robust_window([stack])
    expected = (
        np.clip((volume[2] - window.low) / (window.high - window.low), 0, 1) * 255
    )
    assert np.abs(pixels_of(picture) - expected).max() <= 0.51


@pytest.mark.parametrize("rotation", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize(
    ("axes", "plane", "edges"),
    [
        (SAGITTAL_AXES, "sagittal", ("A", "P", "H", "F")),
        (AXIAL_AXES, "axial", ("R", "L", "A", "P")),
        (CORONAL_AXES, "coronal", ("R", "L", "H", "F")),
    ],
)
def test_thumbnails_look_alike_however_the_file_stores_them(
    axes, plane, edges, rotation
) -> None:
    volume = noise((4, 20, 26))
    shown = (
        1 if plane == "axial" else 2
    )  # of the two in the middle the one further left, back or up
    for stack in stored_orders(volume, axes @ rotation.T, (1.5, 0.7), 4.0):
        assert plane_of(stack) == plane
        picture = thumbnail(stack, IntensityWindow(0.0, 4095.0))
        assert picture.edges == edges
        assert picture.pixel_mm == (1.5, 0.7)
        assert picture.name == f"{plane.capitalize()}, middle slice of 4"
        assert np.abs(pixels_of(picture) - volume[shown] / 4095 * 255).max() <= 0.51


@pytest.mark.parametrize("axes", [AXIAL_AXES, CORONAL_AXES])
def test_what_is_bright_on_the_patients_left_is_bright_beside_the_letter_l(
    axes: NDArray[np.float64],
) -> None:
    for stack in stored_orders(
        np.zeros((3, 40, 40), np.uint16), axes @ OBLIQUE.T, (1.0, 1.0), 4.0
    ):
        rows, columns = np.indices((40, 40))
        place = (
            stack.origins_mm[1]
            + rows[..., None] * stack.axes[1]
            + columns[..., None] * stack.axes[2]
        )
        marked = stack.pixels.copy()
        marked[1][place[..., 0] > 8] = 1000  # +x is the patient's left
        picture = thumbnail(replace(stack, pixels=marked), IntensityWindow(0.0, 1000.0))
        half = picture.width // 2
        grey = pixels_of(picture).astype(float)
        sides = {
            picture.edges[0]: grey[:, :half].mean(),
            picture.edges[1]: grey[:, half:].mean(),
        }
        assert sides["L"] > 100
        assert sides["R"] < 10


def test_thumbnails_are_small_and_average_whole_blocks() -> None:
    volume = noise((1, 480, 400))
    picture = thumbnail(a_stack(volume, AXIAL_AXES), IntensityWindow(0.0, 4095.0))
    assert (picture.height, picture.width) == (160, 133)
    assert max(picture.height, picture.width) <= THUMBNAIL_PX
    assert picture.pixel_mm == (3.0, 3.0)
    blocks = volume[0, :, :399].reshape(160, 3, 133, 3).mean(axis=(1, 3)) / 4095 * 255
    assert np.abs(pixels_of(picture) - blocks).max() <= 1.0


def test_a_large_matrix_is_thinned_and_its_outline_stays_in_place() -> None:
    study = a_study(
        (
            Role.SAGITTAL_T2,
            a_stack(noise((3, 1024, 1024)), SAGITTAL_AXES, spacing=(0.25, 0.25)),
        )
    )
    (picture,) = overview(study, {Level.L1_L2: a_level()})
    assert (picture.height, picture.width) == (512, 512)
    assert max(picture.height, picture.width) <= OVERVIEW_PX
    assert picture.pixel_mm == (0.5, 0.5)
    middle = np.mean(picture.outlines[0].points, axis=0)
    assert middle == pytest.approx((256, 256), abs=0.5)


# Which slice


def test_the_overview_is_the_slice_nearest_to_the_discs_and_comes_t2_first() -> None:
    volume = (
        np.full((9, 20, 20), 100, np.uint16)
        * np.arange(1, 10, dtype=np.uint16)[:, None, None]
    )
    stack = a_stack(volume, SAGITTAL_AXES)  # slices at x = -16, -12 .. 16
    study = a_study((Role.SAGITTAL_T1, stack), (Role.SAGITTAL_T2, stack))
    beside = {
        level: a_level((7.0 + i, 0.0, 20.0 - 10 * i)) for i, level in enumerate(LEVELS)
    }
    names = [picture.name for picture in overview(study, beside)]
    assert names == [
        "Sagittal T2, slice 7 of 9 from the right",
        "Sagittal T1, slice 7 of 9 from the right",
    ]
    nowhere = LevelResult(
        center_mm=None, axes=None, size_mm=None, confidence=0.0, source="prior"
    )
    for unknown in ({}, dict.fromkeys(LEVELS, nowhere)):
        assert [p.name[13:25] for p in overview(study, unknown)] == ["slice 5 of 9"] * 2
        assert not any(p.outlines for p in overview(study, unknown))


def test_of_several_stacks_the_one_that_holds_the_discs_is_shown() -> None:
    upper = a_stack(noise((5, 40, 40)), SAGITTAL_AXES)
    lower = replace(
        upper,
        origins_mm=upper.origins_mm - [1.0, 0.0, 200.0],
        pixels=noise((5, 40, 40), 1),
    )
    series = Series("s", Role.SAGITTAL_T2, "", (upper, lower), 10, "stir")
    levels = {Level.L4_L5: a_level((0.0, 0.0, -200.0))}
    (picture,) = overview(Study("1", (series,)), levels)
    assert picture.name == "Sagittal T2 (STIR), slice 3 of 5 from the right"
    assert picture.outlines[0].level is Level.L4_L5


def test_without_a_sagittal_series_there_is_no_overview() -> None:
    refused = Series("s", Role.SAGITTAL_T1, "refused", (), 0)
    axial = Series(
        "a", Role.AXIAL_T2, "", (a_stack(noise((3, 20, 20)), AXIAL_AXES),), 3
    )
    assert overview(Study("1", (refused, axial)), {}) == ()


# Outlines


def inside(
    polygon: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether points lie in a convex polygon, whichever way round its corners go."""
    edges = np.roll(polygon, -1, axis=0) - polygon
    away = points[:, None] - polygon
    side = edges[:, 0] * away[..., 1] - edges[:, 1] * away[..., 0]
    return (side >= 0).all(axis=1) | (side <= 0).all(axis=1)


@pytest.mark.parametrize("seed", range(12))
def test_the_section_of_a_box_agrees_with_a_mask_of_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    axes = turned(tuple(rng.uniform(-180, 180, 3)))
    plane = turned(tuple(rng.uniform(-180, 180, 3)))
    size, center = rng.uniform(8, 40, 3), rng.uniform(-6, 6, 3)
    polygon = box_section(center, axes, size, np.zeros(3), plane[1], plane[2])
    step = np.arange(-40, 40, 0.5)
    x, y = (grid.ravel() for grid in np.meshgrid(step, step))
    points = x[:, None] * plane[2] + y[:, None] * plane[1]
    mask = (np.abs((points - center) @ axes.T) <= size / 2).all(axis=1)
    assert mask.any()
    wrong = mask != inside(polygon, np.stack([x, y], axis=1))
    assert wrong.mean() <= 1e-4
    assert 3 <= len(polygon) <= 6
    away = plane[2] @ np.cross(plane[1], plane[2])
    assert away == pytest.approx(0.0, abs=1e-12)
    missed = box_section(
        center + 100 * np.cross(plane[2], plane[1]),
        axes,
        size,
        np.zeros(3),
        plane[1],
        plane[2],
    )
    assert missed.shape == (0, 2)


def test_an_outline_is_the_middle_of_the_box_in_pixels_of_the_picture() -> None:
    stack = a_stack(noise((5, 80, 100)), SAGITTAL_AXES, spacing=(1.0, 0.5))
    tilt = turned((0.0, 0.0, 30.0))
    levels = {
        Level.L5_S1: a_level(
            (0.3, 5.0, -10.0), np.array(a_level().axes) @ tilt.T, source="interpolated"
        )
    }
    (picture,) = overview(a_study((Role.SAGITTAL_T2, stack)), levels)
    (outline,) = picture.outlines
    assert (outline.level, outline.confidence, outline.source) == (
        Level.L5_S1,
        0.9,
        "interpolated",
    )
    corners = np.array(outline.points)
    assert corners.mean(axis=0) == pytest.approx(
        (100 / 2 + 5.0 / 0.5, 80 / 2 + 10.0), abs=0.01
    )
    in_mm = corners * (0.5, 1.0)
    lengths = sorted(np.linalg.norm(in_mm - np.roll(in_mm, 1, axis=0), axis=1))
    assert lengths == pytest.approx(
        [12.0, 12.0, 40.0, 40.0], abs=0.02
    )  # a little more than a disc
    longest = max(np.roll(in_mm, 1, axis=0) - in_mm, key=np.linalg.norm)
    assert abs(longest[1] / longest[0]) == pytest.approx(
        np.tan(np.deg2rad(30)), abs=0.01
    )


def test_a_box_beside_the_plane_or_outside_the_picture_gives_no_outline() -> None:
    study = a_study((Role.SAGITTAL_T2, a_stack(noise((3, 60, 60)), SAGITTAL_AXES)))
    levels = {
        Level.L1_L2: a_level((0.0, 0.0, 10.0)),
        Level.L2_L3: a_level((0.0, 0.0, 100.0)),
        Level.L3_L4: a_level((0.0, 0.0, 0.0), size=(40.0, 96.0, 2.0)),
        Level.L4_L5: a_level((30.0, 0.0, 0.0), size=(40.0, 96.0, 2.0)),
        Level.L5_S1: a_level((0.0, 0.0, -29.0)),
    }
    (picture,) = overview(study, levels)
    assert [outline.level for outline in picture.outlines] == [
        Level.L1_L2,
        Level.L3_L4,
        Level.L5_S1,
    ]


def test_outlines_sit_on_the_true_discs_of_real_exams(real_data: Path) -> None:
    root = real_data / "studies"
    truth = json.loads((root / "truth.json").read_text())
    for unit in discover(root):
        if isinstance(unit, RefusedFile):
            continue
        (study,) = read_unit(root, unit, RoleOverrides.find(root)).studies
        true = truth[study.series[0].path.split("/")[0]]
        levels = {Level(name): a_level(center) for name, center in true.items()}
        pictures = overview(study, levels)
        assert len(pictures) == sum(
            1 for s in study.series if s.role in (Role.SAGITTAL_T1, Role.SAGITTAL_T2)
        )
        for picture, role in zip(
            pictures, (Role.SAGITTAL_T2, Role.SAGITTAL_T1), strict=False
        ):
            (stack,) = next(study.with_role(role)).stacks
            assert [outline.level for outline in picture.outlines] == list(levels)
            assert _nearest(stack, picture, true) <= 1.0


def _nearest(stack: Stack, picture: Picture, true: dict[str, list[float]]) -> float:
    """The largest distance in mm, within the slice, of an outline's centre from the true disc's centre."""
    from_right = int(picture.name.split("slice ")[1].split(" of ")[0]) - 1
    s = from_right if stack.axes[0, 0] > 0 else len(stack.pixels) - 1 - from_right
    assert (
        stack.axes[1, 2] < -0.9 < 0.9 < stack.axes[2, 1]
    )  # these files are stored as they are shown
    furthest = 0.0
    for outline in picture.outlines:
        x, y = (np.mean(outline.points, axis=0) - 0.5) * picture.pixel_mm[::-1]
        place = stack.origins_mm[s] + x * stack.axes[2] + y * stack.axes[1]
        away = place - true[str(outline.level)]
        assert abs(away @ stack.axes[0]) < 10.0
        furthest = max(
            furthest, float(np.linalg.norm(away - away @ stack.axes[0] * stack.axes[0]))
        )
    return furthest


# What the grader saw

CHANNELS = (Role.SAGITTAL_T1, Role.AXIAL_T2, Role.SAGITTAL_T2)
SHAPE, SPACING, OFFSET = (11, 13, 41), (2.0, 1.5, 1.0), (0.0, 12.0, 1.0)


def an_entry() -> GraderEntry:
    return GraderEntry(
        file="g.onnx",
        sha256="0" * 64,
        size_bytes=1,
        inputs=(TensorEntry(name="x", shape=(None, len(CHANNELS), *SHAPE)),),
        outputs=(TensorEntry(name="y", shape=(None, 1, 3)),),
        channels=CHANNELS,
        grid=GridEntry(shape=SHAPE, spacing_mm=SPACING, center_offset_mm=OFFSET),
        output_channels=("any",),
    )


@pytest.fixture
def grids() -> NDArray[np.float32]:
    return (
        np.random.default_rng(5)
        .uniform(0, 1, (5, len(CHANNELS), *SHAPE))
        .astype(np.float32)
    )


EVERYTHING = np.ones((5, len(CHANNELS)))


def test_crops_are_the_grids_voxel_for_voxel(grids: NDArray[np.float32]) -> None:
    shown = crops(grids, EVERYTHING, an_entry(), dict.fromkeys(LEVELS, a_level()))
    assert list(shown) == list(LEVELS)
    middle = 20 - 1  # the disc lies 1 mm to the right of the grid's middle
    planes = {
        **{
            f"Sagittal T{t}, right foramen": (c, np.s_[:, :, middle - 17])
            for t, c in ((2, 2), (1, 0))
        },
        **{
            f"Sagittal T{t}, middle": (c, np.s_[:, :, middle])
            for t, c in ((2, 2), (1, 0))
        },
        **{
            f"Sagittal T{t}, left foramen": (c, np.s_[:, :, middle + 17])
            for t, c in ((2, 2), (1, 0))
        },
        "Axial T2, 6 mm above the disc's middle": (1, np.s_[5 - 3]),
        "Axial T2, through the disc": (1, np.s_[5]),
        "Axial T2, 6 mm below the disc's middle": (1, np.s_[5 + 3]),
    }
    assert FORAMEN_MM == 17.0
    for k, level in enumerate(LEVELS):
        assert {picture.name for picture in shown[level]} == set(planes)
        assert [p.name[:11] for p in shown[level]] == ["Sagittal T2"] * 3 + [
            "Sagittal T1"
        ] * 3 + [
            "Axial T2, 6",
            "Axial T2, t",
        ] + ["Axial T2, 6"]
        for picture in shown[level]:
            channel, place = planes[picture.name]
            assert np.array_equal(
                pixels_of(picture), np.rint(grids[k, channel][place] * np.float32(255))
            )
            sagittal = picture.name.startswith("Sagittal")
            assert picture.pixel_mm == ((2.0, 1.5) if sagittal else (1.5, 1.0))
            assert picture.edges == (
                ("A", "P", "H", "F") if sagittal else ("R", "L", "A", "P")
            )


def test_sides_come_from_the_axes(grids: NDArray[np.float32]) -> None:
    """A box whose axes run the other way (left to right, posterior to anterior, upwards) shows the same patient."""
    straight = crops(grids, EVERYTHING, an_entry(), dict.fromkeys(LEVELS, a_level()))
    entry = replace(
        an_entry(),
        grid=replace(an_entry().grid, center_offset_mm=tuple(-o for o in OFFSET)),
    )
    reverse = a_level(axes=-np.array(a_level().axes))
    other = crops(
        np.ascontiguousarray(grids[..., ::-1, ::-1, ::-1]),
        EVERYTHING,
        entry,
        dict.fromkeys(LEVELS, reverse),
    )
    assert other == straight


def test_a_mark_on_the_patients_left_shows_on_the_left(
    grids: NDArray[np.float32],
) -> None:
    tilted = (
        np.array(a_level().axes) @ turned((4.0, -6.0, 55.0)).T
    )  # as steep as a sacrum can be
    marked = np.zeros_like(grids)
    marked[..., 32:] = 1.0  # W grows to the patient's left
    marked[..., :2, :, :] = 0.5
    for pictures in crops(
        marked, EVERYTHING, an_entry(), dict.fromkeys(LEVELS, a_level(axes=tilted))
    ).values():
        by_name = {picture.name: picture for picture in pictures}
        assert pixels_of(by_name["Sagittal T1, left foramen"])[4:].min() == 255
        assert pixels_of(by_name["Sagittal T1, right foramen"])[4:].max() == 0
        axial = by_name["Axial T2, through the disc"]
        assert axial.edges == ("R", "L", "A", "P")
        assert pixels_of(axial)[:, -9:].min() == 255
        assert pixels_of(axial)[:, :-9].max() == 0
        assert by_name["Sagittal T2, middle"].edges == ("A", "P", "H", "F")


def test_what_covers_nothing_is_left_out(grids: NDArray[np.float32]) -> None:
    coverage = EVERYTHING.copy()
    coverage[0, 1] = coverage[1] = 0.0
    grids[2, 0, :, :, :10] = 0.0  # the right foramen lies outside the T1 series
    levels = dict.fromkeys(LEVELS, a_level())
    levels[Level.L5_S1] = LevelResult(
        center_mm=None, axes=None, size_mm=None, confidence=0.0, source="prior"
    )
    shown = crops(grids, coverage, an_entry(), levels)
    assert list(shown) == [Level.L1_L2, Level.L3_L4, Level.L4_L5]
    assert not any(picture.name.startswith("Axial") for picture in shown[Level.L1_L2])
    assert len(shown[Level.L3_L4]) == 8
    assert "Sagittal T1, right foramen" not in {
        picture.name for picture in shown[Level.L3_L4]
    }


def test_a_narrow_grid_shows_its_outermost_plane(grids: NDArray[np.float32]) -> None:
    narrow = an_entry()
    spacing = replace(
        narrow.grid, spacing_mm=(2.0, 1.5, 0.5), center_offset_mm=(0.0, 0.0, 0.0)
    )
    shown = crops(
        grids,
        EVERYTHING,
        replace(narrow, grid=spacing),
        dict.fromkeys(LEVELS, a_level()),
    )
    right, _, left = shown[Level.L1_L2][:3]
    assert np.array_equal(
        pixels_of(right), np.rint(grids[0, 2, :, :, 0] * np.float32(255))
    )
    assert np.array_equal(
        pixels_of(left), np.rint(grids[0, 2, :, :, -1] * np.float32(255))
    )
