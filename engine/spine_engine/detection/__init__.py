"""Disc levels from sagittal stacks: every slice through a heat-map detector, the column labelled as a whole."""

from spine_engine.detection.detect import DetectionOptions, detect
from spine_engine.detection.labelling import LabellingOptions
from spine_engine.detection.levels import Detection, DiscLevel, Vertebra
from spine_engine.detection.spec import DetectorSpec

__all__ = [
    "Detection",
    "DetectionOptions",
    "DetectorSpec",
    "DiscLevel",
    "LabellingOptions",
    "Vertebra",
    "detect",
]
