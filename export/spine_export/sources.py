"""The recipe of a bundle: checkpoints, the card, and facts that files of weights alone lack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from spine_engine.bundle.manifest import Calibration
from spine_engine.bundle.strict_json import load_json, read_dataclass
from spine_engine.errors import UsageError
from spine_engine.phantom.samples import PHANTOMS
from spine_engine.voxels import GridSpec
from spine_engine.voxels.recipe import PRESETS, recipe_named
from spine_training.backbones import Pool, Shape
from spine_training.checkpoints import Averaging

LICENCE: Final = "not stated: the weights belong to whoever trained them"
INTENDED_USE: Final = "Research only; not a medical device."


PACKAGED: Final = Path("packaged")
"""What ``--detector`` calls the packaged bundle's detector."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """The facts of a bundle's models that only people know; the rest is read from the checkpoints.

    Attributes:
        licence, intended_use: the bundle's licence and intended use.
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
    """The facts that a file of weights of either older pipeline lacks.

    Attributes:
        shape: grid ``(D, H, W)``, voxels, that it was trained on.
        backbone: argument of ``build_backbone``: a name, or a configuration as JSON; without it the refusal names the
            nearest.
        pool: pipeline 1 pools by maximum, pipeline 2 by the library's default, the average.
        spacing_mm: voxel size of the grid, along D, H, W.
        offset_mm: step from the disc's centre to the grid's, along D, H, W.
        normalisation: ``grid_range`` is these pipelines' own; see ``GraderEntry``.
        recipe: name of the preset that grids are made by; with any but ``native`` the shape, the spacing, the offset
            and the normalisation are the recipe's.
    """

    shape: Shape
    backbone: str | None = None
    pool: Pool = "avg"
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    normalisation: Literal["series_window", "grid_range"] = "grid_range"
    recipe: str = "native"

    def __post_init__(self) -> None:
        GridSpec(self.shape, self.spacing_mm)

    @classmethod
    def read(cls, path: Path) -> PipelineConfig:
        """Read it from JSON.

        Raises:
            UsageError: it cannot be read, names no recipe, a key is missing or unknown, or a value is not of its type
                or not the recipe's.
        """
        content = _read_json(path)
        try:
            if isinstance(content, dict) and isinstance(content.get("backbone"), dict):
                content["backbone"] = json.dumps(content["backbone"])
            if isinstance(content, dict):
                _add_implied(content)
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


@dataclass(frozen=True, kw_only=True)
class BundleRecipe:
    """The checkpoints and the facts that a bundle is made from.

    Attributes:
        name, version: the bundle's name and version.
        detector: a checkpoint of ``train``, an ONNX file exported from one, the folder of a bundle, or SpineNet's three
            checkpoints; a level grader needs one, and takes the packaged one where it is None or ``PACKAGED``.
        grader, whole_study: checkpoints of ``train``, or of the older pipelines where ``described`` has their role.
        described: facts that files of weights alone lack, by ``grader`` and ``whole_study_grader``.
        weights: which weights of a described file that has averaged and plain ones; averaged ones if not given.
        calibration: calibration of the level grader's probabilities.
        card: facts that the checkpoints lack.
        int8: also try the graders in INT8.
        phantoms: number of phantoms that precisions are compared on.

    Raises:
        UsageError: the models make no bundle.
    """

    name: str
    version: str
    detector: Path | SpineNetFiles | None = None
    grader: Path | None = None
    whole_study: Path | None = None
    described: Mapping[str, PipelineConfig] = field(default_factory=dict)
    weights: Averaging | None = None
    calibration: Calibration | None = None
    card: Card = field(default_factory=Card)
    int8: bool = False
    phantoms: int = PHANTOMS

    def __post_init__(self) -> None:
        if not self.graders:
            raise UsageError(
                "a bundle needs a grader, a whole-study grader or both; give --grader or --whole-study"
            )
        if self.grader is None and self.detector is not None:
            raise UsageError(
                "a detector needs a level grader; give --grader, or leave --detector out"
            )
        if self.grader is None and self.calibration is not None:
            raise UsageError(
                "a calibration is of a level grader's probabilities; give --grader, or leave it out"
            )
        if unused := sorted(self.described.keys() - self.graders.keys()):
            raise UsageError(f"a {unused[0]} is described, but none is given")

    @property
    def graders(self) -> dict[str, Path]:
        """The graders' checkpoints by role."""
        given = {"grader": self.grader, "whole_study_grader": self.whole_study}
        return {role: path for role, path in given.items() if path is not None}

    @property
    def own_checkpoints(self) -> dict[str, Path]:
        """The checkpoints of this project by role: they say what they were trained on."""
        own = {
            role: path
            for role, path in self.graders.items()
            if role not in self.described
        }
        checkpoint = self.detector_checkpoint
        return own if checkpoint is None else {"detector": checkpoint, **own}

    @property
    def detector_checkpoint(self) -> Path | None:
        """The checkpoint that a detector is exported from; None where there is none, or it is exported already."""
        source = self.detector
        if self.packaged or not isinstance(source, Path):
            return None
        return None if source.is_dir() or source.suffix == ".onnx" else source

    @property
    def packaged(self) -> bool:
        """Whether the level grader takes the packaged bundle's detector."""
        return self.grader is not None and self.detector in (None, PACKAGED)


def _add_implied(content: dict[str, Any]) -> None:
    """Add what the recipe of a description implies.

    Raises:
        ValueError: it names no recipe, or a value is not the recipe's.
    """
    if not isinstance(content.get("recipe"), str):
        raise ValueError(
            f'it must name the recipe of its grids: "recipe" is one of {", ".join(PRESETS)}'
        )
    recipe = recipe_named(content["recipe"])
    if recipe.shape is None:
        return
    implied = {
        "shape": list(recipe.shape),
        "spacing_mm": [1.0, 1.0, 1.0],
        "offset_mm": [0.0, 0.0, 0.0],
        "normalisation": "grid_range",
    }
    for key, value in implied.items():
        if content.setdefault(key, value) != value:
            raise ValueError(
                f"{key} must be {value}, as the recipe {recipe.name} implies; leave it out"
            )


def _read_json(path: Path) -> Any:
    try:
        return load_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}; want a JSON object") from None


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of nested objects by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(
                {f"{key}.{name}": number for name, number in _flat(value).items()}
            )
        else:
            flat[key] = value
    return flat
