"""What a bundle is made from, as its user says it: the card, and what files of weights alone do not say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from spine_engine.errors import UsageError
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
            UsageError: it cannot be read, or holds a key that no card has.
        """
        content = _read_json(path, "card", tuple(entry.name for entry in fields(cls)))
        try:
            metrics = _numbers(content.pop("metrics", {}))
            return cls(**{**content, "training_data": tuple(content.get("training_data", ()))}, metrics=metrics)
        except (TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"cannot read the card {path}: {error}") from None


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
        if not len(self.shape) == len(self.spacing_mm) == len(self.offset_mm) == 3:
            raise ValueError("shape, spacing_mm and offset_mm have three numbers each: D, H, W")
        if self.pool not in get_args(Pool):
            raise ValueError(f"pool is {' or '.join(get_args(Pool))}, got {self.pool!r}")
        if self.normalisation not in (known := ("series_window", "grid_range")):
            raise ValueError(f"normalisation is {' or '.join(known)}, got {self.normalisation!r}")

    @classmethod
    def read(cls, path: Path) -> PipelineConfig:
        """Read it from JSON.

        Raises:
            UsageError: it cannot be read, a key is missing, or it holds a key that is not one of these.
        """
        content = _read_json(path, "description of a grader", tuple(entry.name for entry in fields(cls)))
        if "shape" not in content:
            raise UsageError(f"cannot use {path}: the key 'shape' is missing, the grid's voxels along D, H, W")
        try:
            for name in ("shape", "spacing_mm", "offset_mm"):
                if name in content:
                    content[name] = tuple(map(int if name == "shape" else float, content[name]))
            if isinstance(content.get("backbone"), dict):
                content["backbone"] = json.dumps(content["backbone"])
            return cls(**content)
        except (TypeError, ValueError) as error:
            raise UsageError(f"cannot use {path}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class SpineNetFiles:
    """The three checkpoints of SpineNet V2's detector, published apart."""

    vfr: Path
    appearance: Path
    context: Path


def _read_json(path: Path, what: str, known: tuple[str, ...]) -> dict[str, Any]:
    wanted = f"want a JSON object of {', '.join(known[:-1])} and {known[-1]}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the {what} {path}: {error}; {wanted}") from None
    if not isinstance(content, dict):
        raise UsageError(f"cannot read the {what} {path}: it is no object; {wanted}")
    if unknown := sorted(content.keys() - set(known)):
        raise UsageError(f"cannot read the {what} {path}: unknown key {unknown[0]!r}; {wanted}")
    return content


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of nested objects by dotted names."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found.update({f"{key}.{name}": number for name, number in _numbers(value).items()})
        else:
            found[key] = float(value)
    return found
