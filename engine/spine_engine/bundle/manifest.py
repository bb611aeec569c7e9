"""``bundle.json``: what a bundle says about itself. One definition for those who write it and those who read it.

The dataclasses below are the schema: every key must be there unless it has a default, no other key may be, and each
value must be of the type annotated.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from math import prod
from typing import Final, Literal

from spine_engine.anatomy import (
    CONDITIONS,
    LEVELS,
    SEVERITIES,
    Condition,
    Level,
    Severity,
)
from spine_engine.backends.base import Profile
from spine_engine.bundle.strict_json import load_json, read_dataclass
from spine_engine.detection.spec import DetectorSpec
from spine_engine.errors import BundleError
from spine_engine.study import Role
from spine_engine.voxels.grid import GridSpec
from spine_engine.voxels.layout import GridLayout, Normalisation
from spine_engine.voxels.recipe import PRESETS, GridRecipe, recipe_named

SCHEMA: Final = 1
"""The version of the manifest's schema that this engine reads and writes."""

Table = tuple[tuple[float, ...], ...]

Precision = Literal["f32", "bf16", "f16", "int8"]
"""What a model may compute in; see ``ModelEntry.precisions``."""


MAX_SIDE: Final = 4096
"""The longest side of a tensor or a grid: no grid or map of this engine comes near."""

MAX_VALUES: Final = 1 << 26
"""Values of one grid with its channels: 256 MiB as float32; the packaged grader's has 138,240."""

MAX_MODEL_BYTES: Final = 2 << 30
"""What an ONNX file can hold: the limit of protocol buffers."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Name and shape of a model's input or output; null marks a dimension that may vary."""

    name: str
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        if len(self.shape) > 8 or any(
            side is not None and not 1 <= side <= MAX_SIDE for side in self.shape
        ):
            raise ValueError(
                f"a shape has at most 8 sides of 1 to {MAX_SIDE}, got {_show(self.shape)}"
            )


@dataclass(frozen=True, kw_only=True)
class GridEntry:
    """The grid a grader looks at, in the disc's own frame.

    Attributes:
        shape: voxels along D (superior to inferior), H (anterior to posterior), W (patient's right to left).
        spacing_mm: voxel size along D, H, W.
        center_offset_mm: from the disc's centre to the grid's, along D, H, W.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    center_offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        GridSpec(self.shape, self.spacing_mm)
        if max(self.shape) > MAX_SIDE or prod(self.shape) > MAX_VALUES:
            raise ValueError(
                f"shape has at most {MAX_VALUES} voxels and no side above {MAX_SIDE}, got {self.shape}"
            )
        if not all(0.01 <= step <= 1000 for step in self.spacing_mm):
            raise ValueError(
                f"spacing_mm must be between 0.01 and 1000 mm, got {self.spacing_mm}"
            )
        if not all(abs(offset) <= 1000 for offset in self.center_offset_mm):
            raise ValueError(
                f"center_offset_mm must be within 1000 mm, got {self.center_offset_mm}"
            )

    @property
    def spec(self) -> GridSpec:
        """Shape and spacing, as the voxelizer wants them."""
        return GridSpec(self.shape, self.spacing_mm)

    @classmethod
    def of_recipe(cls, recipe: GridRecipe) -> GridEntry:
        """Return the grid that an entry with such a recipe must have; its spacing is nominal, 1 mm: the recipe's own
        differs from study to study.

        Raises:
            ValueError: the recipe leaves the grid to the manifest.
        """
        if recipe.shape is None:
            raise ValueError(
                f"the recipe {recipe.name} leaves the grid to the manifest"
            )
        return cls(shape=recipe.shape, spacing_mm=(1.0, 1.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a grader's cumulative logits are corrected: ``logit / temperature + shift``, per condition and level.

    Both tables are ``[condition][level]`` in the order of ``anatomy``; a positive temperature keeps the grades' order.
    """

    temperature: Table
    shift: Table

    def __post_init__(self) -> None:
        for name in ("temperature", "shift"):
            table = getattr(self, name)
            if len(table) != len(CONDITIONS) or any(
                len(row) != len(LEVELS) for row in table
            ):
                raise ValueError(
                    f"{name} must have {len(CONDITIONS)} rows, one a condition, of {len(LEVELS)} levels"
                )
        if min(map(min, self.temperature)) <= 0:
            raise ValueError("every temperature must be positive")
        if not all(1e-6 <= value <= 1e6 for row in self.temperature for value in row):
            raise ValueError("every temperature must be between 0.000001 and 1000000")
        if not all(abs(value) <= 1e4 for row in self.shift for value in row):
            raise ValueError("every shift must be within 10000")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One ONNX file of the bundle.

    Attributes:
        file: its name in the bundle's folder.
        sha256: digest of its content, hexadecimal.
        size_bytes: its size.
    """

    file: str
    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.onnx", self.file):
            raise ValueError(
                f"file must be the plain name of an .onnx file beside bundle.json, got {self.file!r}"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 must be 64 lower-case hexadecimal digits")
        if not 0 < self.size_bytes <= MAX_MODEL_BYTES:
            raise ValueError(
                f"size_bytes must be between 1 and {MAX_MODEL_BYTES}, got {self.size_bytes}"
            )


@dataclass(frozen=True, kw_only=True)
class ModelEntry(ModelFile):
    """What every model says: its file, in float32, and the tensors it must have.

    Attributes:
        inputs, outputs: its tensors, in its own order.
        precisions: in which it may run: those that passed parity on the trained model, f32 among them.
        variants: files of the same model and tensors that compute in another precision by themselves, by precision: f16
            for runtimes that take the precision from the file, int8 for all.
        parity: by precision, those that were refused among them, how far it moved the answers from float32's: for
            probabilities ``mean``, ``largest`` and ``changed`` (sure grades that changed), for levels ``largest_mm``.
        profile: input shapes that runtimes with shape-specialised engines prepare for; null where nobody wrote them.
    """

    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    precisions: tuple[Precision, ...] = ("f32",)
    variants: dict[str, ModelFile] = field(default_factory=dict)
    parity: dict[str, dict[str, float]] = field(default_factory=dict)
    profile: Profile | None = None

    def __post_init__(self) -> None:
        ModelFile.__post_init__(self)
        if "f32" not in self.precisions:
            raise ValueError(
                "precisions must contain f32, the one that the others are compared with"
            )
        if unknown := sorted({*self.variants} - {"f16", "int8"}):
            raise ValueError(f"variants are f16 or int8, got {unknown[0]!r}")
        if "int8" in self.precisions and "int8" not in self.variants:
            raise ValueError(
                "int8 lives in a file of its own: name it in variants, or leave int8 out of precisions"
            )
        if len(self.inputs) != 1 or len(self.outputs) != 1:
            raise ValueError("a model must have one input and one output")
        if self.profile is not None:
            for shape in (self.profile.smallest, self.profile.largest):
                if not _fits(shape, self.inputs[0].shape):
                    raise ValueError(
                        f"the profile's {_show(shape)} is no input {_show(self.inputs[0].shape)}"
                    )
                if max(shape) > MAX_SIDE:
                    raise ValueError(
                        f"the profile's {_show(shape)} has a side above {MAX_SIDE}"
                    )

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """Every file of the model, its own first."""
        return (self, *self.variants.values())


@dataclass(frozen=True, kw_only=True)
class DetectorEntry(ModelEntry):
    """The model that finds the levels.

    Attributes:
        decoder: how its maps are read: ``level_heatmaps`` (this project's) or ``vfr`` (vertebra field of regression).
        output_channels: meaning of every output channel, in order.
        spec: pixel size, normalisation and level bins; null for ``vfr``, whose published values are fixed.
    """

    decoder: Literal["level_heatmaps", "vfr"]
    output_channels: tuple[str, ...]
    spec: DetectorSpec | None = None

    def __post_init__(self) -> None:
        ModelEntry.__post_init__(self)
        if (self.decoder == "level_heatmaps") != (self.spec is not None):
            raise ValueError(
                "spec belongs to the decoder level_heatmaps, and to no other"
            )
        if self.spec is not None:
            _check_spec(self.spec)
        _check_channels(self.outputs[0], self.output_channels)


@dataclass(frozen=True, kw_only=True)
class GraderEntry(ModelEntry):
    """A model that grades: one level a grid (``grader``) or the whole study in one grid (``whole_study_grader``).

    Attributes:
        channels: role of the series in each input channel, in order.
        grid: what each channel is sampled on.
        normalisation: ``series_window``: 1st to 99th percentile of the whole series to 0..1, air left out;
            ``grid_range``: smallest to largest value of the grid, all channels together, to 0..1, as graders trained on
            TorchIO's ``RescaleIntensity`` of one voxel grid want it.
        output: ``probabilities``: normal-mild, moderate, severe, from a cumulative link.
        output_channels: the graded conditions in order; for a whole study, ``condition`` major, ``level`` minor.
        calibration: correction of the probabilities; null for none.
        recipe: how a grid is made of a study's pixels: the name of a preset, or a whole ``GridRecipe``. With any other
            than ``native``, ``channels``, ``grid`` and ``normalisation`` must be those that the recipe implies
            (``GridEntry.of_recipe``, ``grid_range``).
    """

    channels: tuple[Role, ...]
    grid: GridEntry
    output_channels: tuple[str, ...]
    normalisation: Normalisation = "series_window"
    output: Literal["probabilities"] = "probabilities"
    calibration: Calibration | None = None
    recipe: str | GridRecipe = "native"

    def __post_init__(self) -> None:
        ModelEntry.__post_init__(self)
        self._check_recipe()
        shape = self.inputs[0].shape
        wanted = (len(self.channels), *self.grid.shape)
        if shape[1:] != wanted:
            raise ValueError(
                f"the input's shape {_show(shape)} does not end in channels and grid {_show(wanted)}"
            )
        if len(set(self.channels)) != len(self.channels):
            raise ValueError("a role can fill only one channel")
        if prod(wanted) > MAX_VALUES:
            raise ValueError(
                f"a grid with its channels has at most {MAX_VALUES} values, got {_show(wanted)}"
            )
        _check_channels(self.outputs[0], self.output_channels)

    def _check_recipe(self) -> None:
        """Raise ``ValueError`` unless the recipe is known and all else is as it implies."""
        recipe = self.grid_recipe
        if recipe != PRESETS.get(recipe.name, recipe):
            raise ValueError(
                f"the recipe {recipe.name!r} is not the preset of that name: give it another"
            )
        if recipe.is_native:
            return
        if recipe.of_levels != self.grades_levels:
            what = "one level" if recipe.of_levels else "a whole study"
            raise ValueError(
                f"the recipe {recipe.name!r} makes grids of {what}, and the outputs are not of that"
            )
        implied = {
            "channels": recipe.channels,
            "grid": GridEntry.of_recipe(recipe),
            "normalisation": "grid_range",
        }
        for name, value in implied.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} must be as the recipe {recipe.name!r} implies"
                )

    @property
    def grid_recipe(self) -> GridRecipe:
        """The recipe of its grids, whether named or written out. Raises ``ValueError`` for an unknown name."""
        return (
            recipe_named(self.recipe) if isinstance(self.recipe, str) else self.recipe
        )

    @property
    def layout(self) -> GridLayout:
        """How the grids of its input are cut, where the recipe is ``native``.

        Raises:
            BundleError: it is another, which makes its grids by itself.
        """
        if not self.grid_recipe.is_native:
            raise BundleError(
                f"grids of the recipe {self.grid_recipe.name} cannot be laid out as the engine's own"
            )
        return GridLayout(
            channels=self.channels,
            spec=self.grid.spec,
            center_offset_mm=self.grid.center_offset_mm,
            normalisation=self.normalisation,
        )

    @property
    def grades_levels(self) -> bool:
        """Whether a grid is that of one level; otherwise it is that of a whole study."""
        return self.output_channels == tuple(CONDITIONS)


SPINENET_TENSORS: Final = {
    "detector": ("patches", "maps"),
    "vertebra_appearance": ("volumes", "scores"),
    "vertebra_context": ("columns", "scores"),
}
"""Input and output of each network that the decoder ``vfr`` asks; see ``detection.spinenet``."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models by role; at least one that grades, and ``grader`` only together with ``detector``.

    A detector whose decoder is ``vfr`` finds vertebrae without their names: ``vertebra_appearance`` and
    ``vertebra_context`` name them, and belong to it alone.
    """

    detector: DetectorEntry | None = None
    vertebra_appearance: ModelEntry | None = None
    vertebra_context: ModelEntry | None = None
    grader: GraderEntry | None = None
    whole_study_grader: GraderEntry | None = None

    def __post_init__(self) -> None:
        if self.grader is None and self.whole_study_grader is None:
            raise ValueError("there must be a grader or a whole_study_grader")
        if self.grader is not None and self.detector is None:
            raise ValueError("a grader of levels needs a detector")
        named = self.detector is not None and self.detector.decoder == "vfr"
        if (
            self.vertebra_appearance is not None,
            self.vertebra_context is not None,
        ) != (named, named):
            raise ValueError(
                "vertebra_appearance and vertebra_context belong to a detector with the decoder vfr"
            )
        if named:
            for role, wanted in SPINENET_TENSORS.items():
                model: ModelEntry = getattr(self, role)
                if (model.inputs[0].name, model.outputs[0].name) != wanted:
                    raise ValueError(
                        f"{role} must take {wanted[0]} and give {wanted[1]} with the decoder vfr"
                    )
        _check_order("output_channels of grader", self.grader, tuple(CONDITIONS))
        both = tuple(
            f"{condition}_{level}" for condition in CONDITIONS for level in LEVELS
        )
        _check_order(
            "output_channels of whole_study_grader", self.whole_study_grader, both
        )

    def by_role(self) -> dict[str, ModelEntry]:
        """Return the models there are, by role."""
        pairs = (
            (entry.name, getattr(self, entry.name))
            for entry in dataclasses.fields(self)
        )
        return {role: model for role, model in pairs if model is not None}


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The label order that the models were trained with; it must be the engine's."""

    levels: tuple[str, ...] = tuple(LEVELS)
    conditions: tuple[str, ...] = tuple(CONDITIONS)
    severities: tuple[str, ...] = tuple(SEVERITIES)

    def __post_init__(self) -> None:
        for name, kind in (
            ("levels", Level),
            ("conditions", Condition),
            ("severities", Severity),
        ):
            if getattr(self, name) != tuple(kind):
                raise ValueError(f"{name} must be in the order {', '.join(kind)}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A whole ``bundle.json``.

    Attributes:
        schema: version of this schema.
        name, version, licence: of the bundle.
        intended_use: what its grades may be used for, in one or two sentences.
        training_data: what the models were trained on, a sentence each, with licence.
        metrics: held-out results by name.
        models: the models by role.
        labels: the label order.
    """

    schema: int
    name: str
    version: str
    licence: str
    intended_use: str
    training_data: tuple[str, ...]
    metrics: dict[str, float]
    models: Models
    labels: Labels = field(default_factory=Labels)

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(
                f"schema is {self.schema}, this engine reads {SCHEMA}: update spine-mri-engine"
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name must be a plain word, got {self.name!r}")


def parse_manifest(text: bytes | str) -> Manifest:
    """Read a manifest.

    Raises:
        BundleError: it is not JSON, or not what the schema says; the message names the key.
    """
    try:
        content = load_json(text)
        manifest: Manifest = read_dataclass(Manifest, content, "bundle.json")
    except (ValueError, RecursionError) as error:
        detail = (
            "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        )
        raise BundleError(f"the manifest is refused: {detail}") from None
    return manifest


def manifest_text(manifest: Manifest) -> str:
    """Return ``manifest`` as the text of a ``bundle.json``; ``parse_manifest`` reads it back."""
    return (
        json.dumps(
            dataclasses.asdict(manifest), indent=2, ensure_ascii=False, allow_nan=False
        )
        + "\n"
    )


def _check_spec(spec: DetectorSpec) -> None:
    """Raise unless a detector's numbers are such that its slices are pictures of a sane size."""
    ranges = {
        "pixel_mm": (0.1, 20),
        "stride": (1, 64),
        "multiple": (1, 1024),
        "low_percentile": (0, 100),
        "high_percentile": (0, 100),
        "gamma": (0.01, 100),
        "clip": (0.01, 1000),
        "max_extent_mm": (10, 5000),
    }
    for name, (least, most) in ranges.items():
        if not least <= getattr(spec, name) <= most:
            raise ValueError(
                f"spec.{name} must be between {least:g} and {most:g}, got {getattr(spec, name):g}"
            )
    if spec.low_percentile >= spec.high_percentile:
        raise ValueError("spec.low_percentile must be below high_percentile")
    if spec.max_extent_mm / spec.pixel_mm > MAX_SIDE:
        raise ValueError(f"spec.max_extent_mm must be at most {MAX_SIDE} pixels")


def _check_channels(tensor: TensorEntry, channels: tuple[str, ...]) -> None:
    if len(tensor.shape) < 2 or tensor.shape[1] != len(channels):
        raise ValueError(
            f"output_channels names {len(channels)} channels, the output's shape is {_show(tensor.shape)}"
        )


def _check_order(what: str, model: GraderEntry | None, wanted: tuple[str, ...]) -> None:
    if model is not None and model.output_channels != wanted:
        raise ValueError(f"{what} must be in the order {', '.join(wanted)}")
    if model is not None and model.outputs[0].shape[2:] != (len(SEVERITIES),):
        raise ValueError(
            f"a grader's output must be (N, {len(wanted)}, {len(SEVERITIES)})"
        )


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        w in (None, s) for s, w in zip(shape, wanted, strict=True)
    )


def _show(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
