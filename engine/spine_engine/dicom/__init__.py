"""DICOM in: a folder becomes studies of series of stacks, or reasons why not.

Reading pixels needs pydicom and imagecodecs; they are imported when ``read_unit`` is first asked for, so that the
process that only discovers units carries neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spine_engine.dicom.discovery import FileEntry, RefusedFile, WorkUnit, discover
from spine_engine.dicom.limits import Limits

if TYPE_CHECKING:
    from spine_engine.dicom.overrides import RoleOverrides
    from spine_engine.dicom.reading import UnitReading, read_unit

__all__ = [
    "FileEntry",
    "Limits",
    "RefusedFile",
    "RoleOverrides",
    "UnitReading",
    "WorkUnit",
    "discover",
    "read_unit",
]


def __getattr__(name: str) -> Any:
    if name == "RoleOverrides":
        from spine_engine.dicom.overrides import RoleOverrides

        return RoleOverrides
    if name in ("UnitReading", "read_unit"):
        from spine_engine.dicom import reading

        return getattr(reading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
