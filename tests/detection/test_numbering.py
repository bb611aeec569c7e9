"""Doubts about the numbering: series that disagree, evidence that is split, and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from conftest_detection import Scene, SceneBackend, SceneDisc, column, sagittal_stack

from spine_engine.anatomy import Level
from spine_engine.detection import Detection, LabellingOptions, detect
from spine_engine.detection.labelling import RANKS, Column, labelled, shifted
from spine_engine.detection.levels import RANK_OF_LEVEL
from spine_engine.errors import Warn
from spine_engine.study import Stack

NUMBERING = {Warn.SERIES_DISAGREE, Warn.TRANSITIONAL_ANATOMY}


def believing(discs: list[SceneDisc], odds: dict[int, float]) -> list[SceneDisc]:
    """The discs as a net sees them that gives each the rank `rank + shift` with the probability `odds[shift]`."""
    return [
        replace(d, belief={d.rank + shift: share for shift, share in odds.items()})
        for d in discs
    ]


def seen(*views: tuple[list[SceneDisc], Stack]) -> Detection:
    backend = SceneBackend(Scene([], []), [])
    for discs, stack in views:
        backend.maps |= SceneBackend(Scene(discs, [stack])).maps
    return detect([[stack] for _, stack in views], backend)


def agree(detection: Detection, discs: list[SceneDisc], *, shift: int) -> None:
    """The alternative names each disc `shift` ranks higher; where it has no disc for a level it infers one."""
    assert detection.alternative is not None
    assert detection.alternative.shift == shift
    place = {d.rank + shift: d.center_mm for d in discs}
    assert list(detection.alternative.levels) == list(Level)
    for level, entry in detection.alternative.levels.items():
        rank = RANK_OF_LEVEL[level]
        if (
            rank in place
        ):  # a disc whose own level speaks against the numbering may be inferred instead
            near_mm = 1.5 if entry.source == "detector" else 8.0
            assert np.linalg.norm(entry.center_mm - place[rank]) < near_mm, level
        else:
            assert entry.source == "interpolated"


def test_series_that_agree_raise_no_doubt():
    result = seen((column(), sagittal_stack(1)), (column(), sagittal_stack(2)))
    assert result.warnings == ()
    assert result.alternative is None


@pytest.mark.parametrize("shift", [1, -1])
def test_a_series_that_names_the_column_otherwise_is_told(shift):
    first = believing(column(), {shift: 0.96, 0: 0.04})
    second = believing(column(), {0: 0.99, shift: 0.003})
    result = seen((first, sagittal_stack(1)), (second, sagittal_stack(2)))
    assert len(result.levels) == 5
    for level, entry in result.levels.items():
        assert (
            np.linalg.norm(entry.center_mm - column()[RANK_OF_LEVEL[level]].center_mm)
            < 1.5
        )
    assert Warn.SERIES_DISAGREE in result.warnings
    agree(result, column(), shift=shift)
    assert 0 < result.alternative.probability < 0.5


def test_a_series_that_does_not_know_disagrees_with_nobody():
    unsure = believing(column(), {1: 0.5, 0: 0.5})
    sure = believing(column(), {0: 0.97})
    result = seen((unsure, sagittal_stack(1)), (sure, sagittal_stack(2)))
    assert NUMBERING.isdisjoint(result.warnings)
    assert result.alternative is None


def test_split_evidence_about_a_column_seen_whole_is_transitional_anatomy():
    result = seen((believing(column(), {0: 0.45, -1: 0.45}), sagittal_stack()))
    assert Warn.TRANSITIONAL_ANATOMY in result.warnings
    assert Warn.SERIES_DISAGREE not in result.warnings
    best = (
        0
        if np.linalg.norm(result.levels[Level.L3_L4].center_mm - column()[2].center_mm)
        < 1.5
        else -1
    )
    shift = -1 - 2 * best
    agree(result, [replace(d, rank=d.rank + best) for d in column()], shift=shift)
    assert 0.1 <= result.alternative.probability <= 0.5


def test_split_evidence_without_the_sacrum_is_a_matter_of_the_picture():
    discs = column(range(1, 6))
    cut = sagittal_stack(height_mm=190.0, middle_mm=(0, 0, 40))
    result = seen((believing(discs, {0: 0.5, 1: 0.5}), cut))
    assert Warn.TRANSITIONAL_ANATOMY not in result.warnings
    assert result.alternative is not None
    assert result.alternative.probability >= 0.1


def test_halves_that_vote_for_different_numberings_are_transitional_anatomy_even_without_the_sacrum():
    discs = column(range(1, 7))
    low, high = (
        believing(discs[:3], {0: 0.25, 1: 0.65}),
        believing(discs[3:], {0: 0.65, 1: 0.25}),
    )
    result = seen(
        ([*low, *high], sagittal_stack(height_mm=230.0, middle_mm=(0, 0, 60)))
    )
    assert Warn.TRANSITIONAL_ANATOMY in result.warnings
    assert result.alternative is not None


def test_a_disc_left_out_below_becomes_the_last_one_of_the_other_numbering():
    below = SceneDisc(
        np.array([0.0, -12.0, -97.0]),
        np.array([0.0, 0.7, -0.7]),
        -1,
        0.6,
        {-1: 0.6, 0: 0.3},
    )
    discs = [below, *believing(column(), {0: 0.6, 1: 0.25})]
    result = seen((discs, sagittal_stack()))
    assert (
        np.linalg.norm(result.levels[Level.L5_S1].center_mm - column()[0].center_mm)
        < 1.5
    )
    assert Warn.TRANSITIONAL_ANATOMY in result.warnings
    agree(result, discs, shift=1)


def test_probabilities_are_those_of_counting_every_labelling():
    rng = np.random.default_rng(4)
    n, most = 4, LabellingOptions().max_step
    step = np.full((n, n, most + 1), -np.inf)
    between = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1, n):
            step[i, j, 1:] = rng.normal(0, 1, most)
            between[i, j] = -1.0 * (j - i - 1)
    one = Column(
        rng.normal(0, 1.5, (n, RANKS)), step, between, *rng.normal(0, 1, (2, n, RANKS))
    )
    scores = {}
    for ranks in product(range(-1, RANKS), repeat=n):
        kept = [i for i in range(n) if ranks[i] >= 0]
        pairs = list(pairwise(kept))
        if kept and all(1 <= ranks[j] - ranks[i] <= most for i, j in pairs):
            score = (
                one.start[kept[0], ranks[kept[0]]] + one.end[kept[-1], ranks[kept[-1]]]
            )
            score += sum(one.emit[i, ranks[i]] for i in kept)
            score += sum(
                step[i, j, ranks[j] - ranks[i]] + between[i, j] for i, j in pairs
            )
            scores[ranks] = score
    total = np.logaddexp.reduce(list(scores.values()))
    share = {ranks: np.exp(score - total) for ranks, score in scores.items()}
    posterior = np.zeros((n, RANKS))
    for ranks, p in share.items():
        for i, rank in enumerate(ranks):
            if rank >= 0:
                posterior[i, rank] += p
    labelling = labelled(one)
    np.testing.assert_allclose(labelling.posterior, posterior, atol=1e-12)
    best = max(share, key=share.__getitem__)
    assert labelling.ranks.tolist() == list(best)
    for shift in (-1, 1):
        moved = {
            ranks: p
            for ranks, p in share.items()
            if all(
                have == -1 or had == -1 or have == had + shift
                for have, had in zip(ranks, best, strict=True)
            )
        }
        other = shifted(labelling, shift)
        assert other.probability == pytest.approx(sum(moved.values()))
        assert other.ranks.tolist() == list(max(moved, key=moved.__getitem__))
