"""What a file or a study may ask for. Every limit acts before memory is taken for what it guards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 1024**2
GIB: Final = 1024**3


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Ceilings for hostile and broken input; far above any lumbar-spine study (typically 20-100 MB, 60-400 files).

    Attributes:
        file_bytes: largest file that is opened.
        header_bytes: largest header, pixels apart.
        element_bytes: largest single element, pixels apart.
        value_bytes: largest value that is read: no number, name or list of the standard comes near.
        nesting: deepest sequence.
        matrix: most rows, and most columns.
        frames: most frames of one file, and most items of one sequence.
        frame_bytes: largest decoded frame.
        study_bytes: largest study, as files and as decoded pixels.
        study_files: most files of one study.
        inflate_ratio: how much a deflated header may grow.
        peek_bytes: how much of a file is read to learn which study it belongs to.
        file_s, study_s: how long reading one file, and one study, may take.
    """

    file_bytes: int = 2 * GIB
    header_bytes: int = 64 * MIB
    element_bytes: int = 64 * MIB
    value_bytes: int = 4096
    nesting: int = 64
    matrix: int = 16_384
    frames: int = 10_000
    frame_bytes: int = 256 * MIB
    study_bytes: int = 4 * GIB
    study_files: int = 20_000
    inflate_ratio: int = 200
    peek_bytes: int = 256 * 1024
    file_s: float = 30.0
    study_s: float = 300.0


DEFAULT_LIMITS: Final = Limits()
