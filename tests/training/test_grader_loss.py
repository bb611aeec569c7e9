"""Cumulative links and the graders' loss against formulas written out by hand."""

from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("timm_3d", reason="needs the train extra")

from spine_training.grader.loss import grading_loss, narrowing_loss  # noqa: E402
from spine_training.grader.model import (  # noqa: E402
    Grader,
    GraderConfig,
    MirrorAveraged,
    load_grader,
    save_grader,
)

TINY = GraderConfig(backbone="narrow_conv_8", shape=(8, 12, 16))


def sigmoid(x):
    return 1 / (1 + exp(-x)) if x >= 0 else exp(x) / (1 + exp(x))


@pytest.fixture(scope="module")
def grader():
    torch.manual_seed(0)
    return Grader(TINY).eval()


numbers = st.floats(-12, 12, allow_nan=False)


@given(low=numbers, gap=st.floats(0.001, 10), latent=numbers, step=st.floats(0.01, 5))
def test_cumulative_links_are_sigmoids_between_cutpoints(
    grader, low, gap, latent, step
):
    """P(y <= k) = sigmoid(cut k - latent): rows sum to one, and a larger latent is never milder."""
    for link in grader.links():
        link.cutpoints.data[:] = torch.tensor([low, low + gap])
    with torch.no_grad():
        first, second = (
            grader.grade(torch.full((1, 5), latent)),
            grader.grade(torch.full((1, 5), latent + step)),
        )
    mild, at_most_moderate = sigmoid(low - latent), sigmoid(low + gap - latent)
    expected = [mild, at_most_moderate - mild, 1 - at_most_moderate]
    assert first[0, 3].tolist() == pytest.approx(expected, abs=2e-5)
    assert first.sum(-1).tolist() == [pytest.approx([1.0] * 5, abs=1e-5)]
    assert first.min() >= 0
    assert (second[..., 0] <= first[..., 0] + 1e-6).all()
    assert (second[..., 2] >= first[..., 2] - 1e-6).all()


def test_each_head_has_its_own_cutpoints_which_begin_at_one_and_a_half(grader):
    fresh = Grader(TINY)
    assert [link.cutpoints.tolist() for link in fresh.links()] == [[-1.5, 1.5]] * 5
    for number, link in enumerate(fresh.links()):
        link.cutpoints.data[:] = torch.tensor([-1.0, float(number)])
    with torch.no_grad():
        rows = fresh.grade(torch.zeros(1, 5))[0]
    assert rows[:, 2].tolist() == pytest.approx(
        [1 - sigmoid(number) for number in range(5)], abs=1e-5
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([3.0, -1.0], [3.0, 3.001]),
        ([1.0, 1.0], [1.0, 1.001]),
        ([1.0, 1.5], [1.0, 1.5]),
        ([0.0, 5e-4], [0.0, 1e-3]),
    ],
)
def test_crossed_cutpoints_are_put_a_thousandth_apart_and_others_left(before, after):
    grader = Grader(TINY)
    for link in grader.links():
        link.cutpoints.data[:] = torch.tensor(before)
    grader.order_cutpoints()
    for link in grader.links():
        assert link.cutpoints.tolist() == pytest.approx(after, abs=1e-6)


# Heads of a level: 0 and 2 foramina, 1 and 3 recesses, 4 canal.


def test_the_loss_is_the_mean_of_three_groups_each_weighted_by_its_labels():
    rows = torch.tensor([0.5, 0.3, 0.2]).repeat(2, 5, 1)
    grades = torch.tensor([[0, 1, 2, 2, 0], [1, -1, 0, 0, 2]])
    foraminal = (-log(0.5) - 4 * log(0.2) - 2 * log(0.3) - log(0.5)) / (1 + 4 + 2 + 1)
    subarticular = (-2 * log(0.3) - 4 * log(0.2) - log(0.5)) / (2 + 4 + 1)
    canal = (-log(0.5) - 4 * log(0.2)) / 5
    assert float(grading_loss(rows, grades)) == pytest.approx(
        (foraminal + subarticular + canal) / 3, rel=1e-5
    )


def test_a_single_normal_label_counts_in_full():
    rows, grades = torch.tensor([0.5, 0.3, 0.2]).repeat(1, 5, 1), torch.full((1, 5), -1)
    grades[0, 4] = 0
    assert float(grading_loss(rows, grades)) == pytest.approx(-log(0.5) / 3, rel=1e-5)


def test_the_loss_of_a_whole_study_takes_condition_by_condition():
    rows = torch.tensor([0.5, 0.3, 0.2]).repeat(1, 25, 1)
    for head, count in ((0, 1), (4, 1), (5, 1), (9, 1), (20, 1), (24, 1)):
        grades = torch.full((1, 25), -1)
        grades[0, head] = 2
        assert float(grading_loss(rows, grades)) == pytest.approx(
            count * -log(0.2) / 3, rel=1e-5
        )
    grades[0, 20], grades[0, 4] = 0, 1  # two canal rows, one foraminal one
    canal, foraminal = (-log(0.5) - 4 * log(0.2)) / 5, -log(0.3)
    assert float(grading_loss(rows, grades)) == pytest.approx(
        (canal + foraminal) / 3, rel=1e-5
    )


@given(
    latents=st.lists(st.floats(-30, 30), min_size=5, max_size=5),
    grades=st.lists(st.integers(-1, 2), min_size=5, max_size=5),
)
def test_the_gradient_is_finite_and_missing_labels_pull_nowhere(latents, grades):
    grader = Grader.__new__(Grader)
    torch.nn.Module.__init__(grader)
    from spacecutter.models import LogisticCumulativeLink

    grader.heads = torch.nn.ModuleList(
        torch.nn.Sequential(torch.nn.Identity(), LogisticCumulativeLink(3))
        for _ in range(5)
    )
    value = torch.tensor([latents], requires_grad=True)
    loss = grading_loss(grader.grade(value), torch.tensor([grades]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(value.grad).all()
    for gradient, grade in zip(value.grad[0].tolist(), grades, strict=True):
        if grade == -1:
            assert gradient == 0
        if grade == 0:
            assert gradient >= 0
        if grade == 2:
            assert gradient <= 0


def test_narrowing_is_linear_in_the_latents_and_its_cutpoints_are_not_trained():
    """A noise-free reader says moderate from a narrowing of 0.42 on and severe from 0.68 (phantom.severity)."""
    low, high = 0.42, 0.68
    cutpoints = torch.tensor([[-1.0, 3.0]] * 5, requires_grad=True)
    latents = torch.full((1, 5), 1.0, requires_grad=True)  # half way
    narrowing = torch.full((1, 5), (low + high) / 2 + 0.25)
    loss = narrowing_loss(latents, cutpoints, narrowing)
    assert float(loss.detach()) == pytest.approx(0.25, abs=1e-6)
    loss.backward()
    assert cutpoints.grad is None
    assert latents.grad[0].tolist() == pytest.approx(
        [-(high - low) / 4 / 5] * 5, rel=1e-5
    )
    narrowing[0, 1:] = torch.nan
    narrowing[0, 0] -= 0.15
    assert float(
        narrowing_loss(latents, cutpoints, narrowing).detach()
    ) == pytest.approx(0.1, abs=1e-6)


# -- the model ---------------------------------------------------------------------------------------------------------


def test_the_places_of_voxels_run_from_minus_one_to_one_along_each_axis(grader):
    assert grader.place_d[0, 0, :, 0, 0].tolist() == pytest.approx(
        np.linspace(-1, 1, 8).tolist()
    )
    assert grader.place_h[0, 0, 0, :, 0].tolist() == pytest.approx(
        np.linspace(-1, 1, 12).tolist()
    )
    assert grader.place_w[0, 0, 0, 0, :].tolist() == pytest.approx(
        np.linspace(-1, 1, 16).tolist()
    )
    seen = []
    hook = grader.backbone.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    with torch.no_grad():
        image = torch.rand(2, 3, 8, 12, 16)
        grader(image)
    hook.remove()
    assert seen[0].shape == (2, 6, 8, 12, 16)
    assert torch.equal(seen[0][:, :3], image)
    places = [
        grader.place_d[0, 0, 2, 0, 0],
        grader.place_h[0, 0, 0, 5, 0],
        grader.place_w[0, 0, 0, 0, 7],
    ]
    assert torch.equal(seen[0][1, 3:, 2, 5, 7], torch.tensor(places))


def test_a_grader_without_coordinates_cannot_tell_where_a_voxel_lies():
    plain = Grader(
        GraderConfig(backbone="narrow_conv_8", shape=(8, 12, 16), coordinates=False)
    ).eval()
    assert next(plain.backbone.parameters()).shape[1] == 3
    with torch.no_grad():
        assert plain(torch.rand(1, 3, 8, 12, 16)).shape == (1, 5, 3)


def test_the_default_graders_are_those_of_the_decision():
    config = GraderConfig()
    assert (config.backbone, config.pool, config.shape) == (
        "narrow_conv_24",
        "avg",
        (24, 40, 48),
    )
    assert (config.spacing_mm, config.offset_mm) == ((1.6, 1.2, 1.2), (0.0, 18.0, 0.0))
    assert config.channels == ("sagittal_t1", "axial_t2", "sagittal_t2")
    assert config.mirrored_heads == (2, 3, 0, 1, 4)
    assert (config.levels, config.heads) == (1, 5)
    assert GraderConfig.from_dict({"shape": [1, 2, 3], "pool": "max"}) == GraderConfig(
        shape=(1, 2, 3), pool="max"
    )


class Sided(torch.nn.Module):
    """Says of each head how bright the right and left quarter of an image are."""

    config = TINY

    def forward(self, image):
        right, left = (
            image[..., :4].mean((1, 2, 3, 4)),
            image[..., -4:].mean((1, 2, 3, 4)),
        )
        heads = torch.stack(
            [left, 0.5 * left, right, 0.5 * right, (left + 3 * right) / 2], 1
        )
        return torch.stack([1 - heads, heads, 0 * heads], -1)


def test_the_mirror_averaged_grader_is_the_mean_of_both_views():
    image = torch.zeros(1, 3, 8, 12, 16)
    image[..., -4:], image[..., :4] = 0.8, 0.2
    rows = MirrorAveraged(Sided())(image)
    assert rows[0, :, 1].tolist() == pytest.approx(
        [0.8, 0.4, 0.2, 0.1, (0.7 + 1.3) / 2], abs=1e-5
    )


def test_the_averaged_weights_of_a_checkpoint_are_loaded_and_its_latest_only_without_them(
    tmp_path,
):
    torch.manual_seed(1)
    latest, averaged = Grader(TINY), Grader(TINY)
    save_grader(latest, tmp_path / "net.pt")
    assert torch.equal(
        load_grader(tmp_path / "net.pt").heads[0][0].weight, latest.heads[0][0].weight
    )
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    torch.save({**content, "ema": averaged.state_dict()}, tmp_path / "net.pt")
    loaded = load_grader(tmp_path / "net.pt")
    assert torch.equal(loaded.heads[0][0].weight, averaged.heads[0][0].weight)
    assert not loaded.training
