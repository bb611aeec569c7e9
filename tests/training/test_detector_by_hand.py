"""The detector's targets, loss and figures on columns that a hand can follow."""

from math import exp, log, log1p

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("nibabel", reason="the training extra is not installed")
pytest.importorskip("pandas", reason="the training extra is not installed")

from spine_engine.detection import DetectorSpec  # noqa: E402
from spine_training.detector import augment, evaluate  # noqa: E402
from spine_training.detector.exam import Exam, intensity_window  # noqa: E402
from spine_training.detector.figures import ALL, Row, figures, rows_as_json, table  # noqa: E402
from spine_training.detector.loss import detector_loss  # noqa: E402
from spine_training.detector.model import Deployed, LevelHeatmapNet  # noqa: E402
from spine_training.detector.truth import Column, Disc  # noqa: E402

SPEC = DetectorSpec()
CANVAS = (192, 128)  # 384 x 256 mm
ROWS = {0: 250.0, 1: 215.0, 2: 180.0, 3: 145.0, 4: 110.0}
"""Where the discs L5/S1 to L1/L2 lie, mm from the top; all 120 mm from the front and 40 mm from the right."""


def an_exam(*, unknown=(), direction=(0.0, 1.0)):
    discs = tuple(
        Disc(
            rank,
            np.array([row, 120.0, 40.0]),
            np.array(direction),
            known=rank not in unknown,
        )
        for rank, row in ROWS.items()
    )
    bodies = tuple(
        (rank, np.array([row - 17.5, 120.0, 40.0])) for rank, row in ROWS.items()
    )
    volume = np.zeros((384, 256, 81), np.uint8)
    volume[:, 120:] = 100  # the back is bright
    return Exam(
        "a",
        "VB1",
        "a",
        volume,
        (1.0, 1.0, 1.0),
        Column(discs, bodies),
        "T1",
        (0.0, 200.0),
    )


def drawn(monkeypatch, exam, forward=None, shift=(0.0, 0.0), lateral=40.0, crop=None):
    """A sample with a placement, a slice and an intensity curve that are not left to chance."""
    forward = np.eye(2) if forward is None else np.array(forward)
    crop = np.array([0.0, 384.0, 0.0, 256.0]) if crop is None else np.array(crop)
    monkeypatch.setattr(
        augment,
        "_placement",
        lambda *_: augment._Placement(forward, np.array(shift), crop),
    )
    monkeypatch.setattr(
        augment, "_slice_plane", lambda *_: np.array([lateral, 0.0, 0.0])
    )
    arrays = augment.arrays_from_exam(exam, SPEC)
    return augment.sample(arrays, CANVAS, np.random.default_rng(0), SPEC)


def pixel(row_mm, column_mm):
    """The pixel of the 4 mm targets that holds a place: its centre lies 1 mm from the first slice pixel's."""
    return round((row_mm - 1.0) / 4.0), round((column_mm - 1.0) / 4.0)


def test_heat_level_and_direction_stand_at_each_disc(monkeypatch):
    slope = (0.6, 0.8)  # down and back
    _, target = drawn(monkeypatch, an_exam(direction=slope))
    assert target.shape == (9, 96, 64)
    for rank, row in ROWS.items():
        at = pixel(row, 120.0)
        assert target[(0, *at)] > 0.85
        assert target[(0, *pixel(row, 120.0 + 24))] < 0.05
        assert target[(2, *at)] == pytest.approx(0.6, abs=1e-5)
        assert target[(3, *at)] == pytest.approx(0.8, abs=1e-5)
        assert target[(4, *at)] == pytest.approx(rank, abs=0.06)
        assert target[(8, *at)] == pytest.approx(
            1.0 if rank < 4 else 0.7, abs=1e-5
        )  # the last lies beyond its disc
        assert target[(1, *pixel(row - 17.5, 120.0))] > 0.9


def test_heat_falls_by_five_millimetres_and_bodies_by_seven(monkeypatch):
    _, target = drawn(monkeypatch, an_exam())
    i, j = pixel(180.0, 120.0)
    y, x = 1.0 + 4 * i, 1.0 + 4 * (j + 2)
    away = (y - 180.0) ** 2 + (x - 120.0) ** 2
    assert target[0, i, j + 2] == pytest.approx(exp(-away / 50), rel=1e-4)
    i, j = pixel(162.5, 120.0)
    away = (1.0 + 4 * i - 162.5) ** 2 + (1.0 + 4 * (j + 2) - 120.0) ** 2
    assert target[1, i, j + 2] == pytest.approx(exp(-away / 98), rel=1e-4)


def test_levels_go_on_beyond_both_ends_and_only_near_the_column(monkeypatch):
    """28 mm below L5/S1 is one level down; above L1/L2 the next disc is 0.92 of 35 mm away."""
    _, target = drawn(monkeypatch, an_exam())
    below, above = pixel(250.0 + 28.0, 120.0), pixel(110.0 - 32.2, 120.0)
    assert target[(4, *below)] == pytest.approx(
        -(1.0 + 4 * below[0] - 250.0) / 28, abs=1e-4
    )
    assert target[(4, *above)] == pytest.approx(
        4 + (110.0 - 1.0 - 4 * above[0]) / 32.2, abs=1e-4
    )
    assert target[(8, *below)] == pytest.approx(1.0)
    assert target[(8, *above)] == pytest.approx(0.7)
    assert target[(8, *pixel(250.0 + 42.0, 120.0))] == 0, (
        "38 mm below the sacrum bends away"
    )
    assert target[(8, *pixel(180.0, 120.0 + 14.0))] > 0
    assert target[(8, *pixel(180.0, 120.0 + 18.0))] == 0, (
        "16 mm beside the column nothing is learnt"
    )


def test_a_slice_beside_the_midline_is_less_sure_and_says_nothing_of_levels_far_out(
    monkeypatch,
):
    """Twelve millimetres is one standard deviation."""
    at = pixel(180.0, 120.0)
    _, near = drawn(monkeypatch, an_exam(), lateral=52.0)
    assert near[(8, *at)] == pytest.approx(exp(-0.5), rel=1e-4)
    assert near[(0, *at)] < 0.62
    _, far = drawn(monkeypatch, an_exam(), lateral=66.0)
    assert not far[8].any()


def test_round_a_disc_of_unknown_place_nothing_is_learnt_of_heat(monkeypatch):
    _, target = drawn(monkeypatch, an_exam(unknown=(2,)))
    assert target[(0, *pixel(180.0, 120.0))] < 0.05
    assert target[(5, *pixel(180.0, 120.0))] == 0
    assert target[(5, *pixel(180.0, 120.0 + 17.0))] == 0
    assert target[(5, *pixel(180.0, 120.0 + 21.0))] == 1
    assert target[(6, *pixel(180.0, 120.0 + 33.0))] == 0
    assert target[(6, *pixel(180.0, 120.0 + 41.0))] == 1


def test_above_the_last_disc_missing_heat_is_no_mistake(monkeypatch):
    _, target = drawn(monkeypatch, an_exam())
    for away, disc, body in ((8.0, 1, 1), (14.0, 0, 1), (24.0, 0, 1), (34.0, 0, 0)):
        at = pixel(110.0 - away, 120.0)
        assert (target[(5, *at)], target[(6, *at)]) == (disc, body), away
    assert target[(5, *pixel(80.0, 120.0 + 40.0))] == 1, "only along the column"


def test_targets_follow_the_picture_as_it_is_moved(monkeypatch):
    """Turned by a quarter: what lay further down lies further to the front."""
    forward, shift = [[0.0, 1.0], [-1.0, 0.0]], (30.0, 256.0)
    image, target = drawn(monkeypatch, an_exam(direction=(0.6, 0.8)), forward, shift)
    for row in (110.0, 145.0, 180.0, 215.0):
        at = pixel(120.0 + 30.0, 256.0 - row)
        assert target[(0, *at)] > 0.85
        assert target[(2, *at)] == pytest.approx(0.8, abs=1e-5)
        assert target[(3, *at)] == pytest.approx(-0.6, abs=1e-5)
    # the back, bright from 120 mm on, now lies below 150 mm
    assert image[76:100, 20:100].mean() > 3 * image[50:74, 20:100].mean()


def test_outside_of_the_field_of_view_there_is_neither_picture_nor_heat(monkeypatch):
    image, target = drawn(monkeypatch, an_exam(), crop=(0.0, 200.0, 0.0, 256.0))
    assert not image[100:].any()
    assert image[:100, 70:].any()
    assert target[(0, *pixel(180.0, 120.0))] > 0.85
    assert target[(0, *pixel(215.0, 120.0))] == 0
    assert target[(8, *pixel(215.0, 120.0))] == 0


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_by_hand():
    """One pixel right and one wrong of each part; heat errors weigh 1 + 30 x heat, the other parts count half."""
    output, target = torch.zeros(1, 14, 1, 2), torch.zeros(1, 9, 1, 2)
    output[0, 0, 0] = torch.tensor([2.0, -1.0])
    target[0, 0, 0] = torch.tensor([1.0, 0.0])
    target[0, 5] = 1
    output[0, 1, 0] = torch.tensor([0.5, 3.0])
    target[0, 6, 0] = torch.tensor([1.0, 0.0])  # the second pixel does not count
    output[0, 2:4, 0, 0] = torch.tensor([0.5, -0.25])
    target[0, 2:4, 0, 0] = torch.tensor([1.0, 0.0])
    target[0, 7, 0, 0] = 0.5
    output[0, 4 + 3, 0, 0], output[0, 4 + 9, 0, 1] = 2.0, 2.0
    target[0, 4, 0] = torch.tensor([2.0, 5.0])  # bins 3 and 6
    target[0, 8, 0] = torch.tensor([1.0, 0.25])
    loss, parts = detector_loss(output, target)
    disc = (31 * log1p(exp(-2.0)) + log1p(exp(-1.0))) / 32
    body = log1p(exp(0.5)) / 1
    direction = (
        0.75 * 0.5 / 1.0
    )  # a weight below one in all is no reason to divide by it
    total = log(exp(2.0) + 9)
    level = ((total - 2.0) * 1.0 + total * 0.25) / 1.25
    assert float(parts["disc"]) == pytest.approx(disc, rel=1e-5)
    assert float(parts["body"]) == pytest.approx(body, rel=1e-5)
    assert float(parts["direction"]) == pytest.approx(direction, rel=1e-5)
    assert float(parts["level"]) == pytest.approx(level, rel=1e-5)
    assert float(parts["level_right"]) == pytest.approx(0.8)
    assert float(loss) == pytest.approx(
        disc + 0.5 * (body + direction + level), rel=1e-5
    )
    assert list(parts) == ["disc", "body", "direction", "level", "level_right"]


def test_a_soft_target_that_is_met_costs_nothing():
    output, target = torch.full((1, 14, 1, 1), log(0.3 / 0.7)), torch.zeros(1, 9, 1, 1)
    target[0, 0], target[0, 5] = 0.3, 1
    assert float(detector_loss(output, target)[1]["disc"]) == pytest.approx(
        0.0, abs=1e-6
    )


def test_the_exported_net_has_sigmoids_on_its_heat_and_none_else():
    torch.manual_seed(0)
    net = LevelHeatmapNet(SPEC).eval()
    with torch.no_grad():
        plain, shown = net(torch.rand(1, 1, 32, 32)), None
        torch.manual_seed(0)
        image = torch.rand(1, 1, 32, 32)
        plain, shown = net(image), Deployed(net)(image)
    assert torch.allclose(shown[:, :2], torch.sigmoid(plain[:, :2]))
    assert torch.equal(shown[:, 2:], plain[:, 2:])
    assert net.head.bias[:2].tolist() == [-3.0, -3.0], "fresh heat is rare"


# -- figures -----------------------------------------------------------------------------------------------------------


def row(error, *, nearest=None, confidence=1.0, weak=False, exam="a"):
    return Row(
        exam,
        "VB1",
        "T1",
        "l4_l5",
        error,
        error if nearest is None else nearest,
        confidence,
        "detector",
        weak,
    )


def test_eight_millimetres_are_right_and_a_confidence_of_nine_tenths_is_sure():
    (_, found) = figures(
        [
            row(8.0),
            row(8.0001, nearest=8.0),
            row(9.0, confidence=0.9),
            row(1.0, confidence=0.8999),
        ]
    )
    assert found.group == ALL
    assert found.right == 0.5
    assert (found.shifted, found.sure) == (1, 3)
    assert found.sure_right == pytest.approx(1 / 3)
    assert found.median_mm == pytest.approx(8.00005)
    assert found.p90_mm == pytest.approx(8.0001 + 0.7 * (9.0 - 8.0001))


def test_a_group_that_is_never_sure_has_no_share_and_only_weak_discs_no_total():
    assert figures([row(1.0, confidence=0.5)])[0].sure_right is None
    assert [entry.group for entry in figures([row(1.0, weak=True)])] == [
        "(L5/S1 placed from L5 alone, not counted)"
    ]
    assert figures([]) == []


def test_the_table_s_columns():
    lines = table([row(1.0), row(9.0, nearest=3.0, exam="b")], "view").splitlines()
    assert (
        " ".join(lines[0].split())
        == "view exams discs right median mm p90 mm shifted >= 0.9 of them right"
    )
    assert lines[1].split() == [
        "VB1",
        "T1",
        "2",
        "2",
        "50.0",
        "%",
        "5.00",
        "8.2",
        "1",
        "2",
        "50.0",
        "%",
    ]
    assert '"error_mm": 9.0, "nearest_mm": 3.0' in rows_as_json([row(9.0, nearest=3.0)])


# -- judging -----------------------------------------------------------------------------------------------------------


def test_an_exam_becomes_a_stack_whose_voxels_keep_their_places():
    """Slabs of four 1 mm samples, left first; LPS is (lateral, column, -row)."""
    exam = an_exam()
    exam.volume[250, 120, 40:44] = 255
    stack = evaluate.stack_from_exam(exam)
    assert stack.pixels.shape == (20, 384, 256)
    assert stack.spacing_mm == (1.0, 1.0)
    s, r, c = np.argwhere(stack.pixels == 255 * 16)[0]
    place = stack.origins_mm[s] + r * stack.axes[1] + c * stack.axes[2]
    assert place.tolist() == [41.5, 120.0, -250.0]
    assert evaluate.lps_from_volume(np.array([250.0, 120.0, 41.5])).tolist() == [
        41.5,
        120.0,
        -250.0,
    ]
    assert stack.axes[0].tolist() == [-1, 0, 0]


def test_a_fold_is_judged_on_its_own_exams_alone(monkeypatch):
    exams = [
        Exam(
            f"VB9-{k}",
            "VB9",
            f"VB9-{k}",
            np.zeros((1, 1, 1), np.uint8),
            (1, 1, 1),
            Column((), ()),
        )
        for k in range(6)
    ]
    seen = []
    monkeypatch.setattr(evaluate, "stack_from_exam", lambda exam: exam)
    monkeypatch.setattr(
        evaluate, "evaluate_exam", lambda exam, *_: seen.append(exam.name) or []
    )
    evaluate.evaluate(exams, None, 1)
    assert seen == ["VB9-1"]
    seen.clear()
    evaluate.evaluate(exams, None, 0)
    assert seen == ["VB9-0", "VB9-5"]
    seen.clear()
    evaluate.evaluate(exams, None, -1)
    assert len(seen) == 6


def test_the_window_is_that_of_the_percentiles_and_never_empty():
    volume = np.arange(101, dtype=np.uint8).reshape(1, 1, 101)
    low, high = intensity_window(volume, SPEC)
    assert (low, high) == pytest.approx((SPEC.low_percentile, SPEC.high_percentile))
    assert intensity_window(np.full((2, 2, 2), 7, np.uint8), SPEC) == (7.0, 8.0)
