"""Everything that can go wrong, in one place.

    SpineEngineError                what every error of the engine derives from; one line, no traceback for the user
    ├── UsageError                  exit 2: a wrong option or folder
    ├── BundleError                 exit 3: the bundle is refused
    ├── BackendError                exit 4: no backend as asked
    ├── OutputBusyError             exit 5: another run holds the output folder
    ├── OutputError                 exit 6: the output cannot be written
    ├── MachineError                exit 7: the machine lacks something that every study needs
    └── StudyError(reason)          one study, or one series, cannot be used; carries a Reason and never stops a run

``Reason`` and ``Warn`` are the closed lists that ``studies.jsonl`` may contain.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a study was not graded, or why a series or file is not used. ``docs/reasons.md`` says what to do."""

    NO_SAGITTAL = "no_sagittal"
    NO_ORIENTATION = "no_orientation"
    NO_POSITION = "no_position"
    NO_PIXEL_SPACING = "no_pixel_spacing"
    NO_GEOMETRY = "no_geometry"
    BAD_ORIENTATION = "bad_orientation"
    NOT_A_VOLUME = "not_a_volume"
    UNSUPPORTED_TRANSFER_SYNTAX = "unsupported_transfer_syntax"
    CORRUPT_PIXELS = "corrupt_pixels"
    CORRUPT_FILE = "corrupt_file"
    NOT_AN_IMAGE = "not_an_image"
    NOT_A_REGULAR_FILE = "not_a_regular_file"
    UNREADABLE = "unreadable"
    TOO_LARGE = "too_large"
    UID_COLLISION = "uid_collision"
    GAP_AT_LEVEL = "gap_at_level"
    NOT_LOCALIZED = "not_localized"
    NOT_LUMBAR = "not_lumbar"
    POOR_QUALITY = "poor_quality"
    TIMEOUT = "timeout"
    WORKER_DIED = "worker_died"
    OUT_OF_MEMORY = "out_of_memory"
    INTERNAL_ERROR = "internal_error"


class Warn(StrEnum):
    """What was unusual about a study that was used all the same."""

    GAP = "gap"
    UNEVEN = "uneven"
    DUP_POSITION = "dup_position"
    DUP_FILE = "dup_file"
    SLICE_DROPPED = "slice_dropped"
    MIXED_MATRIX = "mixed_matrix"
    SERIES_REFUSED = "series_refused"
    FRAME_OF_REFERENCE = "frame_of_reference"
    ROLE_OVERRIDDEN = "role_overridden"
    NO_SAGITTAL_T1 = "no_sagittal_t1"
    NO_SAGITTAL_T2 = "no_sagittal_t2"
    NO_AXIAL_T2 = "no_axial_t2"
    LEVEL_INTERPOLATED = "level_interpolated"
    LEVEL_NOT_COVERED = "level_not_covered"
    LOW_CONFIDENCE = "low_confidence"
    SERIES_DISAGREE = "series_disagree"
    TRANSITIONAL_ANATOMY = "transitional_anatomy"
    WHOLE_STUDY_GRADER = "whole_study_grader"
    FILE_UNREADABLE = "file_unreadable"
    NO_SLICE_THICKNESS = "no_slice_thickness"


class SpineEngineError(Exception):
    """Base of every error a user can meet; its message says what was got, what was wanted and what to do."""

    exit_code = 1


class UsageError(SpineEngineError):
    """A wrong option, or an input that is not a readable folder."""

    exit_code = 2


class BundleError(SpineEngineError):
    """The bundle is missing, damaged, or says something its models do not do."""

    exit_code = 3


class BackendError(SpineEngineError):
    """The backend, device or precision that was asked for is not to be had on this machine."""

    exit_code = 4


class OutputBusyError(SpineEngineError):
    """Another run holds the output folder."""

    exit_code = 5


class OutputError(SpineEngineError):
    """The output folder cannot be written, or holds the results of something else."""

    exit_code = 6


class MachineError(SpineEngineError):
    """The machine lacks something that every study needs: file descriptors, a cache folder, shared memory."""

    exit_code = 7


class StudyError(SpineEngineError):
    """A study, series or file cannot be used. It becomes a record with its reason; it never stops a run."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[StudyError], tuple[Reason, str]]:
        return (StudyError, (self.reason, self.detail))
