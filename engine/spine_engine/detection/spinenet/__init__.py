"""SpineNet V2's detector, built from its papers: disc levels with the user's own three networks (decoder ``vfr``).

An independent implementation of what arXiv 2205.01683 and 2007.02606 describe, with nothing of the published code or
weights.
"""

from spine_engine.detection.spinenet.detect import Network, detect_vertebra_field

__all__ = ["Network", "detect_vertebra_field"]
