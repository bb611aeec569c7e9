"""From loaded networks to something that finds the levels of a study, by the decoder that a bundle names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.detect import DetectionOptions, detect
from spine_engine.detection.levels import Detection
from spine_engine.detection.spec import DetectorSpec
from spine_engine.detection.spinenet import detect_vertebra_field
from spine_engine.study import Stack

LevelFinder = Callable[[Sequence[Sequence[Stack]]], Detection]
"""From the stacks of each sagittal series to the five levels; ``StudyError`` where there is no sagittal stack."""


class Network(Protocol):
    """The one method of a backend that detection uses."""

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> Mapping[str, NDArray[np.float32]]:
        """Run the network once."""
        ...


def level_finder(
    decoder: str, spec: DetectorSpec | None, networks: Sequence[Network], options: DetectionOptions | None = None
) -> LevelFinder:
    """Return what finds levels with loaded networks.

    Args:
        decoder: ``level_heatmaps``, with one network, or ``vfr``, with three: field, appearance, context.
        spec: of ``level_heatmaps``.
        networks: the loaded networks in that order.
        options: of ``level_heatmaps``.
    """
    if decoder == "vfr":
        field_net, appearance_net, context_net = networks
        return lambda series: detect_vertebra_field(series, field_net, appearance_net, context_net)
    (network,) = networks
    return lambda series: detect(series, network, spec, options)
