"""Builds the function that finds the levels of a study, from loaded networks and the decoder that a bundle names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spine_engine.backends.base import Model
from spine_engine.detection.detect import DetectionOptions, detect
from spine_engine.detection.levels import Detection
from spine_engine.detection.spec import DetectorSpec
from spine_engine.detection.spinenet import detect_vertebra_field
from spine_engine.study import Stack

LevelFinder = Callable[[Sequence[Sequence[Stack]]], Detection]
"""Takes the stacks of each sagittal series, returns the five levels; ``StudyError`` if there is no sagittal stack."""


def level_finder(
    decoder: str,
    spec: DetectorSpec | None,
    networks: Sequence[Model],
    options: DetectionOptions | None = None,
) -> LevelFinder:
    """Return the function that finds levels with the loaded networks.

    Args:
        decoder: ``level_heatmaps``, with one network, or ``vfr``, with three: field, appearance, context.
        spec: input and output of the network; only for ``level_heatmaps``.
        networks: the loaded networks in that order.
        options: how detection decides; only for ``level_heatmaps``.
    """
    if decoder == "vfr":
        field_net, appearance_net, context_net = networks
        return lambda series: detect_vertebra_field(
            series, field_net, appearance_net, context_net
        )
    (network,) = networks
    return lambda series: detect(series, network, spec, options)
