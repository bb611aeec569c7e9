"""What every process of the engine sets for itself: signals, threads, a ceiling of memory, and how much it has used."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

START_TIMEOUT_S: Final = 300.0
"""A process imports the runtimes and compiles the models in this time, or the run ends. It takes seconds."""

ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"),
    "1",
)
"""Set while a worker starts, because these are read once, when the libraries load."""

KEPT_MEMORY: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
"""A worker on glibc keeps up to 256 MiB that it has freed. Blocks of megabytes, a study's buffers, otherwise go back to
the system at once, and the next study's fault in page by page: 1,700 faults and 4 ms of processor time a study, 8 ms of
80 a page of a report."""

_starting = threading.RLock()
"""Held while a child is started, for what it inherits is changed for that moment; other threads see it, too."""


@dataclass(frozen=True, kw_only=True)
class MemoryShare:
    """How much private memory a worker may have: usually, and when it is the only one there."""

    usual_bytes: int
    alone_bytes: int


def prepare_process() -> None:
    """Leave Ctrl-C and SIGTERM to the main process, and end when it ends, even by ``kill -9``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


@contextmanager
def no_main_module() -> Iterator[None]:
    """Keep children started meanwhile from importing this program's main module, as spawned processes do.

    They need nothing of it: a script without a guard for ``__main__`` would run again in each, one read from standard
    input could not be found, and the command line's own imports would cost each 0.15 s.
    """
    main = sys.modules["__main__"].__dict__
    with _starting:
        before: dict[str, Any] = {
            name: main.pop(name) for name in ("__file__", "__spec__") if name in main
        }
        main["__spec__"] = None
        try:
            yield
        finally:
            main.update(before)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Hold environment variables at ``values``, for the children started meanwhile."""
    with _starting:
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def limit_memory(pid: int, limit_bytes: int, most_bytes: int) -> None:
    """Let a process have ``limit_bytes`` of private memory (RLIMIT_DATA); at most ``most_bytes`` when raised later.

    What it asks beyond that fails, as a ``MemoryError``, in the process that asked. Lower limits that it has already
    stay; one that is gone needs none. Linux only; elsewhere nothing happens.
    """
    try:
        from resource import RLIM_INFINITY, RLIMIT_DATA, prlimit
    except ImportError:  # not Linux
        return
    with suppress(ProcessLookupError):
        _, hard = prlimit(pid, RLIMIT_DATA)
        most_bytes = most_bytes if hard == RLIM_INFINITY else min(most_bytes, hard)
        prlimit(pid, RLIMIT_DATA, (min(limit_bytes, most_bytes), most_bytes))


def peak_memory_bytes(pid: int | None = None) -> int:
    """Return the highest resident memory that a process of this user, or this one, has had, in bytes; 0 when gone."""
    try:
        with open(
            f"/proc/{'self' if pid is None else pid}/status",
            encoding="ascii",
            errors="replace",
        ) as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if pid is not None:
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
