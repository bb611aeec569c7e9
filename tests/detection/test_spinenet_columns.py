"""What one view's vertebrae become: names, the discs between neighbours, and how sure each is."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_spinenet_bounds import body
from test_spinenet_patches import view_of

from spine_engine.detection.spinenet import detect as vfr
from spine_engine.detection.spinenet.beam import NamedColumn
from spine_engine.detection.spinenet.patches import patch_grid, patches_from_slice
from spine_engine.errors import Reason, StudyError


class Scores:
    """A network that answers with zeros of the shape wanted, and keeps what it was given."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape, self.given = name, shape, []

    def run(self, inputs):
        self.given.append({key: array.shape for key, array in inputs.items()})
        return {self.name: np.zeros(self.shape, np.float32)}


def column_of(
    monkeypatch: pytest.MonkeyPatch, bodies, classes, probability, cost: float = 12.0
):
    """The column that one view gives where its vertebrae are `bodies`, named `classes` by the beam."""
    view = view_of(np.zeros((2, 300, 260), np.uint16))
    appearance, context = Scores("scores", (1, 24)), Scores("scores", (1, 1, 512, 24))
    asked = []

    def naming(log_probability, missed):
        asked.append((log_probability.shape, list(missed)))
        return NamedColumn(np.array(classes), np.array(probability, float), cost)

    monkeypatch.setattr(vfr, "_seen", lambda *_: None)
    monkeypatch.setattr(vfr, "bodies_from_slices", lambda *_: bodies)
    monkeypatch.setattr(
        vfr, "volume_round", lambda *_: np.zeros((224, 224, 16), np.float32)
    )
    monkeypatch.setattr(vfr, "named_column", naming)
    made = vfr._column_of(view, SimpleNamespace(), appearance, context)
    return made, appearance, context, asked


def test_discs_lie_between_neighbours_and_are_as_sure_as_the_less_sure_of_both(
    monkeypatch,
) -> None:
    bodies = [body(120.0), body(80.0), body(40.0), body(0.0)]
    made, appearance, context, asked = column_of(
        monkeypatch, bodies, [3, 2, 1, 0], [0.9, 0.6, 0.8, 0.7]
    )
    assert {rank: disc.confidence for rank, disc in made.found.items()} == {
        2: 0.6,
        1: 0.6,
        0: 0.7,
    }
    assert [disc.center_mm[2] for disc in made.found.values()] == [100, 60, 20]
    assert [
        (name, each.name, each.confidence) for name, each in made.vertebrae.items()
    ] == [
        ("l3", "l3", 0.9),
        ("l4", "l4", 0.6),
        ("l5", "l5", 0.8),
        ("s1", "s1", 0.7),
    ]
    assert [each.center_mm[2] for each in made.vertebrae.values()] == [120, 80, 40, 0]
    assert made.cost == 3.0  # a vertebra
    assert appearance.given == [{"volumes": (1, 1, 224, 224, 16)}] * 4
    assert context.given == [{"columns": (1, 1, 512, 24)}]
    assert asked == [((4, 24), [0, 0, 0])]


def test_no_disc_lies_where_a_vertebra_is_missing_or_named_twice(monkeypatch) -> None:
    bodies = [body(160.0), body(80.0), body(40.0), body(0.0)]
    made, _, _, asked = column_of(monkeypatch, bodies, [4, 2, 2, 0], [0.9] * 4)
    assert made.found == {}
    assert asked[0][1] == [1, 0, 0]  # there is room for one between the first two
    assert column_of(monkeypatch, [], [], [])[0] is None


def test_a_disc_below_s1_is_none_of_the_lumbar_spine(monkeypatch) -> None:
    made, *_ = column_of(
        monkeypatch, [body(80.0), body(40.0), body(0.0)], [1, 0, 0], [0.9] * 3
    )
    assert list(made.found) == [0]
    assert list(made.vertebrae) == ["l5", "s1", "s2"]


def test_values_that_fall_with_the_stored_ones_are_turned_over() -> None:
    pixels = np.random.default_rng(0).integers(0, 3000, (1, 240, 240)).astype(np.uint16)
    view = view_of(pixels)
    grid = patch_grid(view)
    (plain,), (turned,) = (
        patches_from_slice(replace(view, slope=np.array([slope], np.float32)), 0, grid)
        for slope in (2.0, -0.5)
    )
    assert turned.min() == 0
    np.testing.assert_allclose(turned, plain.max() - plain, atol=1e-5)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "gave nothing, want scores"),
        (
            {"other": np.zeros((1, 24), np.float32)},
            r"gave other \(1, 24\), want scores \(1, 24\)",
        ),
        (
            {"scores": np.zeros((1, 23), np.float32)},
            r"gave scores \(1, 23\), want scores \(1, 24\)",
        ),
        (
            {"scores": np.full((1, 24), np.nan, np.float32)},
            "gave numbers that are not finite",
        ),
        (
            {"scores": np.full((1, 24), np.inf, np.float32)},
            "gave numbers that are not finite",
        ),
    ],
)
def test_a_network_that_answers_otherwise_is_an_internal_error(
    answer, message: str
) -> None:
    net = SimpleNamespace(run=lambda _: answer)
    with pytest.raises(StudyError, match=message) as caught:
        vfr._answer(net, "volumes", np.zeros((1, 2), np.float32), "scores", (1, 24))
    assert caught.value.reason is Reason.INTERNAL_ERROR
