"""The files of a run are replaced whole or not at all, whenever the process is killed."""

import errno
import os
from pathlib import Path

import pytest
from fakes import start, write_exam

from spine_engine.errors import OutputError
from spine_engine.results import write_lines


class Killed(BaseException):
    """Nothing that the code could catch as an error."""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.txt"
    write_lines(path, ["old", "lines"])
    return path


@pytest.fixture
def steps(monkeypatch):
    """The steps by which a file comes to the disk; ``steps.fail[name]`` is raised in place of one."""

    class Steps(list):
        fail = {}  # noqa: RUF012

        def take(self, name, what):
            if name in self.fail:
                raise self.fail[name]
            self.append((name, what))

    steps, fsync, replace = Steps(), os.fsync, Path.replace
    steps.fail = {}

    def tell_fsync(descriptor):
        there = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.take(
            "fsync folder" if there.is_dir() else "fsync",
            there.name if there.is_dir() else there.read_text(),
        )
        fsync(descriptor)

    def tell_replace(self, target):
        steps.take("replace", (self.name, target.name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", tell_fsync)
    monkeypatch.setattr(Path, "replace", tell_replace)
    return steps


def test_all_lines_are_on_the_disk_before_the_name_changes_and_then_the_name_is(
    path, steps
):
    write_lines(path, ["new", "é\u2028", ""])
    assert steps == [
        ("fsync", "new\né\u2028\n\n"),
        ("replace", (".file.txt.part", "file.txt")),
        ("fsync folder", path.parent.name),
    ]
    assert path.read_bytes() == "new\né\u2028\n\n".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def cut_off(error):
    yield "new"
    raise error


@pytest.mark.parametrize(
    "error", [Killed(), OSError(errno.ENOSPC, "No space left on device")]
)
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_the_earlier_file_is_whole_when_writing_ends_half_way(path, steps, step, error):
    lines = cut_off(error) if step == "write" else ["new"]
    if step != "write":
        steps.fail[step] = error
    with pytest.raises(Killed if isinstance(error, Killed) else OutputError):
        write_lines(path, lines)
    assert path.read_text() == "old\nlines\n"
    steps.fail.clear()
    write_lines(path, ["later"])
    assert path.read_text() == "later\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_a_full_disk_is_said_with_the_file_and_what_to_do(path, steps):
    steps.fail["fsync"] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutputError) as said:
        write_lines(path, ["new"])
    assert (
        str(said.value)
        == f"cannot write {path}: No space left on device; free space or choose another output"
    )


def test_the_new_file_is_whole_when_only_its_name_may_be_lost(path, steps):
    steps.fail["fsync folder"] = Killed()
    with pytest.raises(Killed):
        write_lines(path, ["new"])
    assert path.read_text() == "new\n"


def test_no_descriptor_is_left_open(path, steps):
    before = len(os.listdir("/proc/self/fd"))
    write_lines(path, ["new"])
    steps.fail["fsync folder"] = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OutputError):
        write_lines(path, ["new"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_every_file_of_a_run_is_written_so_and_run_json_last(
    root, out, in_process, steps
):
    write_exam(root, "a", "1")
    start(root, out).finish()
    assert [what[1] for name, what in steps if name == "replace"] == [
        "predictions.csv",
        "studies.jsonl",
        "run.json",
    ]
    assert [name for name, _ in steps] == ["fsync", "replace", "fsync folder"] * 3


@pytest.mark.parametrize("file", ["predictions.csv", "studies.jsonl", "run.json"])
def test_a_run_killed_while_it_writes_a_file_leaves_the_earlier_one_and_goes_on(
    root, out, in_process, file
):
    write_exam(root, "a", "1")
    start(root, out).finish()
    before = (out / file).read_bytes()
    write_exam(root, "b", "2")
    replace = Path.replace

    def killed(self, target):
        if target.name == file:
            raise Killed
        return replace(self, target)

    run = start(root, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            run.finish()
    assert (out / file).read_bytes() == before
    summary = start(root, out).finish()
    assert (summary.resumed, summary.walked, summary.studies) == (2, 0, 2)
    assert (out / file).read_bytes() != before
