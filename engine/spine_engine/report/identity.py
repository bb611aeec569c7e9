"""Who a study is of, for pages that were asked to say so: untrusted text from the headers."""

from __future__ import annotations

import logging
import posixpath
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from spine_engine.dicom.discovery import FileEntry
from spine_engine.report.content import Identity

_STUDY_TAGS: Final = ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "StudyDescription")
_TAGS: Final = [*_STUDY_TAGS, "SeriesDescription", "SpecificCharacterSet"]
MOST_TEXT: Final = 256
"""Characters of an element that are kept: LO has 64 at most, a person's name three times that (PS3.5 6.2)."""


def identity_of(root: Path, files: Sequence[FileEntry]) -> Identity:
    """Return what the headers of a study's files say of the person and, by folder, of the series.

    The study's own elements are those of the first file that has them. What cannot be read is left out.
    """
    texts = dict.fromkeys(_STUDY_TAGS, "")
    series: dict[str, list[str]] = {}
    for file in files:
        found = _texts(root / file.path)
        for tag in _STUDY_TAGS:
            texts[tag] = texts[tag] or found.get(tag, "")
        folder = series.setdefault(posixpath.dirname(file.path) or ".", [])
        description = found.get("SeriesDescription", "")
        if description and description not in folder:
            folder.append(description)
    return Identity(
        patient_name=texts["PatientName"],
        patient_id=texts["PatientID"],
        birth_date=texts["PatientBirthDate"],
        study_date=texts["StudyDate"],
        study_description=texts["StudyDescription"],
        series={path: ", ".join(said) for path, said in series.items()},
    )


def _texts(path: Path) -> dict[str, str]:
    from pydicom import dcmread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values, and those may name a patient
        logging.getLogger("pydicom").setLevel(logging.CRITICAL)
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=_TAGS, force=True)
            return {tag: str(header.get(tag, ""))[:MOST_TEXT] for tag in _TAGS}
        except Exception:  # noqa: BLE001 - a header that pydicom cannot read says nothing
            return {}
