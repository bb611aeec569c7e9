"""Finds disc levels by SpineNet V2's method with the user's own three networks (decoder ``vfr``).

This is an independent implementation of arXiv 2205.01683 and 2007.02606; it contains none of the published code or
weights.
"""

from spine_engine.detection.spinenet.detect import detect_vertebra_field

__all__ = ["detect_vertebra_field"]
