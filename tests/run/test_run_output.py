"""The input and output folders of a run: what is left out, what is refused, and who holds the output."""

import fcntl
import os
import threading
from contextlib import suppress

import pytest
from fakes import FakeWorker, opened, start, write_exam

from spine_engine.dicom.discovery import InputFile, RefusedFile, WorkUnit
from spine_engine.errors import OutputBusyError, OutputError, Reason, UsageError
from spine_engine.run.folders import check_input, excluded_path, locked

pytestmark = pytest.mark.usefixtures("in_process")


def test_a_folder_whose_name_begins_like_the_output_folders_is_graded(root):
    for name in ("results-2023", "results2", "a"):
        write_exam(root, name, name)
    (root / "results.txt").write_text("no exam")
    summary = start(root, root / "results").finish()
    assert summary.studies == 3
    assert dict(summary.refused_files) == {"not_an_image": 1}
    assert opened(root) == ["a", "results-2023", "results2"]


def test_no_file_under_the_output_folder_is_input(root):
    write_exam(root, "a", "1")
    write_exam(root, "results", "2")
    write_exam(root, "results/deep", "3")
    assert start(root, root / "results").finish().studies == 1
    assert opened(root) == ["a"]


def test_a_folder_with_the_output_folders_name_elsewhere_is_graded(root):
    write_exam(root, "a/results", "1")
    assert start(root, root / "results").finish().studies == 1


def found(*items):
    return lambda root: iter(items)


def test_a_unit_with_files_in_and_out_of_the_output_keeps_those_outside(root, out):
    write_exam(root, "a", "1")
    seen = []

    class Seeing(FakeWorker):
        def outcome(self, unit):
            seen.append(unit)
            return super().outcome(unit)

    size = (root / "a" / "exam").stat().st_size
    inside = InputFile("results/exam", 1)
    unit = WorkUnit("a", (InputFile("a/exam", size), inside), "1")
    alone = WorkUnit("results", (inside,), "2")
    summary = start(
        root, root / "results", discover=found(unit, alone), worker=Seeing
    ).finish()
    assert seen == [WorkUnit("a", (InputFile("a/exam", size),), "1")]
    assert summary.studies == 1


@pytest.mark.parametrize(
    ("path", "counted"),
    [
        ("results", 0),
        ("results/x", 0),
        ("results-old/x", 1),
        ("other/results", 1),
        ("r", 1),
    ],
)
def test_refused_files_of_the_output_folder_are_not_told(root, path, counted):
    run = start(
        root, root / "results", discover=found(RefusedFile(path, Reason.UNREADABLE))
    )
    assert sum(run.finish().refused_files.values()) == run.progress.refused == counted


def test_an_output_elsewhere_excludes_nothing(root, out):
    write_exam(root, "out", "1")
    assert start(root, out).finish().studies == 1


def test_where_the_output_lies_is_told_by_real_paths(tmp_path):
    root = tmp_path / "in"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root / "deep")
    assert excluded_path(root, root / "a" / "b") == "a/b"
    assert excluded_path(root, tmp_path / "link" / "x") == "deep/x"
    assert excluded_path(root, root / "a" / ".." / "c") == "c"
    assert excluded_path(root, tmp_path / "in-too") is None
    assert excluded_path(root, tmp_path) is None
    (tmp_path / "same").symlink_to(root)
    for same in (root, tmp_path / "same", root / "deep" / ".."):
        with pytest.raises(UsageError, match="same folder"):
            excluded_path(root, same)


def test_an_input_is_a_readable_folder_by_its_real_path(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    assert check_input(tmp_path / "link") == folder
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, said in {
        "missing": "does not exist",
        "loop": "does not exist",
        "file": "is not a folder",
    }.items():
        with pytest.raises(UsageError, match=f"{name} {said}"):
            check_input(tmp_path / name)
    for lacking in (os.R_OK, os.X_OK):
        monkeypatch.setattr(
            os, "access", lambda path, wanted, lacking=lacking: not wanted & lacking
        )
        with pytest.raises(UsageError, match="folder cannot be read"):
            check_input(folder)


def test_a_held_output_is_made_with_its_parents_and_locked_until_the_end(tmp_path):
    out = tmp_path / "a" / "b"
    with locked(out) as lock:
        assert lock.folder == out
        lock.check()
        assert out.is_dir()
        with (
            pytest.raises(OutputBusyError, match=f"another run is writing to {out}"),
            locked(out),
        ):
            pass
    with locked(out):
        pass
    assert [path.name for path in out.iterdir()] == [".spine-engine.lock"]


def test_an_output_is_let_go_when_the_run_fails(tmp_path):
    with suppress(ZeroDivisionError), locked(tmp_path / "out"):
        raise ZeroDivisionError
    with locked(tmp_path / "out"):
        pass
    before = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(OutputBusyError),
        locked(tmp_path / "out"),
        locked(tmp_path / "out"),
    ):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_run_holds_its_output_while_it_goes_on(root, out, in_process):
    write_exam(root, "a", "1", "wait a")
    run = start(root, out)
    finished = threading.Thread(target=run.finish)
    finished.start()
    in_process.await_wait("a")
    with pytest.raises(OutputBusyError):
        start(root, out).finish()
    in_process.let_go("a")
    finished.join()
    with locked(out):
        pass


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    said = r"cannot write to .*/file/o: Not a directory; choose another output folder"
    with pytest.raises(OutputError, match=said), locked(tmp_path / "file" / "o"):
        pass


def test_a_folder_that_cannot_be_locked_is_an_output_error(tmp_path, monkeypatch):
    def no_locks(lock, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    said = r"cannot lock .*/out: No locks available; choose a folder on a local disk"
    with pytest.raises(OutputError, match=said), locked(tmp_path / "out"):
        pass


def test_a_run_without_an_output_leaves_no_folder_behind(root, tmp_path, monkeypatch):
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    write_exam(root, "a", "1")
    run = start(root, None)
    next(results := iter(run))
    assert [path.name.startswith("spine-engine-") for path in place.iterdir()] == [True]
    assert list(results) == []
    assert list(place.iterdir()) == []
    assert run.output is None
