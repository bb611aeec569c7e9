"""SpineNet's three networks with random weights, and an answer added that lets every later stage run.

A network with random weights finds no vertebra: no body would be named, no level cut, no grid graded, and only the
first network would be measured. So what a network says is scaled down to nearly nothing and a fixed picture is added.
All of its work is done, on the real pixels, and its answer goes in; only what is found is settled beforehand:

- the field network shows seven vertebrae in every patch, in a column down its middle;
- the two labelling networks favour S1, so that the lowest vertebra is S1 and those above it are L5 to T12.

Where the levels then lie has nothing to do with the patient. Only time is measured with such a bundle.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from spine_bench.harness.interfaces import F32
from spine_engine.detection.spinenet.beam import CLASS_NAMES, S1
from spine_engine.detection.spinenet.decode import ARROW_X, ARROW_Y, CENTROID, MAPS
from spine_engine.detection.spinenet.patches import PATCH_PX
from spine_training.spinenet import SPINENETS, SpineNetKind

# S1 to T12: all that lie between the five levels, and one above.
VERTEBRAE: Final = 7

# 35 mm from one to the next and 30 mm high, lumbar vertebrae and their discs, at 224 pixels for 260 mm. They are wider
# than any vertebra, so that what overlapping patches show of one column is seen to be the same.
PITCH_PX: Final = 30
HEIGHT_PX: Final = 26
WIDTH_PX: Final = 80

BLOB_PX: Final = 2.0  # standard deviation of a landmark's heat
ARROW_PX: Final = 6  # half the side of the square round a corner that holds its arrow
NOISE: Final = (
    1e-3  # what is left of a random network's largest answer: far from every threshold
)
SILENT: Final = 1e-6  # where less than this is added, the answer is the network's own

# Added to the score of S1: 5 in the logarithm of its probability, since labels are read at T = 10; two S1 cost 100.
S1_SCORE: Final = 50.0


class Steered(nn.Module):
    """A network of one input whose scaled answer is added to a fixed one."""

    shown: Tensor

    def __init__(self, net: nn.Module, shown: Tensor, scale: float) -> None:
        super().__init__()
        self.net = net
        self.scale = scale
        self.register_buffer("shown", shown)

    def forward(self, x: Tensor) -> Tensor:
        """Any input of the network -> its output's shape."""
        answer: Tensor = self.net(x) * self.scale + self.shown
        return answer

    def own(self, answer: F32) -> F32:
        """Return the numbers of an answer that nothing was added to."""
        kept: F32 = answer[
            np.broadcast_to(self.shown.abs().numpy() < SILENT, answer.shape)
        ]
        return kept


def steered(kind: SpineNetKind, example: Tensor) -> Steered:
    """Return a network of SpineNet's with random weights, steered; ``example`` is an input it is scaled on."""
    torch.manual_seed(0)
    net = SPINENETS[kind]().eval()
    with torch.inference_mode():
        largest = float(net(example).abs().max())
    scale = NOISE / max(largest, 1e-12)
    if kind == "vfr":
        return Steered(net, column_of_vertebrae(), scale).eval()
    favoured = torch.zeros(
        (1, 1, 1, len(CLASS_NAMES)) if kind == "context" else (1, len(CLASS_NAMES))
    )
    favoured[..., S1] = S1_SCORE
    return Steered(net, favoured, scale).eval()


def column_of_vertebrae() -> Tensor:
    """Return the maps ``(1, 13, 224, 224)`` of a patch that shows a column of vertebrae."""
    maps = torch.zeros(1, MAPS, PATCH_PX, PATCH_PX)
    rows, columns = torch.meshgrid(
        torch.arange(PATCH_PX),
        torch.arange(PATCH_PX),
        indexing="ij",
    )

    def heat(x: int, y: int) -> Tensor:
        return torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * BLOB_PX**2))

    half_w = WIDTH_PX // 2
    half_h = HEIGHT_PX // 2
    corners = (
        (half_w, -half_h),
        (half_w, half_h),
        (-half_w, half_h),
        (-half_w, -half_h),
    )
    x = PATCH_PX // 2
    for number in range(VERTEBRAE):
        y = PATCH_PX // 2 + (number - VERTEBRAE // 2) * PITCH_PX
        maps[0, CENTROID] = torch.maximum(maps[0, CENTROID], heat(x, y))
        for kind, (dx, dy) in enumerate(corners):
            maps[0, kind] = torch.maximum(maps[0, kind], heat(x + dx, y + dy))
            near = ((columns - x - dx).abs() <= ARROW_PX) & (
                (rows - y - dy).abs() <= ARROW_PX
            )
            maps[0, ARROW_X + kind][near] = -dx
            maps[0, ARROW_Y + kind][near] = -dy
    return maps
