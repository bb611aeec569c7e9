"""Disc levels from sagittal stacks: every slice through a heat-map detector, the column labelled as a whole."""

from spine_engine.detection.detect import DetectionOptions, detect, undetected
from spine_engine.detection.labelling import LabellingOptions
from spine_engine.detection.levels import Alternative, Detection, DiscLevel, Vertebra
from spine_engine.detection.spec import DetectorSpec

__all__ = [
    "Alternative",
    "Detection",
    "DetectionOptions",
    "DetectorSpec",
    "DiscLevel",
    "LabellingOptions",
    "Vertebra",
    "detect",
    "undetected",
]
