"""The output folder of a run: made, checked and held, so that two runs never write into one."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spine_engine.errors import OutputBusyError, OutputError, UsageError

MOUNTS: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
"""How a mount table writes spaces and the like."""
_SHARED: Final = (
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse",
    "glusterfs",
    "gpfs",
    "lustre",
    "nfs",
    "ocfs2",
    "panfs",
    "smb",
    "virtiofs",
)
"""How the types of file systems that machines share begin."""
LOCK_FILE: Final = ".spine-engine.lock"
"""Stays in the folder; it is the lock on it that counts, and the system drops that when the process ends."""


def check_input(folder: Path) -> Path:
    """Return the input folder's real path.

    Raises:
        UsageError: it is not a readable folder.
    """
    try:
        real = folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"the input {folder} does not exist; give a folder of DICOM files"
        ) from error
    if not real.is_dir():
        raise UsageError(
            f"the input {folder} is not a folder; give the folder that holds the DICOM files"
        )
    if not os.access(real, os.R_OK | os.X_OK):
        raise UsageError(
            f"the input {folder} cannot be read; change its permissions or run as another user"
        )
    return real


def excluded_path(root: Path, output: Path) -> str | None:
    """Return the output folder's path relative to the input, with forward slashes; None where it lies elsewhere.

    Raises:
        UsageError: both are the same folder.
    """
    real = output.resolve()
    if real == root:
        raise UsageError(
            f"input and output are the same folder, {output}; give the output a folder of its own"
        )
    return real.relative_to(root).as_posix() if real.is_relative_to(root) else None


def shared_file_system(folder: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the type of the file system of ``folder`` if other machines may write to it; None for a local one.

    What a write-ahead log shares between processes is memory, which machines do not share.
    """
    try:
        lines = mounts.read_bytes().splitlines()
    except OSError:  # not Linux
        return None
    real, deepest, kind = os.fsencode(folder.resolve()), b"", ""
    for line in lines:
        mounted, _, file_system = line.partition(b" - ")
        place = _OCTAL.sub(lambda code: bytes([int(code[1], 8)]), mounted.split()[4])
        inside = real == place or real.startswith(place.rstrip(b"/") + b"/")
        if inside and len(place) >= len(deepest):
            deepest, kind = place, file_system.split()[0].decode()
    return kind if kind.startswith(_SHARED) else None


@dataclass(frozen=True)
class OutputLock:
    """The lock that a run holds on its output folder."""

    folder: Path
    descriptor: int

    def check(self) -> None:
        """Check that the folder is still the one that was locked.

        Raises:
            OutputError: it was deleted, moved, or replaced by another.
        """
        held = os.fstat(self.descriptor)
        try:
            now = os.stat(self.folder / LOCK_FILE)
        except OSError:
            now = None
        if now is None or (now.st_dev, now.st_ino) != (held.st_dev, held.st_ino):
            raise OutputError(
                f"{self.folder} was deleted or replaced while the run wrote to it: "
                "nothing more is written there; run again"
            )


@contextmanager
def locked(output: Path) -> Iterator[OutputLock]:
    """Make the output folder where it is missing and hold it until the block ends.

    Raises:
        OutputBusyError: another run holds it.
        OutputError: it cannot be made or written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = os.open(output / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(
            f"cannot write to {output}: {error.strerror}; choose another output folder"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputBusyError(
                f"another run is writing to {output}; wait for it or choose another folder"
            ) from None
        except OSError as error:
            raise OutputError(
                f"cannot lock {output}: {error.strerror}; choose a folder on a local disk"
            ) from error
        yield OutputLock(output, lock)
    finally:
        os.close(lock)
