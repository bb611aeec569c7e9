"""How a report is written: by which processes, in which order, of what the run saw and nothing else."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_run import first_graded, recorded, source
from typer.testing import CliRunner

from spine_engine.cli import app
from spine_engine.errors import OutputError
from spine_engine.report import reading, write
from spine_engine.report.reading import CHANGED, NOT_READ, study_content
from spine_engine.report.write import page_name, write_report

HOSTILE_NAME = "<script>alert(1)</script>^=cmd()"


def test_pages_are_drawn_by_as_many_processes_as_asked_for_or_studies(
    output, in_this_process, monkeypatch
):
    monkeypatch.setattr(write, "usable_cpus", lambda: 2)
    write_report(output)
    write_report(output, workers=1)
    write_report(output, workers=50)
    assert in_this_process.begun == [(2, 300.0), (1, 300.0), (3, 300.0)]


def test_pages_say_what_made_them(output):
    record = json.loads((output / "run.json").read_text())
    write_report(output, workers=1)
    text = (
        output / "report" / "studies" / page_name(first_graded(output).result.study_id)
    ).read_text()
    facts = dict(
        re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text.split('id="provenance"')[1])
    )
    assert facts["spine-engine"] == record["engine_version"]
    assert (
        facts["bundle"] == f"{record['bundle']['name']} {record['bundle']['version']}"
    )
    assert facts["bundle digest (SHA-256)"] == record["bundle"]["digest"]
    assert facts["schedule"] == record["options"]["schedule"]
    assert facts["detector"].startswith("backend ")


def test_the_index_is_gone_while_pages_change_and_comes_last(output):
    write_report(output, workers=1)
    index, seen = output / "report" / "index.html", []
    write_report(
        output, workers=1, on_page=lambda done, of: seen.append(index.exists())
    )
    assert seen == [False] * 3
    assert index.exists()


def test_an_index_that_cannot_be_written_is_said(output, monkeypatch):
    def full_disk(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "run_page", lambda content: "")
    monkeypatch.setattr(write, "write_page", full_disk)
    with pytest.raises(
        OutputError,
        match=r"cannot write to .*: No space left on device; free space and try again",
    ):
        write_report(output, workers=1)


def test_only_pages_of_other_studies_and_drafts_are_removed(output):
    folder = output / "report" / "studies"
    folder.mkdir(parents=True)
    for name in ("9.9.html", ".9.9.html.part", "notes.txt"):
        (folder / name).write_text("old")
    write_report(output, workers=1)
    names = {page_name(study.result.study_id) for study in recorded(output)}
    assert {path.name for path in folder.iterdir()} == {*names, "notes.txt"}


def test_the_study_that_failed_is_not_read_again(graded, output, monkeypatch):
    failed = next(
        study for study in recorded(output) if study.result.status == "failed"
    )
    asked = []
    monkeypatch.setattr(
        reading, "read_unit", lambda *arguments: asked.append(arguments)
    )
    assert study_content(failed, source(graded), run_page=None).no_pictures == NOT_READ
    assert (
        study_content(
            first_graded(output), source(graded, root=None), run_page=None
        ).no_pictures
        == CHANGED
    )
    assert asked == []


@pytest.mark.parametrize(
    "change", ["another study", "two studies", "another role", "fewer slices"]
)
def test_what_the_files_hold_now_must_be_what_the_run_saw(
    graded, output, monkeypatch, change
):
    study, read = first_graded(output), reading.read_unit

    def changed(*arguments):
        found = read(*arguments)
        (one,) = found.studies
        if change == "two studies":
            return replace(found, studies=(one, one))
        if change == "another study":
            return replace(found, studies=(replace(one, study_id="9.9.9"),))
        first, *others = one.series
        wrong = (
            replace(first, slices=first.slices - 1)
            if change == "fewer slices"
            else replace(first, role=None)
        )
        return replace(found, studies=(replace(one, series=(wrong, *others)),))

    monkeypatch.setattr(reading, "read_unit", changed)
    assert study_content(study, source(graded), run_page=None).no_pictures == CHANGED


def test_identity_is_read_only_where_it_is_asked_for(graded, output):
    study = first_graded(output)
    assert study_content(study, source(graded), run_page=None).identity is None
    named = study_content(
        study, source(graded, with_identity=True), run_page="../index.html"
    )
    assert named.identity.patient_name == HOSTILE_NAME
    assert named.run_page == "../index.html"
    assert (
        study_content(
            study, source(graded, with_identity=True, root=None), run_page=None
        ).identity
        is None
    )


def test_the_command_passes_on_what_it_was_asked(output, monkeypatch, tmp_path):
    asked = []

    def written(folder, **named):
        asked.append(
            (
                folder,
                {name: value for name, value in named.items() if name != "on_page"},
            )
        )
        return write.Report(
            index=folder / "report" / "index.html",
            studies=7,
            without_pictures=0,
            wall_s=1.23456,
        )

    monkeypatch.setattr(write, "write_report", written)
    done = CliRunner().invoke(
        app, ["report", str(output), "--input", "in", "--bundle", "b", "--series-descriptions", "s.csv",
              "--with-identity", "--workers", "3"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (
        done.output.replace("\n", "")
        == f"Report: {output}/report/index.html (7 studies; 1.2 s)"
    )
    moved = write.Moved(
        root=Path("in"), bundle=Path("b"), series_descriptions=Path("s.csv")
    )
    assert asked == [(output, {"moved": moved, "with_identity": True, "workers": 3})]
    done = CliRunner().invoke(app, ["report", str(output), "--json"])
    assert json.loads(done.output) == {
        "index": f"{output}/report/index.html", "studies": 7, "without_pictures": 0, "wall_s": 1.235,
    }  # fmt: skip
    plain = {"moved": write.Moved(), "with_identity": False, "workers": None}
    assert asked[1] == (output, plain)
