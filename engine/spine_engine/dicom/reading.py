"""Reading a unit of work: each file opened once, headers, pixels, stacks, roles.

What is wrong with one file costs that file, what is wrong with one series costs that series; a study always comes back,
with its reason when it cannot be graded.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import struct
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from spine_engine.dicom import pixels
from spine_engine.dicom.discovery import (
    InputFile,
    RefusedFile,
    WorkUnit,
    merged_unit,
    printable_uid,
)
from spine_engine.dicom.elements import ParsedFile, parse
from spine_engine.dicom.files import OpenFile, open_ahead
from spine_engine.dicom.geometry import Slice
from spine_engine.dicom.header import (
    IDENTITY,
    WANTED,
    ImageHeader,
    check_is_image,
    read_image,
    series_uid,
    study_uid,
)
from spine_engine.dicom.limits import DEFAULT_LIMITS, Limits
from spine_engine.dicom.overrides import RoleOverrides
from spine_engine.dicom.roles import ineligible
from spine_engine.dicom.series import ReadSeries, assemble
from spine_engine.errors import Reason, StudyError, Warn
from spine_engine.study import Study

_NOISE_STEP: Final = 0.3
"""Mean step between neighbouring pixels in standard deviations of the slice: 1.1 for noise, at most 0.17 in real exams
of spine, brain and knee, 0.35 to 0.6 where JPEG 2000 has a hole."""
_NOISE_SIDE: Final = 64
"""Slices of fewer rows or columns are too small to tell."""
_STRONG_NOISE: Final = 0.25
"""Slices of air are noise too, but weak: this share of the series' standard deviation tells them apart."""
_HEADER_ERRORS: Final = (struct.error, ValueError, IndexError, OverflowError)


@dataclass(frozen=True, eq=False)
class UnitReading:
    """What a unit turned out to be.

    Attributes:
        studies: the study, decoded; empty when there was none, or when there were several.
        split: one unit a study, when there were several; nothing of them was decoded.
        refused: the files that are not used, and why.
    """

    studies: tuple[Study, ...]
    split: tuple[WorkUnit, ...]
    refused: tuple[RefusedFile, ...]


@dataclass
class _Reading:
    """What has been read of a unit so far."""

    limits: Limits
    deadline: float
    part_of: str | None = None
    files_of: dict[str, list[InputFile]] = field(default_factory=dict)
    series: dict[str, ReadSeries] = field(default_factory=dict)
    patients: set[tuple[str, str, str]] = field(default_factory=set)
    refused: list[RefusedFile] = field(default_factory=list)
    unreadable: list[InputFile] = field(default_factory=list)
    bytes_read: int = 0
    bytes_decoded: int = 0
    failed: Reason | None = None

    @property
    def decoding(self) -> bool:
        """Whether this is still one study that can be used; otherwise files are only identified."""
        return self.failed is None and len(self.files_of) < 2

    def give_up(self, reason: Reason) -> None:
        """Refuse the study as a whole and let go of what was decoded."""
        self.failed = reason
        self.series.clear()


def read_unit(
    root: Path,
    unit: WorkUnit,
    overrides: RoleOverrides | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> UnitReading:
    """Read the files of ``unit`` under ``root`` into its study.

    Reads every file once. When files of several studies are met, decoding stops, the rest is only identified, and
    ``split`` names one unit a study.
    """
    part_of = unit.study_id if unit.part else None
    reading = _Reading(limits, time.monotonic() + limits.study_s, part_of)
    entries = sorted(unit.files, key=lambda file: file.path)
    opened = open_ahead((f"{root}/{entry.path}" for entry in entries), limits)
    for entry, file in zip(entries, opened, strict=True):
        try:
            if isinstance(file, StudyError):
                raise file
            if reading.decoding:
                _read(reading, entry, file)
            else:
                _identify(reading, entry, file)
        except StudyError as error:
            reading.refused.append(RefusedFile(entry.path, error.reason))
            if error.reason is Reason.UNREADABLE:
                reading.unreadable.append(entry)
        except MemoryError:
            reading.give_up(Reason.OUT_OF_MEMORY)
    refused = tuple(reading.refused)
    if len(reading.files_of) > 1:
        again = {file.path for files in reading.files_of.values() for file in files}
        refused = tuple(file for file in refused if file.path not in again)
        split = [
            _part(unit, study, [*files, *reading.unreadable])
            for study, files in reading.files_of.items()
        ]
        return UnitReading(
            (), tuple(sorted(split, key=lambda part: part.files[0].path)), refused
        )
    study = _study(unit, reading, overrides or RoleOverrides())
    return UnitReading(() if study is None else (study,), (), refused)


def _part(unit: WorkUnit, study: str, files: list[InputFile]) -> WorkUnit:
    """Return the part of a unit that is one study: its files, and those that could be anybody's."""
    key = f"{unit.key}#{hashlib.sha256(study.encode()).hexdigest()[:12]}"
    return replace(merged_unit(key, files, printable_uid(study)), part=True)


def _study(unit: WorkUnit, reading: _Reading, overrides: RoleOverrides) -> Study | None:
    """Return the one study that was read; None where there is none."""
    warnings = (Warn.FILE_UNREADABLE,) if reading.unreadable else ()
    if not reading.files_of:
        known = unit.study_id is not None and reading.unreadable
        return (
            Study(str(unit.study_id), (), warnings, Reason.UNREADABLE)
            if known
            else None
        )
    study_id = printable_uid(next(iter(reading.files_of)))
    if reading.failed is None and _contradict(reading.patients):
        reading.give_up(Reason.UID_COLLISION)
    if reading.failed is not None:
        return Study(study_id, (), warnings, reading.failed)
    series = [reading.series[key] for key in sorted(reading.series)]
    for one in series:
        _drop_noise(one)
    study = assemble(study_id, series, overrides)
    return replace(study, warnings=(*study.warnings, *warnings))


def _drop_noise(series: ReadSeries) -> None:
    """Drop the slices of JPEG 2000 that are noise as strong as the others' picture.

    A hole in the code stream shifts all that follows; the decoder takes that for coefficients and does not complain.
    """
    spreads = [
        float(one.pixels.std())
        for one in series.slices
        if one.image.transfer_syntax in pixels.JPEG_2000
    ]
    if not spreads:
        return
    strong = _STRONG_NOISE * float(np.median(spreads))
    sound = [one for one in series.slices if not _is_noise(one, strong)]
    if len(sound) < len(series.slices):
        series.failures[Reason.CORRUPT_PIXELS] += len(series.slices) - len(sound)
        series.slices[:] = sound


def _is_noise(one: Slice, strong: float) -> bool:
    if (
        one.image.transfer_syntax not in pixels.JPEG_2000
        or min(one.pixels.shape) < _NOISE_SIDE
    ):
        return False
    spread = float(one.pixels.std())
    steps = np.diff(one.pixels[::4].astype(np.int32), axis=1)
    return (
        spread >= strong
        and bool(steps.size)
        and float(np.abs(steps).mean()) > _NOISE_STEP * spread
    )


def _read(reading: _Reading, entry: InputFile, file: OpenFile) -> None:
    """Read one file into the study.

    Raises:
        StudyError: the file is not used.
    """
    limits = reading.limits
    if time.monotonic() > reading.deadline:
        reading.give_up(Reason.TIMEOUT)
        return _identify(reading, entry, file)
    file_deadline = min(reading.deadline, time.monotonic() + limits.file_s)
    data = file.read()
    parsed = parse(data, WANTED, limits)
    study = study_uid(parsed)
    folder = _folder(posixpath.dirname(entry.path))
    try:
        check_is_image(parsed)
        image = read_image(parsed, limits)
    except StudyError as error:
        if error.reason is not Reason.NOT_AN_IMAGE and _belongs(reading, entry, study):
            _series_of(reading, parsed, folder).failures[error.reason] += 1
        raise
    except _HEADER_ERRORS:
        raise StudyError(Reason.CORRUPT_FILE) from None
    if not study:
        raise StudyError(Reason.CORRUPT_FILE, "no StudyInstanceUID")
    if not _belongs(reading, entry, study):
        return None
    series = _series_of(reading, parsed, folder)
    reading.patients.add(image.patient)
    reading.bytes_read += entry.size
    reading.bytes_decoded += image.rows * image.columns * 2 * image.declared_frames
    files = len(reading.files_of[study])
    if (
        files > limits.study_files
        or max(reading.bytes_read, reading.bytes_decoded) > limits.study_bytes
    ):
        reading.give_up(Reason.TOO_LARGE)
        return None
    _decode(series, entry.path, image, parsed, file_deadline)
    return None


@lru_cache(maxsize=16)
def _folder(path: str) -> str:
    """Return a folder as records show it: plain, and "." for the input itself."""
    return str(PurePosixPath(path))


def _belongs(reading: _Reading, entry: InputFile, study: str) -> bool:
    """Note which study a file belongs to; return False when it has none, or when there are several by now."""
    if not study or (
        reading.part_of is not None and printable_uid(study) != reading.part_of
    ):
        return False
    reading.files_of.setdefault(study, []).append(entry)
    if len(reading.files_of) > 1:
        reading.series.clear()
        return False
    return True


def _series_of(reading: _Reading, parsed: ParsedFile, folder: str) -> ReadSeries:
    """Return the series a file belongs to: by its SeriesInstanceUID, else by its folder."""
    uid = series_uid(parsed)
    series = reading.series.setdefault(
        uid or f"folder {folder}", ReadSeries(uid, folder)
    )
    series.path = min(series.path, folder)
    return series


def _decode(
    series: ReadSeries,
    path: str,
    image: ImageHeader,
    parsed: ParsedFile,
    deadline: float,
) -> None:
    """Add a file's slices to its series, unless nothing of the series could ever play a role.

    Raises:
        StudyError: the pixels cannot be decoded at all.
    """
    series.images += len(image.frames)
    if image.samples_per_pixel != 1 or image.modality not in ("", "MR"):
        series.unread.append(ineligible(image, image.frames[0]) or "not MR")
        return
    try:
        pixels.check_decodable(image)
        assert parsed.pixel_data is not None
        good = 0
        last: StudyError | None = None
        for frame, values in zip(
            image.frames, pixels.frames(image, parsed.pixel_data), strict=True
        ):
            if isinstance(values, StudyError):
                last = values
                series.failures[values.reason] += 1
            elif time.monotonic() > deadline:
                last = StudyError(Reason.TIMEOUT)
                series.failures[last.reason] += len(image.frames) - frame.index
                break
            else:
                good += 1
                series.slices.append(Slice(path, image, frame, values))
    except StudyError as error:
        series.failures[error.reason] += len(image.frames)
        raise
    if last is not None and good == 0:
        raise last


def _identify(reading: _Reading, entry: InputFile, file: OpenFile) -> None:
    """Find out which study a file belongs to, from its beginning."""
    data = file.read(reading.limits.peek_bytes)
    parsed = parse(
        data, {**IDENTITY, 0x00080016: b"UI", 0x00080060: b"CS"}, reading.limits
    )
    study = study_uid(parsed)
    if not study:
        raise StudyError(Reason.CORRUPT_FILE, "no StudyInstanceUID")
    reading.files_of.setdefault(study, []).append(entry)


def _contradict(patients: set[tuple[str, str, str]]) -> bool:
    """Tell whether one study's files name two patients: by ID, by birth date, or by name where no file has an ID.

    A missing value contradicts nothing, and names are compared by their letters only.
    """
    if not patients:
        return False
    ids, births, names = (
        {value for value in values if value} for values in zip(*patients, strict=True)
    )
    letters = {re.sub(r"[\W_]+", "", name.casefold()) for name in names}
    return len(ids) > 1 or len(births) > 1 or (not ids and len(letters) > 1)
