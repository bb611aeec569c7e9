"""What OpenVINO does beyond the contract: a model that varies in nothing but its batch is compiled for one item."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spine_engine.backends import Backend, Profile, open_backend

pytest.importorskip("openvino")

Make = Callable[..., bytes]

SIDES = (16, 24)
BATCHES = Profile(
    smallest=(1, 2, *SIDES),
    usual=(5, 2, *SIDES),
    largest=(16, 2, *SIDES),
    batches=(1, 5),
)

UP_TO_64 = Profile(smallest=(1, 2, 8, 8), usual=(1, 2, 32, 32), largest=(4, 2, 64, 64))


def opened(model: bytes, profile: Profile | None) -> Backend:
    return open_backend(model, precision="f32", profile=profile)


def test_an_item_has_the_same_bytes_in_every_batch_compiled_or_from_the_cache(
    make_model: Make, cache: Path
) -> None:
    model = make_model(sizes=SIDES)
    images = np.random.default_rng(0).normal(size=(5, 2, *SIDES)).astype(np.float32)
    answers = []
    for _ in range(2):
        backend = opened(model, BATCHES)
        assert backend.inputs[0].shape == (None, 2, *SIDES)
        assert backend.outputs[0].shape == (None, 3, *SIDES)
        answers.append(backend.run({"image": images})["maps"])
        for number, image in enumerate(images):
            assert np.array_equal(
                backend.run({"image": image[None]})["maps"][0], answers[-1][number]
            )
        backend.close()
    assert np.array_equal(*answers)
    assert len(list(cache.iterdir())) == 1


def test_one_item_at_a_time_agrees_with_the_batch_as_a_whole(make_model: Make) -> None:
    model = make_model(sizes=SIDES)
    images = np.random.default_rng(0).normal(size=(3, 2, *SIDES)).astype(np.float32)
    singly, whole = opened(model, BATCHES), opened(model, None)
    np.testing.assert_allclose(
        singly.run({"image": images})["maps"],
        whole.run({"image": images})["maps"],
        atol=1e-6,
    )


def test_open_sizes_run_up_to_those_of_the_profile_and_no_further(
    make_model: Make,
) -> None:
    model = make_model(sizes=("h", "w"))
    bounded, whole = opened(model, UP_TO_64), opened(model, None)
    assert bounded.inputs[0].shape == whole.inputs[0].shape == (None, 2, None, None)
    for sides in ((8, 8), (16, 24), (64, 64)):
        images = np.random.default_rng(0).normal(size=(3, 2, *sides)).astype(np.float32)
        maps = bounded.run({"image": images})["maps"]
        np.testing.assert_allclose(
            maps, whole.run({"image": images})["maps"], atol=1e-6
        )
    for sides in ((16, 65), (7, 16)):
        with pytest.raises(
            ValueError, match=r"image must have the shape .*8\.\.64.*, got "
        ):
            bounded.run({"image": np.zeros((1, 2, *sides), np.float32)})


@pytest.mark.parametrize("sizes", [("h", "w"), (16, "w"), (32, 24)])
def test_a_profile_is_not_forced_on_a_model_of_other_sizes(
    make_model: Make, sizes: tuple[int | str, int | str]
) -> None:
    backend = opened(make_model(sizes=sizes), BATCHES)
    shown = tuple(size if isinstance(size, int) else None for size in sizes)
    assert backend.inputs[0].shape == (None, 2, *shown)
