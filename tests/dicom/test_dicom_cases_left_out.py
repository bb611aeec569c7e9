"""Awkward DICOM: what takes no role, and files that are no files. See ``case_table``."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from case_table import case_table, check_stack, only_series
from dicom_builder import (
    AXIAL,
    AXIAL_T2,
    CORONAL,
    SAGITTAL,
    T1,
    T2,
    read_all,
    read_one,
    write_series,
)
from pydicom.dataset import Dataset

from spine_engine.dicom import RefusedFile, discover
from spine_engine.errors import Reason, Warn
from spine_engine.study import Role

CASES, case = case_table()


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
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = (
            3,
            "RGB",
            0,
        )
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
        spec = T2.but(
            orientation=orientation,
            offsets_mm=(0.0, 15.0, 30.0),
            te=5.0,
            tr=20.0,
            seed=10 * i,
        )
        write_series(root, spec, [f"{i}{k}" for k in range(3)])
    study = read_one(root)
    assert study.reason is Reason.NO_SAGITTAL
    assert all(series.role is None for series in study.series)


@case("axial T2 in several series")
def _(root: Path) -> None:
    write_series(root / "sag", T2)
    write_series(root / "ax1", AXIAL_T2)
    write_series(
        root / "ax2",
        AXIAL_T2.but(uid="1.2.3.4", base_mm=(-60.0, -60.0, 90.0), seed=300),
    )
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
        [
            RefusedFile(name, Reason.NOT_A_REGULAR_FILE)
            for name in ("null.dcm", "zero.dcm")
        ],
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
    assert read_unit(root / "in", units[0]).refused == (
        RefusedFile("004.dcm", Reason.NOT_A_REGULAR_FILE),
    )


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, tmp_path: Path) -> None:
    CASES[name](tmp_path)
