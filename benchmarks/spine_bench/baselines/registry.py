"""The baselines by name. A library that one of them needs is imported when it is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from spine_bench.harness.interfaces import SystemUnderTest
from spine_engine.bundle import Bundle
from spine_engine.errors import BackendError, UsageError

INSTALL: Final = "it comes with the extra 'baselines' (in a clone: make .venv/.bench)"


def open_system(name: str, bundle: Path | None) -> SystemUnderTest:
    """Return a baseline that grades with a bundle, the packaged one where none is named; it is not opened yet.

    Raises:
        BackendError: a library that it needs is not installed.
        BundleError: the bundle is damaged.
        UsageError: there is no such baseline.
    """
    if name not in SYSTEMS:
        raise UsageError(f"there is no baseline {name!r}; choose one of {', '.join(SYSTEMS)}")
    try:
        return SYSTEMS[name](Bundle.open(bundle))
    except ImportError as error:
        raise BackendError(f"the baseline {name} needs a library that is missing ({error}); {INSTALL}") from None


def _notebook(bundle: Bundle) -> SystemUnderTest:
    from spine_bench.baselines.notebook import NotebookSystem

    return NotebookSystem(bundle)


def _notebook_lean(bundle: Bundle) -> SystemUnderTest:
    from spine_bench.baselines.notebook import NotebookSystem

    return NotebookSystem(bundle, thickness=False)


def _tuned_torch(bundle: Bundle) -> SystemUnderTest:
    from spine_bench.baselines.tuned import TunedTorchSystem

    return TunedTorchSystem(bundle)


def _tuned_torch_lean(bundle: Bundle) -> SystemUnderTest:
    from spine_bench.baselines.tuned import TunedTorchSystem

    return TunedTorchSystem(bundle, every_slice=False)


def _onnxruntime(bundle: Bundle) -> SystemUnderTest:
    from spine_bench.baselines.ort import OnnxRuntimeSystem

    return OnnxRuntimeSystem(bundle)


def _limit(bundle: Bundle) -> SystemUnderTest:
    from spine_bench.baselines.limit import LimitSystem

    return LimitSystem(bundle)


SYSTEMS: Final[dict[str, Callable[[Bundle], SystemUnderTest]]] = {
    "notebook": _notebook,
    "notebook-lean": _notebook_lean,
    "tuned-torch": _tuned_torch,
    "tuned-torch-lean": _tuned_torch_lean,
    "onnxruntime": _onnxruntime,
    "limit": _limit,
}
"""What makes each baseline from an opened bundle."""
