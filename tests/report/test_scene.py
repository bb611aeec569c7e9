"""Scenes: what the page decodes is what the cloud holds; nothing of the input's text is in them; the built viewer is
the source's."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from importlib.resources import files
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from made_space import AXIAL, SAGITTAL, a_series, a_study, axial, oblique, some_levels

from spine_engine.anatomy import LEVELS, Level
from spine_engine.report.cloud import study_cloud
from spine_engine.report.page import render
from spine_engine.report.scene import POINTS, study_scene, viewer_code
from spine_engine.results import LevelResult
from spine_engine.study import Role
from spine_engine.voxels import robust_window

VIEWER = Path(str(files("spine_engine.report") / "viewer"))


def decoded(data):
    """Return points and values of a scene's JSON, as the page's script reads them."""
    raw = zlib.decompress(base64.b64decode(data["cloud"]))
    count = sum(series["points"] for series in data["series"])
    steps = np.frombuffer(raw[: 6 * count], "<u2").reshape(3, count)
    places = np.cumsum(steps, axis=1, dtype=np.uint16)
    return data["origin_mm"] + data["quantum_mm"] * places.T.astype(
        float
    ), np.frombuffer(raw[6 * count :], np.uint8)


def test_the_decoded_scene_is_the_cloud_within_the_quantum() -> None:
    study = a_study()
    cloud, scene = study_cloud(study, limit=POINTS), study_scene(study, some_levels())
    data = json.loads(scene.data)
    points, values = decoded(data)
    assert len(points) == len(cloud.values) == scene.points > 1000
    assert data["quantum_mm"] == pytest.approx(0.1)
    assert np.abs(points - cloud.points_mm).max() <= 0.05 + 1e-4
    assert np.abs(values / 255 - cloud.values).max() <= 0.5 / 255 + 1e-6
    assert [series["name"] for series in data["series"]] == list(cloud.names)
    assert [series["points"] for series in data["series"]] == np.bincount(
        cloud.series
    ).tolist()
    assert len({series["colour"] for series in data["series"]}) == 4


def test_positions_far_apart_take_a_coarser_quantum_instead_of_running_over() -> None:
    far = oblique(1, SAGITTAL, center=(4.0, -30.0, 9000.0))
    study = a_study(
        a_series(Role.SAGITTAL_T2, oblique(2, SAGITTAL)),
        a_series(Role.SAGITTAL_T1, far),
    )
    scene = study_scene(study, {})
    points, _ = decoded(json.loads(scene.data))
    assert scene.quantum_mm > 0.13
    assert (
        np.abs(points - study_cloud(study, limit=POINTS).points_mm).max()
        <= scene.quantum_mm / 2 + 1e-3
    )


def test_boxes_have_the_corners_of_the_levels_and_say_how_far_to_trust_them() -> None:
    levels = some_levels()
    levels[Level.L3_L4] = LevelResult(
        center_mm=None, axes=None, size_mm=None, confidence=0.0, source="prior"
    )
    scene = study_scene(a_study(), levels)
    assert [box.level for box in scene.boxes] == [
        level for level in LEVELS if level is not Level.L3_L4
    ]
    for box in scene.boxes:
        entry = levels[box.level]
        local = (np.array(box.corners) - entry.center_mm) @ np.array(entry.axes).T
        np.testing.assert_allclose(
            np.abs(local), np.tile(np.array(entry.size_mm) / 2, (8, 1)), atol=0.02
        )
        signs = (local > 0).astype(int) @ [4, 2, 1]
        assert signs.tolist() == list(range(8))
    said = [
        f"{entry['label']} {entry['said']}".strip()
        for entry in json.loads(scene.data)["boxes"]
    ]
    assert said == [
        "L1/L2 >99 %",
        "L2/L3 90 % interpolated",
        "L4/L5 70 % by the field of view",
        "L5/S1 60 %",
    ]


def test_frames_are_the_outer_edges_of_the_first_and_last_slice() -> None:
    stack = oblique(1, SAGITTAL)
    (frame,) = (
        study_scene(a_study(a_series(Role.SAGITTAL_T2, stack)), {}).series[0].frames
    )
    rows, columns = stack.pixels.shape[1:]
    corners = np.array(frame)
    first = (corners[:4] - stack.origins_mm[0]) @ stack.axes[1:].T / stack.spacing_mm
    last = (corners[4:] - stack.origins_mm[-1]) @ stack.axes[1:].T / stack.spacing_mm
    want = [
        [-0.5, -0.5],
        [-0.5, columns - 0.5],
        [rows - 0.5, -0.5],
        [rows - 0.5, columns - 0.5],
    ]
    np.testing.assert_allclose(first, want, atol=0.02)
    np.testing.assert_allclose(last, want, atol=0.02)


def test_slices_lie_where_the_stack_has_them_and_show_their_pixels() -> None:
    study, levels = a_study(), some_levels()
    scene = study_scene(study, levels)
    sagittal = study.series[3]
    (stack,) = sagittal.stacks
    middle = np.mean([entry.center_mm for entry in levels.values()], axis=0)
    index = int(np.argmin(np.abs(stack.positions_mm - stack.axes[0] @ middle)))
    shown = scene.slices[0]
    assert shown.name == "Sagittal T2, middle slice"
    assert not shown.axial
    upper_left, upper_right, lower_left = np.array(shown.corners)
    rows, columns = stack.pixels.shape[1:]
    np.testing.assert_allclose(
        stack.axes[1:] @ (upper_left - stack.origins_mm[index]),
        [-1.3 / 2, -1.1 / 2],
        atol=0.02,
    )
    np.testing.assert_allclose(
        upper_right - upper_left, columns * 1.1 * stack.axes[2], atol=0.02
    )
    np.testing.assert_allclose(
        lower_left - upper_left, rows * 1.3 * stack.axes[1], atol=0.02
    )
    window = robust_window(sagittal.stacks)
    image = stack.pixels[index] * stack.slope[index] + stack.intercept[index]
    want = np.clip((image - window.low) / (window.high - window.low), 0, 1) * 255
    got = imagecodecs.jpeg8_decode(shown.jpeg)
    assert got.shape == (rows, columns)
    assert np.abs(got - want).mean() < 8  # JPEG of noise


def test_axial_slices_are_those_at_the_discs() -> None:
    study = a_study()
    levels = some_levels()
    scene = study_scene(study, levels)
    first = study.series[0]
    named = {one.name: one for one in scene.slices if one.axial}
    assert len(named) >= 3
    for name, one in named.items():
        level = next(
            level for level in LEVELS if name.endswith(level.upper().replace("_", "/"))
        )
        center, corners = np.array(levels[level].center_mm), np.array(one.corners)
        normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        normal /= np.linalg.norm(normal)
        assert (
            abs((center - corners[0]) @ normal) < 5.5
        )  # the widest gap between slices
    assert len(first.stacks) == len(axial())


def test_large_slices_are_averaged_in_blocks_that_keep_their_place() -> None:
    stack = oblique(1, SAGITTAL, shape=(2, 901, 850), pixel=(0.3, 0.3))
    (one,) = study_scene(a_study(a_series(Role.SAGITTAL_T2, stack)), {}).slices
    image = imagecodecs.jpeg8_decode(one.jpeg)
    assert image.shape == (300, 283)
    upper_left, _, lower_left = np.array(one.corners)
    np.testing.assert_allclose(
        lower_left - upper_left, 900 * 0.3 * stack.axes[1], atol=0.02
    )


def test_a_study_of_axial_series_alone_and_one_of_nothing_have_scenes() -> None:
    scene = study_scene(a_study(a_series(Role.AXIAL_T2, oblique(1, AXIAL))), {})
    assert [series.name for series in scene.series] == ["Axial T2"]
    assert scene.slices == ()
    empty = study_scene(a_study(a_series(None, oblique(1, AXIAL))), {})
    assert empty.points == 0
    assert decoded(json.loads(empty.data))[0].shape == (0, 3)


def test_a_scene_is_the_same_twice_and_small() -> None:
    planes = [
        (Role.SAGITTAL_T2, SAGITTAL),
        (Role.SAGITTAL_T1, SAGITTAL),
        (Role.AXIAL_T2, AXIAL),
    ]
    stacks = [
        oblique(n, axes, shape=(16, 300, 300), pixel=(0.9, 0.9))
        for n, (_, axes) in enumerate(planes)
    ]
    study = a_study(
        *(
            a_series(role, stack)
            for (role, _), stack in zip(planes, stacks, strict=True)
        )
    )
    first, again = (
        study_scene(study, some_levels()).data,
        study_scene(study, some_levels()).data,
    )
    assert first == again
    assert len(first) <= 250_000


def test_no_path_and_no_text_of_headers_is_in_a_scene_and_its_data_is_inert() -> None:
    data = study_scene(a_study(), some_levels()).data
    assert "DOE" not in data
    assert "evidence" not in data
    assert data.isascii()
    assert not set("<>&") & set(data)


def test_a_page_holds_the_scene_its_code_and_no_address() -> None:
    scene = study_scene(a_study(), some_levels())
    page = render("view.html.j2", study_id="<script>x</script>", scene=scene)
    assert page.count(scene.data) == 1
    assert page.count(viewer_code()) == 1
    assert "<script>x" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_the_built_viewer_is_that_of_its_sources() -> None:
    """Fails when viewer.js or its locked packages changed: ``make viewer`` builds it again."""
    for line in (VIEWER / "built.sha256").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((VIEWER / name).read_bytes()).hexdigest() == digest, (
            f"{name} changed: run make viewer"
        )
    listed = {
        line.split()[1] for line in (VIEWER / "built.sha256").read_text().splitlines()
    }
    assert listed == {"package.json", "package-lock.json", "viewer.js", "viewer.js.gz"}


def test_the_viewer_is_one_script_with_its_licence_and_a_lock_without_addresses() -> (
    None
):
    packed = base64.b64decode(viewer_code())
    assert (
        packed[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03"
    )  # no name, no time
    code = gzip.decompress(packed).decode()
    assert "export{" in code
    assert len(packed) < 200_000
    lock = (VIEWER / "package-lock.json").read_text()
    assert "://" not in lock
    assert '"resolved"' not in lock
    assert "MIT" in (VIEWER / "three.LICENSE").read_text()
