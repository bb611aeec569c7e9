"""Recipes of grids: every step between the stored pixels of a study and what a network is fed with, as plain values.

A recipe is data, so that a manifest can hold it. Presets have names and never change: a preset that is made otherwise
gets another name. ``native`` is the engine's own; the others are those of published pipelines (docs/faithful.md).

Frame: patient LPS mm (+x the patient's left, +y posterior, +z superior).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from spine_engine.study import Role

RECIPE_VERSION: Final = 1
"""Version of the recipes' vocabulary that this engine knows."""

Sampling = Literal["trilinear", "scatter-max", "scatter-mean"]
Thickening = Literal["none", "patient-axis", "slice-normal"]
Box = Literal["frame", "cloud", "vertebrae"]
AxialCrop = Literal["none", "sagittal-box"]
Rounding = Literal["half-even", "floor"]
Resize = Literal["none", "trilinear"]
SeriesChoice = Literal["by-role", "every-of-kind"]
Direction = Literal["left", "right", "back", "front", "up", "down"]
Intensity = Literal["manifest", "tensor", "channel", "percentiles", "z-score"]

_AXIS_OF: Final = {"left": 0, "right": 0, "back": 1, "front": 1, "up": 2, "down": 2}
"""The patient axis that each direction runs along."""

MAX_SIDE: Final = 1024
"""Most voxels along an axis of a recipe's grid: three channels of 1024^3 voxels are 12 GB."""


@dataclass(frozen=True, kw_only=True)
class Margins:
    """How far the box of a level reaches beyond ten points: its two vertebral centres, and the four points beside each
    at their distance from it, across the column.

    Attributes:
        x: share of the points' range in x that the box gains on each side.
        front, back: share of the points' reach in front of and behind both centres that the box keeps.
    """

    x: float
    front: float
    back: float

    def __post_init__(self) -> None:
        if not all(0 <= share <= 10 for share in (self.x, self.front, self.back)):
            raise ValueError("margins must be between 0 and 10")


@dataclass(frozen=True, kw_only=True)
class GridRecipe:
    """How a grid is made of a study's stored pixels.

    Attributes:
        name: a preset's, or any other plain words.
        version: version of this vocabulary.
        sampling: ``trilinear`` reads the image at each voxel's centre; ``scatter-max`` and ``scatter-mean`` put every
            pixel into the voxel it falls in and keep the largest value or the mean, 0 where none fell.
        channels: kind of series in each channel; null where the manifest says.
        series: ``by-role`` takes the series that play a role in the engine's grading; ``every-of-kind`` takes every
            file of the study, by the kind that the series table states for its series, else by the engine's rules.
        drop_zeros: stored zeros are no points.
        slice_shape: rows and columns that every slice is first resized to by area mean, in its stored type, while its
            first pixel stays where it was; null leaves slices as they are.
        thickening: a point is repeated at 0, 1, 2 ... mm along the patient's +x (sagittal) or +z (axial), or along
            the slice's normal, ``int(SliceThickness) + extra_copies`` times.
        extra_copies: copies beyond the slice's thickness.
        axial_crop: ``sagittal-box`` drops axial points outside the oriented bounding box of the sagittal ones.
        box: ``frame`` of the disc or the study; ``cloud``, the axis-aligned bounding box of all points; ``vertebrae``,
            an axis-aligned box about the two vertebral centres of a level.
        margins: of the box about two vertebrae.
        voxel_mm: edge of a voxel, the first centred on the smallest coordinates; null stretches the box to ``shape``,
            its smallest coordinates in the first voxel and its largest in the last.
        rounding: which voxel a place between two belongs to.
        resize: how a grid of voxels of ``voxel_mm`` becomes one of ``shape``.
        shape: voxels along the three axes of the array; null where the manifest says.
        axes: where the indices of the three axes grow to.
        float16_values: stored values are first rounded to float16.
        intensity: ``tensor`` maps the smallest to largest value of all channels together to 0..1, ``channel`` those of
            each channel; ``percentiles`` the 1st to 99th of each channel, clipped; ``z-score`` takes each channel's
            mean off and divides by its standard deviation; ``manifest``: as the manifest's ``normalisation`` says.
        float16_grid: the finished grid is rounded to float16.
    """

    name: str
    version: int = RECIPE_VERSION
    sampling: Sampling
    channels: tuple[Role, ...] | None = None
    series: SeriesChoice = "by-role"
    drop_zeros: bool = False
    slice_shape: tuple[int, int] | None = None
    thickening: Thickening = "none"
    extra_copies: int = 0
    axial_crop: AxialCrop = "none"
    box: Box
    margins: Margins | None = None
    voxel_mm: float | None = None
    rounding: Rounding = "floor"
    resize: Resize = "none"
    shape: tuple[int, int, int] | None = None
    axes: tuple[Direction, Direction, Direction]
    float16_values: bool = False
    intensity: Intensity
    float16_grid: bool = False

    def __post_init__(self) -> None:
        if self.version != RECIPE_VERSION:
            raise ValueError(
                f"version is {self.version}, this engine knows recipes of {RECIPE_VERSION}: update it"
            )
        if not self.name or len(self.name) > 64:
            raise ValueError("name must be 1 to 64 characters")
        if len({_AXIS_OF[direction] for direction in self.axes}) != 3:
            raise ValueError(
                f"axes must run along three different directions, got {', '.join(self.axes)}"
            )
        if self.sampling == "trilinear":
            self._check_trilinear()
        else:
            self._check_scatter()

    def _check_trilinear(self) -> None:
        """Raise ``ValueError`` where a trilinear recipe asks for what only scattered points have."""
        wanted = {
            **{
                "channels": None,
                "series": "by-role",
                "drop_zeros": False,
                "slice_shape": None,
            },
            **{
                "thickening": "none",
                "extra_copies": 0,
                "axial_crop": "none",
                "box": "frame",
                "margins": None,
            },
            **{"voxel_mm": None, "rounding": "floor", "resize": "none", "shape": None},
            **{
                "axes": _NATIVE_AXES,
                "float16_values": False,
                "intensity": "manifest",
                "float16_grid": False,
            },
        }
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"with trilinear sampling {name} must be {value!r}: the manifest says the rest"
                )

    def _check_scatter(self) -> None:
        """Raise ``ValueError`` where the values of a scattered recipe do not go together."""
        if not self.channels or len(set(self.channels)) != len(self.channels):
            raise ValueError(
                "channels must name at least one kind of series, each once"
            )
        if self.shape is None or not all(2 <= side <= MAX_SIDE for side in self.shape):
            raise ValueError(f"shape must be three sides of 2 to {MAX_SIDE} voxels")
        if self.slice_shape is not None and not all(
            1 <= side <= MAX_SIDE for side in self.slice_shape
        ):
            raise ValueError(f"slice_shape must be two sides of 1 to {MAX_SIDE} pixels")
        if not 0 <= self.extra_copies <= 16 or (
            self.extra_copies and self.thickening == "none"
        ):
            raise ValueError("extra_copies must be 0 to 16, and 0 without thickening")
        if self.box == "frame" or self.intensity == "manifest":
            raise ValueError(
                "with scattered points box is cloud or vertebrae, and intensity the recipe's own"
            )
        if (self.box == "vertebrae") != (self.margins is not None):
            raise ValueError(
                "margins belong to the box of two vertebrae, and to no other"
            )
        if (self.voxel_mm is None) != (self.resize == "none"):
            raise ValueError("voxels of voxel_mm are resized to shape, and no others")
        if self.voxel_mm is not None and (
            not 0.1 <= self.voxel_mm <= 100 or self.rounding != "floor"
        ):
            raise ValueError(
                "voxel_mm must be between 0.1 and 100 mm, with the rounding floor"
            )

    @property
    def is_native(self) -> bool:
        """Whether the engine's own grids are meant, laid out as the manifest's ``grid`` and ``normalisation`` say."""
        return self.sampling == "trilinear"

    @property
    def of_levels(self) -> bool:
        """Whether a grid is that of one level, cut between two vertebral centres."""
        return self.box == "vertebrae"


_NATIVE_AXES: Final[tuple[Direction, Direction, Direction]] = ("down", "back", "left")
_PATIENT_AXES: Final[tuple[Direction, Direction, Direction]] = ("left", "back", "up")
_RSNA_CHANNELS: Final = (Role.SAGITTAL_T1, Role.AXIAL_T2, Role.SAGITTAL_T2)


def _whole_256(
    name: str, *, extra_copies: int = 0, axial_crop: AxialCrop = "none"
) -> GridRecipe:
    return GridRecipe(
        name=name,
        sampling="scatter-max",
        channels=_RSNA_CHANNELS,
        series="every-of-kind",
        drop_zeros=True,
        slice_shape=(256, 256),
        thickening="patient-axis",
        extra_copies=extra_copies,
        axial_crop=axial_crop,
        box="cloud",
        rounding="half-even",
        shape=(256, 256, 256),
        axes=_PATIENT_AXES,
        float16_values=True,
        intensity="tensor",
        float16_grid=True,
    )


NATIVE: Final = GridRecipe(
    name="native",
    sampling="trilinear",
    box="frame",
    axes=_NATIVE_AXES,
    intensity="manifest",
)
"""The engine's own grids: trilinear, in the frame of the disc or of the study, laid out as the manifest says."""

RSNA2024_WHOLE_256: Final = _whole_256("rsna2024-whole-256")
"""One grid of a whole study, as the submission notebook of the first RSNA 2024 pipeline makes it."""

RSNA2024_WHOLE_256_TRAINING: Final = _whole_256(
    "rsna2024-whole-256-training", extra_copies=1, axial_crop="sagittal-box"
)
"""The same pipeline's grid as its training code makes it: one copy more, axial points outside the sagittal box left
out."""

RSNA2024_LEVEL_128: Final = GridRecipe(
    name="rsna2024-level-128",
    sampling="scatter-max",
    channels=_RSNA_CHANNELS,
    series="every-of-kind",
    drop_zeros=True,
    thickening="patient-axis",
    box="vertebrae",
    margins=Margins(x=0.25, front=0.5, back=2.0),
    voxel_mm=1.0,
    resize="trilinear",
    shape=(128, 128, 128),
    axes=_PATIENT_AXES,
    float16_values=True,
    intensity="tensor",
    float16_grid=True,
)
"""Five grids, one a level, as the second RSNA 2024 pipeline cuts them between vertebral centres."""

PRESETS: Final = {
    recipe.name: recipe
    for recipe in (
        NATIVE,
        RSNA2024_WHOLE_256,
        RSNA2024_WHOLE_256_TRAINING,
        RSNA2024_LEVEL_128,
    )
}
"""The recipes that have names."""


def recipe_named(name: str) -> GridRecipe:
    """Return the preset ``name``.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no recipe {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
