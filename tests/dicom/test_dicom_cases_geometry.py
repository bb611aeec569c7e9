"""Awkward DICOM: geometry that is wrong, sizes that are declared, enhanced multi-frame files. See ``case_table``."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from case_table import case_table, check_stack, dropped, only_series, refused_with
from dicom_builder import (
    AXIAL_T2,
    DEFLATED,
    ENCODERS,
    EXPLICIT,
    IMPLICIT,
    RLE,
    SAGITTAL,
    T1,
    T2,
    datasets,
    enhanced,
    image,
    normal,
    read_all,
    read_one,
    write,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence

from spine_engine.errors import Reason, Warn
from spine_engine.study import Role

CASES, case = case_table()


# --- geometry that is wrong -------------------------------------------------------------------------------------------


@case("orientation nearly orthonormal")
def _(root: Path) -> None:
    write_series(
        root,
        T2.but(
            extra={"ImageOrientationPatient": [0.0, 1.0004, 0.0005, 0.0, 0.0, -0.9996]}
        ),
    )
    stack = only_series(read_one(root)).stacks[0]
    np.testing.assert_allclose(stack.axes @ stack.axes.T, np.eye(3), atol=1e-12)


@case("orientation not orthonormal")
def _(root: Path) -> None:
    write_series(
        root, T2.but(extra={"ImageOrientationPatient": [0.0, 1.0, 0.0, 0.0, 0.1, -1.0]})
    )
    refused_with(root, Reason.BAD_ORIENTATION)


@case("absurd numbers")
def _(root: Path) -> None:
    """Numbers so large that arithmetic on them would overflow are no numbers."""

    def absurd(ds: Dataset, i: int) -> None:
        ds.ImagePositionPatient = (
            ["1e300", "0", "0"] if i == 3 else ds.ImagePositionPatient
        )
        ds.RescaleSlope = "1e300"

    write_series(root, T2.but(change=absurd))
    dropped(root)


@case("all positions equal")
def _(root: Path) -> None:
    write_series(root, T2.but(offsets_mm=(0.0,) * 8))
    refused_with(root, Reason.NOT_A_VOLUME)


@case("one slice only")
def _(root: Path) -> None:
    write_series(root, T2.but(offsets_mm=(0.0,)))
    refused_with(root, Reason.NOT_A_VOLUME)


@case("SpacingBetweenSlices and SliceThickness wrong")
def _(root: Path) -> None:
    write_series(
        root, T2.but(extra={"SpacingBetweenSlices": -99.0, "SliceThickness": 1000.0})
    )
    study = read_one(root)
    check_stack(only_series(study), T2)
    assert only_series(study).stacks[0].slice_spacing_mm == pytest.approx(4.0)


@case("FrameOfReferenceUID differs between series")
def _(root: Path) -> None:
    write_series(root / "a", T2.but(extra={"FrameOfReferenceUID": "1.1"}))
    write_series(root / "b", T1.but(extra={"FrameOfReferenceUID": "1.2"}))
    study = read_one(root)
    assert study.reason is None
    assert Warn.FRAME_OF_REFERENCE in study.warnings


@case("patient prone, decubitus, feet first")
def _(root: Path) -> None:
    for position in ("HFP", "FFS", "HFDL", "FFDR"):
        write_series(root / position, T2.but(extra={"PatientPosition": position}))
        check_stack(only_series(read_one(root / position)), T2)


@case("mirrored storage orientation")
def _(root: Path) -> None:
    """The same slices stored from the other side: the normal turns and every pixel keeps its place in the patient."""
    flipped = (0.0, -1.0, 0.0, 0.0, 0.0, -1.0)

    def mirror(ds: Dataset, i: int) -> None:
        far = np.array(ds.ImagePositionPatient, float) + 0.75 * 27 * np.array(
            SAGITTAL[:3]
        )
        ds.ImagePositionPatient = [float(v) for v in far]
        ds.ImageOrientationPatient = list(flipped)
        ds.PixelData = np.ascontiguousarray(image(i)[:, ::-1]).tobytes()

    write_series(root, T2.but(change=mirror))
    stack = only_series(read_one(root)).stacks[0]
    np.testing.assert_allclose(stack.axes[0], [1.0, 0.0, 0.0], atol=1e-9)
    for k in range(8):
        source = 7 - k  # ascending along the turned normal
        at = stack.origins_mm[k] + 5 * 1.25 * stack.axes[1] + 3 * 0.75 * stack.axes[2]
        original = np.array(T2.base_mm) + T2.offsets_mm[source] * normal(SAGITTAL)
        expected = (
            original
            + 5 * 1.25 * np.array(SAGITTAL[3:])
            + 24 * 0.75 * np.array(SAGITTAL[:3])
        )
        np.testing.assert_allclose(at, expected, atol=1e-6)
        assert stack.pixels[k, 5, 3] == image(source)[5, 24]


# --- declared sizes ---------------------------------------------------------------------------------------------------


@case("declares 65,000 x 65,000")
def _(root: Path) -> None:
    write_series(root, T2.but(extra={"Rows": 65000, "Columns": 65000}))
    study = refused_with(root, Reason.TOO_LARGE)
    assert study.reason is Reason.TOO_LARGE


@case("declares 2,000,000 frames")
def _(root: Path) -> None:
    write_series(root, T2.but(extra={"NumberOfFrames": 2_000_000}))
    refused_with(root, Reason.TOO_LARGE)


@case("a code stream that declares more than the header")
def _(root: Path) -> None:
    def grow(ds: Dataset, i: int) -> None:
        frame = bytearray(ENCODERS["1.2.840.10008.1.2.4.90"](image(i)))
        start = frame.index(b"\xff\x51")
        for at in (4 + 2, 4 + 6, 4 + 18, 4 + 22):
            frame[start + at : start + at + 4] = (60000).to_bytes(4, "big")
        ds.PixelData = encapsulate([bytes(frame)])

    for i, ds in enumerate(datasets(T2.but(change=grow))):
        write(root / f"{i}", ds, "1.2.840.10008.1.2.4.90")
    refused_with(root, Reason.CORRUPT_PIXELS)


def _nested(depth: int, undefined: bool, explicit: bool) -> bytes:
    """RequestAttributesSequence (0040,0275) with ``depth`` sequences inside one another."""
    inner = b""
    for _ in range(depth):
        length = b"\xff" * 4 if undefined else len(inner).to_bytes(4, "little")
        item = (
            b"\xfe\xff\x00\xe0"
            + length
            + inner
            + (b"\xfe\xff\x0d\xe0" + bytes(4) if undefined else b"")
        )
        length = b"\xff" * 4 if undefined else len(item).to_bytes(4, "little")
        inner = b"\x40\x00\x75\x02" + (b"SQ\0\0" if explicit else b"") + length + item
        inner += b"\xfe\xff\xdd\xe0" + bytes(4) if undefined else b""
    return inner


def _write_nested(folder: Path, depth: int, undefined: bool, syntax: str) -> None:
    for path in write_series(folder, T2.but(syntax=syntax)):
        head, mark, tail = path.read_bytes().rpartition(b"\xe0\x7f\x10\x00")
        path.write_bytes(
            head + _nested(depth, undefined, syntax == EXPLICIT) + mark + tail
        )


@case("nesting 500")
def _(root: Path) -> None:
    for undefined in (False, True):
        for syntax in (EXPLICIT, IMPLICIT):
            folder = root / f"{undefined}_{syntax}"
            _write_nested(folder, 500, undefined, syntax)
            refused_with(folder, Reason.TOO_LARGE)


@case("nesting 20")
def _(root: Path) -> None:
    for undefined in (False, True):
        for syntax in (EXPLICIT, IMPLICIT):
            folder = root / f"{undefined}_{syntax}"
            _write_nested(folder, 20, undefined, syntax)
            check_stack(only_series(read_one(folder)), T2)


@case("a deflated header that grows 1000 times")
def _(root: Path) -> None:
    path = write_series(root, T2.but(syntax=DEFLATED))[0]
    data = path.read_bytes()
    meta_end = 132 + 12 + int.from_bytes(data[140:144], "little")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = (
        squeeze.compress(b"\x08\x00\x08\x00CS\x04\x00ABCD" + bytes(5_000_000))
        + squeeze.flush()
    )
    for other in root.iterdir():
        other.write_bytes(data[:meta_end] + bomb)
    studies, refused = read_all(root)
    assert studies == []
    assert {file.reason for file in refused} == {Reason.TOO_LARGE}


# --- enhanced ---------------------------------------------------------------------------------------------------------


@case("enhanced multi-frame")
def _(root: Path) -> None:
    shuffled = T2.but(offsets_mm=(8.0, 0.0, 20.0, 4.0, 12.0, 16.0))
    write(root / "one.dcm", enhanced(shuffled))
    study = read_one(root)
    check_stack(only_series(study), shuffled)
    assert only_series(study).role is Role.SAGITTAL_T2


@case("enhanced multi-frame RLE")
def _(root: Path) -> None:
    ds = enhanced(T2)
    ds.PixelData = encapsulate([ENCODERS[RLE](image(i)) for i in range(8)])
    write(root / "one.dcm", ds, RLE)
    check_stack(only_series(read_one(root)), T2)


def _with(
    sequence: str, keyword: str, values: list[object]
) -> Callable[[Dataset, int], None]:
    def change(group: Dataset, i: int) -> None:
        item = Dataset()
        setattr(item, keyword, values[i])
        setattr(group, sequence, DicomSequence([item]))

    return change


@case("enhanced: per-frame groups outrank shared ones, split by echo")
def _(root: Path) -> None:
    spec = T2.but(offsets_mm=(0.0, 4.0, 8.0, 12.0, 16.0) * 2)
    write(
        root / "e.dcm",
        enhanced(
            spec, _with("MREchoSequence", "EffectiveEchoTime", [20.0] * 5 + [100.0] * 5)
        ),
    )
    study = read_one(root)
    playing = next(series for series in study.series if series.role)
    assert [series.slices for series in study.series] == [5, 5]
    np.testing.assert_array_equal(
        playing.stacks[0].pixels, np.stack([image(i) for i in range(5, 10)])
    )


@case("enhanced: split by b-value")
def _(root: Path) -> None:
    spec = T2.but(offsets_mm=(0.0, 4.0, 8.0, 12.0, 16.0) * 2)
    write(
        root / "e.dcm",
        enhanced(
            spec,
            _with("MRDiffusionSequence", "DiffusionBValue", [0.0] * 5 + [800.0] * 5),
        ),
    )
    study = read_one(root)
    assert [series.slices for series in study.series] == [5, 5]
    assert [series.role for series in study.series] == [Role.SAGITTAL_T2, None]
    assert "b 800" in study.series[1].evidence


@case("enhanced: split by time")
def _(root: Path) -> None:
    spec = T2.but(offsets_mm=(0.0, 4.0, 8.0, 12.0, 16.0) * 2)
    write(
        root / "e.dcm",
        enhanced(
            spec,
            _with("FrameContentSequence", "TemporalPositionIndex", [1] * 5 + [2] * 5),
        ),
    )
    assert [series.slices for series in read_one(root).series] == [5, 5]


@case("enhanced: split by stack")
def _(root: Path) -> None:
    spec = AXIAL_T2.but(
        offsets_mm=(0.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0, 32.0, 36.0)
    )
    write(
        root / "e.dcm",
        enhanced(spec, _with("FrameContentSequence", "StackID", ["1"] * 5 + ["2"] * 5)),
    )
    assert [len(stack.pixels) for stack in only_series(read_one(root)).stacks] == [5, 5]


@case("enhanced SOP class in the file meta of classic files")
def _(root: Path) -> None:
    """As in the RSNA data: RLE, no Modality, no SOPClassUID, no echo or repetition time."""
    for i, ds in enumerate(datasets(T2.but(te=None, tr=None, text="T2"))):
        for keyword in ("Modality", "SOPClassUID", "ScanningSequence", "ImageType"):
            delattr(ds, keyword)
        ds.PixelData = encapsulate([ENCODERS[RLE](image(i))])
        write(root / f"{i}.dcm", ds, RLE, meta_class="1.2.840.10008.5.1.4.1.1.4.1")
    series = only_series(read_one(root))
    check_stack(series, T2)
    assert series.role is Role.SAGITTAL_T2


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, tmp_path: Path) -> None:
    CASES[name](tmp_path)
