"""The grader's model, loss and augmentation, on random tensors."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("timm_3d", reason="needs the train extra")

from spine_engine.anatomy import CONDITIONS, MIRRORED_CONDITION  # noqa: E402
from spine_engine.errors import UsageError  # noqa: E402
from spine_engine.phantom.severity import READER_THRESHOLDS  # noqa: E402
from spine_training.grader.augment import NOTHING, AugmentOptions, augment  # noqa: E402
from spine_training.grader.loss import grading_loss, narrowing_loss  # noqa: E402
from spine_training.grader.model import (  # noqa: E402
    MIRRORED_HEADS,
    WHOLE_STUDY,
    Grader,
    GraderConfig,
    MirrorAveraged,
    load_grader,
    save_grader,
)
from spine_training.metric import MISSING  # noqa: E402

TINY = GraderConfig(backbone="narrow_conv_8", shape=(8, 12, 16))


@pytest.fixture
def grader() -> Grader:
    torch.manual_seed(0)
    model = Grader(TINY).eval()
    for head in model.heads:  # fresh heads say nearly the same of everything
        torch.nn.init.normal_(head[0].weight, std=1.0)
    return model


def grids(count: int, seed: int = 0) -> "torch.Tensor":
    return torch.rand(
        count, 3, *TINY.shape, generator=torch.Generator().manual_seed(seed)
    )


def test_probabilities_and_field_names_of_the_state_dict(grader):
    with torch.no_grad():
        probabilities = grader(grids(3))
    assert probabilities.shape == (3, 5, 3)
    assert torch.allclose(probabilities.sum(-1), torch.ones(3, 5), atol=1e-6)
    keys = set(grader.state_dict())
    assert {
        f"heads.{n}.{part}"
        for n in range(5)
        for part in ("0.weight", "0.bias", "1.cutpoints")
    } <= keys
    assert all(key.startswith(("backbone.", "heads.")) for key in keys)


def test_a_mirrored_image_exchanges_the_sides_and_nothing_else(grader):
    model = MirrorAveraged(grader)
    image = grids(4)
    with torch.no_grad():
        plain, mirrored = model(image), model(image.flip(-1))
    left = CONDITIONS.index("left_neural_foraminal_narrowing")
    right = CONDITIONS.index("right_neural_foraminal_narrowing")
    assert torch.allclose(mirrored[:, left], plain[:, right], atol=1e-6)
    assert torch.allclose(mirrored[:, list(MIRRORED_HEADS)], plain, atol=1e-6)
    assert (plain[:, left] - plain[:, right]).abs().max() > 1e-3
    assert [CONDITIONS[k] for k in MIRRORED_HEADS] == [
        MIRRORED_CONDITION[c] for c in CONDITIONS
    ]


def test_coordinates_let_the_model_tell_the_sides_apart(grader):
    image = grids(1)
    with torch.no_grad():
        assert (grader(image) - grader(image.flip(-1))).abs().max() > 1e-4


def test_crossed_cutpoints_are_put_in_order(grader):
    with torch.no_grad():
        grader.heads[2][1].cutpoints.copy_(torch.tensor([3.0, -1.0]))
    grader.order_cutpoints()
    with torch.no_grad():
        assert grader(grids(2)).min() >= 0
    assert all(head[1].cutpoints[1] > head[1].cutpoints[0] for head in grader.heads)


def test_a_saved_grader_comes_back(grader, tmp_path):
    save_grader(grader, tmp_path / "grader.pt")
    again = load_grader(tmp_path / "grader.pt")
    assert again.config == grader.config
    with torch.no_grad():
        assert torch.equal(again(grids(2)), grader(grids(2)))


def test_a_file_that_is_no_grader_is_refused(tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match=r"other\.pt is no checkpoint"):
        load_grader(tmp_path / "other.pt")


def test_loss_by_hand_and_missing_labels():
    grades = torch.full((2, 5), MISSING)
    grades[0, 4], grades[1, 4] = 0, 2
    probabilities = torch.full((2, 5, 3), 1 / 3)
    probabilities[0, 4] = torch.tensor([0.8, 0.1, 0.1])
    probabilities[1, 4] = torch.tensor([0.5, 0.3, 0.2])
    canal = (-np.log(0.8) + 4 * -np.log(0.2)) / 5
    assert float(grading_loss(probabilities, grades)) == pytest.approx(canal / 3)


def test_a_batch_without_labels_has_no_gradient(grader):
    grader(grids(2)).sum().backward()
    grader.zero_grad()
    loss = grading_loss(grader(grids(2)), torch.full((2, 5), MISSING))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in grader.parameters())


def test_narrowing_is_read_off_the_latents_on_the_scale_of_the_thresholds():
    cutpoints = torch.tensor([[-2.0, 3.0]]).repeat(5, 1)
    latents = torch.stack([cutpoints[:, 0], cutpoints[:, 1]])
    low, high = (torch.full((1, 5), cut) for cut in READER_THRESHOLDS)
    assert float(
        narrowing_loss(latents, cutpoints, torch.cat([low, high]))
    ) == pytest.approx(0, abs=1e-6)
    missed = torch.cat([low, high]) + 0.1
    assert float(narrowing_loss(latents, cutpoints, missed)) == pytest.approx(
        0.1, abs=1e-6
    )
    missed[0] = torch.nan
    assert float(narrowing_loss(latents, cutpoints, missed)) == pytest.approx(
        0.1, abs=1e-6
    )
    assert (
        float(narrowing_loss(latents, cutpoints, torch.full_like(missed, torch.nan)))
        == 0
    )


ORDER = torch.arange(5)


def changed(image, options, seed=0):
    return augment(
        image, [ORDER, ORDER / 10], MIRRORED_HEADS, TINY.spacing_mm, options, seed
    )


def test_augmentation_swaps_grades_with_the_sides_and_keeps_holes_empty():
    image = grids(1)[0] * 0.5 + 0.25
    image[1, :, :, :4] = 0
    options = replace(
        AugmentOptions(), affine=0, anisotropy=0, drop_channel=0
    )  # what moves, moves the hole
    flips = 0
    for seed in range(40):
        result, (grades, narrowing) = changed(image, options, seed)
        flipped = not torch.equal(grades, ORDER)
        flips += flipped
        assert torch.equal(grades, torch.tensor(MIRRORED_HEADS)) or not flipped
        assert torch.equal(narrowing, grades / 10)
        assert not (result[1, :, :, -4:] if flipped else result[1, :, :, :4]).any()
        assert 0 <= float(result.min()) <= float(result.max()) <= 1
    assert 10 < flips < 30


def test_a_whole_study_exchanges_the_sides_level_by_level():
    heads = WHOLE_STUDY.mirrored_heads
    left = CONDITIONS.index("left_subarticular_stenosis")
    right = CONDITIONS.index("right_subarticular_stenosis")
    assert heads[5 * left : 5 * left + 5] == tuple(range(5 * right, 5 * right + 5))
    assert sorted(heads) == list(range(25))


def test_no_change_at_all_and_the_same_change_for_the_same_seed():
    image = grids(1)[0]
    assert torch.equal(changed(image, NOTHING)[0], image)
    before = torch.random.get_rng_state()
    first, second, other = (
        changed(image, AugmentOptions(), seed)[0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "kind", ["affine", "anisotropy", "gamma", "bias_field", "ghosting", "noise"]
)
def test_every_change_changes_something(kind):
    image = grids(1)[0] * 0.5 + 0.25
    result = changed(image, replace(NOTHING, **{kind: 1.0}))[0]
    assert result.shape == image.shape
    assert 1e-4 < float((result - image).abs().mean()) < 0.3


def test_lost_channels_come_one_at_a_time():
    for seed in range(6):
        result = changed(
            grids(1)[0] * 0.5 + 0.25, replace(NOTHING, drop_channel=1.0), seed
        )[0]
        assert int((~result.flatten(1).any(dim=1)).sum()) == 1


def test_25_heads_of_a_whole_study(tmp_path):
    torch.manual_seed(0)
    config = replace(WHOLE_STUDY, backbone="narrow_conv_8", shape=(16, 12, 8))
    model = MirrorAveraged(Grader(config)).eval()
    image = torch.rand(2, 3, *config.shape)
    with torch.no_grad():
        plain, mirrored = model(image), model(image.flip(-1))
    assert plain.shape == (2, 25, 3)
    assert torch.allclose(mirrored[:, list(config.mirrored_heads)], plain, atol=1e-6)
    grades = torch.full((2, 25), MISSING)
    grades[0, 22] = 1  # the canal at L3/L4
    assert float(grading_loss(plain, grades)) == pytest.approx(
        -np.log(float(plain[0, 22, 1])) / 3, rel=1e-5
    )
