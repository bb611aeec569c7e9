"""Finding the studies of a folder, one after the other, without holding the whole folder in memory.

The walk is depth first and sorted by name. Links are not walked: what a link inside the input points to is met at its
own place, and what it points to outside the input is not part of it. The files of a folder form one unit of work;
neighbouring folders whose first image names the same study are joined into one unit.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

from spine_engine.dicom.elements import parse
from spine_engine.dicom.files import check_regular, patiently, read_file
from spine_engine.dicom.header import IDENTITY, study_uid
from spine_engine.dicom.limits import DEFAULT_LIMITS, Limits
from spine_engine.errors import Reason, StudyError, UsageError

_PEEKED_FILES: Final = 8
"""How many files of a folder are looked at to learn its study: the first may be a README."""
# Names that usually hold no DICOM. They are looked at all the same: a name alone decides nothing.
_FOREIGN_SUFFIXES: Final = frozenset(
    (
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
)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the input: its path relative to the input folder, with forward slashes, and its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A file, link or folder that is not read, and why."""

    path: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Files that are read together: normally one study.

    Attributes:
        key: the folder of its first file, relative to the input, "." for the input itself; unique within a run. A
            unit that came out of a split adds ``#`` and a hash of the study.
        files: its files, sorted by path.
        study_id: the StudyInstanceUID that the first image names; None when none was found. A record can be kept under
            it when reading the unit kills its worker.
        part: it came out of a split. A file of another study in it, one that could not be read before, is another
            part's.
    """

    key: str
    files: tuple[InputFile, ...]
    study_id: str | None = None
    part: bool = field(default=False, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 over the paths and sizes of the files: changes when the study's files do."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(
                f"{file.path}\0{file.size}\n".encode("utf-8", "surrogateescape")
            )
        return digest.hexdigest()


def merged_unit(key: str, files: Iterable[InputFile], study_id: str | None) -> WorkUnit:
    """Return one unit of all these files, each once, sorted by path."""
    return WorkUnit(
        key, tuple(sorted(set(files), key=lambda file: file.path)), study_id
    )


_PLAIN_UID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


def printable_uid(uid: str) -> str:
    """Return a UID that is safe to print and to open in a spreadsheet as it is, and a hash of any other."""
    return (
        uid
        if _PLAIN_UID.fullmatch(uid)
        else f"uid-{hashlib.sha256(uid.encode()).hexdigest()[:32]}"
    )


def discover(
    root: Path, limits: Limits = DEFAULT_LIMITS
) -> Iterator[WorkUnit | RefusedFile]:
    """Yield the units of work under ``root``, and what is refused on the way, in a fixed order.

    Streams: the first unit comes as soon as the first study's folders are listed, and one study is held at a time.

    Raises:
        UsageError: ``root`` is not a readable folder.
    """
    if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
        raise UsageError(
            f"cannot read the input folder {str(root)!r}; give a folder that holds DICOM files"
        )
    pending: list[InputFile] = []
    pending_study = ""
    unlisted: list[str] = []
    for found in _folders(root, "", limits):
        if isinstance(found, RefusedFile):
            if found.reason is Reason.UNREADABLE:
                unlisted.append(found.path)
            yield found
            continue
        study = _peeked_study(root, found, limits)
        if pending and (
            not study or study != pending_study or len(pending) > limits.study_files
        ):
            yield _unit(pending, pending_study, unlisted)
            pending = []
        pending.extend(found)
        pending_study = study
    if pending:
        yield _unit(pending, pending_study, unlisted)


def _unit(files: list[InputFile], study: str, unlisted: list[str]) -> WorkUnit:
    """Return a unit of files, and of the folders beside them or inside that could not be listed: they may hold more."""
    key = str(PurePosixPath(files[0].path).parent)
    folders = {str(PurePosixPath(file.path).parent) for file in files}
    home = posixpath.commonpath(folders) if len(folders) > 1 else posixpath.dirname(key)
    within = [home] if home not in ("", ".") else sorted(folders - {"."})
    lost = [
        InputFile(path, 0)
        for path in unlisted
        if any(path.startswith(f"{folder}/") for folder in within)
    ]
    return merged_unit(key, [*files, *lost], printable_uid(study) if study else None)


def _folders(
    root: Path, relative: str, limits: Limits
) -> Iterator[list[InputFile] | RefusedFile]:
    """Yield the candidate files of each folder, depth first, a folder's own files before its subfolders."""
    waiting = [relative]
    while waiting:
        folder = waiting.pop()
        files: list[InputFile] = []
        subfolders: list[str] = []
        try:
            names = patiently(partial(_names, root / folder))
        except OSError:
            yield RefusedFile(folder or ".", Reason.UNREADABLE)
            continue
        for name in names:
            met = _met(root, f"{folder}/{name}" if folder else name, limits)
            if isinstance(met, InputFile):
                files.append(met)
            elif isinstance(met, RefusedFile):
                yield met
            elif met is not None:
                subfolders.append(met)
        if files:
            yield files
        waiting.extend(reversed(subfolders))


def _met(root: Path, path: str, limits: Limits) -> InputFile | RefusedFile | str | None:
    """Return a candidate file, a refused one, the path of a subfolder, or None for a link to a place inside the input.

    A file that cannot be looked at is a candidate: its study is to say that it lacks a file.
    """
    try:
        status = patiently(partial(os.lstat, root / path))
        if stat.S_ISDIR(status.st_mode):
            return path
        if stat.S_ISLNK(status.st_mode):
            _check_link(root, path)
            return None
        check_regular(status, limits)
        _check_name(root / path, limits)
    except StudyError as error:
        return (
            InputFile(path, 0)
            if error.reason is Reason.UNREADABLE
            else RefusedFile(path, error.reason)
        )
    except FileNotFoundError:  # it vanished since the folder was listed
        return RefusedFile(path, Reason.UNREADABLE)
    except OSError:
        return InputFile(path, 0)
    return InputFile(path, status.st_size)


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def _check_link(root: Path, path: str) -> None:
    """Accept a link whose target is met inside the input at its own place; refuse loops, dead ends and ways out."""
    try:
        target = (root / path).resolve(strict=True)
        here = (root / path).parent.resolve(strict=True)
        top = root.resolve(strict=True)
    except (OSError, RuntimeError):
        raise StudyError(
            Reason.NOT_A_REGULAR_FILE, "a link that leads nowhere"
        ) from None
    if not target.is_relative_to(top) or here.is_relative_to(target):
        raise StudyError(
            Reason.NOT_A_REGULAR_FILE,
            "a link out of the input, or back to a folder it is in",
        )


def _check_name(path: Path, limits: Limits) -> None:
    """Raise ``StudyError`` when a file that is not named like DICOM does not begin like DICOM either."""
    if path.name.upper() == "DICOMDIR":
        raise StudyError(Reason.NOT_AN_IMAGE)
    if path.suffix.lower().removeprefix(".") in _FOREIGN_SUFFIXES:
        parse(read_file(path, limits, first_bytes=4096), IDENTITY, limits)


def _peeked_study(root: Path, files: list[InputFile], limits: Limits) -> str:
    """Return the study of a folder's first image, or "" when its first files name none."""
    for file in files[:_PEEKED_FILES]:
        try:
            study = study_uid(
                parse(
                    read_file(root / file.path, limits, limits.peek_bytes),
                    IDENTITY,
                    limits,
                )
            )
        except StudyError:
            continue
        if study:
            return study
    return ""
