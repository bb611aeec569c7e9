"""Reads the patient's identity from the headers, untrusted text, for pages that were asked to show it."""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from spine_engine.dicom.discovery import InputFile
from spine_engine.dicom.elements import Elements, parse
from spine_engine.dicom.files import read_file
from spine_engine.dicom.limits import DEFAULT_LIMITS
from spine_engine.errors import StudyError
from spine_engine.report.content import Identity

_STUDY_TAGS: Final = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "StudyDate",
    "StudyDescription",
)
_TAGS: Final[dict[str, tuple[int, bytes]]] = {
    "PatientName": (0x00100010, b"PN"),
    "PatientID": (0x00100020, b"LO"),
    "PatientBirthDate": (0x00100030, b"DA"),
    "StudyDate": (0x00080020, b"DA"),
    "StudyDescription": (0x00081030, b"LO"),
    "SeriesDescription": (0x0008103E, b"LO"),
}
"""Tag and VR (PS3.6) of the elements that pages show."""
_CHARACTER_SET: Final = 0x00080005
_WANTED: Final = {**dict(_TAGS.values()), _CHARACTER_SET: b"CS"}
MOST_TEXT: Final = 256
"""Largest number of characters kept of an element: LO has 64 at most, a person's name three times that (PS3.5 6.2)."""


def identity_of(root: Path, files: Sequence[InputFile]) -> Identity:
    """Return the person and the series descriptions that the headers of a study's files name.

    The study's own elements are those of the first file that has them; the series are keyed by their folders. Files
    that cannot be read are left out.
    """
    texts = dict.fromkeys(_STUDY_TAGS, "")
    series: dict[str, list[str]] = {}
    for file in files:
        file_texts = _texts(root / file.path)
        for tag in _STUDY_TAGS:
            texts[tag] = texts[tag] or file_texts.get(tag, "")
        descriptions = series.setdefault(posixpath.dirname(file.path) or ".", [])
        description = file_texts.get("SeriesDescription", "")
        if description and description not in descriptions:
            descriptions.append(description)
    return Identity(
        patient_name=texts["PatientName"],
        patient_id=texts["PatientID"],
        birth_date=texts["PatientBirthDate"],
        study_date=texts["StudyDate"],
        study_description=texts["StudyDescription"],
        series={path: ", ".join(descriptions) for path, descriptions in series.items()},
    )


def _texts(path: Path) -> dict[str, str]:
    """Return the texts at the beginning of a file, read within the limits of a run, as the files are untrusted."""
    try:
        elements = parse(
            read_file(path, first_bytes=DEFAULT_LIMITS.peek_bytes), _WANTED
        ).dataset
    except StudyError:
        return {}
    encodings = _encodings(_bytes(elements, _CHARACTER_SET).decode("ascii", "replace"))
    return {
        name: _decoded(_bytes(elements, tag), encodings)
        for name, (tag, _) in _TAGS.items()
    }


def _bytes(elements: Elements, tag: int) -> bytes:
    value = elements.values.get(tag, (b"", b""))[1]
    return value if isinstance(value, bytes) else b""


def _encodings(character_set: str) -> list[str]:
    from pydicom.charset import convert_encodings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return convert_encodings(
                [term.strip("\0 ") for term in character_set.split("\\")]
            )
        except LookupError:  # an unknown character set
            return ["latin-1"]


def _decoded(value: bytes, encodings: list[str]) -> str:
    from pydicom.charset import decode_bytes
    from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # pydicom's warnings quote values, and those may name a patient
        try:
            text = decode_bytes(
                value[: 4 * MOST_TEXT], encodings, TEXT_VR_DELIMS | PN_DELIMS
            )
        except (LookupError, ValueError):
            text = value.decode("latin-1")
    return text.strip("\0 ")[:MOST_TEXT]
