"""spine-engine: grades lumbar-spine MRI in bulk. Research use only; not a medical device.

The names below are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spine_engine._version import __version__

if TYPE_CHECKING:
    from spine_engine.anatomy import Condition, Level, Severity
    from spine_engine.backends import open_backend
    from spine_engine.dicom.one_study import read_study
    from spine_engine.engine import Engine
    from spine_engine.errors import Reason, SpineEngineError, Warn
    from spine_engine.options import RunOptions
    from spine_engine.pipeline.study_pipeline import StudyPipeline
    from spine_engine.results import Status, StudyResult
    from spine_engine.run.run import Run
    from spine_engine.run.summary import RunSummary
    from spine_engine.study import Series, Stack, Study
    from spine_engine.voxels import GridPose, GridSpec, scatter, voxelize

__all__ = [
    "Condition",
    "Engine",
    "GridPose",
    "GridSpec",
    "Level",
    "Reason",
    "Run",
    "RunOptions",
    "RunSummary",
    "Series",
    "Severity",
    "SpineEngineError",
    "Stack",
    "Status",
    "Study",
    "StudyPipeline",
    "StudyResult",
    "Warn",
    "__version__",
    "open_backend",
    "read_study",
    "scatter",
    "voxelize",
]

_HOME = {
    "Condition": "anatomy",
    "Engine": "engine",
    "GridPose": "voxels",
    "GridSpec": "voxels",
    "Level": "anatomy",
    "Reason": "errors",
    "Run": "run.run",
    "RunOptions": "options",
    "RunSummary": "run.summary",
    "Series": "study",
    "Severity": "anatomy",
    "SpineEngineError": "errors",
    "Stack": "study",
    "Status": "results",
    "Study": "study",
    "StudyPipeline": "pipeline.study_pipeline",
    "StudyResult": "results",
    "Warn": "errors",
    "open_backend": "backends",
    "read_study": "dicom.one_study",
    "scatter": "voxels",
    "voxelize": "voxels",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
