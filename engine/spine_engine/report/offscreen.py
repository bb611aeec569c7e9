"""Draws a study in space by Open3D: as one picture, without a screen, or in Open3D's window.

Drawing runs in a process of its own (this module as a program): a graphics driver may crash or hang, and Open3D writes
to the terminal past Python. The picture is cut open to show the inside: it holds the slices of the sagittal series from
the middle to the patient's right, and those of the axial series at the discs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import Level
from spine_engine.report.cloud import Cloud, study_cloud
from spine_engine.report.montage import GROUND, INK, pillow
from spine_engine.report.ply import BOX_COLOUR, box_lines, open3d, point_colours
from spine_engine.report.scene import (
    confidence_words,
    disc_slices,
    level_boxes,
    middle_slice,
)
from spine_engine.report.words import LEVEL_NAMES
from spine_engine.results import LevelResult
from spine_engine.study import Role, Series, Stack, Study

WIDTH: Final = 1600
HEIGHT: Final = 1200
FIELD_OF_VIEW: Final = 28.0
"""Field of view in degrees from top to bottom: little perspective, so that parallel slices look parallel."""

VIEW: Final = np.array([0.78, -0.57, 0.27])
"""Direction of the eye: to the patient's left, in front, a little above."""

_WINDOW_FIELD: Final = 60.0
"""Field of view of Open3D's window, degrees, which cannot be changed."""

FILLED: Final = 0.92
"""Share of the picture that the study fills."""

TIME_LIMIT_S: Final = 180.0
"""Longest time for a picture: Mesa's software Vulkan draws five million points in 20 s on one core."""

_ASIDE_MM: Final = 1.0
"""Distance to the right by which each series is drawn beside the one before, so that none hides another."""

PACKAGES: Final = "libvulkan1 mesa-vulkan-drivers"
"""Debian's packages that draw without a graphics card."""


@dataclass(frozen=True, eq=False)
class Camera:
    """An eye that looks at a point, patient LPS mm; the head is up."""

    eye: NDArray[np.float64]
    target: NDArray[np.float64]

    @classmethod
    def around(cls, points_mm: NDArray[np.float64]) -> Camera:
        """Return a camera that shows all points as large as possible."""
        target = (points_mm.min(axis=0) + points_mm.max(axis=0)) / 2
        direction = VIEW / np.linalg.norm(VIEW)
        seen = (points_mm - target) @ _frame(direction).T
        slope = np.tan(np.radians(FIELD_OF_VIEW / 2)) * FILLED
        needed = (
            np.maximum(
                np.abs(seen[:, 0]) / (slope * WIDTH / HEIGHT),
                np.abs(seen[:, 1]) / slope,
            )
            + seen[:, 2]
        )
        return cls(target + direction * needed.max(), target)

    def project(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the pixels ``(N, 2)`` of points ``(N, 3)``: x to the right, y down."""
        direction = self.eye - self.target
        seen = (points_mm - self.eye) @ _frame(direction / np.linalg.norm(direction)).T
        scale = HEIGHT / 2 / np.tan(np.radians(FIELD_OF_VIEW / 2)) / -seen[:, 2]
        return np.stack(
            [WIDTH / 2 + seen[:, 0] * scale, HEIGHT / 2 - seen[:, 1] * scale], axis=1
        )


def picture(
    study: Study, levels: Mapping[Level, LevelResult], path: Path
) -> str | None:
    """Draw a study and its levels' boxes into a PNG; return the problem if that failed, else None."""
    cloud = study_cloud(opened(study, levels))
    boxes = level_boxes(levels)
    if not len(cloud.values):
        return "there is nothing to draw"
    points = cloud.points_mm - _ASIDE_MM * cloud.series[:, None] * np.array(
        [1, 0, 0], np.float32
    )
    corners = np.array(list(boxes.values())).reshape(-1, 8, 3)
    camera = Camera.around(
        np.concatenate([points[::50], corners.reshape(-1, 3)]).astype(np.float64)
    )
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn.png"
        problem = _in_child(
            Path(folder), TIME_LIMIT_S, points=points, colours=point_colours(cloud), corners=corners, eye=camera.eye,
            target=camera.target, to=str(drawn),
        )  # fmt: skip
        if problem is not None or not drawn.is_file():
            return problem or "the drawing process wrote nothing"
        _labelled(drawn, camera, boxes, levels, cloud).save(path, optimize=True)
    return None


def window(cloud: Cloud, levels: Mapping[Level, LevelResult]) -> str | None:
    """Show a cloud and the levels' boxes in Open3D's window until it is closed; return the problem if that failed."""
    boxes = list(level_boxes(levels).values())
    camera = Camera.around(cloud.points_mm[::50].astype(np.float64))
    with tempfile.TemporaryDirectory() as folder:
        return _in_child(
            Path(folder), None, points=cloud.points_mm, colours=point_colours(cloud), series=cloud.series,
            names=np.array(cloud.names), corners=np.array(boxes).reshape(-1, 8, 3), eye=camera.eye,
            target=camera.target, to="",
        )  # fmt: skip


def opened(study: Study, levels: Mapping[Level, LevelResult]) -> Study:
    """Return the part of a study that the picture shows: sagittal slices from the middle to the patient's right, axial
    slices at the discs."""
    return replace(
        study,
        series=tuple(
            replace(series, stacks=tuple(_opened(series, levels)))
            for series in study.series
        ),
    )


def _opened(series: Series, levels: Mapping[Level, LevelResult]) -> Sequence[Stack]:
    if not series.stacks:
        return ()
    if series.role is Role.AXIAL_T2:
        return [
            _part(stack, slice(index, index + 1))
            for stack, index in disc_slices(series, levels).values()
        ]
    stack, index = middle_slice(series, levels)
    return [
        _part(
            stack, slice(0, index + 1) if stack.axes[0][0] > 0 else slice(index, None)
        )
    ]


def _part(stack: Stack, slices: slice) -> Stack:
    return replace(
        stack, pixels=stack.pixels[slices], slope=stack.slope[slices], intercept=stack.intercept[slices],
        origins_mm=stack.origins_mm[slices],
    )  # fmt: skip


def _frame(direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows right, up, towards the eye of a picture seen from ``direction`` (a unit vector)."""
    right = np.cross([0.0, 0.0, 1.0], direction)
    right /= np.linalg.norm(right)
    return np.array([right, np.cross(direction, right), direction])


def _in_child(folder: Path, limit_s: float | None, **scene: Any) -> str | None:
    """Draw in a process of its own; return the problem in one line if that failed, else None."""
    np.savez(folder / "scene.npz", **scene)
    command = [
        sys.executable,
        "-m",
        "spine_engine.report.offscreen",
        str(folder / "scene.npz"),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"drawing took longer than {limit_s:g} s"
    if done.returncode:
        return f"the drawing process ended with {done.returncode}"
    return None


def _labelled(
    drawn: Path,
    camera: Camera,
    boxes: Mapping[Level, Any],
    levels: Mapping[Level, LevelResult],
    cloud: Cloud,
) -> Any:
    """Return the drawn picture with the levels' names at their boxes, the series' names and the directions."""
    pil = pillow()
    image = pil.Image.open(drawn).convert("RGB")
    draw = pil.ImageDraw.Draw(image)
    font = pil.ImageFont.load_default(24)
    small = pil.ImageFont.load_default(22)
    for level, corners in boxes.items():
        words = f"{LEVEL_NAMES[level]}  {confidence_words(levels[level].confidence, levels[level].source)}"
        x, y = camera.project(corners[[1, 5]].mean(axis=0, keepdims=True))[0]
        ends = draw.textbbox((x - 14, y), words, font, anchor="rm")
        draw.rounded_rectangle(
            (ends[0] - 8, ends[1] - 5, ends[2] + 8, ends[3] + 6),
            6,
            GROUND,
            (111, 101, 64),
        )
        draw.text((x - 14, y), words, BOX_COLOUR, font, anchor="rm")
    for n, (name, colour) in enumerate(zip(cloud.names, cloud.colours, strict=True)):
        draw.ellipse((40, 40 + 36 * n, 58, 58 + 36 * n), colour)
        draw.text((72, 49 + 36 * n), name, INK, small, anchor="lm")
    middle = np.array([110.0, HEIGHT - 120.0])
    direction = camera.eye - camera.target
    frame = _frame(direction / np.linalg.norm(direction))
    ends3 = {
        "L": (1, 0, 0),
        "R": (-1, 0, 0),
        "P": (0, 1, 0),
        "A": (0, -1, 0),
        "H": (0, 0, 1),
        "F": (0, 0, -1),
    }
    for letter, axis in sorted(
        ends3.items(), key=lambda item: float(frame[2] @ item[1])
    ):
        x, y = middle + 62 * np.array([frame[0] @ axis, -(frame[1] @ axis)])
        draw.ellipse((x - 17, y - 17, x + 17, y + 17), (56, 67, 79), GROUND, 2)
        draw.text((x, y), letter, (255, 255, 255), small, anchor="mm")
    return image


def _main(path: str) -> None:
    """Draw the scene in a file: into a picture if the scene names one, else into a window."""
    scene = dict(np.load(path))
    o3d = open3d()
    colours = scene["colours"] / 255
    lines = box_lines(scene["corners"])
    if str(scene["to"]):
        _draw(scene, lines, colours)
        return
    shown = (
        [{"name": "Level boxes", "geometry": lines}] if len(scene["corners"]) else []
    )
    for number, name in enumerate(scene["names"]):
        part = scene["series"] == number
        cloud = o3d.geometry.PointCloud(
            o3d.utility.Vector3dVector(scene["points"][part].astype(np.float64))
        )
        cloud.colors = o3d.utility.Vector3dVector(colours[part])
        shown.append({"name": str(name), "geometry": cloud})
    ground = (*(np.array(GROUND) / 255), 1.0)
    closer = np.tan(np.radians(FIELD_OF_VIEW / 2)) / np.tan(
        np.radians(_WINDOW_FIELD / 2)
    )
    eye = scene["target"] + closer * (scene["eye"] - scene["target"])
    o3d.visualization.draw(
        shown, title="spine-engine view", eye=eye, lookat=scene["target"], up=[0.0, 0.0, 1.0], bg_color=ground,
        show_skybox=False, raw_mode=True, point_size=2, show_ui=True,
    )  # fmt: skip


def _draw(scene: Mapping[str, Any], lines: Any, colours: NDArray[np.float64]) -> None:
    o3d = open3d()
    rendering = o3d.visualization.rendering
    renderer = rendering.OffscreenRenderer(WIDTH, HEIGHT)
    ground = np.array([*GROUND, 255]) / 255
    # Without post-processing colours stay as they are, except the ground, which is converted from sRGB and not back.
    renderer.scene.view.set_post_processing(False)
    renderer.scene.set_background(ground ** (1 / 2.2))
    cloud = o3d.geometry.PointCloud(
        o3d.utility.Vector3dVector(scene["points"].astype(np.float64))
    )
    cloud.colors = o3d.utility.Vector3dVector(colours)
    dots = rendering.MaterialRecord()
    dots.shader = "defaultUnlit"
    dots.point_size = 3.5
    renderer.scene.add_geometry("cloud", cloud, dots)
    if len(scene["corners"]):
        edges = rendering.MaterialRecord()
        edges.shader = "unlitLine"
        edges.line_width = 2.5
        renderer.scene.add_geometry("boxes", lines, edges)
    renderer.setup_camera(FIELD_OF_VIEW, scene["target"], scene["eye"], [0.0, 0.0, 1.0])
    o3d.io.write_image(str(scene["to"]), renderer.render_to_image())


if __name__ == "__main__":
    _main(sys.argv[1])
