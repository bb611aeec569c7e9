"""Figures over folds: the table's numbers, crops, and the cross-validate command."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("nibabel", reason="the training extra is not installed")
pytest.importorskip("pandas", reason="the training extra is not installed")

from typer.testing import CliRunner  # noqa: E402

from spine_engine.errors import UsageError  # noqa: E402
from spine_training.detector import __main__ as command  # noqa: E402
from spine_training.detector.evaluate import cropped, cross_validate  # noqa: E402
from spine_training.detector.exam import Exam  # noqa: E402
from spine_training.detector.figures import ALL, WEAK, Row, figures, markdown, table  # noqa: E402
from spine_training.detector.model import LevelHeatmapNet  # noqa: E402
from spine_training.detector.truth import Column, Disc  # noqa: E402


def row(
    error,
    nearest=None,
    confidence=0.95,
    *,
    source="VB1",
    contrast="T1",
    exam="a",
    weak=False,
):
    return Row(
        exam,
        source,
        contrast,
        "l4_l5",
        error,
        nearest or error,
        confidence,
        "detector",
        weak,
    )


def exam(name, seed=0):
    volume = (
        np.random.default_rng(seed).integers(0, 200, (224, 96, 20)).astype(np.uint8)
    )
    discs = tuple(
        Disc(rank, np.array([180.0 - 35 * rank, 48, 10]), np.array([0.0, 1.0]))
        for rank in range(5)
    )
    return Exam(name, "VB9", name, volume, (1.0, 1.0, 1.0), Column(discs, ()), "T2")


def test_figures_count_what_they_say():
    rows = [
        row(1.0),
        row(3.0, exam="b"),
        row(35.0, 2.0, 0.4),
        row(9.0, source="SPIDER", contrast="T2"),
        row(2.0, weak=True),
    ]
    by_group = {entry.group: entry for entry in figures(rows)}
    assert list(by_group) == ["SPIDER T2", "VB1 T1", WEAK, ALL]
    vb1 = by_group["VB1 T1"]
    assert (vb1.exams, vb1.discs, vb1.shifted, vb1.sure) == (2, 3, 1, 2)
    assert vb1.right == pytest.approx(2 / 3)
    assert vb1.median_mm == 3.0
    assert vb1.sure_right == 1.0
    assert by_group[ALL].discs == 4
    assert by_group[ALL].sure_right == pytest.approx(2 / 3)
    assert by_group[WEAK].discs == 1


def test_tables_have_a_line_for_each_group():
    rows = [row(1.0), row(9.0, confidence=0.2, source="VB2", contrast="T2")]
    assert [line.split("  ")[0] for line in table(rows).splitlines()] == [
        "source",
        "VB1 T1",
        "VB2 T2",
        "all",
    ]
    lines = markdown(rows, "whole").splitlines()
    assert lines[0].startswith("| whole | exams | discs | right |")
    assert "| VB2 T2 | 1 | 1 | 0.0 % | 9.00 | 9.0 | 0 | 0 | - |" in lines
    assert len({line.count("|") for line in lines}) == 1


def test_a_crop_leaves_the_picture_and_the_discs_above_it():
    whole = exam("a")
    short = cropped(whole, 8.0)
    assert short.volume.shape == (188, 96, 20)
    assert len(short.column.discs) == 5
    cut = cropped(whole, -15.0)
    assert cut.volume.shape == (165, 96, 20)
    assert [disc.rank for disc in cut.column.discs] == [1, 2, 3, 4]


def test_checkpoints_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UsageError, match="fold1"):
        list(cross_validate([], str(tmp_path / "fold{fold}.pt"), [1]))
    with pytest.raises(UsageError, match="lacks"):
        list(cross_validate([], str(tmp_path / "last.pt")))


def test_cross_validate_judges_every_exam_once(tmp_path, monkeypatch):
    exams = [exam(f"VB9-{k}", k) for k in range(3)]
    monkeypatch.setattr(command, "load_data", lambda *_: exams)
    for fold in (0, 1):
        net = LevelHeatmapNet()
        torch.save(
            {"config": {}, "model": net.state_dict()}, tmp_path / f"fold{fold}.pt"
        )
    rows, text, picture = (
        tmp_path / "rows.jsonl",
        tmp_path / "table.md",
        tmp_path / "levels.svg",
    )
    pattern = str(tmp_path / "fold{fold}.pt")
    outputs = [
        "--rows",
        str(rows),
        "--markdown",
        str(text),
        "--picture",
        str(picture),
        "--json",
        "--crops",
    ]
    asked = [
        "cross-validate",
        pattern,
        "--data",
        str(tmp_path),
        "--fold",
        "0",
        "--fold",
        "1",
        *outputs,
    ]
    said = CliRunner().invoke(command.app, asked)
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert {
        view: entries[-1]["exams"] for view, entries in found.items()
    } == dict.fromkeys(found, 2)
    assert len(found) == 4
    assert {json.loads(line)["exam"] for line in rows.read_text().splitlines()} == {
        "VB9-0",
        "VB9-1",
    }
    assert text.read_text().count("| all |") == 4
    if find_spec("matplotlib") is None:
        assert "no pictures: matplotlib is not installed" in said.output
    else:
        assert "Localisation of 10 discs of 2 exams, by level" in picture.read_text()


def test_without_matplotlib_the_figures_are_said_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(command, "load_data", lambda *_: [])
    monkeypatch.setattr(command, "evaluate", lambda *_: [row(1.0)])
    monkeypatch.setattr(command, "TorchBackend", lambda *_: None)
    asked = [
        "evaluate",
        "last.pt",
        "--data",
        str(tmp_path),
        "--picture",
        str(tmp_path / "levels.svg"),
    ]
    said = CliRunner().invoke(command.app, asked)
    assert said.exit_code == 0, said.output
    assert "100.0 %" in said.output
    assert "no pictures: matplotlib is not installed" in said.output
    assert not (tmp_path / "levels.svg").exists()
