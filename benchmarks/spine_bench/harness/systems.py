"""Systems under test by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Final, cast

from spine_bench.harness.interfaces import SystemUnderTest
from spine_bench.harness.library import StudyLibrary
from spine_engine.errors import UsageError

BASELINES: Final = ("onnxruntime", "notebook", "notebook-lean", "tuned-torch", "tuned-torch-lean", "limit")
"""What people use today, and the bare models; see ``spine_bench.baselines``."""

NAMES: Final = ("engine", *BASELINES, "null")

SystemFactory = Callable[[StudyLibrary, Path | None], SystemUnderTest]
"""Makes a system for a library and a bundle (None: the packaged one); not opened yet."""


def check_name(name: str) -> None:
    """Raise ``UsageError`` unless ``name`` is a system's, or names a factory as ``package.module:function``."""
    if name not in NAMES and ":" not in name:
        raise UsageError(f"no system {name!r}: choose from {', '.join(NAMES)}, or name your own as module:function")


def make_system(name: str, library: StudyLibrary, bundle: Path | None) -> SystemUnderTest:
    """Return the system of that name, not opened yet; its packages are imported here and not before.

    Raises:
        UsageError: there is no such system, or what it needs is not installed; the message says how to get it.
        BundleError: the bundle is refused.
    """
    check_name(name)
    if name == "engine":
        from spine_bench.harness.engine_system import EngineSystem

        return EngineSystem(library.root, bundle)
    if name == "null":
        from spine_bench.harness.null_system import NullSystem

        return NullSystem()
    try:
        if name in BASELINES:
            registry = import_module("spine_bench.baselines.registry")
            return cast(SystemUnderTest, registry.open_system(name, bundle))
        module, _, function = name.partition(":")
        factory: SystemFactory = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        raise UsageError(f"{name} needs {error.name}: in a clone, pip install '.[baselines]'") from None
    except AttributeError:
        raise UsageError(f"{module} has no {function}") from None
    return factory(library, bundle)
