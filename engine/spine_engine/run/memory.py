"""How a machine is divided between the processes of a run: memory by a ceiling, the user's or a high one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from spine_engine.errors import UsageError
from spine_engine.options import RunOptions
from spine_engine.scheduler.process import MemoryShare

MIB: Final = 1 << 20
MAIN_BYTES: Final = 128 * MIB
"""The main process: 46 MB over 2,000 studies with the ledger, 74 MB with its imports (docs/decisions/0006, 0015)."""
WORKER_BYTES: Final = 384 * MIB
"""A worker without its models: runtimes 180 MB, an ordinary study and what is computed on it 120 MB, and room."""
MOST_BYTES: Final = 4 << 30
"""A worker without its models where the user sets no ceiling: no study of the largest size that is read needs more, and
a file made to fill the memory ends its worker before it ends the machine."""
MODEL_FACTOR: Final = 3
"""A loaded model takes up to three times its file while it is compiled: the file, its constants, and them reordered."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """How many workers run at once, and what each may have of the memory; None where there is no ceiling."""

    workers: int
    memory: MemoryShare | None


def divide_memory(options: RunOptions, *, model_bytes: int) -> Resources:
    """Divide the memory between the main process, the workers and the models.

    Args:
        options: the wanted workers, and the ceiling.
        model_bytes: the size of the model files that are loaded.

    Raises:
        UsageError: the ceiling is too low for a single worker.
    """
    ceiling = options.max_memory_bytes
    models = MODEL_FACTOR * model_bytes
    if ceiling is None:
        most = MOST_BYTES + models
        return Resources(
            workers=options.worker_count,
            memory=MemoryShare(usual_bytes=most, alone_bytes=most),
        )
    shared, each = (
        (models + WORKER_BYTES, WORKER_BYTES)
        if options.batched
        else (0, WORKER_BYTES + models)
    )
    free = ceiling - MAIN_BYTES - shared
    if free < each:
        least = -(-(MAIN_BYTES + shared + each) // MIB)
        raise UsageError(
            f"a ceiling of {ceiling // MIB} MiB holds no worker with these models: "
            f"set --max-memory to {least}MiB or more"
        )
    workers = min(options.worker_count, free // each)
    return Resources(
        workers=workers,
        memory=MemoryShare(usual_bytes=free // workers, alone_bytes=free),
    )
