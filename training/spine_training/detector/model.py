"""The level heat-map detector: a small U-Net with a column context, one sagittal slice in."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from spine_engine.detection.spec import DetectorSpec
from spine_training.checkpoints import fill
from spine_training.fit import read_checkpoint


class ResidualConvs(nn.Module):
    """Two 3x3 convolutions with batch norm and a residual path."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv_1: nn.Conv2d = nn.Conv2d(
            inputs,
            outputs,
            3,
            padding=1,
            bias=False,
        )
        self.norm_1: nn.Module = nn.BatchNorm2d(outputs)
        self.conv_2 = nn.Conv2d(
            outputs,
            outputs,
            3,
            padding=dilation,
            dilation=dilation,
            bias=False,
        )
        self.norm_2: nn.Module = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = (
            nn.Identity()
            if inputs == outputs
            else nn.Conv2d(inputs, outputs, 1, bias=False)
        )

    def convolved(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` -> `(N, outputs, H, W)`."""
        y = functional.relu(self.norm_1(self.conv_1(x)))
        return functional.relu(self.norm_2(self.conv_2(y)) + self.skip(x))


class ConvBlock(ResidualConvs):
    """Residual convolutions over one map."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` -> `(N, outputs, H, W)`."""
        return self.convolved(x)


class UpBlock(ResidualConvs):
    """Residual convolutions over the map from below, every pixel four times, and the one beside it."""

    def __init__(
        self,
        below: int,
        beside: int,
        outputs: int,
    ) -> None:
        super().__init__(below + beside, outputs)
        self.below = below

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        """`(N, below, H / 2, W / 2)` and `(N, beside, H, W)` -> `(N, outputs, H, W)`."""
        x = functional.interpolate(
            x,
            scale_factor=2.0,
            mode="nearest",
        )
        return self.convolved(torch.cat([x, beside], dim=1))


class ColumnContext(nn.Module):
    """Shows every row the whole column: a strip pooled over the width by attention, then dilated convolutions."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        dilations: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.steps = nn.ModuleList(
            nn.Conv2d(
                hidden,
                hidden,
                (5, 1),
                padding=(2 * d, 0),
                dilation=(d, 1),
            )
            for d in dilations
        )
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> the same shape."""
        weight = torch.softmax(self.score(x), dim=3)
        strip = (self.reduce(x) * weight).sum(dim=3, keepdim=True)
        for step in self.steps:
            strip = strip + functional.relu(step(strip))
        return functional.relu(x + self.expand(strip))


class LevelHeatmapNet(nn.Module):
    """U-Net from 2 mm slices to 4 mm maps (see `DetectorSpec` for the channels).

    Strides 2, 4, 8, 16, 32 with `widths` channels; a `ColumnContext` at strides 8, 16 and 32.
    """

    def __init__(
        self,
        spec: DetectorSpec | None = None,
        widths: tuple[int, ...] = (24, 48, 80, 112, 144),
    ) -> None:
        super().__init__()
        self.spec = spec or DetectorSpec()
        self.widths = widths
        self.stem = nn.Sequential(
            nn.Conv2d(
                1,
                widths[0],
                4,
                stride=2,
                padding=1,
                bias=False,
            ),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        self.down = nn.ModuleList([ConvBlock(widths[0], widths[0])])
        self.down.extend(ConvBlock(a, b) for a, b in pairwise(widths))
        self.deep = ConvBlock(widths[-1], widths[-1], dilation=2)
        self.context = nn.ModuleList(
            [
                ColumnContext(widths[2], 64, (1, 2, 4)),
                ColumnContext(widths[3], 96, (1, 2, 4)),
                ColumnContext(widths[4], 128, (1, 2, 3)),
            ]
        )
        self.up = nn.ModuleList(
            UpBlock(below, beside, beside) for beside, below in pairwise(widths)
        )
        self.head = nn.Conv2d(widths[0], self.spec.channels, 1)
        nn.init.constant_(self.head.bias[:2], -3.0)  # type: ignore[index]

    def forward(self, slices: Tensor) -> Tensor:
        """`(N, 1, H, W)` -> `(N, channels, H / 2, W / 2)`; heat channels are logits here (see `Deployed`)."""
        x = self.stem(slices)
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            if i:
                x = functional.max_pool2d(x, 2)
            x = block(x)
            if i in (2, 3):
                x = self.context[i - 2](x)
            skips.append(x)
        x = self.context[2](self.deep(x))
        for i in range(len(self.up) - 1, -1, -1):
            x = self.up[i](x, skips[i])
        maps: Tensor = self.head(x)
        return maps


class Deployed(nn.Module):
    """The exported face of the net: heat channels through a sigmoid, the rest as they are."""

    def __init__(self, net: LevelHeatmapNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, slices: Tensor) -> Tensor:
        """`(N, 1, H, W)` -> `heatmaps (N, channels, H / 2, W / 2)`."""
        y = self.net(slices)
        return torch.cat(
            [torch.sigmoid(y[:, :2]), y[:, 2:]],
            dim=1,
        )


def load_detector(path: Path) -> LevelHeatmapNet:
    """Return the averaged weights of a checkpoint as a net in evaluation mode.

    Raises:
        UsageError: the file is no detector's checkpoint.
    """
    content = read_checkpoint(path)
    net = LevelHeatmapNet()
    fill(
        net,
        content.get("ema", content["model"]),
        file=path,
        what="the level heat-map detector",
    )
    return net.eval()
