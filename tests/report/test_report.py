"""The report of a run, from phantoms on disk to pages, by the packaged bundle."""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from made_run import first_graded, recorded, source
from typer.testing import CliRunner

from spine_engine.anatomy import LEVELS
from spine_engine.bundle import Bundle
from spine_engine.cli import app
from spine_engine.dicom import RoleOverrides
from spine_engine.errors import OutputBusyError, OutputError, Reason, UsageError
from spine_engine.options import RunOptions
from spine_engine.pipeline.models import TimedModel
from spine_engine.pipeline.unit_worker import UnitWorker
from spine_engine.report import reading, write
from spine_engine.report.page import write_page
from spine_engine.report.reading import CHANGED, LOST, NO_ROLE, NOT_READ, study_content
from spine_engine.report.write import Moved, page_name, write_report
from spine_engine.run.folders import locked
from spine_engine.run.ledger import LEDGER_FILE
from spine_engine.scheduler import WorkerError


def test_a_run_becomes_an_index_and_a_page_for_each_study(output):
    told = []
    written = write_report(
        output, workers=1, on_page=lambda done, of: told.append((done, of))
    )
    ids = [study.result.study_id for study in recorded(output)]
    assert (written.index, written.studies, len(ids)) == (
        output / "report" / "index.html",
        3,
        3,
    )
    assert written.without_pictures == 1
    assert told == [(1, 3), (2, 3), (3, 3)]
    index = written.index.read_text()
    for study_id in ids:
        assert f"studies/{page_name(study_id)}" in index
        assert (
            study_id
            in (output / "report" / "studies" / page_name(study_id)).read_text()
        )
    pages = [
        path.read_text() for path in (output / "report" / "studies").glob("*.html")
    ]
    assert sum("data:image/png;base64," in page for page in pages) == 2
    assert sum(NOT_READ in page for page in pages) == 1


def test_the_grids_on_the_page_are_those_that_the_grader_saw(
    graded, output, monkeypatch
):
    study = first_graded(output)
    seen, shown = [], []

    def watched(self, inputs):
        if "image" in inputs:
            seen.append(inputs["image"].copy())
        return self._backend.run(inputs)

    monkeypatch.setattr(TimedModel, "run", watched)
    bundle = Bundle.open()
    worker = UnitWorker(
        graded / "studies",
        bundle.path,
        bundle.digest,
        RunOptions(),
        RoleOverrides.find(graded / "studies"),
    )
    worker.run(study.unit)
    monkeypatch.setattr(
        reading, "crops", lambda grids, *rest: shown.append(grids.copy()) or {}
    )
    study_content(study, source(graded), run_page=None)
    (grids,), (again,) = seen, shown
    assert grids.shape == (len(LEVELS), 3, *bundle.grader.grid.shape)
    assert np.count_nonzero(grids) > grids.size / 4
    assert grids.tobytes() == again.tobytes()


def test_files_that_changed_since_the_run_give_no_pictures(graded, output, tmp_path):
    studies = Path(shutil.copytree(graded / "studies", tmp_path / "studies"))
    study = first_graded(output)
    (studies / study.unit.files[0].path).unlink()
    content = study_content(study, source(graded, root=studies), run_page=None)
    assert content.no_pictures == CHANGED
    assert not content.overview
    assert (
        write_report(output, moved=Moved(root=studies), workers=1).without_pictures == 2
    )


def test_files_of_another_size_are_not_what_the_run_saw(graded, output, tmp_path):
    studies = Path(shutil.copytree(graded / "studies", tmp_path / "studies"))
    study = first_graded(output)
    path = studies / study.unit.files[0].path
    header = pydicom.dcmread(path)
    header.ImageComments = "another image, perhaps"
    header.save_as(path)
    assert (
        study_content(study, source(graded, root=studies), run_page=None).no_pictures
        == CHANGED
    )


def test_a_study_without_roles_has_no_pictures_and_no_empty_view(
    graded, output, monkeypatch
):
    def without_roles(*arguments):
        study = read_again(*arguments)
        return replace(
            study, series=tuple(replace(series, role=None) for series in study.series)
        )

    read_again = reading._read_again
    monkeypatch.setattr(reading, "_read_again", without_roles)
    content = study_content(first_graded(output), source(graded), run_page=None)
    assert (content.no_pictures, content.scene) == (NO_ROLE, None)


def test_pictures_that_would_make_a_page_too_large_are_fewer_and_smaller(
    graded, output, monkeypatch
):
    study = first_graded(output)
    full = study_content(study, source(graded), run_page=None)
    monkeypatch.setattr(reading, "MOST_PICTURE_BYTES", 30_000)
    monkeypatch.setattr(reading, "OVERVIEW_PX", 200)
    small = study_content(study, source(graded), run_page=None)
    for level in LEVELS:
        middle = {
            "Sagittal T2, middle",
            "Sagittal T1, middle",
            "Axial T2, through the disc",
        }
        assert [
            picture for picture in full.crops[level] if picture.name in middle
        ] == list(small.crops[level])
        assert len(small.crops[level]) < len(full.crops[level])
    assert [
        max(picture.width, picture.height) <= 100 for picture in small.overview
    ] == [True] * len(full.overview)
    assert sum(len(picture.png) for picture in small.overview) < sum(
        len(picture.png) for picture in full.overview
    )


def test_without_the_images_every_study_still_has_a_page(graded, output):
    record = json.loads((output / "run.json").read_text())
    moved = graded / "elsewhere"
    (graded / "studies").rename(moved)
    try:
        written = write_report(output)
        assert written.without_pictures == written.studies == record["studies"]["total"]
        again = write_report(output, moved=Moved(root=moved))
        assert again.without_pictures == 1
    finally:
        moved.rename(graded / "studies")


def test_nothing_names_the_patient_unless_asked_and_then_it_is_inert(output):
    write_report(output, workers=1)
    pages = [page.read_text() for page in (output / "report").rglob("*.html")]
    assert len(pages) == 4
    assert not any("alert(1)" in page or "cmd()" in page for page in pages)
    index = write_report(output, workers=1, with_identity=True).index.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;^=cmd()" in index
    name = page_name(first_graded(output).result.study_id)
    text = (output / "report" / "studies" / name).read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;^=cmd()" in text
    assert "-series" in text
    assert "<script>alert" not in text


def test_a_study_that_kills_the_process_costs_its_pictures_alone(
    output, in_this_process, monkeypatch
):
    victim, run = first_graded(output).result.study_id, in_this_process.run

    async def dying(self, task):
        if task == victim:
            raise WorkerError(Reason.WORKER_DIED)
        return await run(self, task)

    monkeypatch.setattr(in_this_process, "run", dying)
    written = write_report(output, workers=1)
    assert (written.studies, written.without_pictures) == (3, 2)
    assert LOST in (output / "report" / "studies" / page_name(victim)).read_text()


def test_pages_of_studies_that_are_gone_are_removed(output):
    stale = output / "report" / "studies" / "9.9.html"
    stale.parent.mkdir(parents=True)
    stale.write_text("named somebody")
    write_report(output, workers=1)
    assert not stale.exists()


def test_another_bundle_than_the_runs_is_refused(output, tmp_path):
    folder = Path(shutil.copytree(Bundle.open().path, tmp_path / "bundle"))
    manifest = folder / "bundle.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(UsageError, match="name the run's with --bundle"):
        write_report(output, moved=Moved(bundle=folder))


def test_what_is_no_output_folder_is_said(tmp_path):
    with pytest.raises(OutputError, match=r"holds no run\.json"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(OutputError, match="cannot read"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", "null", "{}", '{"bundle": {}}', '{"bundle": 1}']
)
def test_a_record_of_something_else_is_said(output, text):
    (output / "run.json").write_text(text)
    with pytest.raises(OutputError, match="not a record of a run"):
        write_report(output)


def test_a_damaged_ledger_is_said(output):
    with closing(sqlite3.connect(output / LEDGER_FILE)) as ledger, ledger:
        ledger.execute("DROP TABLE outcomes")
    with pytest.raises(OutputError, match="is damaged"):
        write_report(output)


def test_results_of_another_version_are_refused(output):
    with closing(sqlite3.connect(output / LEDGER_FILE)) as ledger, ledger:
        ledger.execute("UPDATE facts SET value = '0.0.9' WHERE name = 'engine version'")
    with pytest.raises(UsageError, match=r"done by spine-engine 0\.0\.9"):
        write_report(output)


def test_a_folder_that_a_run_writes_to_is_busy(output):
    with locked(output), pytest.raises(OutputBusyError):
        write_report(output)


def test_a_table_of_series_that_has_moved_can_be_named(output, tmp_path):
    record = json.loads((output / "run.json").read_text())
    record["options"]["series_descriptions"] = "elsewhere/table.csv"
    (output / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="--series-descriptions"):
        write_report(output)
    table = tmp_path / "table.csv"
    table.write_text("study_id,series_id,series_description\n")
    assert (
        write_report(
            output, moved=Moved(series_descriptions=table), workers=1
        ).without_pictures
        == 1
    )


def test_an_interrupted_report_leaves_no_index_and_no_half_page(output):
    write_report(output, workers=1)
    (output / "report" / "studies" / ".1.2.html.part").write_text("half")

    def stop(done, of):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_report(output, workers=1, on_page=stop)
    assert not (output / "report" / "index.html").exists()
    pages = [page.read_text().rstrip() for page in (output / "report").rglob("*.html")]
    assert [page.endswith("</html>") for page in pages] == [True] * 3
    write_report(output, workers=1)
    assert not list((output / "report").rglob("*.part"))


def test_a_record_that_a_killed_run_has_outgrown_is_said_to_be_interrupted(output):
    assert "Interrupted." not in write_report(output, workers=1).index.read_text()
    record = json.loads((output / "run.json").read_text())
    record["studies"]["total"] = 2
    (output / "run.json").write_text(json.dumps(record))
    assert "Interrupted." in write_report(output, workers=1).index.read_text()


def test_ctrl_c_ends_the_command_with_a_line(output, monkeypatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "write_report", interrupted)
    done = CliRunner().invoke(app, ["report", str(output)])
    assert done.exit_code == 130
    assert done.output.startswith("Interrupted: the report is not complete")


def test_a_page_can_say_a_path_that_is_no_text(tmp_path):
    write_page(tmp_path / "a.html", "caf\udce9")
    assert (tmp_path / "a.html").read_text() == "caf\\udce9"
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


@pytest.mark.parametrize(
    "study_id", ["", "..", "../x", "a/b", "é", "1" * 65, "CON", "x" * 300, "\0"]
)
def test_no_study_id_leads_out_of_the_folder(study_id):
    name = page_name(study_id)
    assert Path(name).name == name
    assert len(name) == 37
    assert page_name(study_id + "x") != name


def test_uids_name_their_pages():
    assert page_name("1.2.840.1") == "1.2.840.1.html"


def test_a_folder_without_a_run_ends_the_command_with_a_line(tmp_path):
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 6
    assert done.output.startswith("spine-engine: ")


@pytest.mark.slow
def test_the_commands_write_it_and_say_where(graded, tmp_path):
    output = tmp_path / "out"
    done = CliRunner().invoke(
        app,
        [
            "run",
            "--input",
            str(graded / "studies"),
            "--output",
            str(output),
            "--workers",
            "1",
            "--report",
        ],
    )
    assert done.exit_code == 8, done.output
    assert (
        f"Report: {output}/report/index.html (3 studies, 1 without pictures;"
        in done.output
    )
    done = CliRunner().invoke(app, ["report", str(output), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["studies"] == 3
