"""The three networks of SpineNet V2, built from their published description, so that a user's own weights load.

The published code, weights and outputs are under a non-commercial licence: nothing here is taken from that code and no
weights are shipped. The architectures follow the papers (arXiv 2205.01683, 2007.02606) and the names and shapes of the
published checkpoints, which ``load_spinenet`` fills key for key:

========== ==================================== ================ =====================================================
kind       network                              parameters       what it does
========== ==================================== ================ =====================================================
vfr        ``VertebraFieldNet``                 139.42 M         one sagittal patch to maps of corners and centroids
appearance ``AppearanceNet``                    1.94 M           the volume round a vertebra to scores of 24 classes
context    ``ContextNet``                       0.51 M           the column of those probabilities to the same, refined
========== ==================================== ================ =====================================================

What the names and shapes leave open is written beside the code that settles it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet50

from spine_training.checkpoints import fill, nearest, read_weights

SpineNetKind = Literal["vfr", "appearance", "context"]

VFR_MAPS: Final = 13
"""Output maps: 0-3 corners (right-top, right-bottom, left-bottom, left-top in the image), 4 centroid, 5-8 the x and
9-12 the y displacement of each corner to its centroid, in patch pixels."""

VERTEBRA_CLASSES: Final = 24
"""Classes of the two labelling networks: S1, L5 .. L1, T12 .. T1, C7 .. C2 (1 + 5 + 12 + 6)."""


class ConvBlock(nn.Module):
    """A 3x3 convolution with bias, batch norm, ReLU: the order that its names ``conv``, ``bn`` are listed in."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` -> ``(N, outputs, H, W)``."""
        return functional.relu(self.bn(self.conv(x)))


class Bridge(nn.Module):
    """Two blocks at the coarsest level, between the way down and the way up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bridge = nn.Sequential(
            ConvBlock(channels, channels),
            ConvBlock(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` -> the same shape."""
        y: Tensor = self.bridge(x)
        return y


class UpBlock(nn.Module):
    """Bilinear x2 and a 1x1 convolution, the skip appended after those channels, two blocks."""

    def __init__(
        self,
        inputs: int,
        skip: int,
        outputs: int,
    ) -> None:
        super().__init__()
        self.upsample = nn.Sequential(
            nn.Upsample(
                scale_factor=2,
                mode="bilinear",
                align_corners=False,
            ),
            nn.Conv2d(inputs, outputs, 1),
        )
        self.conv_block_1 = ConvBlock(outputs + skip, outputs)
        self.conv_block_2 = ConvBlock(outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` and ``(N, skip, 2 H, 2 W)`` -> ``(N, outputs, 2 H, 2 W)``."""
        y: Tensor = self.conv_block_2(
            self.conv_block_1(torch.cat([self.upsample(x), skip], dim=1))
        )
        return y


class VertebraFieldNet(nn.Module):
    """The vertebra field of regression: a U-Net whose way down is a ResNet-50; 69.6 GFLOP a 224x224 patch.

    The way down halves five times (7x7 convolution, 3x3 max pool, the last three of the four stages), so that five
    steps up bring back the input's size. Skips, from coarse to fine: stages 3, 2 and 1, the input block (after its
    ReLU, before the pool), the patch itself.
    """

    def __init__(self) -> None:
        super().__init__()
        resnet = resnet50(weights=None)
        self.input_block = nn.Sequential(
            nn.Conv2d(
                1,
                64,
                7,
                stride=2,
                padding=3,
                bias=False,
            ),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        )
        self.input_pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.down_blocks = nn.ModuleList(
            [
                resnet.layer1,
                resnet.layer2,
                resnet.layer3,
                resnet.layer4,
            ]
        )
        self.bridge = Bridge(2048)
        self.up_blocks = nn.ModuleList(
            [
                UpBlock(2048, 1024, 1024),
                UpBlock(1024, 512, 512),
                UpBlock(512, 256, 256),
                UpBlock(256, 64, 128),
                UpBlock(128, 1, 64),
            ]
        )
        self.out = nn.Conv2d(64, VFR_MAPS, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """``(N, 1, H, W)``, published at 224x224, multiples of 32 -> ``(N, 13, H, W)``, no activation."""
        skips = [patches, self.input_block(patches)]
        x = self.input_pool(skips[-1])
        for stage in self.down_blocks:
            x = stage(x)
            skips.append(x)
        x = self.bridge(skips.pop())
        for step in self.up_blocks:
            x = step(x, skips.pop())
        maps: Tensor = self.out(x)
        return maps


class AppearanceNet(nn.Module):
    """Names one vertebra from its picture: five convolutions, each ReLU then batch norm, and two linear layers.

    Only 224x224x16 leaves the 5x5x2 maps that ``fc1`` takes (128 * 5 * 5 * 2 = 6400). Between the two linear layers
    stands a ReLU: without one they would be a single linear map.
    """

    def __init__(self) -> None:
        super().__init__()
        thin: dict[str, Any] = {"kernel_size": (3, 3, 1), "padding": (3, 3, 0)}
        self.conv1 = nn.Conv3d(1, 8, stride=(2, 2, 1), **thin)
        self.bnrm1 = nn.BatchNorm3d(8)
        self.conv2 = nn.Conv3d(8, 16, **thin)
        self.bnrm2 = nn.BatchNorm3d(16)
        for n, channels in enumerate((32, 64, 128), 3):
            self.add_module(
                f"conv{n}",
                nn.Conv3d(channels // 2, channels, 3),
            )
            self.add_module(f"bnrm{n}", nn.BatchNorm3d(channels))
        self.fc1 = nn.Linear(6400, 256)
        self.fc2 = nn.Linear(256, VERTEBRA_CLASSES)

    def forward(self, volumes: Tensor) -> Tensor:
        """``(N, 1, 224, 224, 16)``, slices last -> ``(N, 24)`` scores, before the softmax."""
        x = _layer(self, "1", volumes)
        x = functional.max_pool3d(_layer(self, "2", x), (2, 2, 1))
        x = functional.max_pool3d(_layer(self, "3", x), (2, 2, 1))
        x = functional.max_pool3d(_layer(self, "4", x), 2)
        x = functional.max_pool3d(_layer(self, "5", x), 2)
        scores: Tensor = self.fc2(functional.relu(self.fc1(x.flatten(1))))
        return scores


CONTEXT_CHANNELS: Final = {
    "1": (1, 16),
    "2": (16, 32),
    "3": (32, 64),
    "4": (64, 128),
    "_mid": (128, 128),
    "5": (128, 64),
    "6": (64 + 64, 32),
    "7": (32 + 32, 16),
}
"""Input and output channels of the context network's convolutions but the last, by the end of their names."""


class ContextNet(nn.Module):
    """Refines the labels of a whole column, an image of one row a millimetre and one column a class: a U-Net.

    5x3 convolutions dilated 2x1 that keep the size, each ReLU then batch norm but the last, which has neither. Every
    one of the four on the way down is followed by a 2x1 max pool, every one on the way up preceded by a 2x1 bilinear
    step; only the third and second level hand a skip over (the inputs of ``conv6`` and ``conv7`` have room for
    them, that of ``conv8`` has not), appended after the channels from below.
    """

    def __init__(self) -> None:
        super().__init__()
        for n, (inputs, outputs) in CONTEXT_CHANNELS.items():
            middle = nn.Conv2d(inputs, outputs, 3, padding=1)
            self.add_module(
                f"conv{n}",
                middle if n == "_mid" else _tall(inputs, outputs),
            )
            self.add_module(f"bnrm{n}", nn.BatchNorm2d(outputs))
        self.conv8 = _tall(16, 1)

    def forward(self, columns: Tensor) -> Tensor:
        """``(N, 1, H, 24)``, H a multiple of 16 (published: of 256) -> the same shape, before the softmax."""
        second = _layer(
            self,
            "2",
            _halve(_layer(self, "1", columns)),
        )
        third = _layer(self, "3", _halve(second))
        x = _layer(self, "4", _halve(third))
        x = _layer(self, "_mid", _halve(x))
        x = _layer(self, "5", _double(x))
        x = _layer(
            self,
            "6",
            torch.cat([_double(x), third], dim=1),
        )
        x = _layer(
            self,
            "7",
            torch.cat([_double(x), second], dim=1),
        )
        scores: Tensor = self.conv8(_double(x))
        return scores


SPINENETS: Final[dict[SpineNetKind, type[nn.Module]]] = {
    "vfr": VertebraFieldNet,
    "appearance": AppearanceNet,
    "context": ContextNet,
}
"""The networks by the kind that ``load_spinenet`` takes."""


def load_spinenet(path: Path, kind: SpineNetKind) -> nn.Module:
    """Read a published checkpoint into our network, in float32 on the CPU and in evaluation mode.

    Args:
        path: any file that ``read_weights`` takes; the published ones hold ``{"net": state_dict, ...}``.
        kind: which of the three networks it is.

    Raises:
        UsageError: the file cannot be read safely, or holds other weights; the message names the keys.
    """
    state = read_weights(path)
    with torch.device("meta"):
        net = SPINENETS[kind]()
    fill(
        net,
        state,
        file=path,
        what=f"the {kind} network",
        advise=lambda _: nearest(state, dict(SPINENETS.items())),
    )
    return net.eval()


def _layer(net: nn.Module, name: str, x: Tensor) -> Tensor:
    """Apply a convolution, ReLU and batch norm of a network that names them ``conv<name>`` and ``bnrm<name>``."""
    y: Tensor = net.get_submodule(f"bnrm{name}")(
        functional.relu(net.get_submodule(f"conv{name}")(x))
    )
    return y


def _tall(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(
        inputs,
        outputs,
        (5, 3),
        dilation=(2, 1),
        padding=(4, 1),
    )


def _halve(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, (2, 1))


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(
        x,
        scale_factor=(2.0, 1.0),
        mode="bilinear",
        align_corners=False,
    )
