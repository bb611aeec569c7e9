"""The level grader: a timm_3d backbone with five cumulative-link heads, and its mirror-averaged form.

The names of the state dict are the field's: ``backbone.*``, ``heads.N.0.weight|bias`` (a linear layer to one number)
and ``heads.N.1.cutpoints`` (two ascending values); head N grades ``anatomy.CONDITIONS[N]``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import timm_3d
import torch
from spacecutter.models import LogisticCumulativeLink
from timm_3d.models._efficientnet_builder import decode_arch_def
from timm_3d.models.efficientnet import EfficientNet
from torch import Tensor, nn

from spine_engine.anatomy import CONDITIONS, MIRRORED_CONDITION, SEVERITIES

CUTPOINT_MARGIN: Final = 1e-3
"""The least distance between the two cut-points; below zero the middle probability would be negative."""

INITIAL_CUTPOINT: Final = 1.5
"""Cut-points start at minus and plus this: trained ones end 5 to 8 apart, the library's 1 apart is a slow start."""

MIRRORED_HEADS: Final = tuple(CONDITIONS.index(MIRRORED_CONDITION[condition]) for condition in CONDITIONS)
"""Which head grades each condition once the image is mirrored left to right."""


@dataclass(frozen=True, kw_only=True)
class NarrowBackbone:
    """Plain 3x3x3 convolutions with skips, in the words of timm_3d's EfficientNet builder."""

    stem: int
    stages: tuple[tuple[str, ...], ...]
    features: int


NARROW_BACKBONES: Final[dict[str, NarrowBackbone]] = {
    # Chosen by measurement (docs/decisions/0007-grader.md): 0.8 M parameters.
    "narrow_conv_24": NarrowBackbone(
        stem=24,
        stages=(
            ("cn_r1_k3_s1_e1_c24_skip",),
            ("cn_r1_k3_s2_e1_c48", "cn_r2_k3_s1_e1_c48_skip"),
            ("cn_r1_k3_s2_e1_c96", "cn_r2_k3_s1_e1_c96_skip"),
        ),
        features=256,
    ),
    # For tests: trains in seconds.
    "narrow_conv_8": NarrowBackbone(stem=8, stages=(("cn_r1_k3_s2_e1_c8",), ("cn_r1_k3_s2_e1_c16",)), features=32),
}
"""Backbones by configuration; any other name is looked up in timm_3d's registry."""


@dataclass(frozen=True, kw_only=True)
class GraderConfig:
    """What a grader is made of; stored in every checkpoint.

    Attributes:
        backbone: a key of ``NARROW_BACKBONES`` or a name registered in timm_3d.
        shape: grid shape ``(D, H, W)``, voxels: D superior to inferior, H anterior to posterior, W right to left.
        spacing_mm: voxel size along D, H, W.
        offset_mm: from the disc's centre to the grid's, along D, H, W.
        channels: image channels in order.
        coordinates: give the backbone each voxel's place as three more channels, so that pooling keeps laterality.
    """

    backbone: str = "narrow_conv_24"
    shape: tuple[int, int, int] = (24, 40, 48)
    spacing_mm: tuple[float, float, float] = (1.6, 1.2, 1.2)
    offset_mm: tuple[float, float, float] = (0.0, 18.0, 0.0)
    channels: tuple[str, ...] = ("sagittal_t1", "axial_t2", "sagittal_t2")
    coordinates: bool = True

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GraderConfig:
        """Build from ``asdict``'s output, lists or tuples alike."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


class Grader(nn.Module):
    """Level grids ``(N, C, D, H, W)`` float32 -> probabilities ``(N, 5 conditions, 3 severities)`` float32."""

    def __init__(self, config: GraderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = _backbone(config.backbone, len(config.channels) + 3 * config.coordinates)
        features: Any = self.backbone.num_features
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(features, 1), LogisticCumulativeLink(len(SEVERITIES))) for _ in CONDITIONS
        )
        for link in self.links():
            link.cutpoints.data[:] = torch.tensor([-INITIAL_CUTPOINT, INITIAL_CUTPOINT])
        for axis, count in zip("dhw", config.shape, strict=True):
            ramp = torch.linspace(-1, 1, count).view([count if axis == name else 1 for name in "ncdhw"])
            self.register_buffer(f"place_{axis}", ramp, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Grade a batch of level grids."""
        return self.grade(self.latents(image))

    def latents(self, image: Tensor) -> Tensor:
        """Return the number ``(N, 5)`` that each head cuts into grades; it rises with severity."""
        if self.config.coordinates:
            shape = (image.shape[0], 1, *self.config.shape)
            image = torch.cat([image, *(self.get_buffer(f"place_{axis}").expand(shape) for axis in "dhw")], 1)
        features = self.backbone(image).float()
        with torch.autocast(features.device.type, enabled=False):
            return torch.cat([head.get_submodule("0")(features) for head in self.heads], dim=1)

    def grade(self, latents: Tensor) -> Tensor:
        """Cut latents ``(N, 5)`` into probabilities ``(N, 5, 3)``."""
        return torch.stack([link(latents[:, [n]]) for n, link in enumerate(self.links())], dim=1)

    def links(self) -> list[Any]:
        """Return the cumulative links of the heads, in order."""
        return [head.get_submodule("1") for head in self.heads]

    @torch.no_grad()
    def order_cutpoints(self) -> None:
        """Move cut-points that an optimiser step has crossed back into ascending order."""
        for link in self.links():
            link.cutpoints[1].clamp_(min=float(link.cutpoints[0]) + CUTPOINT_MARGIN)


class MirrorAveraged(nn.Module):
    """A grader that knows no side: the mean of what it says of an image and, swapped, of the mirrored image.

    A mirrored input gives the same probabilities with left and right conditions exchanged.
    """

    def __init__(self, grader: Grader) -> None:
        super().__init__()
        self.grader = grader

    def forward(self, image: Tensor) -> Tensor:
        """Grade ``(N, C, D, H, W)`` -> ``(N, 5, 3)``; W runs from the patient's right to left."""
        count = image.shape[0]
        both: Tensor = self.grader(torch.cat([image, image.flip(-1)]))
        plain, mirrored = both[:count], both[count:]
        swapped = torch.stack([mirrored[:, head] for head in MIRRORED_HEADS], dim=1)
        averaged: Tensor = (plain + swapped) / 2
        return averaged


def save_grader(grader: Grader, path: Path) -> None:
    """Write weights and configuration; ``load_grader`` reads them back."""
    torch.save({"config": asdict(grader.config), "model": grader.state_dict()}, path)


def load_grader(path: Path) -> Grader:
    """Read a grader from a file of ``save_grader`` or a training checkpoint (its averaged weights).

    Raises:
        ValueError: the file is no grader checkpoint, or its weights do not fit its configuration.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or "config" not in content or not {"model", "ema"} & content.keys():
        raise ValueError(f"{path.name} is no grader checkpoint: it needs 'config' and 'model' or 'ema'")
    grader = Grader(GraderConfig.from_dict(content["config"]))
    try:
        grader.load_state_dict(content["ema"] if "ema" in content else content["model"])
    except RuntimeError as error:
        raise ValueError(f"the weights in {path.name} do not fit its configuration: {error}") from error
    return grader.eval()


def _backbone(name: str, in_chans: int) -> nn.Module:
    narrow = NARROW_BACKBONES.get(name)
    if narrow is None:
        model: nn.Module = timm_3d.create_model(name, in_chans=in_chans, num_classes=0)
        return model
    built: nn.Module = EfficientNet(
        block_args=decode_arch_def([list(stage) for stage in narrow.stages]),
        num_classes=0,
        num_features=narrow.features,
        in_chans=in_chans,
        stem_size=narrow.stem,
        fix_stem=True,
        act_layer=nn.SiLU,
    )
    return built
