"""Finds disc levels in sagittal stacks: a heat-map detector sees every slice, then the whole column is labelled."""

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
