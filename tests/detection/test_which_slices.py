"""Which slices are looked at, what each counts, and the frame and field of view that the stacks share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest_detection import SPEC, rotation, sagittal_stack

from spine_engine.detection import DetectorSpec, undetected
from spine_engine.detection.slices import (
    _shares,
    canvas_axes,
    canvas_from_stack,
    chosen_slices,
    field_of_view_center,
    in_fixed_order,
    series_range,
    slices_of_pair,
    spine_frame,
)
from spine_engine.study import Stack


def test_what_a_detector_takes_and_gives() -> None:
    spec = DetectorSpec()
    assert (spec.pixel_mm, spec.stride, spec.multiple, spec.output_pixel_mm) == (
        2.0,
        2,
        32,
        4.0,
    )
    assert (spec.low_percentile, spec.high_percentile, spec.gamma, spec.clip) == (
        2.0,
        99.0,
        0.5,
        1.25,
    )
    assert (spec.max_extent_mm, spec.channels) == (640.0, 14)
    assert spec.bins == (
        *("sacrum", "l5_s1", "l4_l5", "l3_l4", "l2_l3", "l1_l2"),
        *("t12_l1", "t11_t12", "t10_t11", "t9_t10_and_above"),
    )


def every(step_mm: float, count: int) -> np.ndarray:
    return 17.0 + step_mm * np.arange(count)


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        (every(4, 5), [0, 1, 2, 3, 4]),
        (every(2.96, 5), [0, 1, 2, 3, 4]),  # 3 mm but for rounding
        (every(2.94, 5), [0, 2, 4]),
        (every(1, 8), [0, 3, 6]),
        (np.array([0, 1, 3.5, 4, 6.6, 6.7]), [0, 2, 4]),
        (np.array([5.0]), [0]),
        (every(4, 40), list(range(40))),
        (every(4, 41), list(range(40))),  # the middle forty
        (every(4, 42), list(range(1, 41))),
        (every(4, 45), list(range(2, 42))),
        (every(1, 130), list(range(6, 126, 3))),  # 44 are left, two go on either side
    ],
    ids=lambda value: str(len(value)),
)
def test_thin_slices_are_thinned_out_to_3_mm_and_the_middle_forty_taken(
    positions, wanted
) -> None:
    assert chosen_slices(positions).tolist() == wanted


def test_the_first_slice_lies_as_far_behind_the_first_of_all_as_asked() -> None:
    assert chosen_slices(every(1, 10), 3.0, begin_mm=2.0).tolist() == [2, 5, 8]
    assert chosen_slices(every(1, 10), 3.0, begin_mm=2.04).tolist() == [2, 5, 8]
    assert chosen_slices(every(1, 10), 3.0, begin_mm=2.06).tolist() == [3, 6, 9]
    assert chosen_slices(every(1, 3), 3.0, begin_mm=50.0).tolist() == [
        2
    ]  # at least one


@pytest.mark.parametrize(
    ("step_mm", "count", "even", "odd"),
    [
        (4.0, 7, [0, 2, 4, 6], [1, 3, 5]),
        (5.0, 6, [0, 2, 4], [1, 3, 5]),
        (3.0, 7, [0, 2, 4, 6], [1, 3, 5]),
        (1.0, 10, [0, 6], [3, 9]),
        (5.97, 5, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (5.94, 5, [0, 2, 4], [1, 3]),
        (7.0, 4, [0, 1, 2, 3], [0, 1, 2, 3]),
        (1.0, 1, [0], [0]),
    ],
)
def test_of_two_series_each_takes_a_slice_every_6_mm_and_the_second_those_between(
    step_mm: float, count: int, even: list[int], odd: list[int]
) -> None:
    positions = every(step_mm, count)
    assert (
        slices_of_pair(positions, 0).tolist()
        == slices_of_pair(positions, 2).tolist()
        == even
    )
    assert (
        slices_of_pair(positions, 1).tolist()
        == slices_of_pair(positions, 3).tolist()
        == odd
    )


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        ([3.0], [1]),
        ([0.0, 4.0], [4, 4]),
        ([0.0, 4.0, 9.0, 12.0], [4, 4.5, 4, 3]),
        ([0.0, 4.0, 8.0, 48.0, 52.0], [4, 4, 6, 6, 4]),  # a gap counts as 8
        ([0.0, 9.0, 18.0, 60.0, 69.0], [9, 9, 9, 9, 9]),  # or as the usual distance
    ],
)
def test_a_slice_counts_half_the_distance_to_its_neighbours(
    positions: list[float], wanted: list[float]
) -> None:
    np.testing.assert_allclose(_shares(np.array(positions)), wanted)


def test_the_range_leaves_out_two_hundredths_below_and_one_above() -> None:
    stack = sagittal_stack(slices=2)
    pixels = np.full(stack.pixels.shape, 60000, np.uint16)
    rows, columns = pixels[0, ::3, ::3].shape
    ramp = (np.arange(2 * rows * columns) % 10001).reshape(2, rows, columns)
    pixels[:, ::3, ::3] = ramp  # every third row and column is looked at
    stack = replace(
        stack,
        pixels=pixels,
        slope=np.full(2, 2, np.float32),
        intercept=np.full(2, -7, np.float32),
    )
    low, high = series_range([stack], SPEC)
    want = np.percentile(2.0 * ramp - 7, [2, 99])
    assert (low, high) == pytest.approx(tuple(want))
    wide = replace(SPEC, low_percentile=10.0, high_percentile=50.0)
    assert series_range([stack], wide) == pytest.approx(
        tuple(np.percentile(2.0 * ramp - 7, [10, 50]))
    )


def test_a_flat_series_has_a_range_of_one() -> None:
    stack = sagittal_stack(slices=2)
    flat = replace(stack, pixels=np.full_like(stack.pixels, 7))
    assert series_range([flat], SPEC) == (7.0, 8.0)


def test_the_canvas_covers_the_picture_and_tells_where_it_ends() -> None:
    stack = sagittal_stack(slices=3, height_mm=300.0)  # 300 x 256 pixels of 1 mm
    canvas = canvas_from_stack(stack, 0.0, 500.0, SPEC)
    assert canvas.slices.shape == (
        3,
        160,
        128,
    )  # 150 and 128 pixels of 2 mm, in multiples of 32
    assert canvas.picture == (4.5, 154.5, -0.5, 127.5)
    assert canvas.pixel_mm == 2.0
    assert canvas.step_mm.tolist() == [4, 4, 4]
    assert not canvas.slices[:, :5].any()
    assert not canvas.slices[:, 155:].any()
    assert canvas.slices[:, 5:155].any(axis=(0, 2)).all()
    middle = canvas.origins_mm[1] + 2.0 * (79.5 * canvas.down + 63.5 * canvas.back)
    np.testing.assert_allclose(middle, stack.center_mm, atol=1e-9)


def test_a_picture_longer_than_the_detector_takes_is_cut_evenly_at_both_ends() -> None:
    stack = sagittal_stack(slices=1, height_mm=700.0, spacing_mm=2.0)
    canvas = canvas_from_stack(stack, 0.0, 500.0, SPEC)
    assert canvas.slices.shape == (1, 320, 128)
    assert canvas.picture == (-0.5, 319.5, -0.5, 127.5)
    np.testing.assert_allclose(
        canvas.origins_mm[0] + 2.0 * (159.5 * canvas.down + 63.5 * canvas.back),
        stack.center_mm,
    )


def test_values_are_clipped_above_and_below_and_bent() -> None:
    stack = sagittal_stack(slices=1)
    pixels = np.full_like(stack.pixels, 100)
    pixels[:, :, 128:] = 900
    stack = replace(stack, pixels=pixels)
    canvas = canvas_from_stack(stack, 200.0, 600.0, SPEC)
    assert canvas.slices[0, 80, 20] == 0.0
    assert canvas.slices[0, 80, 100] == pytest.approx(np.sqrt(1.25))
    half = canvas_from_stack(stack, 0.0, 3600.0, SPEC)
    assert half.slices[0, 80, 100] == pytest.approx(0.5)
    assert half.slices[0, 80, 20] == pytest.approx(1 / 6)
    assert canvas_from_stack(stack, 0.0, 3600.0, replace(SPEC, gamma=1.0)).slices[
        0, 80, 100
    ] == pytest.approx(0.25)


def test_only_the_chosen_slices_are_drawn() -> None:
    stack = sagittal_stack(slices=6)
    every_slice = canvas_from_stack(stack, 0.0, 500.0, SPEC)
    some = canvas_from_stack(stack, 0.0, 500.0, SPEC, np.array([1, 4]))
    np.testing.assert_array_equal(some.slices, every_slice.slices[[1, 4]])
    np.testing.assert_array_equal(some.origins_mm, every_slice.origins_mm[[1, 4]])
    assert some.step_mm.tolist() == [12, 12]


@pytest.mark.parametrize(
    ("axes", "down", "back", "across", "which", "signs"),
    [
        (
            ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
            (0, 0, -1),
            (0, 1, 0),
            (1, 0, 0),
            [1, 2],
            [1, 1],
        ),
        (
            ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),
            (0, 0, -1),
            (0, 1, 0),
            (1, 0, 0),
            [1, 2],
            [1, -1],
        ),
        (
            ((-1, 0, 0), (0, 0, 1), (0, 1, 0)),
            (0, 0, -1),
            (0, 1, 0),
            (1, 0, 0),
            [1, 2],
            [-1, 1],
        ),
        (
            ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
            (0, 0, -1),
            (0, 1, 0),
            (1, 0, 0),
            [2, 1],
            [1, 1],
        ),
        (
            ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
            (0, 0, -1),
            (0, 1, 0),
            (1, 0, 0),
            [2, 1],
            [1, -1],
        ),
    ],
)
def test_the_picture_is_turned_superior_up_and_anterior_left(
    axes, down, back, across, which, signs
) -> None:
    stack = replace(
        sagittal_stack(slices=1),
        axes=np.array(axes, float),
        origins_mm=np.zeros((1, 3)),
    )
    found = canvas_axes(stack)
    for one, wanted in zip(found, (down, back, across, which, signs), strict=True):
        np.testing.assert_array_equal(one, wanted)


def test_the_spine_frame_is_the_mean_of_the_stacks_by_the_slices_looked_at() -> None:
    straight, tilted = (
        sagittal_stack(slices=9),
        sagittal_stack(slices=3, turn=rotation(yaw=20, pitch=10)),
    )
    frame = spine_frame([straight, tilted])
    across = 9 * np.array([1.0, 0, 0]) + 3 * rotation(yaw=20, pitch=10) @ [1, 0, 0]
    across /= np.linalg.norm(across)
    np.testing.assert_allclose(frame[2], across, atol=1e-12)
    down = np.array([0, 0, -1.0]) + rotation(yaw=20, pitch=10) @ [0, 0, -1]
    down -= (down @ across) * across
    np.testing.assert_allclose(frame[0], down / np.linalg.norm(down), atol=1e-12)
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(frame) == pytest.approx(1)
    assert frame[1, 1] > 0.9
    thin = sagittal_stack(slices=27, step_mm=1.0)  # nine of them are looked at
    np.testing.assert_allclose(spine_frame([thin, tilted]), frame, atol=1e-12)


def test_the_field_of_view_is_the_mean_of_the_stacks_own_middles() -> None:
    low, high = (
        sagittal_stack(slices=3, middle_mm=(0, 0, -40)),
        sagittal_stack(slices=9, middle_mm=(6, 10, 60)),
    )
    np.testing.assert_allclose(
        field_of_view_center([low, high]), (3, 4.5, 10.5), atol=1e-9
    )
    detection = undetected([[low], [high]])
    np.testing.assert_allclose(
        detection.levels["l3_l4"].center_mm, (3, 4.5, 10.5 - 0.4 * 35), atol=1e-3
    )
    assert detection.alternative is None
    assert detection.vertebrae == ()


def test_series_and_stacks_have_an_order_of_their_own_and_empty_series_go() -> None:
    one, two, three = (
        sagittal_stack(seed, slices=2, middle_mm=(x, 0, 0))
        for seed, x in ((1, 5), (2, -5), (3, 5))
    )
    first, second = sorted((one, three), key=lambda s: s.pixels[1].tobytes())
    for given in ([[one, two], [], [three]], [[three], [two, one], []]):
        ordered = in_fixed_order(given)
        assert [len(stacks) for stacks in ordered] == [2, 1]
        assert ordered[0][0] is two
    for given in ([[one], [three]], [[three], [one]]):
        assert [stacks[0] for stacks in in_fixed_order(given)] == [first, second]
    assert in_fixed_order([[], []]) == []


def moved(stack: Stack, **changes: object) -> Stack:
    return replace(stack, **changes)


@pytest.mark.parametrize("what", ["origins_mm", "axes", "spacing_mm", "shape"])
def test_the_order_goes_by_place_before_content(what: str) -> None:
    """Where two stacks differ in place, their pixels are not asked: the one with the smaller numbers comes first."""
    stack = sagittal_stack(0, slices=2)
    bright, dark = stack.pixels | 0x8000, stack.pixels & 0
    other = {
        "origins_mm": {"origins_mm": stack.origins_mm + np.array([1e-6, 0, 0])},
        "axes": {"axes": stack.axes + 1e-9},
        "spacing_mm": {"spacing_mm": (1.0, 1.001)},
        "shape": {
            "pixels": np.zeros(
                (2, stack.pixels.shape[1], stack.pixels.shape[2] + 1), np.uint16
            )
        },
    }[what]
    first, second = (
        moved(stack, pixels=bright),
        moved(stack, **{"pixels": dark} | other),
    )
    assert in_fixed_order([[second], [first]])[0][0] is first
    assert in_fixed_order([[second, first]])[0][0] is first
