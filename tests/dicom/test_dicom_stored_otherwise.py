"""One study stored in another way is one study: every voxel keeps its value and its place in the patient."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from raw_dicom import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    J2K,
    RLE,
    dicom,
    encapsulated,
    image,
    mr,
    read_files,
    rle16,
)

from spine_engine.study import Role, Stack, Study

JPEG_LS = "1.2.840.10008.1.2.4.80"
ROWS, COLUMNS, SLICES = 20, 16, 6
SPACING = (1.25, 0.75)
OBLIQUE_AXIAL = (1.0, 0.0, 0.0, 0.0, 0.9553364891, -0.2955202067)  # 0.3 radians about x
TURNED_SAGITTAL = (
    0.0998334166,
    0.9950041653,
    0.0,
    0.0,
    0.0,
    -1.0,
)  # 0.1 radians about z
SERIES: dict[Role, dict[str, Any]] = {
    Role.SAGITTAL_T1: {
        "ImageOrientationPatient": TURNED_SAGITTAL,
        "EchoTime": 10,
        "RepetitionTime": 550,
    },
    Role.SAGITTAL_T2: {"ImageOrientationPatient": TURNED_SAGITTAL},
    Role.AXIAL_T2: {"ImageOrientationPatient": OBLIQUE_AXIAL},
}


def encoded(values: NDArray[np.uint16], syntax: str) -> NDArray[np.uint16] | bytes:
    """Pixels of one frame in a transfer syntax."""
    if syntax == RLE:
        return rle16(values)
    if syntax == J2K:
        return bytes(
            imagecodecs.jpeg2k_encode(
                values, level=0, codecformat="j2k", bitspersample=16
            )
        )
    if syntax == JPEG_LS:
        return bytes(imagecodecs.jpegls_encode(values))
    return values


def turned(
    values: NDArray[np.uint16], place: dict[str, Any], way: dict[str, Any]
) -> NDArray[np.uint16]:
    """Store a slice from another corner, and along its other axis; ``place`` follows."""
    right, down = (
        np.array(place["ImageOrientationPatient"][:3]),
        np.array(place["ImageOrientationPatient"][3:]),
    )
    position, (between_rows, between_columns) = (
        np.array(place["ImagePositionPatient"]),
        SPACING,
    )
    if way["left_to_right"]:
        values, position, right = (
            values[:, ::-1],
            position + right * between_columns * (COLUMNS - 1),
            -right,
        )
    if way["upside_down"]:
        values, position, down = (
            values[::-1],
            position + down * between_rows * (ROWS - 1),
            -down,
        )
    if way["transposed"]:
        values, right, down = values.T, down, right
        between_rows, between_columns = between_columns, between_rows
    place["ImageOrientationPatient"] = (*right.tolist(), *down.tolist())
    place["ImagePositionPatient"] = tuple(position.round(8).tolist())
    place["PixelSpacing"] = (between_rows, between_columns)
    place["Rows"], place["Columns"] = values.shape
    return np.ascontiguousarray(values)


def rescaled(
    values: NDArray[np.uint16], header: dict[str, Any], way: str, i: int
) -> NDArray[np.uint16]:
    """Store the same intensities as other numbers."""
    header |= {"BitsStored": 16, "HighBit": 15}
    if way == "slope":
        slope = (1, 2, 4)[i % 3]
        header |= {"RescaleSlope": 1 / slope, "RescaleIntercept": -7}
        return ((values + 7) * slope).astype(np.uint16)
    if way == "signed":
        header |= {"PixelRepresentation": 1, "RescaleIntercept": 2048}
        return (values.astype(np.int16) - 2048).view(np.uint16)
    if way == "dirty":
        header |= {"BitsStored": 12, "HighBit": 11}
        return values | np.uint16(0xA000)
    if way == "shifted":
        header |= {"BitsStored": 12, "HighBit": 15}
        return values << np.uint16(4) | np.uint16(5)
    if way == "inverted":
        header |= {
            "BitsStored": 12,
            "HighBit": 11,
            "PhotometricInterpretation": "MONOCHROME1",
        }
        return 4095 - values
    return values


def slices_of(
    role: Role, way: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], NDArray[np.uint16]]]:
    """Header and stored pixels of each slice of a series."""
    number = list(Role).index(role)
    for i in range(SLICES):
        header = mr(
            i,
            **SERIES[role],
            Rows=ROWS,
            Columns=COLUMNS,
            SeriesInstanceUID=f"1.2.3.{number}",
            at_mm=4.0 * i,
        )
        header["InstanceNumber"] = way["numbers"][i]
        values = turned(image(i + 50 * number, ROWS, COLUMNS), header, way)
        yield header, rescaled(values, header, way["stored"], i)


def files_of(way: dict[str, Any]) -> dict[str, bytes]:
    """A study of three series, stored in one way."""
    made: dict[str, bytes] = {}
    for role in Role:
        slices = list(slices_of(role, way))
        if way["frames"]:
            made[f"{role}/frames"] = enhanced(slices, way["syntax"])
            continue
        for i, (header, values) in enumerate(slices):
            pixels = encoded(values, way["syntax"])
            header["PixelData"] = (
                encapsulated(pixels) if isinstance(pixels, bytes) else pixels
            )
            folder = way["folders"][i % len(way["folders"])]
            made[f"{folder}{role[-1:]}{role[:4]}{way['names'][i]}"] = dicom(
                header, way["syntax"]
            )
    return made


def enhanced(
    slices: list[tuple[dict[str, Any], NDArray[np.uint16]]], syntax: str
) -> bytes:
    """One file of several frames: what is the same for all in the shared group, places and scales in their own."""
    header = dict(slices[0][0])
    groups = [
        {
            "PlanePositionSequence": [
                {"ImagePositionPatient": one["ImagePositionPatient"]}
            ],
            "PixelValueTransformationSequence": [
                {
                    "RescaleIntercept": one.get("RescaleIntercept", 0),
                    "RescaleSlope": one.get("RescaleSlope", 1),
                }
            ],
        }
        for one, _ in slices
    ]
    shared = {
        "PlaneOrientationSequence": [
            {"ImageOrientationPatient": header.pop("ImageOrientationPatient")}
        ],
        "PixelMeasuresSequence": [{"PixelSpacing": header.pop("PixelSpacing")}],
    }
    frames = [encoded(values, syntax) for _, values in slices]
    coded = [frame for frame in frames if isinstance(frame, bytes)]
    header["PixelData"] = (
        encapsulated(*coded, table=True)
        if coded
        else np.stack([values for _, values in slices])
    )
    header |= {
        "NumberOfFrames": len(slices),
        "PerFrameFunctionalGroupsSequence": groups,
    }
    header["SharedFunctionalGroupsSequence"] = [shared]
    del header["ImagePositionPatient"]
    return dicom(header, syntax)


def voxels(stack: Stack) -> NDArray[np.float64]:
    """Place (LPS mm, to a hundredth) and intensity of every voxel, in the order of the places."""
    k, r, c = (grid.ravel() for grid in np.indices(stack.pixels.shape))
    down, right = (
        stack.axes[1] * stack.spacing_mm[0],
        stack.axes[2] * stack.spacing_mm[1],
    )
    places = stack.origins_mm[k] + r[:, None] * down + c[:, None] * right
    values = stack.slope[k] * stack.pixels[k, r, c] + stack.intercept[k]
    found = np.column_stack([places, values])
    return found[np.lexsort((places + 1e-3).round(2).T)]


def check(root: Path, way: dict[str, Any]) -> None:
    """Read a study and compare it with what was made: roles, places, intensities, nothing unusual."""
    (study,) = read_files(root, files_of(way)).studies
    assert (study.reason, study.warnings) == (None, ())
    assert {series.role for series in study.series} == set(Role)
    for series in study.series:
        assert series.role is not None
        (stack,) = series.stacks
        np.testing.assert_allclose(voxels(stack), expected(series.role), atol=1e-4)


def expected(role: Role) -> NDArray[np.float64]:
    """What ``voxels`` must find, from the slices as they were made."""
    right, down = np.array(SERIES[role]["ImageOrientationPatient"]).reshape(2, 3)
    normal = np.cross(right, down)
    k, r, c = (grid.ravel() for grid in np.indices((SLICES, ROWS, COLUMNS)))
    places = (
        np.array([10.0, -60.0, 80.0])
        + 4.0 * k[:, None] * normal
        + r[:, None] * 1.25 * down
        + c[:, None] * 0.75 * right
    )
    number = list(Role).index(role)
    values = np.stack([image(i + 50 * number, ROWS, COLUMNS) for i in range(SLICES)])[
        k, r, c
    ]
    return np.column_stack([places, values])[np.lexsort((places + 1e-3).round(2).T)]


PLAIN: dict[str, Any] = {
    "left_to_right": False,
    "upside_down": False,
    "transposed": False,
    "stored": "plain",
    "syntax": EXPLICIT,
    "frames": False,
    "folders": [""],
    "names": list(range(SLICES)),
    "numbers": list(range(1, SLICES + 1)),
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"left_to_right": True},
        {"upside_down": True},
        {"transposed": True},
        *(
            {"stored": way}
            for way in ("slope", "signed", "dirty", "shifted", "inverted")
        ),
        *(
            {"syntax": syntax}
            for syntax in (IMPLICIT, BIG, DEFLATED, RLE, J2K, JPEG_LS)
        ),
        {"frames": True},
        {"names": [5, 4, 3, 2, 1, 0]},
        {"numbers": [6, 5, 4, 3, 2, 1]},
        {"numbers": [1] * 6},
        {"folders": ["b/", "a/", "c/d/"]},
    ],
    ids=str,
)
def test_each_way(tmp_path: Path, change: dict[str, Any]) -> None:
    check(tmp_path, PLAIN | change)


WAYS = st.fixed_dictionaries(
    {
        "left_to_right": st.booleans(),
        "upside_down": st.booleans(),
        "transposed": st.booleans(),
        "stored": st.sampled_from(
            ["plain", "slope", "signed", "dirty", "shifted", "inverted"]
        ),
        "syntax": st.sampled_from(
            [EXPLICIT, IMPLICIT, BIG, DEFLATED, RLE, J2K, JPEG_LS]
        ),
        "frames": st.booleans(),
        "folders": st.lists(
            st.sampled_from(["", "a/", "b/", "b/c/"]), min_size=1, max_size=3
        ),
        "names": st.permutations(range(SLICES)),
        "numbers": st.lists(
            st.one_of(st.just(""), st.integers(-5, 99)),
            min_size=SLICES,
            max_size=SLICES,
        ),
    }
)


@settings(max_examples=25, deadline=None)
@given(way=WAYS)
def test_all_ways_together(
    tmp_path_factory: pytest.TempPathFactory, way: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("way")
    check(folder, way)
    shutil.rmtree(folder)


def sides(study: Study) -> dict[Role | None, tuple[float, float]]:
    """Per role: the x of the darkest and of the brightest voxel."""
    found = {}
    for series in study.series:
        of = voxels(series.stacks[0])
        found[series.role] = (
            float(of[of[:, 3].argmin(), 0]),
            float(of[of[:, 3].argmax(), 0]),
        )
    return found


@pytest.mark.parametrize(
    "position", ["HFS", "HFP", "FFS", "FFP", "HFDL", "HFDR", "FFDL", "FFDR", None]
)
@pytest.mark.parametrize("stored", ["towards the left", "towards the right"])
def test_left_is_left_however_the_patient_lay(
    tmp_path: Path, position: str | None, stored: str
) -> None:
    """A bright spot at the patient's left (+x) in a sagittal and in an axial series stays there."""
    files: dict[str, bytes] = {}
    for name, orientation in (
        ("sag", (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)),
        ("ax", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
    ):
        away = stored == "towards the right"
        for i in range(6):
            pixels = np.full((8, 6), 100, np.uint16)
            header = mr(
                i,
                ImageOrientationPatient=orientation,
                SeriesInstanceUID=f"1.2.3.{name}",
            )
            if name == "sag":
                header["ImagePositionPatient"] = (
                    (-1 if away else 1) * (4.0 * i - 10),
                    0.0,
                    0.0,
                )
                pixels[:] = 900 if header["ImagePositionPatient"][0] == 10 else 100
            else:
                header["ImagePositionPatient"] = (2.5 if away else -1.25, 0.0, 4.0 * i)
                header["ImageOrientationPatient"] = (
                    -1.0 if away else 1.0,
                    0.0,
                    0.0,
                    0.0,
                    1.0,
                    0.0,
                )
                pixels[:, 0 if away else 5] = 900
            if position:
                header["PatientPosition"] = position
            files[f"{name}{i}"] = dicom(header | {"PixelData": pixels})
    (study,) = read_files(tmp_path, files).studies
    for role, (_, bright) in sides(study).items():
        assert bright == pytest.approx(10.0 if role is Role.SAGITTAL_T2 else 2.5), role
    assert len(study.series) == 2
