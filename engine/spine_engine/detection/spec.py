"""Input and output of a detector model: the contract between training, the bundle manifest and the decoder."""

from __future__ import annotations

from dataclasses import dataclass

#: Disc ranks, counted upwards from the sacrum: rank 0 is the disc L5/S1, 4 is L1/L2, 7 is T10/T11.
LEVEL_BIN_NAMES = (
    "sacrum",
    "l5_s1",
    "l4_l5",
    "l3_l4",
    "l2_l3",
    "l1_l2",
    "t12_l1",
    "t11_t12",
    "t10_t11",
    "t9_t10_and_above",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSpec:
    """Input and output of the level heat-map detector.

    Input `slices`: float32 `(N, 1, H, W)`, rows superior -> inferior, columns anterior -> posterior, `pixel_mm` pixels,
    H and W multiples of `multiple`, intensities normalised by `slices.canvas_from_stack`, 0 outside the picture.

    Output `heatmaps`: float32 `(N, 4 + bins, H / stride, W / stride)`; channel 0 disc heat, 1 vertebral-body heat (both
    0..1, scaled by the lateral distance to the middle of the column), 2-3 the disc's direction anterior -> posterior as
    (row, column) components, then one logit per level bin. Output pixel i is centred on input pixel
    `stride * i + (stride - 1) / 2`.
    """

    pixel_mm: float = 2.0
    stride: int = 2
    multiple: int = 32
    low_percentile: float = 2.0
    high_percentile: float = 99.0
    gamma: float = 0.5
    clip: float = 1.25
    max_extent_mm: float = 640.0
    bins: tuple[str, ...] = LEVEL_BIN_NAMES

    @property
    def channels(self) -> int:
        """The number of output channels."""
        return 4 + len(self.bins)

    @property
    def output_pixel_mm(self) -> float:
        """The edge of an output pixel, mm."""
        return self.pixel_mm * self.stride


DISC = 0
BODY = 1
DIRECTION = 2
FIRST_LEVEL = 4
"""Output channels: disc heat, body heat, the first of the direction's two channels, and the first level bin."""
