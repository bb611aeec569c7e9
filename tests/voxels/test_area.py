"""Slices resized by area mean: equal to the plain reference, and to OpenCV where it is installed, in every pixel."""

import numpy as np
import pytest
import recipe_plainly as plain

from spine_engine.voxels.area import area_resize

SHAPES = [
    (64, 64),
    (48, 48),
    (32, 64),
    (64, 32),
    (96, 96),
    (40, 56),
    (33, 47),
    (45, 31),
    (16, 16),
    (9, 20),
    (1, 1),
    (20, 2),
]
KINDS = [
    (np.uint16, 0, 4096),
    (np.uint16, 0, 65536),
    (np.int16, -32768, 32768),
    (np.uint16, 0, 3),
]


def image_of(shape, kind):
    dtype, low, high = kind
    return np.random.default_rng(sum(shape)).integers(low, high, shape).astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_resized_slice_is_the_references(shape, kind):
    image = image_of(shape, kind)
    resized = area_resize(image, (16, 16))
    assert resized.dtype == image.dtype
    np.testing.assert_array_equal(resized, plain.area_mean(image, 16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape",
    [(s * 8, t * 8) for s, t in SHAPES]
    + [(512, 640), (300, 257), (255, 1024), (890, 864)],
)
def test_a_resized_slice_is_opencvs(shape, kind):
    cv2 = pytest.importorskip("cv2")
    image = image_of(shape, kind)
    np.testing.assert_array_equal(
        area_resize(image, (256, 256)),
        cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA),
    )


def test_halves_are_rounded_up_only_for_blocks_of_two_by_two():
    two = np.array([[1, 2], [1, 2]], np.uint16)
    four = np.zeros((4, 4), np.uint16)
    four[0, 0] = 8
    assert area_resize(two, (1, 1))[0, 0] == 2
    assert area_resize(four, (1, 1))[0, 0] == 0
    four[0, 1] = 16
    assert area_resize(four, (1, 1))[0, 0] == 2
    assert area_resize(-two.astype(np.int16), (1, 1))[0, 0] == -1


def test_a_slice_of_that_size_stays_as_it_is():
    image = image_of((16, 16), KINDS[0])
    assert area_resize(image, (16, 16)) is image
