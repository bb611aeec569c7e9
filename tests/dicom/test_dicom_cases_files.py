"""Awkward DICOM: pixels of any encoding in files of any syntax and damage. See ``case_table``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from case_table import case_table, check_stack, only_series, refused_with
from dicom_builder import (
    BIG,
    DEFLATED,
    ENCODERS,
    EXPLICIT,
    IMPLICIT,
    T1,
    T2,
    datasets,
    image,
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


# --- pixels -----------------------------------------------------------------------------------------------------------


@case("MONOCHROME1")
def _(root: Path) -> None:
    write_series(root, T2.but(extra={"PhotometricInterpretation": "MONOCHROME1"}))
    stack = only_series(read_one(root)).stacks[0]
    np.testing.assert_array_equal(stack.pixels[2], 4095 - image(2))


@case("MONOCHROME1 signed")
def _(root: Path) -> None:
    write_series(
        root,
        T2.but(
            extra={"PhotometricInterpretation": "MONOCHROME1", "PixelRepresentation": 1}
        ),
    )
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
        dataset = data[
            data.index(b"\x08\x00\x08\x00CS") :
        ]  # the first element of the data set
        path.unlink()
        (root / "in" / f"IM{i}").write_bytes(data[132:] if i % 2 else dataset)
    check_stack(only_series(read_one(root)), T2)


@case("README, Thumbs.db, empty file, DICOMDIR, SR, PR, KO, SEG")
def _(root: Path) -> None:
    write_series(root / "s", T2)
    (root / "README").write_text("Read me: these are images of a spine.\n")
    (root / "notes.csv").write_text("a,b\n1,2\n")
    (root / "s" / "Thumbs.db").write_bytes(
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
    )
    (root / "s" / "empty").write_bytes(b"")
    directory = Dataset()
    directory.DirectoryRecordSequence = DicomSequence([])
    write(root / "DICOMDIR", directory, meta_class="1.2.840.10008.1.3.10")
    write(root / "renamed_directory", directory, meta_class="1.2.840.10008.1.3.10")
    classes = {
        "SR": "1.2.840.10008.5.1.4.1.1.88.33",
        "PR": "1.2.840.10008.5.1.4.1.1.11.1",
    }
    classes |= {
        "KO": "1.2.840.10008.5.1.4.1.1.88.59",
        "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
    }
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

        write_series(
            root / spec.uid.partition(".")[2], spec.but(study="4003253", change=collide)
        )
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
            ds.BitsAllocated, ds.BitsStored, ds.HighBit = (
                (8, 8, 7) if bits == 8 else (16, 12, 11)
            )
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
        ds.PixelData = encapsulate(
            [
                imagecodecs.jpeg2k_encode(
                    signed, level=0, codecformat="j2k", bitspersample=12
                )
            ]
        )
        write(root / f"{i}", ds, "1.2.840.10008.1.2.4.90")
    stack = only_series(read_one(root)).stacks[0]
    np.testing.assert_array_equal(stack.pixels[3], image(3).astype(np.int16) - 2048)


@case("a frame in several fragments")
def _(root: Path) -> None:
    for i, ds in enumerate(datasets(T2)):
        ds.PixelData = encapsulate(
            [ENCODERS["1.2.840.10008.1.2.4.90"](image(i))], fragments_per_frame=3
        )
        write(root / f"{i}", ds, "1.2.840.10008.1.2.4.90")
    check_stack(only_series(read_one(root)), T2)


@case("another transfer syntax")
def _(root: Path) -> None:
    for i, ds in enumerate(datasets(T2)):
        ds.PixelData = encapsulate([b"\0\0\0\x01" * 20])
        write(root / f"{i}", ds, "1.2.840.10008.1.2.4.102")
    study = refused_with(root, Reason.UNSUPPORTED_TRANSFER_SYNTAX)
    assert study.reason is Reason.UNSUPPORTED_TRANSFER_SYNTAX


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, tmp_path: Path) -> None:
    CASES[name](tmp_path)
