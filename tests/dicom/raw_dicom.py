"""DICOM files made byte by byte (PS3.5 section 7, PS3.10 section 7), so that a test says exactly what is in them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR, tag_for_keyword

from spine_engine.dicom import (
    InputFile,
    Limits,
    RoleOverrides,
    UnitReading,
    WorkUnit,
    pixels,
    read_unit,
)
from spine_engine.dicom.elements import parse
from spine_engine.dicom.geometry import Slice
from spine_engine.dicom.header import WANTED, ImageHeader, read_image
from spine_engine.errors import Reason, StudyError

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
J2K = "1.2.840.10008.1.2.4.90"
NATIVE = (EXPLICIT, IMPLICIT, BIG, DEFLATED)

LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
BINARY = {"US": "H", "SS": "h", "UL": "L", "FL": "f", "FD": "d"}
UNDEFINED = b"\xff\xff\xff\xff"

SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def image(i: int, rows: int = 8, columns: int = 6) -> NDArray[np.uint16]:
    """12-bit pixels, different for every index."""
    return (
        ((np.arange(rows * columns) * 37 + 501 * i + 11) % 4096)
        .astype(np.uint16)
        .reshape(rows, columns)
    )


def mr(i: int = 0, **changes: Any) -> dict[str, Any]:
    """A sagittal T2 slice by keyword, slice ``i`` of a series 4 mm apart; a change to None removes the element.

    ``at_mm`` moves it along the normal; pixels follow from ``i`` unless ``PixelData`` is among the changes.
    """
    rows, columns = (
        size if isinstance(size := changes.get(k), int) else n
        for k, n in (("Rows", 8), ("Columns", 6))
    )
    orientation = changes.get("ImageOrientationPatient") or SAGITTAL
    normal = (
        np.cross(orientation[:3], orientation[3:])
        if isinstance(orientation, tuple)
        else np.zeros(3)
    )
    at_mm = changes.pop("at_mm", 4.0 * i)
    base = np.array(changes.pop("base_mm", (10.0, -60.0, 80.0)))
    header: dict[str, Any] = {
        "ImageType": "ORIGINAL\\PRIMARY\\M",
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
        "Modality": "MR",
        "SeriesDescription": "words",
        "PatientName": "DOE^JANE",
        "PatientID": "PATIENT",
        "ScanningSequence": "SE",
        "EchoTime": 100,
        "RepetitionTime": 3500,
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.1",
        "SeriesNumber": 1,
        "AcquisitionNumber": 1,
        "InstanceNumber": i + 1,
        "ImagePositionPatient": tuple((base + at_mm * normal).round(6).tolist()),
        "ImageOrientationPatient": SAGITTAL,
        "PixelSpacing": (1.25, 0.75),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 8,
        "Columns": 6,
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelData": image(i, min(rows, 512), min(columns, 512)),
    }
    header |= changes
    return {keyword: value for keyword, value in header.items() if value is not None}


def dicom(
    header: Mapping[str, Any],
    syntax: str = EXPLICIT,
    *,
    meta: bool = True,
    meta_class: str = "",
    said: str = "",
) -> bytes:
    """A whole file: preamble, meta information and data set in ``syntax``; ``PixelData`` bytes go in as they are.

    ``said`` is the transfer syntax of the meta information, where that is another.
    """
    body = dataset(header, syntax)
    if syntax == DEFLATED:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        body = squeeze.compress(body) + squeeze.flush()
    if not meta:
        return body
    information = (
        element(0x00020002, "UI", meta_class.encode(), "<", True) if meta_class else b""
    )
    information += element(0x00020010, "UI", (said or syntax).encode(), "<", True)
    length = element(0x00020000, "UL", struct.pack("<L", len(information)))
    return bytes(128) + b"DICM" + length + information + body


def dataset(header: Mapping[str, Any], syntax: str = EXPLICIT) -> bytes:
    """A data set in ascending order of tags."""
    order, explicit = (">" if syntax == BIG else "<"), syntax != IMPLICIT
    tagged = sorted(
        (int(tag_for_keyword(keyword) or int(keyword, 16)), value)
        for keyword, value in header.items()
    )
    return b"".join(
        _element_of(tag, value, order, explicit, syntax) for tag, value in tagged
    )


def _element_of(tag: int, value: Any, order: str, explicit: bool, syntax: str) -> bytes:
    if (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], bytes)
    ):
        return element(tag, value[0], value[1], order, explicit)  # (VR, bytes)
    vr = dictionary_VR(tag).partition(" ")[0] if tag != 0x7FE00010 else "OW"
    if vr == "SQ":
        return element(
            tag,
            "SQ",
            b"".join(item(dataset(one, syntax), order) for one in value),
            order,
            explicit,
        )
    if tag == 0x7FE00010 and isinstance(value, bytes) and syntax not in NATIVE:
        return element(tag, "OB", value, order, explicit, undefined=True)
    return element(tag, vr, encoded(vr, value, order), order, explicit)


def encoded(vr: str, value: Any, order: str = "<") -> bytes:
    """A value in bytes: text, numbers, pixels, or bytes as they are."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, np.ndarray):
        return value.astype(value.dtype.newbyteorder(order)).tobytes()
    values = value if isinstance(value, tuple) else (value,)
    if vr in BINARY:
        return b"".join(struct.pack(order + BINARY[vr], one) for one in values)
    return "\\".join(
        one if isinstance(one, str) else f"{one:.10g}" for one in values
    ).encode("latin-1")


def element(
    tag: int,
    vr: str,
    value: bytes,
    order: str = "<",
    explicit: bool = True,
    *,
    undefined: bool = False,
) -> bytes:
    """One element (PS3.5 7.1): tag, VR, length, value, padded to an even length."""
    value += (b"\0" if vr in ("UI", "OB", "UN", "OW") else b" ") * (len(value) % 2)
    length = UNDEFINED if undefined else struct.pack(order + "L", len(value))
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if not explicit:
        return head + length + value
    if vr in LONG:
        return head + vr.encode() + bytes(2) + length + value
    return head + vr.encode() + struct.pack(order + "H", len(value)) + value


def item(value: bytes, order: str = "<") -> bytes:
    """An item of a sequence, or a fragment of pixel data (PS3.5 7.5.2, A.4)."""
    return struct.pack(order + "HHL", 0xFFFE, 0xE000, len(value)) + value


def sequence_end(order: str = "<") -> bytes:
    """A sequence delimitation item."""
    return struct.pack(order + "HHL", 0xFFFE, 0xE0DD, 0)


def encapsulated(*frames: bytes, table: bool = False) -> bytes:
    """Pixel data of one fragment a frame, with an offset table of every frame or an empty one."""
    padded = [frame + b"\0" * (len(frame) % 2) for frame in frames]
    offsets = np.cumsum([0, *(8 + len(frame) for frame in padded)])[:-1]
    first = item(offsets.astype("<u4").tobytes() if table else b"")
    return first + b"".join(map(item, padded)) + sequence_end()


def rle(*planes: bytes, segments: int | None = None) -> bytes:
    """RLE (PS3.5 annex G) of byte planes, most significant first, in literal runs of at most 128 bytes."""
    coded = []
    for plane in planes:
        runs = [plane[at : at + 128] for at in range(0, len(plane), 128)]
        one = b"".join(bytes([len(run) - 1]) + run for run in runs)
        coded.append(one + b"\0" * (len(one) % 2))
    starts = np.cumsum([64, *map(len, coded)])[:-1]
    header = np.zeros(16, "<u4")
    header[0] = len(planes) if segments is None else segments
    header[1 : 1 + len(starts)] = starts
    return header.tobytes() + b"".join(coded)


def rle16(values: NDArray[Any]) -> bytes:
    """RLE of 16-bit pixels."""
    return rle(
        (values >> 8).astype(np.uint8).tobytes(),
        (values & 255).astype(np.uint8).tobytes(),
    )


def image_of(
    syntax: str = EXPLICIT, limits: Limits | None = None, **changes: Any
) -> ImageHeader:
    """The typed header of a slice with changes."""
    return read_image(parse(dicom(mr(**changes), syntax), WANTED), limits or Limits())


def pixels_of(syntax: str = EXPLICIT, **changes: Any) -> list[NDArray[Any] | Reason]:
    """The pixels of each declared frame of a file, or why there are none."""
    walked = parse(dicom(mr(**changes), syntax), WANTED)
    assert walked.pixel_data is not None
    found = pixels.frames(read_image(walked), walked.pixel_data)
    return [
        one.reason if isinstance(one, StudyError) else np.array(one) for one in found
    ]


def only_pixels(syntax: str = EXPLICIT, **changes: Any) -> NDArray[Any]:
    (values,) = pixels_of(syntax, **changes)
    assert isinstance(values, np.ndarray), values
    return values


def slice_of(i: int = 0, path: str = "", **changes: Any) -> Slice:
    """One decoded slice, as the reader hands it to the geometry."""
    walked = parse(dicom(mr(i, **changes)), WANTED)
    header = read_image(walked)
    assert walked.pixel_data is not None
    (values,) = pixels.frames(header, walked.pixel_data)
    assert isinstance(values, np.ndarray)
    return Slice(path or f"{i:03d}", header, header.frames[0], values)


def series(count: int = 8, **changes: Any) -> dict[str, bytes]:
    """Files of a series by name."""
    return {f"{i:03d}": dicom(mr(i, **changes)) for i in range(count)}


def read_files(
    root: Path,
    files: Mapping[str, bytes],
    limits: Limits | None = None,
    overrides: RoleOverrides | None = None,
) -> UnitReading:
    """Write files below ``root`` and read them as one unit."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    unit = WorkUnit(
        ".", tuple(InputFile(name, len(data)) for name, data in sorted(files.items()))
    )
    return read_unit(root, unit, overrides, limits or Limits())
