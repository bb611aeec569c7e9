"""What a grader's training feeds the loop: every labelled grid once an epoch, labels that follow the mirror, the exact
loss that fades out."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("timm_3d", reason="needs the train extra")
pytest.importorskip("torchio", reason="needs the train extra")

from made_grids import SHAPE, bright_blobs  # noqa: E402

from spine_engine.errors import UsageError  # noqa: E402
from spine_training.fit import Session  # noqa: E402
from spine_training.grader import train as training  # noqa: E402
from spine_training.grader.augment import NOTHING, AugmentOptions, augment  # noqa: E402
from spine_training.grader.grids import GridSet  # noqa: E402
from spine_training.grader.model import Grader, GraderConfig  # noqa: E402
from spine_training.grader.train import GradingOptions, GradingTask  # noqa: E402

CONFIG = GraderConfig(backbone="narrow_conv_8", shape=SHAPE)
STILL = GradingOptions(batch=4, augment=NOTHING)


@pytest.fixture(scope="module")
def grids(tmp_path_factory):
    return bright_blobs(tmp_path_factory.mktemp("grids"), 3, 0)


@pytest.fixture(scope="module")
def grader():
    torch.manual_seed(0)
    return Grader(CONFIG)


def numbered(folder, grades):
    """Grids whose voxels are a quarter of study.box-level as a decimal number, with these grades."""
    files = []
    for study in range(len(grades)):
        values = (study + 0.1 * np.arange(2)[:, None] + 0.01 * np.arange(5)) / 4
        files.append(folder / f"{study}.npy")
        np.save(
            files[-1],
            np.broadcast_to(
                values[:, :, None, None, None, None], (2, 5, 3, *SHAPE)
            ).astype(np.float16),
        )
    return GridSet(tuple(files), grades, np.full(grades.shape, np.nan), 2)


def test_every_labelled_grid_comes_once_an_epoch_with_its_own_grades(tmp_path, grader):
    grades = np.arange(50).reshape(2, 5, 5) % 3
    grades[1, 2] = -1  # a level without a label
    grades[0, 0, 1:] = -1  # one with a single label
    task = GradingTask(grader, numbered(tmp_path, grades), STILL)
    assert task.steps == 5  # 2 boxes of 9 levels in batches of at most 4
    seen = []
    for step in range(5):
        images, labels, narrowing = task.batch(0, step)
        assert images.shape[1:] == (3, *SHAPE)
        assert images.dtype == torch.float32
        assert torch.isnan(narrowing).all()
        for image, label in zip(images, labels, strict=True):
            value = 4 * float(image[0, 0, 0, 0])
            study, box, level = (
                int(value + 0.005),
                int(value * 10 + 0.05) % 10,
                round(value * 100) % 10,
            )
            assert label.tolist() == grades[study, level].tolist()
            seen.append((study, box, level))
    assert sorted(seen) == sorted(
        (study, box, level)
        for study in range(2)
        for box in range(2)
        for level in range(5)
        if (study, level) != (1, 2)
    )
    sizes = [len(task.batch(0, step)[0]) for step in range(5)]
    assert max(sizes) - min(sizes) <= 1, (
        "batches are as large as each other, or one larger"
    )


def test_the_order_is_another_each_epoch_and_that_of_the_seed(grids, grader):
    def first(epoch, seed=0):
        return GradingTask(grader, grids, STILL, seed=seed).batch(epoch, 0)[0]

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))
    assert not torch.equal(first(0), first(0, seed=1))


def test_where_the_narrowing_is_known_another_reader_grades_every_epoch(grids):
    """Noisy readers disagree near their thresholds; a missing label stays missing, an unknown narrowing keeps its."""
    known = replace(grids, grades=grids.grades.copy(), narrowing=grids.narrowing.copy())
    known.grades[0, 0, 0] = -1
    known.narrowing[1, :, 1] = np.nan
    first, again, other = (known.grades_of_epoch(epoch) for epoch in (0, 0, 7))
    assert np.array_equal(first, again)
    assert 0 < (first != other).sum() < 25
    assert first[0, 0, 0] == other[0, 0, 0] == -1
    assert np.array_equal(first[1, :, 1], known.grades[1, :, 1])
    assert (first != known.grades).any()


def test_a_mirrored_grid_has_the_grades_and_the_narrowing_of_the_other_side(
    grids, grader
):
    plain = GradingTask(grader, grids, STILL).batch(0, 0)
    mirrored = GradingTask(
        grader, grids, replace(STILL, augment=replace(NOTHING, mirror=1.0))
    ).batch(0, 0)
    other = [2, 3, 0, 1, 4]  # left and right foramen, left and right recess, canal
    assert torch.equal(mirrored[0], plain[0].flip(-1))
    assert torch.equal(mirrored[1], plain[1][:, other])
    assert torch.equal(mirrored[2], plain[2][:, other])


def test_a_chance_of_none_never_mirrors_and_of_one_always_does():
    image, order = torch.rand(3, *SHAPE), torch.arange(5)
    for chance, wanted in ((0.0, [0, 1, 2, 3, 4]), (1.0, [2, 3, 0, 1, 4])):
        for seed in range(10):
            _, (label,) = augment(
                image,
                [order],
                (2, 3, 0, 1, 4),
                (1, 1, 1),
                replace(NOTHING, mirror=chance),
                seed,
            )
            assert label.tolist() == wanted


def test_the_changes_are_as_often_and_as_far_as_they_were_chosen():
    options = AugmentOptions()
    assert options == AugmentOptions(
        mirror=0.5, drop_channel=0.12, affine=0.25, anisotropy=0.1, gamma=0.5, bias_field=0.15, ghosting=0.1, noise=0.5,
        rotation_deg=5.0, shift_mm=1.5, scale=0.08, log_gamma=0.28, noise_sd=0.04,
    )  # fmt: skip
    image, empty = torch.rand(3, *SHAPE) + 0.1, 0
    for seed in range(60):
        changed, _ = augment(
            image, [], (), (1, 1, 1), replace(NOTHING, drop_channel=0.4), seed
        )
        empty += bool((changed.flatten(1) == 0).all(1).any())
    assert 14 <= empty <= 34, "near 24 of 60"


def test_a_shift_is_in_millimetres_of_the_grid():
    """A point moves within 3 mm: one voxel of 3 mm, six of 0.5 mm; all channels move alike."""
    image = torch.zeros(2, 25, 25, 25)
    image[:, 12, 12, 12] = 1.0
    options = replace(NOTHING, affine=1.0, rotation_deg=0.0, scale=0.0, shift_mm=3.0)
    farthest = {}
    for spacing in (3.0, 0.5):
        moves = []
        for seed in range(12):
            changed, _ = augment(image, [], (), (spacing,) * 3, options, seed)
            assert torch.equal(changed[0], changed[1])
            places = np.argwhere(changed[0].numpy() >= 0.99 * float(changed[0].max()))
            moves.append(np.abs(places.mean(0) - 12).max())
        farthest[spacing] = max(moves)
    assert farthest[3.0] <= 1.5
    assert 3 < farthest[0.5] <= 6.5


def test_the_exact_loss_fades_out_by_four_fifths_of_the_training(grids, grader):
    task = GradingTask(grader, grids, replace(STILL, exact_weight=3.0))
    batch = task.batch(0, 0)
    torch.manual_seed(0)
    found = {}
    grader.eval()
    for progress in (0.0, 0.4, 0.8, 0.95):
        loss, parts = task.loss(batch, progress)
        found[progress] = (float(loss.detach()) - float(parts["grading"])) / float(
            parts["exact"]
        )
        assert not parts["grading"].requires_grad
        assert not parts["exact"].requires_grad
    assert list(found.values()) == pytest.approx([3.0, 1.5, 0.0, 0.0], abs=1e-4)
    assert list(parts) == ["grading", "exact"]


def test_cutpoints_learn_ten_times_as_fast_and_do_not_decay(grids, grader):
    groups = GradingTask(grader, grids, STILL).parameter_groups(0.07)
    names = {id(p): name for name, p in grader.named_parameters()}
    kinds = [{names[id(p)] for p in group["params"]} for group in groups]
    assert [(group["weight_decay"], group["times"]) for group in groups] == [
        (0.07, 1.0),
        (0.0, 1.0),
        (0.0, 10.0),
    ]
    assert kinds[2] == {f"heads.{n}.1.cutpoints" for n in range(5)}
    assert {f"heads.{n}.0.weight" for n in range(5)} <= kinds[0]
    assert {f"heads.{n}.0.bias" for n in range(5)} <= kinds[1]
    assert sum(map(len, kinds)) == len(names)


def test_after_a_step_crossed_cutpoints_are_put_in_order(grids, grader):
    grader.heads[1][1].cutpoints.data[:] = torch.tensor([2.0, -2.0])
    GradingTask(grader, grids, STILL).after_step()
    assert grader.heads[1][1].cutpoints.tolist() == pytest.approx([2.0, 2.001])
    grader.heads[1][1].cutpoints.data[:] = torch.tensor([-1.5, 1.5])


def test_a_checkpoint_says_how_the_grids_became_batches(grids, grader):
    task = GradingTask(grader, grids, STILL, data="3 made-up studies")
    assert (task.settings["batch"], task.settings["exact_weight"]) == (4, 4.0)
    assert (task.settings["studies"], task.settings["data"]) == (3, "3 made-up studies")
    assert task.settings["augment"]["mirror"] == 0
    assert task.config["backbone"] == "narrow_conv_8"
    assert GradingOptions().batch == 32


def test_too_few_grids_and_too_small_batches_are_refused(grids, grader, tmp_path):
    with pytest.raises(
        UsageError, match="batch is 1; batch norm needs at least 2 grids"
    ):
        GradingOptions(batch=1)
    assert GradingOptions(batch=2).batch == 2
    grades = np.full((1, 5, 5), -1)
    grades[0, 0, 0] = 1
    single = replace(numbered(tmp_path, grades), boxes=1)
    with pytest.raises(UsageError, match="fewer than two labelled grids"):
        GradingTask(grader, single, STILL)
    assert GradingTask(grader, replace(single, boxes=2), STILL).steps == 1


def test_figures_are_what_watch_says_of_a_grader(grids, grader):
    task = GradingTask(
        grader, grids, STILL, watch=lambda averaged: {"same": float(averaged is grader)}
    )
    assert task.figures(grader) == {"same": 1.0}
    assert task.figures(torch.nn.Identity()) == {}
    assert GradingTask(grader, grids, STILL).figures(grader) == {}


def test_a_training_begins_with_the_averaged_weights_of_the_same_kind_of_grader(
    grids, tmp_path, monkeypatch
):
    begun = []
    monkeypatch.setattr(
        training,
        "fit",
        lambda task, *_, **__: begun.append(task.model.state_dict()) or task.model,
    )
    start = Grader(CONFIG)
    content = {
        "config": GradingTask(start, grids, STILL).config,
        "model": Grader(CONFIG).state_dict(),
    }
    torch.save({**content, "ema": start.state_dict()}, tmp_path / "start.pt")
    once = training.FitOptions(epochs=1, learning_rate=1e-3)
    training.train(
        grids, CONFIG, once, Session(out=tmp_path / "a", start=tmp_path / "start.pt")
    )
    assert all(
        torch.equal(value, start.state_dict()[name]) for name, value in begun[0].items()
    )
    other = replace(CONFIG, pool="max")
    with pytest.raises(
        UsageError,
        match=r"start\.pt is another grader \(narrow_conv_8, level\) than asked for",
    ):
        training.train(
            grids, other, once, Session(out=tmp_path / "b", start=tmp_path / "start.pt")
        )


def test_without_a_start_the_seed_decides_the_first_weights(
    grids, tmp_path, monkeypatch
):
    begun = []
    monkeypatch.setattr(
        training, "fit", lambda task, *_, **__: begun.append(task) or task.model
    )
    for seed in (3, 3, 4):
        options = training.FitOptions(epochs=1, learning_rate=1e-3, seed=seed)
        training.train(grids, CONFIG, options, Session(out=tmp_path))
    weights = [task.model.heads[0][0].weight for task in begun]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(begun[0].batch(0, 0)[0], begun[2].batch(0, 0)[0]), (
        "and the order of the grids"
    )
