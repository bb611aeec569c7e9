"""From stacks to levels with SpineNet's networks played by plain image processing on a phantom painted by label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest_detection import rotation, sagittal_stack
from scipy import ndimage

from spine_engine.anatomy import LEVELS, Level
from spine_engine.detection import undetected
from spine_engine.detection.spinenet import detect_vertebra_field
from spine_engine.errors import StudyError, Warn
from spine_engine.phantom import draw_spine
from spine_engine.study import Stack

TOP, SACRUM = 3, 10  # T11 and S1 among the phantom's vertebrae, T8 first
BRIGHT, BASE, STEP = (
    4000,
    1000,
    150,
)  # the canal; a vertebra of class c is BASE + STEP * c


def spine_of(seed=3, *, scoliosis_mm=0.0):
    spine = draw_spine(seed, scoliosis=False)
    shape = replace(
        spine.shape,
        scoliosis_mm=scoliosis_mm,
        scoliosis_length_mm=300.0,
        schmorl_mm=np.zeros(14),
    )
    # bodies are painted as boxes, which must not touch: a little less lordosis, no flat disc
    return replace(
        spine,
        shape=replace(
            shape,
            disc_height=np.maximum(shape.disc_height, 7.0),
            tilt_deg=0.7 * shape.tilt_deg,
        ),
    )


def painted(spine, stack: Stack, *, shift=0.0, without=(), height=1.0) -> Stack:
    """The stack with the spine's bodies painted by class (plus `shift`) and a bright canal behind them."""
    pixels = np.zeros(stack.pixels.shape, np.uint16)
    curve, shape = spine.curve, spine.shape
    rows, columns = (
        np.arange(n) * mm
        for n, mm in zip(pixels.shape[1:], stack.spacing_mm, strict=True)
    )
    boxes = []
    for index in range(TOP, SACRUM + 1):
        middle, axes = curve.frame_at(
            float(curve.tops[index] + curve.bottoms[index]) / 2
        )
        axes = axes @ spine.rotation.T
        center = spine.rotation @ middle + spine.translation_mm
        half = np.array(
            [
                shape.body_height[index] / 2 * height - 0.5,
                shape.half_depth[index] * 0.8,
                20.0,
            ]
        )
        behind = center + axes[1] * (shape.half_depth[index] + 16)
        boxes.append((BRIGHT, behind, axes, np.array([half[0] * 1.6, 6.0, 30.0])))
        if index not in without:
            boxes.append((BASE + STEP * (SACRUM - index + shift), center, axes, half))
    for value, center, axes, half in boxes:
        offset, reach = center - stack.origins_mm[0], np.linalg.norm(half)
        near = [
            np.abs(along - offset @ axis) <= reach
            for along, axis in zip((rows, columns), stack.axes[1:], strict=True)
        ]
        window = np.ix_(np.arange(len(pixels)), *map(np.flatnonzero, near))
        inside = np.ones(tuple(len(index.ravel()) for index in window), bool)
        for k in range(3):
            start = (stack.origins_mm - center) @ axes[k]
            down, right = stack.axes[1] @ axes[k], stack.axes[2] @ axes[k]
            inside &= (
                np.abs(
                    start[:, None, None]
                    + down * rows[near[0]][:, None]
                    + right * columns[near[1]]
                )
                <= half[k]
            )
        part = pixels[window]
        part[inside] = round(value)
        pixels[window] = part
    return replace(stack, pixels=pixels)


class FieldNet:
    """Draws the maps of every patch: bodies are what is neither dark nor as bright as the canal."""

    def __init__(self, deaf=False):
        self.calls, self.deaf = 0, deaf

    def run(self, inputs):
        (patch,) = inputs["patches"][:, 0]
        assert inputs["patches"].shape == (1, 1, 224, 224)
        self.calls += 1
        maps = np.zeros((1, 13, 224, 224), np.float32)
        labels, count = ndimage.label(
            ndimage.binary_opening((patch > 0.15) & (patch < 0.75), np.ones((3, 3)), 2)
        )
        for number in range(1, count + 1 if not self.deaf else 1):
            y, x = (c.astype(float) for c in np.nonzero(labels == number))
            if len(y) < 60:
                continue
            ends = [
                int(np.argmax(sx * x + sy * y))
                for sx, sy in [(1, -1), (1, 1), (-1, 1), (-1, -1)]
            ]
            corners = [(x[end], y[end]) for end in ends]
            center = np.mean(corners, axis=0)
            for kind, (cx, cy) in enumerate(corners):
                if not (1 < cx < 222 and 1 < cy < 222):
                    continue  # cut by the patch
                spot = np.s_[int(cy) - 1 : int(cy) + 2, int(cx) - 1 : int(cx) + 2]
                maps[0, kind][spot], maps[0, kind, int(cy), int(cx)] = 0.8, 0.95
                maps[0, 5 + kind][spot], maps[0, 9 + kind][spot] = (
                    center[0] - cx,
                    center[1] - cy,
                )
            cx, cy = np.round(center).astype(int)
            maps[0, 4, cy - 1 : cy + 2, cx - 1 : cx + 2], maps[0, 4, cy, cx] = 0.8, 0.9
        return {"maps": maps}


class AppearanceNet:
    """Reads the class from the brightness in the middle of the volume; the canal is 1 there."""

    def run(self, inputs):
        volume = inputs["volumes"]
        assert volume.shape == (1, 1, 224, 224, 16)
        seen = (float(np.median(volume[0, 0, 100:124, 100:124])) * BRIGHT - BASE) / STEP
        return {
            "scores": (-20.0 * (np.arange(24) - seen) ** 2).astype(np.float32)[None]
        }


class ContextNet:
    """Gives back what was painted."""

    def run(self, inputs):
        column = inputs["columns"]
        assert column.shape[2] % 256 == 0
        return {"scores": 10 * np.log(np.maximum(column, 1e-9))}


def detected(*stacks, **nets):
    nets = {
        "field_net": FieldNet(),
        "appearance_net": AppearanceNet(),
        "context_net": ContextNet(),
    } | nets
    return detect_vertebra_field([[stack] for stack in stacks], **nets)


def check(detection, spine, within_mm=3.0, skip=()):
    for k, level in enumerate(LEVELS):
        if level in skip:
            continue
        entry = detection.levels[level]
        assert entry.source == "detector", level
        assert np.linalg.norm(entry.center_mm - spine.disc_center_mm[k]) < within_mm, (
            level
        )
        assert entry.axes[1] @ spine.disc_axes[k][1] > 0.97, level
        assert entry.axes[2] @ spine.disc_axes[k][2] > 0.97, level


FINE = {"slices": 15, "step_mm": 4.0}  # for a spine that bows to the side


def seen_by(spine, seed=0, **settings) -> Stack:
    """Seven slices 6 mm apart: enough where the spine is straight, and every slice takes the played networks' time."""
    settings = {
        "middle_mm": (0, 8, 15),
        "spacing_mm": 0.9,
        "slices": 7,
        "step_mm": 6.0,
        "height_mm": 320.0,
    } | settings
    return sagittal_stack(seed, **settings)


def test_the_five_levels_and_the_vertebrae_are_found_and_named():
    spine = spine_of()
    result = detected(painted(spine, seen_by(spine)))
    check(result, spine)
    assert result.warnings == ()
    assert [body.name for body in result.vertebrae] == [
        "t11",
        "t12",
        "l1",
        "l2",
        "l3",
        "l4",
        "l5",
        "s1",
    ]
    for body, truth in zip(
        result.vertebrae, spine.vertebra_center_mm[TOP:], strict=False
    ):
        assert np.linalg.norm(body.center_mm - truth) < 2.5, body.name
    assert min(level.confidence for level in result.levels.values()) > 0.9


STORAGES = {
    "mirrored columns": {"right": (0, -1, 0)},
    "head down": {"down": (0, 0, 1)},
    "turned": {"down": (0, 1, 0), "right": (0, 0, -1)},
    "turned back, mirrored": {"down": (0, -1, 0), "right": (0, 0, 1)},
    "one patch": {"spacing_mm": 1.1, "height_mm": 262.0, "middle_mm": (0, 8, -10)},
    "thin slices": {"slices": 62, "step_mm": 1.0},
}


@pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES.keys())
def test_storage_of_the_picture_does_not_matter(storage):
    spine = spine_of(scoliosis_mm=9.0)
    check(detected(painted(spine, seen_by(spine, **FINE | storage))), spine)


@pytest.mark.parametrize("spacing", [(0.6, 1.0), (1.1, 0.7)])
def test_pixels_need_not_be_square(spacing):
    spine = spine_of(5)
    stack = seen_by(spine, spacing_mm=1.0)
    shape = (
        len(stack.pixels),
        *(np.array(stack.pixels.shape[1:]) / spacing).astype(int),
    )
    stack = replace(stack, pixels=np.zeros(shape, np.uint16), spacing_mm=spacing)
    check(detected(painted(spine, stack)), spine)


def test_a_tilted_patient_and_a_lateral_curve():
    turn = rotation(pitch=12, yaw=-8, roll=6)
    spine = spine_of(7, scoliosis_mm=12.0).posed(turn, np.array([30.0, -20.0, 55.0]))
    middle = turn.T @ np.array([30.0, -20.0, 55.0]) + [0, 8, 15]
    stack = seen_by(spine, turn=turn, middle_mm=middle, **FINE)
    check(detected(painted(spine, stack)), spine)
    mirrored = spine.mirrored()
    flip = np.diag([-1.0, 1, 1])
    axes = stack.axes @ flip
    axes[0] = -axes[0]
    other = replace(stack, axes=axes, origins_mm=(stack.origins_mm @ flip)[::-1].copy())
    check(detected(painted(mirrored, other)), mirrored)


def test_two_series_are_averaged_and_their_order_does_not_matter():
    spine = spine_of(scoliosis_mm=6.0)
    first = painted(spine, seen_by(spine, **FINE))
    second = painted(
        spine,
        seen_by(
            spine,
            spacing_mm=0.7,
            slices=11,
            step_mm=4.6,
            turn=rotation(roll=3),
            right=(0, -1, 0),
        ),
    )
    one, two = detected(first, second), detected(second, first)
    check(one, spine)
    assert one.warnings == ()
    alone = [detected(stack) for stack in (first, second)]
    for level in Level:
        assert (
            one.levels[level].center_mm.tobytes()
            == two.levels[level].center_mm.tobytes()
        )
        assert one.levels[level].confidence == two.levels[level].confidence
        middle = np.mean([each.levels[level].center_mm for each in alone], axis=0)
        assert np.allclose(
            one.levels[level].center_mm, middle, rtol=0, atol=0.001 + 1e-9
        )  # all are rounded to 0.001
    assert [v.name for v in one.vertebrae] == [v.name for v in two.vertebrae]


def test_two_stations_of_one_series_are_put_together():
    spine = spine_of()
    upper = painted(
        spine, seen_by(spine, middle_mm=(0, 8, 70), height_mm=190.0)
    )  # T11 to L3
    lower = painted(
        spine, seen_by(spine, middle_mm=(0, 8, -55), height_mm=190.0)
    )  # L2 to S1
    for stacks in ([upper, lower], [lower, upper]):
        result = detect_vertebra_field(
            [stacks], FieldNet(), AppearanceNet(), ContextNet()
        )
        check(result, spine)
        assert result.warnings == ()
        assert {body.name for body in result.vertebrae} >= {"t12", "s1"}


def test_of_two_series_that_disagree_the_surer_wins_and_it_is_said():
    spine = spine_of()
    right = painted(spine, seen_by(spine))
    wrong = painted(spine, seen_by(spine, spacing_mm=0.8), shift=1.3)
    for order in ([right, wrong], [wrong, right]):
        result = detected(*order)
        check(result, spine)
        assert Warn.SERIES_DISAGREE in result.warnings
        assert max(level.confidence for level in result.levels.values()) <= 0.5


def test_a_missed_vertebra_moves_no_name_and_its_levels_are_interpolated():
    spine = spine_of()
    result = detected(painted(spine, seen_by(spine), without={7}))  # L3
    check(result, spine, skip={Level.L2_L3, Level.L3_L4})
    for k in (1, 2):
        entry = result.levels[LEVELS[k]]
        assert entry.source == "interpolated"
        assert np.linalg.norm(entry.center_mm - spine.disc_center_mm[k]) < 8.0
    assert Warn.LEVEL_INTERPOLATED in result.warnings


def test_a_vertebra_of_one_slice_is_none():
    spine = spine_of()
    stack = painted(spine, seen_by(spine))
    single = replace(
        stack,
        pixels=np.where(np.arange(7)[:, None, None] == 3, stack.pixels, 0).astype(
            np.uint16
        ),
    )
    assert [level.source for level in detected(single).levels.values()] == ["prior"] * 5


def test_where_nothing_is_found_the_field_of_view_places_the_levels():
    stack = seen_by(spine_of())
    field = FieldNet(deaf=True)
    result, wanted = detected(stack, field_net=field), undetected([[stack]])
    assert field.calls == 7 * 2
    assert result.warnings == wanted.warnings == (Warn.LOW_CONFIDENCE,)
    for level in Level:
        assert result.levels[level].source == "prior"
        assert np.array_equal(
            result.levels[level].center_mm, wanted.levels[level].center_mm
        )


def test_no_sagittal_stack_is_refused():
    with pytest.raises(StudyError, match="no_sagittal"):
        detect_vertebra_field([[], []], FieldNet(), AppearanceNet(), ContextNet())


def test_numbers_that_are_not_finite_are_an_error_of_the_study():
    class Overflow(AppearanceNet):
        def run(self, inputs):
            return {"scores": super().run(inputs)["scores"] * np.float32(np.inf)}

    spine = spine_of()
    with pytest.raises(
        StudyError, match="takes volumes gave numbers that are not finite"
    ):
        detected(painted(spine, seen_by(spine)), appearance_net=Overflow())


def test_a_network_that_answers_otherwise_is_named():
    class Other:
        def run(self, inputs):
            return {"maps": np.zeros((1, 12, 224, 224), np.float32)}

    with pytest.raises(
        StudyError,
        match=r"takes patches .* gave maps \(1, 12, 224, 224\), want maps \(1, 13, 224, 224\)",
    ):
        detected(seen_by(spine_of()), field_net=Other())
