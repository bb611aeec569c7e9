"""``spine-engine view``: what it writes, read back by Open3D, and voxels as Open3D has them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
from made_space import SAGITTAL, a_study, oblique, some_levels
from typer.testing import CliRunner

from spine_engine.anatomy import LEVELS
from spine_engine.bundle import Bundle
from spine_engine.cli import app
from spine_engine.dicom import read_study
from spine_engine.errors import OutputError
from spine_engine.phantom import write_studies
from spine_engine.pipeline.level_grids import level_grids
from spine_engine.report import offscreen
from spine_engine.report.cloud import study_cloud
from spine_engine.report.ply import point_colours, write_cloud, write_grid, write_levels
from spine_engine.report.reading import disc_levels
from spine_engine.report.scene import box_corners
from spine_engine.study import Role
from spine_engine.voxels import (
    GridPose,
    GridSpec,
    IntensityWindow,
    WindowedStack,
    scatter,
)


@pytest.fixture(scope="module")
def open3d():
    try:
        import open3d
    except (ImportError, OSError) as error:
        pytest.skip(
            f"Open3D cannot be loaded (extra viz): {str(error).splitlines()[0]}"
        )
    return open3d


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A folder with two phantom studies."""
    folder = tmp_path_factory.mktemp("view")
    for _ in write_studies(folder, 2, 12):
        pass
    return folder


def one_of(studies):
    return sorted((studies / "train_images").iterdir())[0]


# --- PLY and voxels against Open3D


def test_a_cloud_read_back_by_open3d_is_the_one_written(open3d, tmp_path) -> None:
    cloud = study_cloud(a_study())
    write_cloud(tmp_path / "cloud.ply", cloud)
    read = open3d.t.io.read_point_cloud(str(tmp_path / "cloud.ply"))
    assert np.array_equal(read.point.positions.numpy(), cloud.points_mm)
    assert np.array_equal(read.point.colors.numpy(), point_colours(cloud))
    assert np.array_equal(read.point.intensity.numpy()[:, 0], cloud.values)
    assert np.array_equal(read.point.series.numpy()[:, 0], cloud.series)
    plain = open3d.io.read_point_cloud(str(tmp_path / "cloud.ply"))
    np.testing.assert_allclose(
        np.asarray(plain.colors) * 255, point_colours(cloud), atol=1e-3
    )


def test_boxes_read_back_by_open3d_are_the_levels(open3d, tmp_path) -> None:
    levels = some_levels()
    write_levels(tmp_path / "levels.ply", levels)
    read = open3d.io.read_line_set(str(tmp_path / "levels.ply"))
    ends = np.asarray(read.points)[np.asarray(read.lines)]
    assert len(ends) == 5 * 12
    corners = np.array([box_corners(levels[level]) for level in LEVELS])
    np.testing.assert_allclose(
        np.asarray(read.points).reshape(5, 8, 3), corners, atol=1e-4
    )
    lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1).reshape(5, 12)
    np.testing.assert_allclose(
        np.sort(lengths), np.tile(np.repeat([12.0, 30.0, 34.0], 4), (5, 1)), atol=1e-4
    )


def test_grid_voxels_read_back_by_open3d_are_the_occupied_ones(
    open3d, tmp_path
) -> None:
    rng = np.random.default_rng(3)
    grid = (rng.random((3, 4, 5, 6)) * (rng.random((3, 4, 5, 6)) > 0.7)).astype(
        np.float32
    )
    spec, pose = (
        GridSpec((4, 5, 6), (1.5, 2.0, 2.5)),
        GridPose(np.array([10.0, -20.0, 30.0]), np.array(SAGITTAL)),
    )
    write_grid(tmp_path / "grid.ply", grid, spec, pose)
    read = open3d.t.io.read_point_cloud(str(tmp_path / "grid.ply"))
    local = (read.point.positions.numpy() - pose.center_mm) @ pose.axes.T
    index = np.round(local / spec.spacing_mm + (np.array(spec.shape) - 1) / 2).astype(
        int
    )
    assert {tuple(voxel) for voxel in index.tolist()} == {
        tuple(v) for v in np.argwhere(grid.any(axis=0)).tolist()
    }
    np.testing.assert_allclose(
        read.point.intensity.numpy()[:, 0], grid.mean(axis=0)[tuple(index.T)], atol=1e-6
    )


def test_a_folder_that_is_not_there_is_an_error(open3d, tmp_path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_cloud(tmp_path / "missing" / "cloud.ply", study_cloud(a_study()))


@pytest.mark.parametrize("seed", [3, 5, 8, 11, 15])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_scatter_is_open3ds_voxel_grid(open3d, pool: str, seed: int) -> None:
    """Occupied voxels identical, pooled values within 1e-6, over the same bounds.

    Open3D reckons in float64 and ``scatter`` from float32 tables: a pixel nearer to a voxel's border than either's
    rounding may fall on either side. The seeds have none nearer than 3e-5 mm.
    """
    size, shape = 3.0, (6, 8, 7)
    stacks = [
        oblique(10 * seed + n, SAGITTAL, shape=(6, 26, 24), center=(0.0, 0.0, 3.0 * n))
        for n in (0, 1)
    ]
    pose = GridPose(np.array([1.0, -2.0, 0.5]), oblique(seed, SAGITTAL).axes)
    window = IntensityWindow(
        -60.0, 1600.0
    )  # clips nothing, so no pixel is 0, which scatter gives to empty voxels
    spec = GridSpec(shape, (size, size, size))
    grid = scatter(
        [[WindowedStack(stack, window) for stack in stacks]], spec, pose, pool=pool
    ).values[0]  # type: ignore[arg-type]

    local, values = [], []
    for stack in stacks:
        s, r, c = np.indices(stack.pixels.shape).reshape(3, -1)
        down, right = (
            stack.axes[1] * stack.spacing_mm[0],
            stack.axes[2] * stack.spacing_mm[1],
        )
        local.append(
            (
                stack.origins_mm[s]
                + r[:, None] * down
                + c[:, None] * right
                - pose.center_mm
            )
            @ pose.axes.T
        )
        value = (
            stack.pixels.reshape(-1) * stack.slope[s].astype(float) + stack.intercept[s]
        )
        values.append((value - window.low) / (window.high - window.low))
    points, colours = (
        np.concatenate(local),
        np.repeat(np.concatenate(values)[:, None], 3, axis=1),
    )
    half = np.array(shape) * size / 2
    off = (points + half) / size
    assert np.abs(off - np.round(off)).min() * size > 3e-5, (
        "a pixel on a border: take another seed"
    )
    assert 0 < colours.min() < colours.max() < 1

    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    cloud.colors = open3d.utility.Vector3dVector(colours)
    mode = open3d.geometry.VoxelGrid.VoxelPoolingMode
    voxels = open3d.geometry.VoxelGrid.create_from_point_cloud_within_bounds(
        cloud, size, -half, half, mode.AVG if pool == "mean" else mode.MAX
    ).get_voxels()
    found = {tuple(voxel.grid_index.tolist()): voxel.color[0] for voxel in voxels}
    inside = {
        index: value
        for index, value in found.items()
        if all(0 <= i < n for i, n in zip(index, shape, strict=True))
    }
    assert len(inside) < len(
        found
    )  # it keeps points beyond the bounds too, in voxels of their own
    assert set(inside) == {tuple(index) for index in np.argwhere(grid > 0).tolist()}
    assert len(inside) > 200
    for index, value in inside.items():
        assert grid[index] == pytest.approx(value, abs=1e-6)


# --- the command


@pytest.mark.slow
def test_view_writes_everything_and_keeps_the_terminal_clean(
    open3d, studies, tmp_path
) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed (extra viz)")
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "spine_engine.cli",
        "view",
        str(one_of(studies)),
        "--output",
        str(out),
    ]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True
    )
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    grids = [f"grid_{level}.{end}" for level in LEVELS for end in ("ply", "png")]
    drawn = (out / "cloud.png").is_file()
    assert lines[3].startswith(f"{out / 'cloud.png'}: " if drawn else "no cloud.png: ")
    names = [
        "view.html",
        "cloud.ply",
        "levels.ply",
        *(["cloud.png"] if drawn else []),
        *grids,
    ]
    assert [
        line.partition(": ")[0] for line in lines if not line.startswith("no ")
    ] == [str(out / n) for n in names]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)

    study = read_study(one_of(studies))
    read = open3d.t.io.read_point_cloud(str(out / "cloud.ply"))
    assert np.array_equal(read.point.positions.numpy(), study_cloud(study).points_mm)
    if not drawn:
        pytest.skip(lines[3])
    picture = imagecodecs.png_decode((out / "cloud.png").read_bytes())
    assert picture.shape == (offscreen.HEIGHT, offscreen.WIDTH, 3)
    assert (
        np.abs(picture.astype(int) - offscreen.GROUND).max(axis=2) > 30
    ).mean() > 0.15


@pytest.mark.slow
def test_where_nothing_can_draw_one_line_says_what_to_install(
    open3d, studies, tmp_path, monkeypatch
) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed (extra viz)")
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        monkeypatch.setenv(name, "/nonexistent")
    ran = CliRunner().invoke(
        app, ["view", str(one_of(studies)), "--output", str(tmp_path)]
    )
    assert ran.exit_code == 0, ran.output
    missing = [line for line in ran.output.splitlines() if line.startswith("no ")]
    assert len(missing) == 1
    assert "apt-get install libvulkan1 mesa-vulkan-drivers" in missing[0]
    assert not (tmp_path / "cloud.png").exists()
    assert (tmp_path / "grid_l5_s1.png").is_file()
    assert (tmp_path / "view.html").is_file()


def test_drawing_that_hangs_is_ended(open3d, tmp_path, monkeypatch) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed (extra viz)")
    monkeypatch.setattr(offscreen, "TIME_LIMIT_S", 0.05)
    assert (
        offscreen.picture(a_study(), some_levels(), tmp_path / "cloud.png")
        == "drawing took longer than 0.05 s"
    )
    assert not (tmp_path / "cloud.png").exists()


def test_the_camera_stands_where_all_fits_and_tells_where_points_are_seen() -> None:
    """Worked out with sines: 28 degrees from top to bottom over 1,200 pixels, seen from (0.78, -0.57, 0.27)."""
    points = np.array([[40.0, -60.0, 90.0], [-50.0, 20.0, -70.0], [10.0, 80.0, 15.0]])
    camera = offscreen.Camera.around(points)
    np.testing.assert_allclose(camera.target, [-5.0, 10.0, 10.0])
    towards = camera.eye - camera.target
    np.testing.assert_allclose(
        towards / np.linalg.norm(towards),
        np.array([0.78, -0.57, 0.27]) / 1.003095,
        atol=1e-5,
    )
    seen = camera.project(points)
    margin = np.minimum(seen, [1600, 1200] - seen) / [1600, 1200]
    assert margin.min() == pytest.approx(
        0.04, abs=1e-6
    )  # all within 92 %, one of them at its border
    far = np.linalg.norm(towards)
    level = np.arctan2(0.78, 0.57)  # to the eye's right, level with the ground
    right = camera.target + 10 * np.array([np.cos(level), np.sin(level), 0.0])
    up = camera.target + 10 * np.array([0.0, 0.0, 1.0])
    lean = np.arcsin(0.27 / 1.003095)  # the eye looks down by so much
    scale = 600 / np.tan(np.radians(14))
    np.testing.assert_allclose(
        camera.project(camera.target[None])[0], [800, 600], atol=1e-6
    )
    np.testing.assert_allclose(
        camera.project(right[None])[0], [800 + scale * 10 / far, 600], atol=1e-3
    )
    above = 600 - scale * 10 * np.cos(lean) / (far - 10 * np.sin(lean))
    np.testing.assert_allclose(camera.project(up[None])[0], [800, above], atol=1e-3)


@pytest.mark.slow
def test_the_camera_tells_where_points_are_drawn(open3d, tmp_path) -> None:
    points = np.array([[40.0, -60.0, 90.0], [-50.0, 20.0, -70.0], [10.0, 80.0, 15.0]])
    camera = offscreen.Camera.around(points)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    problem = offscreen._in_child(
        tmp_path, 120.0, points=np.repeat(points, 2, axis=0).astype(np.float32), colours=np.repeat(colours, 2, axis=0),
        corners=np.empty((0, 8, 3)), eye=camera.eye, target=camera.target, to=str(tmp_path / "drawn.png"),
    )  # fmt: skip
    if problem is not None:
        pytest.skip(f"Open3D cannot draw here: {problem}")
    picture = imagecodecs.png_decode((tmp_path / "drawn.png").read_bytes())[..., :3]
    seen = camera.project(points)
    assert seen.min() > 0
    assert (seen < [offscreen.WIDTH, offscreen.HEIGHT]).all()
    margin = np.minimum(seen, [offscreen.WIDTH, offscreen.HEIGHT] - seen) / [
        offscreen.WIDTH,
        offscreen.HEIGHT,
    ]
    assert margin.min() == pytest.approx(
        (1 - offscreen.FILLED) / 2, abs=0.005
    )  # as large as they fit
    for (x, y), colour in zip(seen, colours, strict=True):
        rows, columns = np.nonzero(
            (np.abs(picture.astype(int) - colour) < 60).all(axis=2)
        )
        assert rows.mean() == pytest.approx(y, abs=1.5)
        assert columns.mean() == pytest.approx(x, abs=1.5)


def test_the_opened_study_has_the_right_half_and_the_slices_at_the_discs() -> None:
    study, levels = a_study(), some_levels()
    whole, opened = study_cloud(study), study_cloud(offscreen.opened(study, levels))
    assert opened.names == whole.names
    middle = np.mean([entry.center_mm for entry in levels.values()], axis=0)[0]
    sagittal = opened.points_mm[opened.series < 2]
    assert np.abs(sagittal[:, 0] - middle).min() < 3
    assert sagittal[:, 0].max() < whole.points_mm[whole.series < 2][:, 0].max() - 5
    assert sagittal[:, 0].min() == whole.points_mm[whole.series < 2][:, 0].min()
    assert (
        0 < np.count_nonzero(opened.series == 2) < np.count_nonzero(whole.series == 2)
    )


def test_the_montage_shows_the_grid_voxel_by_voxel(studies) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed (extra viz)")
    from spine_engine.report import montage

    entry = Bundle.open().grader
    study = read_study(one_of(studies))
    middle = next(study.with_role(Role.SAGITTAL_T2)).stacks[0].center_mm
    levels = {
        level: replace(entry, center_mm=tuple(middle.tolist()), source="detector")
        for level, entry in some_levels().items()
    }
    grids, coverage = level_grids(study, disc_levels(levels), entry.layout)
    coverage[2, 0] = 0.0  # a channel without a series is left out
    assert coverage[2, 1:].min() > 0.2
    image = np.asarray(
        montage.montage(grids[2], coverage[2], entry, LEVELS[2], levels[LEVELS[2]])
    )[..., 0]
    d, h, w = (
        size * mm * montage.PIXELS_PER_MM
        for size, mm in zip(entry.grid.shape, entry.grid.spacing_mm, strict=True)
    )
    top = montage.HEAD_HEIGHT + montage.GAP + montage.LABEL_HEIGHT
    top += 2 * montage.GAP + montage.LABEL_HEIGHT
    for channel, role in zip(grids[2][1:], entry.channels[1:], strict=True):
        along, (height, width) = (
            (0, (h, w)) if role.startswith("axial") else (2, (d, h))
        )
        count = channel.shape[along]
        step = -(-count // 16)
        chosen = range((count - 1) % step // 2, count, step)
        cell = image[
            top : top + round(height), montage.GAP : montage.GAP + round(width)
        ]
        voxels = np.round(channel.take(chosen[0], axis=along) * 255)
        for i, j in np.ndindex(voxels.shape):
            y, x = (
                round((i + 0.5) * height / voxels.shape[0] - 0.5),
                round((j + 0.5) * width / voxels.shape[1] - 0.5),
            )
            assert cell[y, x] == voxels[i, j]
        lines = -(-len(chosen) // montage.COLUMNS)
        top += (
            lines * (round(height) + montage.LABEL_HEIGHT)
            + 2 * montage.GAP
            + montage.LABEL_HEIGHT
        )


def test_several_studies_are_listed_and_nothing_is_written(
    open3d, studies, tmp_path
) -> None:
    names = sorted(path.name for path in (studies / "train_images").iterdir())
    ran = CliRunner().invoke(
        app, ["view", str(studies), "--output", str(tmp_path / "out")]
    )
    assert ran.exit_code == 2
    assert len(ran.output.splitlines()) == 1
    assert "holds 2 studies" in ran.output
    assert all(name in ran.output for name in names)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("module", "words"),
    [("open3d", "Open3D cannot be loaded"), ("PIL", "Pillow is missing")],
)
def test_a_missing_extra_is_named(
    module: str, words: str, tmp_path, monkeypatch
) -> None:
    if module == "PIL":
        pytest.importorskip("open3d", reason="Open3D is not installed (extra viz)")
    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    ran = CliRunner().invoke(
        app, ["view", str(tmp_path), "--output", str(tmp_path / "out")]
    )
    assert ran.exit_code == 2
    assert words in ran.output
    assert "pip install '.[viz]'" in ran.output
    assert len(ran.output.splitlines()) == 1
