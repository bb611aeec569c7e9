"""DICOM in: a folder becomes studies of series of stacks, or reasons why not.

Reading pixels needs pydicom and imagecodecs; they are imported when ``read_unit`` is first asked for, so that the
process that only discovers units carries neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spine_engine.dicom.discovery import InputFile, RefusedFile, WorkUnit, discover
from spine_engine.dicom.limits import Limits

if TYPE_CHECKING:
    from spine_engine.dicom.one_study import read_study
    from spine_engine.dicom.overrides import RoleOverrides
    from spine_engine.dicom.reading import UnitReading, read_unit

__all__ = [
    "InputFile",
    "Limits",
    "RefusedFile",
    "RoleOverrides",
    "UnitReading",
    "WorkUnit",
    "discover",
    "read_study",
    "read_unit",
]


_HOME = {
    "RoleOverrides": "overrides",
    "UnitReading": "reading",
    "read_study": "one_study",
    "read_unit": "reading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
