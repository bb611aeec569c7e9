"""Every awkward case that real DICOM MR is known for, as a generated series with its required outcome.

Each case must come out right or be refused with its reason; none may come out wrong.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_builder import (
    AXIAL,
    AXIAL_T2,
    BIG,
    CORONAL,
    DEFLATED,
    ENCODERS,
    EXPLICIT,
    IMPLICIT,
    RLE,
    SAGITTAL,
    T1,
    T2,
    SeriesSpec,
    datasets,
    enhanced,
    image,
    normal,
    read_all,
    read_one,
    tilted,
    write,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence

from spine_engine.dicom import RefusedFile, discover
from spine_engine.errors import Reason, Warn
from spine_engine.study import Role, Series, Study

CASES: dict[str, Callable[[Path], None]] = {}


def case(name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Register a case under its row of the table."""

    def register(check: Callable[[Path], None]) -> Callable[[Path], None]:
        assert name not in CASES
        CASES[name] = check
        return check

    return register


def only_series(study: Study) -> Series:
    assert len(study.series) == 1, [(s.role, s.evidence) for s in study.series]
    return study.series[0]


def check_stack(series: Series, spec: SeriesSpec, kept: list[int] | None = None, which: int = 0) -> None:
    """Check pixels, positions and axes of a stack against the slices of ``spec`` with indices ``kept``."""
    stack = series.stacks[which]
    kept = list(range(len(spec.offsets_mm))) if kept is None else kept
    kept.sort(key=lambda i: spec.offsets_mm[i])
    expected = np.stack([image(spec.seed + i, spec.rows, spec.columns) for i in kept])
    np.testing.assert_array_equal(stack.pixels, expected)
    n = normal(spec.orientation)
    origins = np.array([np.array(spec.base_mm) + spec.offsets_mm[i] * n for i in kept])
    np.testing.assert_allclose(stack.origins_mm, origins, atol=1e-4)
    axes = np.array([n, spec.orientation[3:], spec.orientation[:3]])
    np.testing.assert_allclose(stack.axes, axes, atol=1e-6)
    assert stack.spacing_mm == (1.25, 0.75)


def refused_with(root: Path, reason: Reason) -> Study:
    """Check that the one series is refused with ``reason`` and the study says so."""
    study = read_one(root)
    series = only_series(study)
    assert (series.role, series.reason, series.stacks) == (None, reason, ())
    assert Warn.SERIES_REFUSED in study.warnings
    assert study.reason is not None
    return study


# --- order and positions ----------------------------------------------------------------------------------------------


@case("instance numbers shuffled")
def _(root: Path) -> None:
    numbers = random.Random(1).sample(range(1, 9), 8)
    spec = T2.but(change=lambda ds, i: setattr(ds, "InstanceNumber", numbers[i]))
    write_series(root / "s", spec, [f"{n}.dcm" for n in numbers])
    study = read_one(root)
    check_stack(only_series(study), T2)
    assert study.warnings == (Warn.NO_SAGITTAL_T1, Warn.NO_AXIAL_T2)


@case("missing slice")
def _(root: Path) -> None:
    spec = T2.but(offsets_mm=(0.0, 4.0, 8.0, 16.0, 20.0, 24.0))
    write_series(root, spec)
    study = read_one(root)
    check_stack(only_series(study), spec)
    assert Warn.GAP in study.warnings
    assert Warn.UNEVEN not in study.warnings


@case("uneven spacing")
def _(root: Path) -> None:
    spec = T2.but(offsets_mm=(0.0, 4.0, 8.0, 13.0, 17.0, 21.0))
    write_series(root, spec)
    study = read_one(root)
    check_stack(only_series(study), spec)
    assert Warn.UNEVEN in study.warnings
    assert Warn.GAP not in study.warnings


@case("same position, other pixels")
def _(root: Path) -> None:
    write_series(root, T2)
    newer = datasets(T2.but(seed=50))[3]
    newer.AcquisitionNumber = 2
    newer.InstanceNumber = 1
    write(root / "000_sorted_first.dcm", newer)
    study = read_one(root)
    series = only_series(study)
    assert Warn.DUP_POSITION in study.warnings
    np.testing.assert_array_equal(series.stacks[0].pixels[3], image(53))
    assert series.slices == 8
    assert "1/4" in series.evidence
    assert "2/1 kept" in series.evidence


@case("exact copies")
def _(root: Path) -> None:
    paths = write_series(root / "a", T2)
    (root / "b").mkdir()
    for i in (0, 5):
        shutil.copy(paths[i], root / "b" / f"copy{i}.dcm")
    study = read_one(root)
    check_stack(only_series(study), T2)
    assert Warn.DUP_FILE in study.warnings
    assert Warn.DUP_POSITION not in study.warnings
    assert "2 exact copies" in only_series(study).evidence


@case("no orientation")
def _(root: Path) -> None:
    write_series(root, T2.but(change=lambda ds, i: delattr(ds, "ImageOrientationPatient")))
    assert refused_with(root, Reason.NO_ORIENTATION).reason is Reason.NO_ORIENTATION


@case("no position")
def _(root: Path) -> None:
    write_series(root, T2.but(change=lambda ds, i: delattr(ds, "ImagePositionPatient")))
    refused_with(root, Reason.NO_POSITION)


@case("no pixel spacing")
def _(root: Path) -> None:
    write_series(
        root, T2.but(change=lambda ds, i: delattr(ds, "PixelSpacing"), extra={"ImagerPixelSpacing": [1.0, 1.0]})
    )
    refused_with(root, Reason.NO_PIXEL_SPACING)


def _spoiled(ds: Dataset, i: int, spoil: Callable[[Dataset], None], which: int = 3) -> None:
    if i == which:
        spoil(ds)


def _dropped(root: Path) -> None:
    study = read_one(root)
    check_stack(only_series(study), T2, [0, 1, 2, 4, 5, 6, 7])
    assert {Warn.SLICE_DROPPED, Warn.GAP} <= set(study.warnings)
    assert "1 slices dropped" in only_series(study).evidence


@case("one slice without position")
def _(root: Path) -> None:
    write_series(root, T2.but(change=lambda ds, i: _spoiled(ds, i, lambda ds: delattr(ds, "ImagePositionPatient"))))
    _dropped(root)


@case("one slice with NaN")
def _(root: Path) -> None:
    def spoil(ds: Dataset) -> None:
        ds.ImagePositionPatient = ["NaN", "1", "2"]

    paths = write_series(root, T2)
    data = paths[3].read_bytes()
    start = data.index(b"\x20\x00\x32\x00DS")
    length = int.from_bytes(data[start + 6 : start + 8], "little")
    paths[3].write_bytes(data[: start + 8] + b"NaN\\1\\2".ljust(length) + data[start + 8 + length :])
    _dropped(root)


@case("one slice truncated in its pixels")
def _(root: Path) -> None:
    path = write_series(root, T2)[3]
    path.write_bytes(path.read_bytes()[:-700])
    _dropped(root)
    assert read_all(root)[1] == [RefusedFile("004.dcm", Reason.CORRUPT_PIXELS)]


@case("one slice truncated in its header")
def _(root: Path) -> None:
    path = write_series(root, T2)[3]
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\x28\x00\x10\x00") + 3])
    _dropped(root)
    assert read_all(root)[1] == [RefusedFile("004.dcm", Reason.CORRUPT_FILE)]


@case("one slice undecodable")
def _(root: Path) -> None:
    path = write_series(root, T2.but(syntax="1.2.840.10008.1.2.4.90"))[3]
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\x4f\xff\x51")
    data[start + 120 : -40] = bytes(len(data) - 160 - start)
    path.write_bytes(bytes(data))
    _dropped(root)


# --- stacks -----------------------------------------------------------------------------------------------------------


@case("slices at several angles")
def _(root: Path) -> None:
    """Six oblique blocks of one axial series: six stacks, from the top."""
    tilts = (-8.0, -3.0, 2.0, 9.0, 17.0, 28.0)
    blocks = [
        AXIAL_T2.but(
            orientation=tilted(tilt),
            base_mm=(-60.0, -60.0 + i, 100.0 - 35.0 * i),
            offsets_mm=(0.0, 4.0, 8.0, 12.0, 16.0),
            seed=10 * i,
        )
        for i, tilt in enumerate(tilts)
    ]
    for i, block in enumerate(blocks):
        write_series(root / "ax", block, [f"{(7 * (5 * i + k)) % 31:03d}" for k in range(5)])
    series = only_series(read_one(root))
    assert series.role is Role.AXIAL_T2
    assert [len(stack.pixels) for stack in series.stacks] == [5] * 6
    for i, block in enumerate(blocks):
        check_stack(series, block, which=i)


@case("blocks that differ by less than a degree")
def _(root: Path) -> None:
    """Two blocks prescribed at 10.0 and 10.6 degrees, a jump apart: each keeps its own tilt."""
    upper = AXIAL_T2.but(orientation=tilted(10.0), base_mm=(-60.0, -60.0, 40.0), offsets_mm=(0.0, 4.0, 8.0, 12.0, 16.0))
    lower = upper.but(orientation=tilted(10.6), base_mm=(-60.0, -55.0, 0.0), seed=300)
    write_series(root / "ax", upper, [f"{i}a" for i in range(5)])
    write_series(root / "ax", lower, [f"{i}b" for i in range(5)])
    series = only_series(read_one(root))
    check_stack(series, upper, which=0)
    check_stack(series, lower, which=1)


@case("orientations that differ in the last digits")
def _(root: Path) -> None:
    """Rounded direction cosines are one stack: never split by comparing strings."""

    def jitter(ds: Dataset, i: int) -> None:
        ds.ImageOrientationPatient = [0.0, 1.0, 0.0005 * (i % 3), 0.0, 0.0005 * (i % 3), -1.0]

    write_series(root, T2.but(change=jitter))
    series = only_series(read_one(root))
    assert [len(stack.pixels) for stack in series.stacks] == [8]


@case("a localizer inside the series")
def _(root: Path) -> None:
    write_series(root, T2)
    for i, orientation in enumerate((AXIAL, CORONAL)):
        scout = T2.but(orientation=orientation, offsets_mm=(0.0, 10.0, 20.0), seed=40 + 10 * i)
        write_series(root, scout, [f"scout{i}{k}" for k in range(3)])
    study = read_one(root)
    with_role = [series for series in study.series if series.role]
    assert [series.role for series in with_role] == [Role.SAGITTAL_T2]
    assert len(with_role[0].stacks) == 1
    check_stack(with_role[0], T2)
    assert sorted(series.slices for series in study.series) == [3, 3, 8]


@case("mixed matrix sizes")
def _(root: Path) -> None:
    write_series(root, T2)
    write_series(root, T2.but(rows=16, columns=16, offsets_mm=(1.0, 5.0, 9.0)), [f"x{i}" for i in range(3)])
    study = read_one(root)
    check_stack(only_series(study), T2)
    assert Warn.MIXED_MATRIX in study.warnings
    assert "3 slices of another matrix" in only_series(study).evidence


@case("two echoes")
def _(root: Path) -> None:
    write_series(root, T2.but(te=20.0, seed=60), [f"e1_{i}" for i in range(8)])
    write_series(root, T2, [f"e2_{i}" for i in range(8)])
    study = read_one(root)
    by_role = {series.role: series for series in study.series}
    assert set(by_role) == {None, Role.SAGITTAL_T2}
    check_stack(by_role[Role.SAGITTAL_T2], T2)
    check_stack(by_role[None], T2.but(seed=60))


@case("two echoes without echo times")
def _(root: Path) -> None:
    for echo in (1, 2):
        spec = T2.but(te=None, seed=60 * echo, extra={"EchoNumbers": echo}, text="sag t2")
        write_series(root, spec, [f"{i}_{echo}" for i in range(8)])
    study = read_one(root)
    assert sorted(len(series.stacks[0].pixels) for series in study.series) == [8, 8]
    assert Warn.DUP_POSITION not in study.warnings


@case("temporal frames")
def _(root: Path) -> None:
    for when in (1, 2, 3):
        spec = T2.but(seed=60 * when, extra={"TemporalPositionIdentifier": when})
        write_series(root, spec, [f"{i}_{when}" for i in range(8)])
    study = read_one(root)
    assert len(study.series) == 3
    playing = next(series for series in study.series if series.role)
    check_stack(playing, T2.but(seed=180))
    assert Warn.DUP_POSITION not in study.warnings


# --- pixels -----------------------------------------------------------------------------------------------------------


@case("MONOCHROME1")
def _(root: Path) -> None:
    write_series(root, T2.but(extra={"PhotometricInterpretation": "MONOCHROME1"}))
    stack = only_series(read_one(root)).stacks[0]
    np.testing.assert_array_equal(stack.pixels[2], 4095 - image(2))


@case("MONOCHROME1 signed")
def _(root: Path) -> None:
    write_series(root, T2.but(extra={"PhotometricInterpretation": "MONOCHROME1", "PixelRepresentation": 1}))
    stack = only_series(read_one(root)).stacks[0]
    signed = image(2).astype(np.int32)
    signed[signed > 2047] -= 4096
    np.testing.assert_array_equal(stack.pixels[2], -1 - signed)


@case("signed")
def _(root: Path) -> None:
    write_series(root, T2.but(extra={"PixelRepresentation": 1}))
    stack = only_series(read_one(root)).stacks[0]
    signed = image(2).astype(np.int32)
    signed[signed > 2047] -= 4096
    assert stack.pixels.dtype == np.int16
    np.testing.assert_array_equal(stack.pixels[2], signed)


@case("dirty and overlay bits")
def _(root: Path) -> None:
    def dirty(ds: Dataset, i: int) -> None:
        ds.PixelData = (image(i) | np.uint16((5 + i) << 12)).tobytes()

    write_series(root, T2.but(change=dirty))
    check_stack(only_series(read_one(root)), T2)


@case("high bit above the stored bits")
def _(root: Path) -> None:
    def shifted(ds: Dataset, i: int) -> None:
        ds.PixelData, ds.HighBit = (image(i) << 4).astype(np.uint16).tobytes(), 15

    write_series(root, T2.but(change=shifted))
    check_stack(only_series(read_one(root)), T2)


@case("eight bits")
def _(root: Path) -> None:
    def eight(ds: Dataset, i: int) -> None:
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
        ds.PixelData = (image(i) >> 4).astype(np.uint8).tobytes()

    write_series(root, T2.but(change=eight))
    stack = only_series(read_one(root)).stacks[0]
    np.testing.assert_array_equal(stack.pixels[4], image(4) >> 4)


@case("slope and intercept per slice")
def _(root: Path) -> None:
    def scaled(ds: Dataset, i: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = 1.0 + i, -10.0 * i

    write_series(root, T2.but(change=scaled))
    stack = only_series(read_one(root)).stacks[0]
    np.testing.assert_array_equal(stack.slope, [1.0 + i for i in range(8)])
    np.testing.assert_array_equal(stack.intercept, [-10.0 * i for i in range(8)])


# --- files ------------------------------------------------------------------------------------------------------------


@case("no preamble, no extension")
def _(root: Path) -> None:
    for i, path in enumerate(write_series(root / "in", T2)):
        data = path.read_bytes()
        dataset = data[data.index(b"\x08\x00\x08\x00CS") :]  # the first element of the data set
        path.unlink()
        (root / "in" / f"IM{i}").write_bytes(data[132:] if i % 2 else dataset)
    check_stack(only_series(read_one(root)), T2)


@case("README, Thumbs.db, empty file, DICOMDIR, SR, PR, KO, SEG")
def _(root: Path) -> None:
    write_series(root / "s", T2)
    (root / "README").write_text("Read me: these are images of a spine.\n")
    (root / "notes.csv").write_text("a,b\n1,2\n")
    (root / "s" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    (root / "s" / "empty").write_bytes(b"")
    directory = Dataset()
    directory.DirectoryRecordSequence = DicomSequence([])
    write(root / "DICOMDIR", directory, meta_class="1.2.840.10008.1.3.10")
    write(root / "renamed_directory", directory, meta_class="1.2.840.10008.1.3.10")
    classes = {"SR": "1.2.840.10008.5.1.4.1.1.88.33", "PR": "1.2.840.10008.5.1.4.1.1.11.1"}
    classes |= {"KO": "1.2.840.10008.5.1.4.1.1.88.59", "SEG": "1.2.840.10008.5.1.4.1.1.66.4"}
    for modality, sop_class in classes.items():
        other = datasets(T2.but(uid=f"1.2.3.{len(modality)}9"))[0]
        other.Modality, other.SOPClassUID = modality, sop_class
        if modality != "SEG":
            del other.PixelData
        write(root / "s" / f"zz_{modality}.dcm", other)
    studies, refused = read_all(root)
    check_stack(only_series(studies[0]), T2)
    assert Warn.SLICE_DROPPED not in studies[0].warnings
    assert {file.reason for file in refused} == {Reason.NOT_AN_IMAGE}
    names = {Path(file.path).name for file in refused}
    assert names == {
        *("README", "notes.csv", "Thumbs.db", "empty", "DICOMDIR", "renamed_directory"),
        *(f"zz_{modality}.dcm" for modality in classes),
    }


@case("two patients in a folder")
def _(root: Path) -> None:
    write_series(root, T2, [f"{2 * i}" for i in range(8)])
    other = T2.but(study="9.9.9", uid="9.9.9.1", patient="OTHER", seed=500)
    write_series(root, other, [f"{2 * i + 1}" for i in range(8)])
    studies, refused = read_all(root)
    assert {study.study_id for study in studies} == {"1.2.3", "9.9.9"}
    assert refused == []
    for study in studies:
        check_stack(only_series(study), T2 if study.study_id == "1.2.3" else other)


@case("two studies whose series share a SeriesInstanceUID")
def _(root: Path) -> None:
    write_series(root, T2, [f"{2 * i}" for i in range(8)])
    other = T2.but(study="9.9.9", seed=500)
    write_series(root, other, [f"{2 * i + 1}" for i in range(8)])
    for study in read_all(root)[0]:
        check_stack(only_series(study), T2 if study.study_id == "1.2.3" else other)


@case("one StudyInstanceUID, two patients")
def _(root: Path) -> None:
    write_series(root / "a", T2)
    write_series(root / "b", T1.but(patient="OTHER"))
    study = read_one(root)
    assert (study.reason, study.series) == (Reason.UID_COLLISION, ())


@case("one StudyInstanceUID, two patients without IDs")
def _(root: Path) -> None:
    write_series(root / "a", T2.but(patient=""))
    write_series(root / "b", T1.but(patient="", extra={"PatientName": "ROE^RICHARD"}))
    assert read_one(root).reason is Reason.UID_COLLISION


@case("non-conforming UIDs")
def _(root: Path) -> None:
    """As in the RSNA data: odd UIDs, SOPInstanceUIDs that collide between series."""
    for spec in (T2.but(uid="4003253.1012284084"), T1.but(uid="4003253.702807833")):

        def collide(ds: Dataset, i: int) -> None:
            ds.SOPInstanceUID = f"4003253.{i}"

        write_series(root / spec.uid.partition(".")[2], spec.but(study="4003253", change=collide))
    study = read_one(root)
    assert study.study_id == "4003253"
    by_role = {series.role: series for series in study.series}
    check_stack(by_role[Role.SAGITTAL_T2], T2)
    check_stack(by_role[Role.SAGITTAL_T1], T1)


@case("UIDs that are no UIDs")
def _(root: Path) -> None:
    write_series(root / "a", T2.but(study="../[red]x y"))
    study = read_one(root)
    assert study.study_id.startswith("uid-")
    assert study.study_id.replace("-", "").isalnum()
    check_stack(only_series(study), T2)


@case("StudyInstanceUID longer than 64 bytes")
def _(root: Path) -> None:
    write_series(root, T2.but(study="1." * 40 + "1"))
    studies, refused = read_all(root)
    assert studies == []
    assert {file.reason for file in refused} == {Reason.CORRUPT_FILE}


def _syntax_case(syntax: str) -> Callable[[Path], None]:
    def check(root: Path) -> None:
        write_series(root, T2.but(syntax=syntax))
        study = read_one(root)
        check_stack(only_series(study), T2)
        assert only_series(study).role is Role.SAGITTAL_T2

    return check


for _syntax in (EXPLICIT, IMPLICIT, BIG, DEFLATED, *ENCODERS):
    case(f"transfer syntax {_syntax}")(_syntax_case(_syntax))


@case("transfer syntax JPEG baseline and extended")
def _(root: Path) -> None:
    import imagecodecs

    for bits, syntax in ((8, "1.2.840.10008.1.2.4.50"), (12, "1.2.840.10008.1.2.4.51")):
        flat = np.full((32, 28), 100, np.uint8 if bits == 8 else np.uint16)
        frame = imagecodecs.jpeg8_encode(flat, level=95, bitspersample=bits)
        for i, ds in enumerate(datasets(T2)):
            ds.BitsAllocated, ds.BitsStored, ds.HighBit = (8, 8, 7) if bits == 8 else (16, 12, 11)
            ds.PixelData = encapsulate([frame])
            write(root / f"{bits}" / f"{i}", ds, syntax)
        stack = only_series(read_one(root / f"{bits}")).stacks[0]
        assert np.abs(stack.pixels.astype(int) - 100).max() <= 2


@case("transfer syntax JPEG-LS near-lossless")
def _(root: Path) -> None:
    import imagecodecs

    for i, ds in enumerate(datasets(T2)):
        ds.PixelData = encapsulate([imagecodecs.jpegls_encode(image(i), level=2)])
        write(root / f"{i}", ds, "1.2.840.10008.1.2.4.81")
    stack = only_series(read_one(root)).stacks[0]
    assert np.abs(stack.pixels[3].astype(int) - image(3)).max() <= 2


@case("signed JPEG 2000")
def _(root: Path) -> None:
    import imagecodecs

    for i, ds in enumerate(datasets(T2)):
        signed = image(i).astype(np.int16) - 2048
        ds.PixelRepresentation = 1
        ds.PixelData = encapsulate([imagecodecs.jpeg2k_encode(signed, level=0, codecformat="j2k", bitspersample=12)])
        write(root / f"{i}", ds, "1.2.840.10008.1.2.4.90")
    stack = only_series(read_one(root)).stacks[0]
    np.testing.assert_array_equal(stack.pixels[3], image(3).astype(np.int16) - 2048)


@case("a frame in several fragments")
def _(root: Path) -> None:
    for i, ds in enumerate(datasets(T2)):
        ds.PixelData = encapsulate([ENCODERS["1.2.840.10008.1.2.4.90"](image(i))], fragments_per_frame=3)
        write(root / f"{i}", ds, "1.2.840.10008.1.2.4.90")
    check_stack(only_series(read_one(root)), T2)


@case("another transfer syntax")
def _(root: Path) -> None:
    for i, ds in enumerate(datasets(T2)):
        ds.PixelData = encapsulate([b"\0\0\0\x01" * 20])
        write(root / f"{i}", ds, "1.2.840.10008.1.2.4.102")
    study = refused_with(root, Reason.UNSUPPORTED_TRANSFER_SYNTAX)
    assert study.reason is Reason.UNSUPPORTED_TRANSFER_SYNTAX


# --- geometry that is wrong -------------------------------------------------------------------------------------------


@case("orientation nearly orthonormal")
def _(root: Path) -> None:
    write_series(root, T2.but(extra={"ImageOrientationPatient": [0.0, 1.0004, 0.0005, 0.0, 0.0, -0.9996]}))
    stack = only_series(read_one(root)).stacks[0]
    np.testing.assert_allclose(stack.axes @ stack.axes.T, np.eye(3), atol=1e-12)


@case("orientation not orthonormal")
def _(root: Path) -> None:
    write_series(root, T2.but(extra={"ImageOrientationPatient": [0.0, 1.0, 0.0, 0.0, 0.1, -1.0]}))
    refused_with(root, Reason.BAD_ORIENTATION)


@case("absurd numbers")
def _(root: Path) -> None:
    """Numbers so large that arithmetic on them would overflow are no numbers."""

    def absurd(ds: Dataset, i: int) -> None:
        ds.ImagePositionPatient = ["1e300", "0", "0"] if i == 3 else ds.ImagePositionPatient
        ds.RescaleSlope = "1e300"

    write_series(root, T2.but(change=absurd))
    _dropped(root)


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
    write_series(root, T2.but(extra={"SpacingBetweenSlices": -99.0, "SliceThickness": 1000.0}))
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
        far = np.array(ds.ImagePositionPatient, float) + 0.75 * 27 * np.array(SAGITTAL[:3])
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
        expected = original + 5 * 1.25 * np.array(SAGITTAL[3:]) + 24 * 0.75 * np.array(SAGITTAL[:3])
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
        item = b"\xfe\xff\x00\xe0" + length + inner + (b"\xfe\xff\x0d\xe0" + bytes(4) if undefined else b"")
        length = b"\xff" * 4 if undefined else len(item).to_bytes(4, "little")
        inner = b"\x40\x00\x75\x02" + (b"SQ\0\0" if explicit else b"") + length + item
        inner += b"\xfe\xff\xdd\xe0" + bytes(4) if undefined else b""
    return inner


def _write_nested(folder: Path, depth: int, undefined: bool, syntax: str) -> None:
    for path in write_series(folder, T2.but(syntax=syntax)):
        head, mark, tail = path.read_bytes().rpartition(b"\xe0\x7f\x10\x00")
        path.write_bytes(head + _nested(depth, undefined, syntax == EXPLICIT) + mark + tail)


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
    bomb = squeeze.compress(b"\x08\x00\x08\x00CS\x04\x00ABCD" + bytes(5_000_000)) + squeeze.flush()
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


def _with(sequence: str, keyword: str, values: list[object]) -> Callable[[Dataset, int], None]:
    def change(group: Dataset, i: int) -> None:
        item = Dataset()
        setattr(item, keyword, values[i])
        setattr(group, sequence, DicomSequence([item]))

    return change


@case("enhanced: per-frame groups outrank shared ones, split by echo")
def _(root: Path) -> None:
    spec = T2.but(offsets_mm=(0.0, 4.0, 8.0, 12.0, 16.0) * 2)
    write(root / "e.dcm", enhanced(spec, _with("MREchoSequence", "EffectiveEchoTime", [20.0] * 5 + [100.0] * 5)))
    study = read_one(root)
    playing = next(series for series in study.series if series.role)
    assert [series.slices for series in study.series] == [5, 5]
    np.testing.assert_array_equal(playing.stacks[0].pixels, np.stack([image(i) for i in range(5, 10)]))


@case("enhanced: split by b-value")
def _(root: Path) -> None:
    spec = T2.but(offsets_mm=(0.0, 4.0, 8.0, 12.0, 16.0) * 2)
    write(root / "e.dcm", enhanced(spec, _with("MRDiffusionSequence", "DiffusionBValue", [0.0] * 5 + [800.0] * 5)))
    study = read_one(root)
    assert [series.slices for series in study.series] == [5, 5]
    assert [series.role for series in study.series] == [Role.SAGITTAL_T2, None]
    assert "b 800" in study.series[1].evidence


@case("enhanced: split by time")
def _(root: Path) -> None:
    spec = T2.but(offsets_mm=(0.0, 4.0, 8.0, 12.0, 16.0) * 2)
    write(root / "e.dcm", enhanced(spec, _with("FrameContentSequence", "TemporalPositionIndex", [1] * 5 + [2] * 5)))
    assert [series.slices for series in read_one(root).series] == [5, 5]


@case("enhanced: split by stack")
def _(root: Path) -> None:
    spec = AXIAL_T2.but(offsets_mm=(0.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0, 32.0, 36.0))
    write(root / "e.dcm", enhanced(spec, _with("FrameContentSequence", "StackID", ["1"] * 5 + ["2"] * 5)))
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


# --- what takes no role -----------------------------------------------------------------------------------------------

_NO_ROLE = {
    "Siemens mosaic": (("ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"), "mosaic"),
    "derived": (("DERIVED", "SECONDARY"), "derived"),
    "MPR": (("DERIVED", "SECONDARY", "MPR"), "reformat"),
    "projection": (("DERIVED", "PRIMARY", "PROJECTION IMAGE"), "projection"),
    "screen save": (("DERIVED", "SECONDARY", "SCREEN SAVE"), "screen save"),
    "ADC": (("DERIVED", "PRIMARY", "DIFFUSION", "ADC"), "map"),
    "FA": (("DERIVED", "PRIMARY", "DIFFUSION", "FA"), "map"),
    "phase": (("ORIGINAL", "PRIMARY", "PHASE MAP", "P", "SE"), "phase"),
    "localizer": (("ORIGINAL", "PRIMARY", "LOCALIZER"), "localizer"),
}


def _no_role_case(image_type: tuple[str, ...], word: str) -> Callable[[Path], None]:
    def check(root: Path) -> None:
        write_series(root, T2.but(image_type=image_type))
        study = read_one(root)
        series = only_series(study)
        assert (series.role, series.reason) == (None, None)
        assert word in series.evidence
        assert study.reason is Reason.NO_SAGITTAL

    return check


for _name, (_type, _word) in _NO_ROLE.items():
    case(f"no role: {_name}")(_no_role_case(_type, _word))


@case("no role: colour images")
def _(root: Path) -> None:
    def colour(ds: Dataset, i: int) -> None:
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
        ds.PixelData = bytes(32 * 28 * 3)

    write_series(root, T2.but(change=colour))
    series = only_series(read_one(root))
    assert (series.role, series.evidence, series.slices) == (None, "colour images", 8)


@case("no role: another modality")
def _(root: Path) -> None:
    write_series(root / "ct", T2.but(extra={"Modality": "CT"}))
    series = only_series(read_one(root))
    assert (series.role, series.evidence) == (None, "not MR")


@case("a study of localizers")
def _(root: Path) -> None:
    for i, orientation in enumerate((SAGITTAL, AXIAL, CORONAL)):
        spec = T2.but(orientation=orientation, offsets_mm=(0.0, 15.0, 30.0), te=5.0, tr=20.0, seed=10 * i)
        write_series(root, spec, [f"{i}{k}" for k in range(3)])
    study = read_one(root)
    assert study.reason is Reason.NO_SAGITTAL
    assert all(series.role is None for series in study.series)


@case("axial T2 in several series")
def _(root: Path) -> None:
    write_series(root / "sag", T2)
    write_series(root / "ax1", AXIAL_T2)
    write_series(root / "ax2", AXIAL_T2.but(uid="1.2.3.4", base_mm=(-60.0, -60.0, 90.0), seed=300))
    study = read_one(root)
    assert [series.path for series in study.with_role(Role.AXIAL_T2)] == ["ax1", "ax2"]


@case("unknown character set")
def _(root: Path) -> None:
    write_series(root, T2)
    for path in root.iterdir():
        data = path.read_bytes()
        extra = b"\x08\x00\x05\x00CS\x0e\x00ISO_IR 9999999"
        data = data.replace(b"\x08\x00\x08\x00CS", extra + b"\x08\x00\x08\x00CS", 1)
        path.write_bytes(data.replace(b"DOE^JANE", b"\xff\xfe\x00\x9c\xc3\x28\x80!"))
    check_stack(only_series(read_one(root)), T2)


# --- files that are no files ------------------------------------------------------------------------------------------


@case("FIFO")
def _(root: Path) -> None:
    write_series(root / "s", T2)
    os.mkfifo(root / "s" / "pipe.dcm")
    studies, refused = read_all(root)
    check_stack(only_series(studies[0]), T2)
    assert refused == [RefusedFile("s/pipe.dcm", Reason.NOT_A_REGULAR_FILE)]


@case("socket")
def _(root: Path) -> None:
    write_series(root / "s", T2)
    here = Path.cwd()
    os.chdir(root)  # socket paths are short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("sock")
            studies, refused = read_all(root)
    finally:
        os.chdir(here)
    assert len(studies) == 1
    assert refused == [RefusedFile("sock", Reason.NOT_A_REGULAR_FILE)]


@case("device")
def _(root: Path) -> None:
    (root / "null.dcm").symlink_to("/dev/null")
    (root / "zero.dcm").symlink_to("/dev/zero")
    assert read_all(root) == (
        [],
        [RefusedFile(name, Reason.NOT_A_REGULAR_FILE) for name in ("null.dcm", "zero.dcm")],
    )


@case("1 TB sparse file")
def _(root: Path) -> None:
    write_series(root, T2)
    with (root / "huge.dcm").open("wb") as stream:
        stream.truncate(1024**4)
    studies, refused = read_all(root)
    check_stack(only_series(studies[0]), T2)
    assert refused == [RefusedFile("huge.dcm", Reason.TOO_LARGE)]


@case("symbolic-link loop")
def _(root: Path) -> None:
    write_series(root / "s", T2)
    (root / "s" / "up").symlink_to(root)
    (root / "s" / "self").symlink_to(root / "s" / "self")
    (root / "ping").symlink_to(root / "pong")
    (root / "pong").symlink_to(root / "ping")
    studies, refused = read_all(root)
    check_stack(only_series(studies[0]), T2)
    assert sorted(file.path for file in refused) == ["ping", "pong", "s/self", "s/up"]
    assert {file.reason for file in refused} == {Reason.NOT_A_REGULAR_FILE}


@case("links out of the input")
def _(root: Path) -> None:
    outside = root / "outside"
    write_series(outside, T1)
    inside = root / "inside"
    write_series(inside / "s", T2)
    (inside / "link").symlink_to(outside)
    (inside / "file.dcm").symlink_to(outside / "001.dcm")
    studies, refused = read_all(inside)
    check_stack(only_series(studies[0]), T2)
    assert [file.path for file in refused] == ["file.dcm", "link"]


@case("links inside the input")
def _(root: Path) -> None:
    """What a link points to inside the input is read once, at its own place."""
    write_series(root / "store", T2)
    (root / "again").symlink_to(root / "store")
    studies, refused = read_all(root)
    check_stack(only_series(studies[0]), T2)
    assert studies[0].series[0].path == "store"
    assert Warn.DUP_FILE not in studies[0].warnings
    assert refused == []


@case("vanishing file")
def _(root: Path) -> None:
    write_series(root, T2)
    units = list(discover(root))
    (root / "004.dcm").unlink()
    from spine_engine.dicom import WorkUnit, read_unit

    assert isinstance(units[0], WorkUnit)
    reading = read_unit(root, units[0])
    check_stack(only_series(reading.studies[0]), T2, [0, 1, 2, 4, 5, 6, 7])
    assert reading.refused == (RefusedFile("004.dcm", Reason.UNREADABLE),)


@case("a file that became a link")
def _(root: Path) -> None:
    write_series(root / "in", T2)
    units = list(discover(root / "in"))
    secret = root / "secret"
    (root / "in" / "004.dcm").rename(secret)
    (root / "in" / "004.dcm").symlink_to(secret)
    from spine_engine.dicom import WorkUnit, read_unit

    assert isinstance(units[0], WorkUnit)
    assert read_unit(root / "in", units[0]).refused == (RefusedFile("004.dcm", Reason.NOT_A_REGULAR_FILE),)


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, tmp_path: Path) -> None:
    CASES[name](tmp_path)
