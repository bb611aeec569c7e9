"""spine-engine: grades lumbar-spine MRI in bulk. Research use only; not a medical device.

The names below are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spine_engine._version import __version__

if TYPE_CHECKING:
    from spine_engine.anatomy import Condition, Level, Severity
    from spine_engine.engine import Engine, Run
    from spine_engine.errors import Reason, SpineEngineError, Warn
    from spine_engine.options import RunOptions
    from spine_engine.results import Status, StudyResult
    from spine_engine.summary import RunSummary

__all__ = [
    "Condition",
    "Engine",
    "Level",
    "Reason",
    "Run",
    "RunOptions",
    "RunSummary",
    "Severity",
    "SpineEngineError",
    "Status",
    "StudyResult",
    "Warn",
    "__version__",
]

_HOME = {
    "Condition": "anatomy",
    "Engine": "engine",
    "Level": "anatomy",
    "Reason": "errors",
    "Run": "engine",
    "RunOptions": "options",
    "RunSummary": "summary",
    "Severity": "anatomy",
    "SpineEngineError": "errors",
    "Status": "results",
    "StudyResult": "results",
    "Warn": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
