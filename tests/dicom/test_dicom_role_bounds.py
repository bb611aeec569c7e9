"""Every number and every word by which a series gets its role, just inside and just outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from raw_dicom import image_of

from spine_engine.dicom.roles import (
    contrast_of_numbers,
    contrast_of_text,
    ineligible,
    plane_of,
)
from spine_engine.study import Stack


def contrast(te: float | None, tr: float | None, ti: float | None = None) -> str | None:
    return contrast_of_numbers(
        image_of(EchoTime=te, RepetitionTime=tr, InversionTime=ti).frames[0]
    )


@pytest.mark.parametrize(
    ("te", "tr", "ti", "expected"),
    [
        # TI 80-300 and TR > 1500: STIR, whatever the echo time
        (60, 1501, 80, "stir"),
        (60, 1501, 300, "stir"),
        (10, 1501, 160, "stir"),
        (None, 1501, 160, "stir"),
        (60, 1500, 160, "t2"),
        (60, 4000, 79.9, "t2"),
        (60, 4000, 300.1, "t2"),
        (60, None, 160, None),
        # TI 600-1300 and TE <= 40: T1 FLAIR
        (40, 2200, 600, "t1"),
        (40, 2200, 1300, "t1"),
        (40.1, 2200, 860, "pd"),
        (40, 2200, 599, "pd"),
        (40, 2200, 1301, "pd"),
        (10, 2200, 599, None),
        # TE <= 30 and TR <= 1200: T1
        (30, 1200, None, "t1"),
        (30.1, 1200, None, None),
        (29.9, 1200.1, None, None),
        (10, 1, None, "t1"),
        # TE >= 60 and TR >= 1500: T2
        (60, 1500, None, "t2"),
        (59.9, 1500, None, "pd"),
        (60, 1499.9, None, None),
        (300, 9000, None, "t2"),
        # TE 30-60 and TR >= 1500: proton density
        (30, 1500, None, "pd"),
        (29.9, 1500, None, None),
        (45, 1499, None, None),
        # not enough is said
        (None, 3500, None, None),
        (100, None, None, None),
        (None, None, None, None),
    ],
)
def test_contrast_by_times(
    te: float | None, tr: float | None, ti: float | None, expected: str | None
) -> None:
    assert contrast(te, tr, ti) == expected


def stack_with_normal(normal: tuple[float, float, float]) -> Stack:
    n = np.array(normal, float)
    n /= np.linalg.norm(n)
    down = np.cross(n, [0.31, 0.42, 0.53])
    down /= np.linalg.norm(down)
    axes = np.stack([n, down, np.cross(down, n)])
    one = np.ones(1, np.float32)
    return Stack(
        np.zeros((1, 2, 2), np.uint16), one, one, np.zeros((1, 3)), axes, (1.0, 1.0)
    )


def normal(
    axis: int, share: float, rest: tuple[float, float]
) -> tuple[float, float, float]:
    """A unit normal with ``share`` along an axis and the rest divided between the others."""
    left = np.sqrt(1 - share**2) * np.array(rest) / np.linalg.norm(rest)
    values = list(left)
    values.insert(axis, share)
    return values[0], values[1], values[2]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("axis", "share", "rest", "plane"),
    [
        (0, 0.801, (1, 1), "sagittal"),
        (0, 0.799, (1, 1), None),
        (2, 0.701, (1, 1), "axial"),
        (2, 0.699, (1, 1), None),
        (1, 0.801, (1, 1), "coronal"),
        (1, 0.799, (1, 1), None),
        (0, 0.75, (0, 1), None),  # between sagittal and axial: z is 0.66
        (1, 0.71, (0, 1), "axial"),  # z is 0.704
        (0, 0.71, (0, 1), "axial"),
    ],
)
def test_plane_by_normal(
    axis: int, share: float, rest: tuple[float, float], plane: str | None, sign: int
) -> None:
    x, y, z = normal(axis, share, rest)
    assert plane_of(stack_with_normal((sign * x, sign * y, sign * z)), ()) == plane


@pytest.mark.parametrize(
    ("normal", "plane"),
    [
        ((0.8, 0.6, 0.0), "sagittal"),
        ((0.6, 0.8, 0.0), "coronal"),
        ((0.0, 0.51**0.5, 0.7), "axial"),
    ],
)
def test_a_normal_at_the_bound_is_inside(
    normal: tuple[float, float, float], plane: str
) -> None:
    stack = stack_with_normal((1.0, 0.0, 0.0))
    x, y, z = normal
    axes = np.array(
        [
            [x, y, z],
            [0.0, z, -y] if not x else [-y, x, 0.0],
            [1.0, 0.0, 0.0] if not x else [0.0, 0.0, 1.0],
        ]
    )
    placed = Stack(
        stack.pixels, stack.slope, stack.intercept, stack.origins_mm, axes, (1.0, 1.0)
    )
    assert plane_of(placed, ()) == plane


OBLIQUE = (0.6, 0.55, 0.58)


@pytest.mark.parametrize(
    ("texts", "plane"),
    [
        (["SAG T2"], "sagittal"),
        (["T2SAGITTAL"], "sagittal"),
        (["AXIAL"], "axial"),
        (["PARAXIAL"], "axial"),
        (["AX"], "axial"),
        (["AX T2"], "axial"),
        (["AXT2"], "axial"),
        (["AXT1"], "axial"),
        (["T2_TRA"], "axial"),
        (["TRANSVERSE"], "axial"),
        (["TRAV"], "axial"),
        (["T2_TRANS"], "axial"),
        (["TRACE"], None),
        (["MAX"], None),
        (["EXTRA"], None),
        (["AXE"], None),
        (["COR T2"], "coronal"),
        (["CORONAL"], "coronal"),
        (["DECOR"], None),
        (["SAG AND AX"], None),
        (["SAG AND AX", "COR"], "coronal"),
        (["", "SAG"], "sagittal"),
        (["COR", "SAG"], "coronal"),
        ([], None),
    ],
)
def test_plane_by_text_where_the_normal_does_not_tell(
    texts: list[str], plane: str | None
) -> None:
    assert plane_of(stack_with_normal(OBLIQUE), texts) == plane


@pytest.mark.parametrize("text", ["SAG", "AX", "COR"])
def test_the_normal_outranks_the_text(text: str) -> None:
    assert plane_of(stack_with_normal((1, 0, 0)), [text]) == "sagittal"
    assert plane_of(stack_with_normal((0, 0, 1)), [text]) == "axial"
    assert plane_of(stack_with_normal((0, 1, 0)), [text]) == "coronal"


@pytest.mark.parametrize(
    ("text", "contrast"),
    [
        ("STIR", "stir"),
        ("TIRM", "stir"),
        ("T2 TIRM", "stir"),
        ("T1 STIR", "stir"),
        ("T1", "t1"),
        ("SAGT1SE", "t1"),
        ("T12", None),
        ("T10 L1", None),
        ("2T1", None),
        ("T2", "t2"),
        ("T2W", "t2"),
        ("T2 STAR", None),
        ("T2_STAR", None),
        ("T2-STAR", None),
        ("T2STAR", None),
        ("T2*", None),
        ("T2  *", None),
        ("T2 START", None),
        ("T2 TSE", "t2"),
        ("T21", None),
        ("1T2", None),
        ("T1 T2", None),
        ("PD", None),
        ("", None),
    ],
)
def test_contrast_by_text(text: str, contrast: str | None) -> None:
    assert contrast_of_text([text]) == contrast
    assert contrast_of_text(["WORDS", text]) == contrast


def test_the_first_text_that_tells_decides() -> None:
    assert contrast_of_text(["T1", "T2"]) == "t1"
    assert contrast_of_text(["T1 T2", "STIR", "T2"]) == "stir"


# --- eligible ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"Modality": None}, None),
        ({"Modality": "CT"}, "not MR"),
        ({"Modality": "CT", "SamplesPerPixel": 3}, "not MR"),
        ({"SamplesPerPixel": 3, "ImageType": "DERIVED"}, "colour images"),
        ({"SamplesPerPixel": 2}, "colour images"),
        ({"ImageType": None}, None),
        ({"ImageType": "ORIGINAL\\PRIMARY\\M\\WATER"}, None),
        ({"ImageType": "ORIGINAL\\PRIMARY\\IN_PHASE"}, None),
        ({"ImageType": "ORIGINAL\\PRIMARY\\FAT"}, "fat images"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\OPP_PHASE"}, "opposed phase images"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\MOSAIC"}, "mosaic images"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "localizer images"),
        ({"ImageType": "DERIVED\\SECONDARY\\MPR"}, "reformat images"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\MIP"}, "projection images"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\ADC"}, "map images"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\PHASE"}, "phase images"),
        ({"ImageType": "DERIVED\\SECONDARY"}, "derived images"),
        (
            {"ImageType": "DERIVED\\SECONDARY\\WATER", "DiffusionBValue": 9.0},
            "derived images",
        ),
        ({"ImageType": "SECONDARY\\SCREEN SAVE"}, "screen save images"),
        ({"DiffusionBValue": 0.0}, None),
        ({"DiffusionBValue": 0.5}, "diffusion images (b 0)"),
        (
            {"DiffusionBValue": 799.6, "ScanningSequence": "GR"},
            "diffusion images (b 800)",
        ),
        ({"ScanningSequence": "GR"}, "gradient echo"),
        ({"ScanningSequence": "GR\\IR"}, "gradient echo"),
        ({"ScanningSequence": "GR\\SE"}, None),
        ({"ScanningSequence": "EP"}, None),
        ({"ScanningSequence": None}, None),
    ],
)
def test_what_takes_no_role(changes: dict[str, Any], why: str | None) -> None:
    image = image_of(**changes)
    assert ineligible(image, image.frames[0]) == why
