"""Opening only what is an ordinary file, inside the input folder, of an ordinary size."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from spine_engine.dicom.limits import DEFAULT_LIMITS, Limits
from spine_engine.errors import Reason, StudyError

# O_NONBLOCK: opening a FIFO that replaced the file returns at once. O_NOFOLLOW: a link that replaced it is refused.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def check_regular(status: os.stat_result, limits: Limits = DEFAULT_LIMITS) -> None:
    """Raise ``StudyError`` unless ``status`` is that of a regular, non-empty file within the size limit."""
    if not stat.S_ISREG(status.st_mode):
        raise StudyError(Reason.NOT_A_REGULAR_FILE)
    if status.st_size > limits.file_bytes:
        raise StudyError(Reason.TOO_LARGE, f"a file of {status.st_size} bytes, at most {limits.file_bytes} are read")
    if status.st_size == 0:
        raise StudyError(Reason.NOT_AN_IMAGE, "an empty file")


def read_file(path: Path, limits: Limits = DEFAULT_LIMITS, first_bytes: int | None = None) -> bytes:
    """Return the content of ``path``, or its first ``first_bytes`` bytes.

    Raises:
        StudyError: not a regular file, too large, empty, unreadable, or gone.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError as error:
        # ELOOP: a link stands where a file was listed. ENXIO: a socket.
        special = error.errno in (errno.ELOOP, errno.ENXIO)
        raise StudyError(Reason.NOT_A_REGULAR_FILE if special else Reason.UNREADABLE) from None
    try:
        status = os.fstat(descriptor)
        check_regular(status, limits)
        wanted = status.st_size if first_bytes is None else min(first_bytes, status.st_size)
        with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as stream:
            data: bytes = stream.read(wanted)
            while len(data) < wanted and (more := stream.read(wanted - len(data))):
                data += more
        return data
    except OSError:
        raise StudyError(Reason.UNREADABLE) from None
    finally:
        os.close(descriptor)
