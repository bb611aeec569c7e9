"""The whole road on files: what the README promises, on a few phantoms and, where they are, the real exams.

``make accept`` measures the same promises with more studies and writes ``docs/acceptance.md``.
"""

from pathlib import Path

import pytest

acceptance = pytest.importorskip("spine_bench.acceptance")

pytestmark = pytest.mark.slow


def assert_met(figures):
    assert any(figure.met for figure in figures)
    missed = [
        f"{figure.name}: {figure.measured}, wanted {figure.wanted}"
        for figure in figures
        if figure.met is False
    ]
    assert not missed, "; ".join(missed)


def test_real_exams_are_graded_and_their_discs_found(real_data: Path, tmp_path: Path):
    assert_met(acceptance.real_exams(real_data, tmp_path))


def test_a_mirrored_patient_swaps_left_and_right(tmp_path: Path):
    assert_met(acceptance.mirror(tmp_path, 4))


def test_an_oblique_patient_gets_the_same_grades(tmp_path: Path):
    assert_met(acceptance.pose(tmp_path, 4))


def test_workers_order_and_interruption_change_no_byte(tmp_path: Path):
    assert_met(acceptance.same_bytes(tmp_path, 6))


def test_memory_does_not_grow_with_the_number_of_studies(tmp_path: Path):
    assert_met(acceptance.memory(tmp_path, 8, 32))
