"""What detection is asked and answers around the decoder: slices shared out or not, options, errors, the finder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from conftest_detection import SPEC, Scene, SceneBackend, column, sagittal_stack

from spine_engine.anatomy import Level
from spine_engine.detection import DetectionOptions, detect, undetected
from spine_engine.detection import finder as finder_module
from spine_engine.detection.detect import BATCH
from spine_engine.detection.finder import level_finder
from spine_engine.errors import Reason, StudyError
from spine_engine.study import Stack


class Quiet:
    """Answers every slice with maps of one number and keeps the shapes it was asked."""

    def __init__(self, number: float = 0.0) -> None:
        self.number = number
        self.asked: list[tuple[int, ...]] = []

    def run(self, inputs):
        self.asked.append(inputs["slices"].shape)
        count, _, height, width = inputs["slices"].shape
        return {
            "heatmaps": np.full(
                (count, SPEC.channels, height // 2, width // 2), self.number, np.float32
            )
        }


def small(seed: int = 0, **changes) -> Stack:
    return sagittal_stack(
        seed, **{"slices": 6, "spacing_mm": 4.0, "height_mm": 256.0} | changes
    )


def test_what_detection_does_by_default() -> None:
    options = DetectionOptions()
    assert options.box_mm == (40.0, 96.0, 96.0)
    assert options.every_slice is False
    assert BATCH == 4


@pytest.mark.parametrize(
    ("series", "every_slice", "asked"),
    [
        ([[small(1)]], False, 6),
        ([[small(1), small(2)]], False, 12),  # two stacks of one series: all of both
        ([[small(1)], [small(2)]], False, 3 + 3),
        ([[small(1)], [small(2)]], True, 12),
        ([[small(1)], []], False, 6),  # a series without a stack is none
    ],
    ids=["one", "two stacks", "two", "every slice", "one empty"],
)
def test_slices_are_shared_out_between_series_alone(
    series, every_slice: bool, asked: int
) -> None:
    backend = Quiet()
    detect(series, backend, options=DetectionOptions(every_slice=every_slice))
    assert backend.asked == [(1, 1, 128, 128)] * asked


def test_each_series_is_scaled_by_its_own_range_over_all_its_stacks() -> None:
    dim, bright = small(1), small(2, middle_mm=(40, 0, 20))
    bright = replace(bright, pixels=bright.pixels * 10)
    highest: list[float] = []

    class Sees(Quiet):
        def run(self, inputs):
            highest.append(float(inputs["slices"].max()))
            return super().run(inputs)

    detect([[dim], [bright]], Sees())
    np.testing.assert_allclose(highest, 1.0, atol=0.02)
    highest.clear()
    detect([[dim, bright]], Sees())
    assert (
        sorted(round(value, 1) for value in highest) == [0.3] * 6 + [1.0] * 6
    )  # the root of a tenth


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_an_internal_error(number: float) -> None:
    with pytest.raises(
        StudyError, match="the detector gave numbers that are not finite"
    ) as caught:
        detect([[small()]], Quiet(number))
    assert caught.value.reason is Reason.INTERNAL_ERROR


@pytest.mark.parametrize("series", [[], [[]], [[], []]], ids=str)
def test_without_a_stack_there_is_nothing_to_detect(series: list[list[Stack]]) -> None:
    with pytest.raises(StudyError) as caught:
        detect(series, Quiet())
    assert caught.value.reason is Reason.NO_SAGITTAL
    with pytest.raises(StudyError) as caught:
        undetected(series)
    assert caught.value.reason is Reason.NO_SAGITTAL


def test_boxes_of_undetected_levels_have_the_size_asked_for() -> None:
    options = DetectionOptions(box_mm=(10.0, 20.0, 30.0))
    for made in (
        undetected([[small()]], options),
        detect([[small()]], Quiet(), options=options),
    ):
        assert [entry.size_mm.tolist() for entry in made.levels.values()] == [
            [10, 20, 30]
        ] * 5
        assert {entry.source for entry in made.levels.values()} == {"prior"}
    assert undetected([[small()]]).levels[Level.L1_L2].size_mm.tolist() == [40, 96, 96]


def test_series_are_asked_alone_only_where_there_are_several() -> None:
    """A lone series cannot disagree with itself, however many stacks it has."""
    stack = sagittal_stack(slices=7, spacing_mm=2.0)
    scene = Scene(column(), [stack])
    made = detect([[stack]], SceneBackend(scene))
    assert made.alternative is None
    assert made.warnings == ()


def test_the_finder_calls_the_decoder_that_the_bundle_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        finder_module, "detect", lambda *given: calls.append(("heat", *given))
    )
    monkeypatch.setattr(
        finder_module,
        "detect_vertebra_field",
        lambda *given: calls.append(("vfr", *given)),
    )
    networks: Sequence[Quiet] = (Quiet(), Quiet(), Quiet())
    options, series = DetectionOptions(every_slice=True), [[small()]]
    level_finder("level_heatmaps", SPEC, networks[:1], options)(series)
    level_finder("level_heatmaps", SPEC, networks[:1])(series)
    level_finder("vfr", None, networks)(series)
    assert calls == [
        ("heat", series, networks[0], SPEC, options),
        ("heat", series, networks[0], SPEC, None),
        ("vfr", series, *networks),
    ]
    with pytest.raises(ValueError, match="unpack"):
        level_finder("vfr", None, networks[:2])
    with pytest.raises(ValueError, match="unpack"):
        level_finder("level_heatmaps", SPEC, networks)
