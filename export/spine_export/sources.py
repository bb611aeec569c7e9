"""What a bundle is made from, as its user says it: the card, and what files of weights alone do not say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from spine_engine.errors import UsageError
from spine_engine.manifest import read_dataclass
from spine_engine.voxels import GridSpec
from spine_training.backbones import Pool, Shape

LICENCE: Final = "not stated: the weights belong to whoever trained them"
INTENDED_USE: Final = "Research only; not a medical device."


@dataclass(frozen=True, kw_only=True)
class Card:
    """What only people can say of a bundle's models; the rest is read from the checkpoints.

    Attributes:
        licence, intended_use: of the bundle.
        training_data: a sentence each: what was trained on, from where, under which licence; what was held out.
        metrics: held-out figures by dotted name.
    """

    licence: str = LICENCE
    intended_use: str = INTENDED_USE
    training_data: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a card from JSON; its objects may nest, and their numbers are kept under dotted names.

        Raises:
            UsageError: it cannot be read, holds a key that no card has, or a value of another type.
        """
        content = _read_json(path)
        try:
            if isinstance(content, dict) and isinstance(content.get("metrics"), dict):
                content["metrics"] = _flat(content["metrics"])
            card: Card = read_dataclass(cls, content, "card")
        except ValueError as error:
            raise UsageError(f"cannot use {path}: {error}") from None
        return card


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """What a file of weights of either older pipeline does not say of itself.

    Attributes:
        shape: grid ``(D, H, W)``, voxels, that it was trained on.
        backbone: what ``build_backbone`` takes: a name, or a configuration as JSON; without it the refusal names the
            nearest.
        pool: pipeline 1 pools by maximum, pipeline 2 by the library's default, the average.
        spacing_mm, offset_mm: of the grid, along D, H, W; the offset is from the disc's centre to the grid's.
        normalisation: ``grid_range`` is these pipelines' own; see ``GraderEntry``.
    """

    shape: Shape
    backbone: str | None = None
    pool: Pool = "avg"
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    normalisation: Literal["series_window", "grid_range"] = "grid_range"

    def __post_init__(self) -> None:
        GridSpec(self.shape, self.spacing_mm)

    @classmethod
    def read(cls, path: Path) -> PipelineConfig:
        """Read it from JSON.

        Raises:
            UsageError: it cannot be read, a key is missing or unknown, or a value is not of its type.
        """
        content = _read_json(path)
        try:
            if isinstance(content, dict) and isinstance(content.get("backbone"), dict):
                content["backbone"] = json.dumps(content["backbone"])
            config: PipelineConfig = read_dataclass(cls, content, "grader")
        except ValueError as error:
            raise UsageError(f"cannot use {path}: {error}") from None
        return config


@dataclass(frozen=True, kw_only=True)
class SpineNetFiles:
    """The three checkpoints of SpineNet V2's detector, published apart."""

    vfr: Path
    appearance: Path
    context: Path


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}; want a JSON object") from None


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of nested objects by dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found.update({f"{key}.{name}": number for name, number in _flat(value).items()})
        else:
            found[key] = value
    return found
