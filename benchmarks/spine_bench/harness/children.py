"""What the child processes of a measurement have in common."""

from __future__ import annotations

import signal

from spine_engine.scheduler.processes import prepare_process


def end_with_parent() -> None:
    """Called in a child process: it ends when its parent does, even by ``kill -9``, and leaves Ctrl-C to it.

    Unlike the engine's workers it still ends at SIGTERM, by which executors and loaders end the workers they give up;
    a system's own children would inherit that it is ignored.
    """
    prepare_process()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
