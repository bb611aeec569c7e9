"""Makes synthetic lumbar MR studies with known anatomy, severity and laterality. Research use only."""

from spine_engine.phantom.dicom_out import write_study
from spine_engine.phantom.protocol import Protocol
from spine_engine.phantom.render import PhantomSeries, PhantomStudy, render
from spine_engine.phantom.rsna import truth_of, write_studies
from spine_engine.phantom.severity import (
    best_predictions,
    official_metric,
    reader_probabilities,
)
from spine_engine.phantom.spine import PhantomSpine, draw_spine

__all__ = [
    "PhantomSeries",
    "PhantomSpine",
    "PhantomStudy",
    "Protocol",
    "best_predictions",
    "draw_spine",
    "official_metric",
    "reader_probabilities",
    "render",
    "truth_of",
    "write_studies",
    "write_study",
]
