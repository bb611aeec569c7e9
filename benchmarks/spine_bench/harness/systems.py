"""Systems under test by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Final

import numpy as np

from spine_bench.harness.interfaces import (
    Answer,
    Done,
    Sample,
    StudyLibrary,
    SystemUnderTest,
)
from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES
from spine_engine.errors import UsageError

# Makes a system for a library and a bundle (None: the packaged one); not opened yet.
SystemFactory = Callable[[StudyLibrary, Path | None], SystemUnderTest]

# The factory of each system, named as a user names one of their own.
SYSTEMS: Final = {
    "engine": "spine_bench.harness.engine_system:EngineSystem",
    "onnxruntime": "spine_bench.baselines.ort:system",
    "notebook": "spine_bench.baselines.notebook:system",
    "notebook-lean": "spine_bench.baselines.notebook:lean",
    "tuned-torch": "spine_bench.baselines.tuned:system",
    "tuned-torch-lean": "spine_bench.baselines.tuned:lean",
    "limit": "spine_bench.baselines.limit:LimitSystem",
    "null": "spine_bench.harness.systems:NullSystem",
}

# What people use today, and the bare models; see spine_bench.baselines.
BASELINES: Final = tuple(name for name in SYSTEMS if name not in ("engine", "null"))


def check_name(name: str) -> None:
    """Raise ``UsageError`` unless ``name`` is a system's, or names a factory as ``package.module:function``."""
    if name not in SYSTEMS and ":" not in name:
        raise UsageError(
            f"no system {name!r}: choose from {', '.join(SYSTEMS)}, or name your own as module:function"
        )


def make_system(
    name: str, library: StudyLibrary, bundle: Path | None
) -> SystemUnderTest:
    """Return the system of that name, not opened yet; its packages are imported here and not before.

    Raises:
        BackendError: a library that the system needs lacks one of its own.
        BundleError: the bundle is refused.
        UsageError: there is no such system, or what it needs is not installed; the message says how to get it.
    """
    check_name(name)
    module, _, function = SYSTEMS.get(name, name).partition(":")
    try:
        factory: SystemFactory = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{name} needs {error.name}: in a clone, pip install '.[baselines]'"
        ) from None
    except AttributeError:
        raise UsageError(f"{module} has no {function}") from None
    return factory(library, bundle)


class NullSystem:
    """Answers every sample with the same grades, at once: what is measured of it is the harness itself."""

    name = "null"

    def __init__(self, library: StudyLibrary, bundle: Path | None) -> None:
        self._answer = Answer(
            probabilities=np.full(
                (len(LEVELS), len(CONDITIONS), len(SEVERITIES)),
                1 / 3,
            )
        )

    def open(self) -> None:
        """Do nothing."""

    def submit(self, sample: Sample, done: Done) -> None:
        """Answer at once, in the caller's thread."""
        done(self._answer)

    def facts(self) -> dict[str, object]:
        """Return nothing: nothing runs."""
        return {}

    def close(self) -> None:
        """Do nothing."""
