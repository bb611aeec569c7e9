"""Which files and folders become units of work: names, links, order, joining, and how much is looked at."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from raw_dicom import dicom, mr

from spine_engine.dicom import (
    InputFile,
    Limits,
    RefusedFile,
    WorkUnit,
    discover,
    discovery,
    files,
)
from spine_engine.errors import Reason, UsageError

DICOM = dicom(mr())


def put(root: Path, *paths: str, study: str = "1.2.3") -> None:
    data = dicom(mr(StudyInstanceUID=study)) if study else b"\0" * 200
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def told(root: Path, limits: Limits | None = None) -> list[Any]:
    """What is found: the paths of each unit's files, or what is refused and why, in the order in which it comes."""
    return [
        (found.path, found.reason)
        if isinstance(found, RefusedFile)
        else [file.path for file in found.files]
        for found in discover(root, limits or Limits())
    ]


# --- names ------------------------------------------------------------------------------------------------------------

FOREIGN = (
    *(
        "csv",
        "tsv",
        "txt",
        "md",
        "json",
        "jsonl",
        "xml",
        "yaml",
        "yml",
        "html",
        "htm",
        "pdf",
        "doc",
        "xls",
        "log",
    ),
    *(
        "ini",
        "inf",
        "db",
        "sqlite",
        "exe",
        "dll",
        "zip",
        "gz",
        "tar",
        "rar",
        "jpg",
        "jpeg",
        "png",
        "gif",
        "bmp",
    ),
    *("tif", "tiff", "nii", "npy", "mp4", "avi"),
)


@pytest.mark.parametrize("suffix", [*FOREIGN, "TXT"])
def test_a_name_that_is_not_dicoms_is_looked_at(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"\0" * 200)
    (tmp_path / f"b.{suffix}").write_bytes(DICOM)
    assert told(tmp_path) == [(f"a.{suffix}", Reason.NOT_AN_IMAGE), [f"b.{suffix}"]]


@pytest.mark.parametrize("name", ["a", "a.dcm", "a.ima", "a.txt.bak", "txt", ".txt"])
def test_any_other_name_is_taken(tmp_path: Path, name: str) -> None:
    """What it holds is found out when it is read."""
    (tmp_path / name).write_bytes(b"\0" * 200)
    assert told(tmp_path) == [[name]]


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir", "DicomDir"])
def test_a_dicomdir_is_no_image(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DICOM)
    assert told(tmp_path) == [(name, Reason.NOT_AN_IMAGE)]


def test_an_empty_file_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"x")
    assert told(tmp_path) == [("a", Reason.NOT_AN_IMAGE), ["b"]]


# --- links, and what is no file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "accepted"),
    [
        ("{root}/in/store", True),
        ("{root}/in/store/1", True),
        ("../store", True),
        ("{root}/out", False),
        ("{root}/out/1", False),
        ("{root}/inner", False),  # a folder whose name begins like the input's
        ("{root}/in", False),
        ("{root}/in/here", False),
        ("..", False),
        ("link", False),
        ("{root}/nowhere", False),
    ],
)
def test_links(tmp_path: Path, target: str, accepted: bool) -> None:
    """A link is never walked: what it points to inside the input is met there; anything else is refused."""
    for folder in ("in/store", "in/here", "out", "inner"):
        put(tmp_path, f"{folder}/1")
    (tmp_path / "in" / "here" / "link").symlink_to(target.format(root=tmp_path))
    refused = [] if accepted else [("here/link", Reason.NOT_A_REGULAR_FILE)]
    assert told(tmp_path / "in") == [*refused, ["here/1", "store/1"]]


def test_an_input_that_is_a_link_is_walked(tmp_path: Path) -> None:
    put(tmp_path, "in/a/1")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "b").symlink_to("a")
    assert told(tmp_path / "link") == [["a/1"]]


def test_a_fifo_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert told(tmp_path) == [("pipe", Reason.NOT_A_REGULAR_FILE)]


def test_a_file_that_vanishes_between_the_list_and_the_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a", "b")
    lstat = os.lstat

    def gone(path: Path) -> os.stat_result:
        if Path(path).name == "a":
            raise FileNotFoundError(2, "gone")
        return lstat(path)

    monkeypatch.setattr(discovery.os, "lstat", gone)
    assert told(tmp_path) == [("a", Reason.UNREADABLE), ["b"]]


def test_a_folder_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(discovery.os, "scandir", deny)
    assert told(tmp_path) == [(".", Reason.UNREADABLE)]


@pytest.mark.parametrize("denied", [os.R_OK, os.X_OK])
def test_an_input_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: int
) -> None:
    monkeypatch.setattr(discovery.os, "access", lambda path, mode: not mode & denied)
    with pytest.raises(
        UsageError,
        match=r"cannot read the input folder .*; give a folder that holds DICOM files",
    ):
        next(discover(tmp_path))


def test_an_input_that_is_a_file(tmp_path: Path) -> None:
    put(tmp_path, "a")
    with pytest.raises(UsageError, match="cannot read the input folder"):
        next(discover(tmp_path / "a"))


# --- order, joining ---------------------------------------------------------------------------------------------------


def test_the_walk_is_by_name_files_first_and_depth_first(tmp_path: Path) -> None:
    for study, path in enumerate(
        ["b/2", "b/1", "b/x/1", "a/z/1", "a/10", "a/9", "c", "B/1"]
    ):
        put(tmp_path, path, study=f"1.{path.rpartition('/')[0] or study}")
    assert told(tmp_path) == [
        ["c"],
        ["B/1"],
        ["a/10", "a/9"],
        ["a/z/1"],
        ["b/1", "b/2"],
        ["b/x/1"],
    ]


def test_neighbouring_folders_of_one_study_are_one_unit(tmp_path: Path) -> None:
    put(tmp_path, "a/1", "a/2", "b/1", "d/1", study="1.1")
    put(tmp_path, "c/1", study="1.2")
    units = [found for found in discover(tmp_path) if isinstance(found, WorkUnit)]
    assert [(unit.key, unit.study_id, len(unit.files)) for unit in units] == [
        ("a", "1.1", 3),
        ("c", "1.2", 1),
        ("d", "1.1", 1),
    ]


def test_folders_without_a_study_are_never_joined(tmp_path: Path) -> None:
    put(tmp_path, "a/1", "b/1", study="")
    put(tmp_path, "c/1", study="1.1")
    put(tmp_path, "d/1", study="")
    assert [
        (u.key, u.study_id) for u in discover(tmp_path) if isinstance(u, WorkUnit)
    ] == [
        ("a", None),
        ("b", None),
        ("c", "1.1"),
        ("d", None),
    ]


def test_joining_ends_where_a_study_has_too_many_files(tmp_path: Path) -> None:
    put(tmp_path, *(f"{folder}/{i}" for folder in "abcd" for i in range(2)))
    assert [len(unit) for unit in told(tmp_path, Limits(study_files=3))] == [4, 4]
    assert [len(unit) for unit in told(tmp_path, Limits(study_files=4))] == [6, 2]
    assert [len(unit) for unit in told(tmp_path, Limits(study_files=8))] == [8]


def test_a_refusal_does_not_part_a_study(tmp_path: Path) -> None:
    put(tmp_path, "a/1", "b/1")
    (tmp_path / "a" / "z.txt").write_text("hello" * 40)
    (tmp_path / "b" / "0.txt").write_text("hello" * 40)
    assert told(tmp_path) == [
        ("a/z.txt", Reason.NOT_AN_IMAGE),
        ("b/0.txt", Reason.NOT_AN_IMAGE),
        ["a/1", "b/1"],
    ]


def test_files_of_a_unit_are_sorted_by_path(tmp_path: Path) -> None:
    put(tmp_path, "z", "a/1")
    (unit,) = discover(tmp_path)
    assert isinstance(unit, WorkUnit)
    assert (unit.key, [file.path for file in unit.files]) == (".", ["a/1", "z"])


@pytest.mark.parametrize(("before", "known"), [(7, "1.2.3"), (8, None)])
def test_the_first_eight_files_tell_the_study(
    tmp_path: Path, before: int, known: str | None
) -> None:
    for i in range(before):
        (tmp_path / f"{i}").write_bytes(
            dicom(mr(StudyInstanceUID=None)) if i % 2 else b"\0" * 200
        )
    put(tmp_path, "z")
    (unit,) = discover(tmp_path)
    assert isinstance(unit, WorkUnit)
    assert unit.study_id == known


@pytest.mark.parametrize(("peek", "known"), [(2_000, None), (4_000, "1.2.3")])
def test_a_peek_reads_the_beginning(
    tmp_path: Path, peek: int, known: str | None
) -> None:
    (tmp_path / "a").write_bytes(dicom(mr(PatientComments="x" * 3_000)))
    (unit,) = discover(tmp_path, Limits(peek_bytes=peek))
    assert isinstance(unit, WorkUnit)
    assert unit.study_id == known


def test_an_id_that_is_no_uid_is_hashed(tmp_path: Path) -> None:
    put(tmp_path, "a", study="a/b")
    (unit,) = discover(tmp_path)
    assert isinstance(unit, WorkUnit)
    assert unit.study_id == "uid-" + hashlib.sha256(b"a/b").hexdigest()[:32]


def test_the_digest_is_of_paths_and_sizes() -> None:
    unit = WorkUnit("k", (InputFile("a/1", 5), InputFile("b", 60)), "1.2")
    assert unit.digest == hashlib.sha256(b"a/1\x005\nb\x0060\n").hexdigest()


# --- opening ahead ----------------------------------------------------------------------------------------------------


def test_sixteen_files_are_open_ahead_of_the_one_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *(f"{i:02d}" for i in range(40)))
    opened: list[str] = []
    really = os.open

    def counted(path: str, flags: int) -> int:
        opened.append(path)
        return really(path, flags)

    monkeypatch.setattr(files.os, "open", counted)
    ahead = []
    for file in files.open_ahead(str(tmp_path / f"{i:02d}") for i in range(40)):
        assert isinstance(file, files.OpenFile)
        assert file.read() == DICOM
        ahead.append(len(opened))
    assert ahead == [*range(17, 41), *[40] * 16]


@pytest.mark.parametrize("way", ["fails", "missing"])
def test_files_are_read_where_the_system_takes_no_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def fail(*_: int) -> None:
        raise OSError(22, "Invalid argument")

    if way == "fails":
        monkeypatch.setattr(files.os, "posix_fadvise", fail)
    else:
        monkeypatch.delattr(files.os, "posix_fadvise")
    put(tmp_path, "a")
    (file,) = files.open_ahead([str(tmp_path / "a")])
    assert isinstance(file, files.OpenFile)
    assert file.read() == DICOM


def test_what_cannot_be_opened_takes_its_place(tmp_path: Path) -> None:
    put(tmp_path, "a", "c")
    found = list(files.open_ahead([str(tmp_path / name) for name in ("a", "b", "c")]))
    assert [getattr(one, "reason", None) for one in found] == [
        None,
        Reason.UNREADABLE,
        None,
    ]
    for one in found:
        if isinstance(one, files.OpenFile):
            assert one.read(3) == b"\0\0\0"
