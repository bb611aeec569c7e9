"""``spine-engine demo``: what it makes, runs and prints. Nothing is rendered or graded here."""

import io
import json
import tempfile
from types import SimpleNamespace

import pytest

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.cli.demo import agreement, grades_table
from spine_engine.engine import Engine
from spine_engine.options import RunOptions
from spine_engine.results import (
    PRIOR_ROWS,
    LevelResult,
    Reason,
    Status,
    StudyResult,
    ungraded,
)
from spine_engine.run.dispatcher import Progress

AXES = ((1, 0, 0), (0, 1, 0), (0, 0, 1))


def level_at(center):
    return LevelResult(
        center_mm=center, axes=AXES, size_mm=(1, 1, 1), confidence=1, source="detector"
    )


def study(study_id, row=(900_000, 60_000, 40_000), center=(0, 3, 4)):
    levels = dict.fromkeys(LEVELS, level_at(center))
    return StudyResult(
        study_id=study_id, status=Status.GRADED, rows=(row,) * 25, levels=levels
    )


def truth_of(*names, grade=lambda condition, level: 0):
    levels = {
        str(level): {
            "center_mm": [0, 0, 0],
            "conditions": {
                str(condition): {"grade": grade(condition, level)}
                for condition in CONDITIONS
            },
        }
        for level in LEVELS
    }
    return {name: {"levels": levels} for name in names}


def shown(results, truth):
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(grades_table(results, truth))
    return console.export_text()


def test_grades_stand_beside_the_truth_where_it_is_another():
    truth = truth_of(
        "1", grade=lambda condition, level: 2 * (condition is CONDITIONS[4])
    )
    text = shown([study("1")] * 3, truth)
    assert text.count("mild (sev)") == 15
    assert len(text.splitlines()) <= 24
    assert agreement([study("1")], truth) == [
        "20 of 25 grades are the phantom's own. Discs lie 5.0 mm from the truth on average, 5.0 mm at most."
    ]


def test_each_column_and_row_of_the_table_is_its_own_condition_and_level():
    rows = [(100, 0, 999_900)] * 25
    rows[4 * 5 + 1] = (900_000, 100_000, 0)  # spinal canal, L2/L3
    rows[0 * 5 + 0] = (0, 1_000_000, 0)  # left foramen, L1/L2
    result = StudyResult(study_id="1", status=Status.GRADED, rows=tuple(rows))
    text = shown([result, result], truth_of("1", grade=lambda condition, level: 2))
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert lines[0] == [
        "likeliest",
        "grade",
        "(truth,",
        "where",
        "it",
        "is",
        "another)",
    ]
    assert lines[1] == [
        "study",
        "level",
        "canal",
        "foramen",
        "L",
        "foramen",
        "R",
        "recess",
        "L",
        "recess",
        "R",
    ]
    assert lines[3] == ["1", "L1-L2", "sev", "mod", "(sev)", "sev", "sev", "sev"]
    assert lines[4] == ["L2-L3", "mild", "(sev)", "sev", "sev", "sev", "sev"]
    assert [line[0] for line in lines[5:8]] == ["L3-L4", "L4-L5", "L5-S1"]
    assert lines[8][:2] == ["2", "L1-L2"]


def test_the_mean_and_the_worst_distance_are_told_of_the_discs_that_were_found():
    near, far = study("1", center=(0, 0, 1)), study("2", center=(2, 2, 1))
    lost = ungraded("3", Status.PRIOR, Reason.NO_SAGITTAL)
    (line,) = agreement([near, far, lost], truth_of("1", "2", "3"))
    assert line.endswith(" Discs lie 2.0 mm from the truth on average, 3.0 mm at most.")
    assert " of 75 grades" in line
    (line,) = agreement([lost], truth_of("3"))
    assert line.endswith("grades are the phantom's own.")
    unplaced = LevelResult(
        center_mm=None, axes=None, size_mm=None, confidence=0, source="prior"
    )
    lost = StudyResult(
        study_id="3",
        status=Status.GRADED,
        rows=PRIOR_ROWS,
        levels=dict.fromkeys(LEVELS, unplaced),
    )
    (line,) = agreement([lost], truth_of("3"))
    assert "Discs" not in line


@pytest.fixture
def stage(monkeypatch):
    """The demo without phantoms, models and pages; returns what was asked of them."""
    asked = SimpleNamespace(
        phantoms=[], options=[], runs=[], reports=[], interrupted=False, exit_code=0
    )

    def write_studies(folder, count, seed):
        asked.phantoms.append((folder, count, seed))
        folder.mkdir(parents=True)
        (folder / "truth.json").write_text(json.dumps(truth_of("1", "2", "3")))
        yield from range(count)

    class Work:
        def __init__(self):
            self.progress = Progress()
            self.summary = SimpleNamespace(
                interrupted=asked.interrupted, wall_s=8.88, exit_code=asked.exit_code
            )

        def __iter__(self):
            return iter([study("3"), study("1"), study("2", row=(0, 0, 1_000_000))])

    class FakeEngine:
        def run(self, folder, output):
            asked.runs.append((folder, output))
            return Work()

    monkeypatch.setattr("spine_engine.phantom.write_studies", write_studies)
    monkeypatch.setattr(
        Engine, "open", lambda *, options: asked.options.append(options) or FakeEngine()
    )

    def write_report(output, **how):
        asked.reports.append((output, how))
        return SimpleNamespace(index=output / "report" / "index.html")

    monkeypatch.setattr("spine_engine.cli.report.write_with_progress", write_report)
    return asked


def test_the_demo_makes_three_phantoms_grades_them_and_shows_the_grades_by_study(
    call, stage, tmp_path
):
    folder = tmp_path / "demo"
    done = call("demo", "--output", folder, "--workers", 3)
    assert done.exit_code == 0, done.output
    assert stage.phantoms == [(folder / "studies", 3, 2024)]
    assert stage.options == [RunOptions(workers=3)]
    assert stage.runs == [(folder / "studies", folder / "results")]
    assert stage.reports == [(folder / "results", {"workers": 3})]
    assert done.stderr == f"making 3 phantom studies in {folder / 'studies'}\n"
    lines = done.stdout.splitlines()
    first = [line.split()[0] for line in lines if line.split()[1:2] == ["L1-L2"]]
    assert first == ["1", "2", "3"]
    assert sum(line.count("sev (mild)") for line in lines) == 25
    assert lines[-4:] == [
        "50 of 75 grades are the phantom's own. Discs lie 5.0 mm from the truth on average, 5.0 mm at most.",
        f"Results: {folder}/results/predictions.csv, studies.jsonl, run.json; the studies: {folder}/studies",
        f"To look at: {folder}/results/report/index.html",
        "Took 8.9 s, model loading included. Research use only; the grades of the packaged bundle are a demonstration.",
    ]


def test_a_demo_without_a_folder_works_in_a_new_temporary_one(
    call, stage, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert call("demo").exit_code == 0
    ((studies, results),) = stage.runs
    assert studies.parent == results.parent
    assert studies.parent.parent == tmp_path
    assert studies.parent.name.startswith("spine-engine-demo-")
    assert stage.options == [RunOptions()]


def test_a_demo_that_is_interrupted_writes_no_pages_and_says_so_by_its_code(
    call, stage, tmp_path
):
    stage.interrupted, stage.exit_code = True, 130
    done = call("demo", "--output", tmp_path / "demo")
    assert (done.exit_code, stage.reports) == (130, [])
    assert "To look at" not in done.stdout


def test_a_demo_needs_a_new_or_an_empty_folder(call, stage, tmp_path):
    (tmp_path / "empty").mkdir()
    assert call("demo", "--output", tmp_path / "empty").exit_code == 0
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    for name in ("file", "full"):
        done = call("demo", "--output", tmp_path / name)
        assert done.exit_code == 2
        assert (
            "is not empty; the demo needs a new or an empty folder: name another one"
            in done.stderr
        )
    assert len(stage.phantoms) == 1


def test_a_folder_that_cannot_be_written_ends_the_demo_with_its_code(
    call, stage, tmp_path, monkeypatch
):
    def full(*asked):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr("spine_engine.phantom.write_studies", full)
    done = call("demo", "--output", tmp_path / "demo")
    assert done.exit_code == 6
    assert (
        f"cannot write to {tmp_path / 'demo' / 'studies'}: No space left on device; free space"
        in done.stderr
    )
