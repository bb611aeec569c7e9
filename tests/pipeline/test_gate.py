"""The gate before grading: what is no lumbar spine, lies otherwise than its header says, or cannot be read."""

from dataclasses import replace

import numpy as np
import pytest

from spine_engine import StudyPipeline
from spine_engine.anatomy import LEVELS
from spine_engine.detection.levels import Detection, DiscLevel
from spine_engine.phantom.samples import phantom_samples
from spine_engine.pipeline import gate
from spine_engine.study import Source, Stack


def stack(pixels):
    pixels = np.asarray(pixels)
    origins = np.arange(float(len(pixels)))[:, None] * np.array([4.0, 0.0, 0.0])
    axes = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    ones = np.ones(len(pixels), np.float32)
    return Stack(pixels, ones, 0 * ones, origins, axes, (1.0, 1.0))


def detection(distance_mm=35.0, confidence=0.999, found=5, vertebrae=5):
    levels = {
        level: DiscLevel(
            level,
            np.array([0.0, 0.0, -distance_mm * place]),
            np.eye(3),
            np.ones(3),
            confidence,
            Source.DETECTOR if place < found else Source.INTERPOLATED,
        )
        for place, level in enumerate(LEVELS)
    }
    return Detection(levels, ("a vertebra",) * vertebrae, ())


def smooth(slices, rng):
    """Pictures that change a little from slice to slice."""
    steps = rng.normal(size=(slices, 16, 16)).cumsum(axis=0)
    return (np.kron(steps, np.ones((8, 8))) * 100 + 2000).astype(np.int16)


def test_noise_is_not_legible():
    rng = np.random.default_rng(0)
    noise = stack(rng.integers(0, 1000, (9, 128, 128)).astype(np.uint16))
    assert abs(gate.smoothness(noise)) < 0.1
    assert gate.refusal([(noise,)], detection(), None) == "poor_quality"


def test_slices_that_were_dealt_are_not_legible_and_those_in_order_are():
    rng = np.random.default_rng(0)
    for slices in (7, 13, 25):
        ordered = smooth(slices, rng)
        assert not gate.is_dealt(stack(ordered))
        assert not gate.is_dealt(stack(ordered[::-1]))
    dealt = [gate.is_dealt(stack(ordered[rng.permutation(25)])) for _ in range(20)]
    assert sum(dealt) >= 19


def test_copies_of_a_slice_and_few_slices_have_no_order():
    rng = np.random.default_rng(0)
    one = smooth(2, rng)[1]
    copies = one + rng.normal(0, 20, (9, *one.shape)).astype(np.int16)
    assert not gate.is_dealt(stack(copies))
    six = smooth(6, rng)
    assert not gate.is_dealt(stack(six[[0, 3, 1, 5, 2, 4]]))


def test_an_even_picture_is_no_noise():
    assert gate.smoothness(stack(np.zeros((3, 16, 16), np.uint16))) == 1.0


@pytest.mark.parametrize(
    ("given", "lumbar"),
    [
        ({}, True),
        ({"distance_mm": 18.0}, False),
        ({"distance_mm": 21.9}, False),
        ({"distance_mm": 22.1}, True),
        ({"distance_mm": 54.9}, True),
        ({"distance_mm": 55.1}, False),
        ({"found": 3}, True),
        ({"found": 2}, False),
        ({"confidence": 0.25}, True),
        ({"confidence": 0.23}, False),
    ],
)
def test_discs_are_lumbar_by_their_number_distance_and_confidence(given, lumbar):
    assert gate.looks_lumbar(detection(**given)) is lumbar


def test_discs_that_were_not_found_have_no_distance():
    found = detection(found=3)
    far = replace(found.levels[LEVELS[4]], center_mm=np.array([0.0, 0.0, -900.0]))
    assert gate.looks_lumbar(replace(found, levels={**found.levels, LEVELS[4]: far}))


PICTURES = [(stack(smooth(5, np.random.default_rng(1))),)]


def test_a_sure_study_is_looked_at_once():
    assert not gate.is_turned(PICTURES, detection(confidence=0.996), None)


@pytest.mark.parametrize(
    ("confidence", "vertebrae", "turned"),
    [(0.999, 4, True), (0.999, 3, False), (0.99, 8, False)],
)
def test_a_study_is_turned_if_it_is_sure_only_otherwise(confidence, vertebrae, turned):
    asked = []

    def locate(sagittal):
        asked.append(sagittal[0][0].pixels)
        return detection(confidence=confidence, vertebrae=vertebrae)

    assert gate.is_turned(PICTURES, detection(confidence=0.8), locate) is turned
    assert len(asked) == (1 if turned else 4)
    pixels = PICTURES[0][0].pixels
    np.testing.assert_array_equal(asked[0], pixels[:, ::-1, ::-1])


def test_a_quarter_turn_takes_the_spacing_along():
    one = replace(PICTURES[0][0], spacing_mm=(2.0, 3.0))
    there = gate._quarter_turned(one)
    assert there.spacing_mm == (3.0, 2.0)
    back = gate._quarter_turned_back(there)
    np.testing.assert_array_equal(back.pixels, one.pixels)
    assert back.spacing_mm == one.spacing_mm


@pytest.mark.slow
def test_phantoms_are_graded_and_not_upside_down_dealt_or_as_noise():
    rng = np.random.default_rng(0)
    (sample,) = phantom_samples(1)

    def graded(change):
        series = tuple(
            replace(one, stacks=tuple(map(change, one.stacks)))
            for one in sample.study.series
        )
        result = pipeline.grade(replace(sample.study, series=series))
        return str(result.status), result.reason, bool(result.levels)

    def dealt(one):
        return replace(one, pixels=one.pixels[rng.permutation(len(one.pixels))])

    def noise(one):
        values = rng.integers(0, 999, one.pixels.shape).astype(np.uint16)
        return replace(one, pixels=values)

    with StudyPipeline.open() as pipeline:
        assert graded(lambda one: one) == ("graded", None, True)
        assert graded(gate._upside_down) == ("prior", "not_lumbar", False)
        assert graded(gate._half_turned) == ("prior", "not_lumbar", False)
        assert graded(dealt) == ("prior", "poor_quality", False)
        assert graded(noise) == ("prior", "poor_quality", False)
