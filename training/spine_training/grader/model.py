"""The graders: a timm_3d backbone with cumulative-link heads, five for a level or 25 for a whole study.

The names of the state dict are the field's: ``backbone.*``, ``heads.N.0.weight|bias`` (a linear layer to one number)
and ``heads.N.1.cutpoints`` (two ascending values). Head N of a level grader grades ``anatomy.CONDITIONS[N]``, of a
whole-study grader condition ``N // 5`` at level ``N % 5``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from spacecutter.models import LogisticCumulativeLink
from torch import Tensor, nn

from spine_engine.anatomy import CONDITIONS, LEVELS, MIRRORED_CONDITION, SEVERITIES
from spine_engine.errors import UsageError
from spine_engine.study import Role
from spine_engine.voxels import GridLayout, GridSpec
from spine_training.backbones import build_backbone
from spine_training.checkpoints import fill
from spine_training.fit import read_checkpoint

CUTPOINT_MARGIN: Final = 1e-3
"""The least distance between the two cut-points; below zero the middle probability would be negative."""

INITIAL_CUTPOINT: Final = 1.5
"""Cut-points start at minus and plus this: trained ones end 5 to 8 apart, the library's 1 apart is a slow start."""

MIRRORED_HEADS: Final = tuple(
    CONDITIONS.index(MIRRORED_CONDITION[condition]) for condition in CONDITIONS
)
"""The head of a level grader that grades each condition once the image is mirrored left to right."""


@dataclass(frozen=True, kw_only=True)
class GraderConfig:
    """The architecture of a grader and its grid; stored in every checkpoint.

    Attributes:
        task: ``level``, five heads for one disc level, or ``whole_study``, 25 heads for all five at once.
        backbone: argument of ``build_backbone``: a name, or a configuration as JSON text.
        pool: pooling of the backbone's last feature maps into one vector.
        shape: grid shape ``(D, H, W)``, voxels: D superior to inferior, H anterior to posterior, W right to left.
        spacing_mm: voxel size along D, H, W.
        offset_mm: step from the disc's centre (a whole study: the field of view's) to the grid's, along D, H, W.
        channels: image channels in order.
        coordinates: give the backbone each voxel's place as three more channels, so that pooling keeps laterality.
    """

    task: Literal["level", "whole_study"] = "level"
    backbone: str = "narrow_conv_24"
    pool: Literal["avg", "max"] = "avg"
    shape: tuple[int, int, int] = (24, 40, 48)
    spacing_mm: tuple[float, float, float] = (1.6, 1.2, 1.2)
    offset_mm: tuple[float, float, float] = (0.0, 18.0, 0.0)
    channels: tuple[str, ...] = ("sagittal_t1", "axial_t2", "sagittal_t2")
    coordinates: bool = True

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GraderConfig:
        """Build from ``asdict``'s output, lists or tuples alike."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**fields)

    @property
    def layout(self) -> GridLayout:
        """Layout by which its grids are cut."""
        return GridLayout(
            channels=tuple(Role(channel) for channel in self.channels),
            spec=GridSpec(self.shape, self.spacing_mm),
            center_offset_mm=self.offset_mm,
        )

    @property
    def levels(self) -> int:
        """Number of disc levels that one grid is graded for."""
        return len(LEVELS) if self.task == "whole_study" else 1

    @property
    def heads(self) -> int:
        """Number of heads: condition major, level minor."""
        return len(CONDITIONS) * self.levels

    @property
    def mirrored_heads(self) -> tuple[int, ...]:
        """The head that takes each head's part once the image is mirrored left to right."""
        return tuple(
            head * self.levels + level
            for head in MIRRORED_HEADS
            for level in range(self.levels)
        )


WHOLE_STUDY: Final = GraderConfig(
    task="whole_study",
    pool="max",
    shape=(96, 56, 40),
    spacing_mm=(2.4, 2.0, 2.0),
    offset_mm=(0.0, 0.0, 0.0),
)
"""The default of a whole-study grader: 230 x 112 x 80 mm about the middle of the sagittal pictures hold the five levels
of a lumbar exam; half a level grid's resolution is what two CPU cores can train."""


class Grader(nn.Module):
    """Grids ``(N, C, D, H, W)`` float32 -> probabilities ``(N, heads, 3 severities)`` float32."""

    def __init__(self, config: GraderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = _backbone(config)
        features: Any = self.backbone.num_features
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(features, 1),
                LogisticCumulativeLink(len(SEVERITIES)),
            )
            for _ in range(config.heads)
        )
        for link in self.links():
            link.cutpoints.data[:] = torch.tensor([-INITIAL_CUTPOINT, INITIAL_CUTPOINT])
        for axis, count in zip("dhw", config.shape, strict=True):
            ramp = torch.linspace(-1, 1, count).view(
                [count if axis == name else 1 for name in "ncdhw"]
            )
            self.register_buffer(
                f"place_{axis}",
                ramp,
                persistent=False,
            )

    def forward(self, image: Tensor) -> Tensor:
        """Grade a batch of grids."""
        return self.grade(self.latents(image))

    def latents(self, image: Tensor) -> Tensor:
        """Return the number ``(N, heads)`` that each head cuts into grades; it rises with severity."""
        if self.config.coordinates:
            shape = (image.shape[0], 1, *self.config.shape)
            image = torch.cat(
                [
                    image,
                    *(self.get_buffer(f"place_{axis}").expand(shape) for axis in "dhw"),
                ],
                1,
            )
        features = self.backbone(image).float()
        with torch.autocast(features.device.type, enabled=False):
            return torch.cat(
                [head.get_submodule("0")(features) for head in self.heads],
                dim=1,
            )

    def grade(self, latents: Tensor) -> Tensor:
        """Cut latents ``(N, heads)`` into probabilities ``(N, heads, 3)``."""
        return torch.stack(
            [link(latents[:, [n]]) for n, link in enumerate(self.links())],
            dim=1,
        )

    def links(self) -> list[Any]:
        """Return the cumulative links of the heads, in order."""
        return [head.get_submodule("1") for head in self.heads]

    @torch.no_grad()
    def order_cutpoints(self) -> None:
        """Move cut-points that an optimiser step has crossed back into ascending order."""
        for link in self.links():
            link.cutpoints[1].clamp_(min=float(link.cutpoints[0]) + CUTPOINT_MARGIN)


class MirrorAveraged(nn.Module):
    """A grader without a preferred side: the mean of its answers to an image and, swapped, to the mirrored image.

    A mirrored input gives the same probabilities with left and right conditions exchanged.
    """

    def __init__(self, grader: Grader) -> None:
        super().__init__()
        self.grader = grader

    def forward(self, image: Tensor) -> Tensor:
        """Grade ``(N, C, D, H, W)`` -> ``(N, heads, 3)``; W runs from the patient's right to left."""
        count = image.shape[0]
        both: Tensor = self.grader(torch.cat([image, image.flip(-1)]))
        plain, mirrored = both[:count], both[count:]
        swapped = torch.stack(
            [mirrored[:, head] for head in self.grader.config.mirrored_heads],
            dim=1,
        )
        averaged: Tensor = (plain + swapped) / 2
        return averaged


def save_grader(grader: Grader, path: Path) -> None:
    """Write weights and configuration; ``load_grader`` reads them back."""
    torch.save(
        {"config": asdict(grader.config), "model": grader.state_dict()},
        path,
    )


def load_grader(path: Path) -> Grader:
    """Read a grader from a file of ``save_grader`` or a training checkpoint (its averaged weights).

    Raises:
        UsageError: the file is no grader checkpoint, or its weights do not fit its configuration.
    """
    content = read_checkpoint(path)
    try:
        grader = Grader(GraderConfig.from_dict(content["config"]))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"{path} holds no grader: {str(error)[:300]}") from error
    fill(
        grader,
        content.get("ema", content["model"]),
        file=path,
        what="the grader of its configuration",
    )
    return grader.eval()


def _backbone(config: GraderConfig) -> nn.Module:
    in_chans = len(config.channels) + 3 * config.coordinates
    return build_backbone(
        config.backbone,
        in_chans=in_chans,
        shape=config.shape,
        pool=config.pool,
    )
