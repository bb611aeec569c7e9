"""Opening only what is an ordinary file, inside the input folder, of an ordinary size."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from spine_engine.dicom.limits import DEFAULT_LIMITS, MIB, Limits
from spine_engine.errors import MachineError, Reason, StudyError

# O_NONBLOCK: opening a FIFO that replaced the file returns at once. O_NOFOLLOW: a link that replaced it is refused.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_FILES_AHEAD: Final = 16
"""How many files are open ahead of the one that is read: measured, twice as many fetch no sooner."""
_BYTES_AHEAD: Final = 8 * MIB
"""How much of a file is fetched ahead: a slice of 2048 x 2048; what is larger streams well enough."""


_TRANSIENT: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EBUSY}
)
"""Errors of disks and network shares that may be gone a moment later."""
RETRY_DELAYS_S: Final = (0.05, 0.2)
"""Waits before a call is tried again: short, since a broken disk fails every file of a study."""

T = TypeVar("T")


def patiently(call: Callable[[], T]) -> T:
    """Return what ``call`` returns, trying again after an error that may be gone in a moment.

    Raises:
        MachineError: this process, or the machine, has too many files open.
        MemoryError: the system lacks memory for the call.
        OSError: whatever else the call raises in the end.
    """
    for delay in (*RETRY_DELAYS_S, None):
        try:
            return call()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise MachineError(
                    "too many files are open: raise the limit ('ulimit -n') and run again"
                ) from None
            if error.errno == errno.ENOMEM:
                raise MemoryError from None
            if delay is None or error.errno not in _TRANSIENT:
                raise
            time.sleep(delay)
    raise AssertionError("the last try returns or raises")


def check_regular(status: os.stat_result, limits: Limits = DEFAULT_LIMITS) -> None:
    """Raise ``StudyError`` unless ``status`` is that of a regular, non-empty file within the size limit."""
    if not stat.S_ISREG(status.st_mode):
        raise StudyError(Reason.NOT_A_REGULAR_FILE)
    if status.st_size > limits.file_bytes:
        raise StudyError(
            Reason.TOO_LARGE,
            f"a file of {status.st_size} bytes, at most {limits.file_bytes} are read",
        )
    if status.st_size == 0:
        raise StudyError(Reason.NOT_AN_IMAGE, "an empty file")


def read_file(
    path: Path | str, limits: Limits = DEFAULT_LIMITS, first_bytes: int | None = None
) -> bytes:
    """Return the content of ``path``, or its first ``first_bytes`` bytes.

    Raises:
        StudyError: not a regular file, too large, empty, unreadable, or gone.
    """
    return _opened(path, limits).read(first_bytes)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A regular file of ``size`` bytes at ``path`` that was opened and is to be read once, which closes it."""

    path: Path | str
    descriptor: int
    size: int

    def read(self, first_bytes: int | None = None) -> bytes:
        """Return the content, or its first ``first_bytes`` bytes, and close the file.

        Raises:
            StudyError: it cannot be read, not even when it is opened again, or has become shorter meanwhile.
            MachineError, MemoryError: as for ``patiently``.
        """
        wanted = self.size if first_bytes is None else min(first_bytes, self.size)
        descriptors = [self.descriptor]

        def content() -> bytes:
            descriptor = (
                descriptors.pop() if descriptors else os.open(self.path, _OPEN_FLAGS)
            )
            try:
                return _content(descriptor, wanted)
            finally:
                os.close(descriptor)

        try:
            data = patiently(content)
        except OSError:
            raise StudyError(Reason.UNREADABLE) from None
        if len(data) < wanted:
            raise StudyError(Reason.UNREADABLE, "the file ends before its size")
        return data


def _content(descriptor: int, wanted: int) -> bytes:
    """Return ``wanted`` bytes from here on, fewer where the file ends before."""
    data = os.read(descriptor, wanted)
    while len(data) < wanted and (more := os.read(descriptor, wanted - len(data))):
        data += more
    return data


def open_ahead(
    paths: Iterable[str], limits: Limits = DEFAULT_LIMITS
) -> Iterator[OpenFile | StudyError]:
    """Yield each file, opened, or why it is not opened; a few that follow are open by then, and on their way.

    Storage answers many requests at once sooner than one after the other, and works while slices are decoded.
    """
    ahead: deque[OpenFile | StudyError] = deque()
    try:
        for path in paths:
            try:
                file = _opened(path, limits)
            except StudyError as error:
                ahead.append(error)
            else:
                ahead.append(file)
                _announce(file)
            if len(ahead) > _FILES_AHEAD:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        for left in ahead:
            if isinstance(left, OpenFile):
                os.close(left.descriptor)


def _announce(file: OpenFile) -> None:
    """Ask the system to fetch the beginning of a file; without the call (macOS) it is fetched when it is read."""
    if hasattr(os, "posix_fadvise"):
        with suppress(
            OSError
        ):  # advice: what is wrong with the file shows when it is read
            os.posix_fadvise(
                file.descriptor, 0, min(file.size, _BYTES_AHEAD), os.POSIX_FADV_WILLNEED
            )


def _opened(path: Path | str, limits: Limits) -> OpenFile:
    try:
        descriptor = patiently(lambda: os.open(path, _OPEN_FLAGS))
    except OSError as error:
        # ELOOP: a link stands where a file was listed. ENXIO: a socket.
        special = error.errno in (errno.ELOOP, errno.ENXIO)
        raise StudyError(
            Reason.NOT_A_REGULAR_FILE if special else Reason.UNREADABLE
        ) from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise StudyError(Reason.UNREADABLE, "a folder that could not be listed")
        check_regular(status, limits)
    except OSError:
        os.close(descriptor)
        raise StudyError(Reason.UNREADABLE) from None
    except StudyError:
        os.close(descriptor)
        raise
    return OpenFile(path, descriptor, status.st_size)
