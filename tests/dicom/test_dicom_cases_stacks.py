"""Awkward DICOM: slices in any order, at any position, in stacks and series of any kind. See ``case_table``."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from case_table import (
    case_table,
    check_stack,
    dropped,
    only_series,
    refused_with,
    spoiled,
)
from dicom_builder import (
    AXIAL,
    AXIAL_T2,
    CORONAL,
    T2,
    datasets,
    image,
    read_all,
    read_one,
    tilted,
    write,
    write_series,
)
from pydicom.dataset import Dataset

from spine_engine.dicom import RefusedFile
from spine_engine.errors import Reason, Warn
from spine_engine.study import Role

CASES, case = case_table()


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
    write_series(
        root, T2.but(change=lambda ds, i: delattr(ds, "ImageOrientationPatient"))
    )
    assert refused_with(root, Reason.NO_ORIENTATION).reason is Reason.NO_ORIENTATION


@case("no position")
def _(root: Path) -> None:
    write_series(root, T2.but(change=lambda ds, i: delattr(ds, "ImagePositionPatient")))
    refused_with(root, Reason.NO_POSITION)


@case("no pixel spacing")
def _(root: Path) -> None:
    write_series(
        root,
        T2.but(
            change=lambda ds, i: delattr(ds, "PixelSpacing"),
            extra={"ImagerPixelSpacing": [1.0, 1.0]},
        ),
    )
    refused_with(root, Reason.NO_PIXEL_SPACING)


@case("one slice without position")
def _(root: Path) -> None:
    write_series(
        root,
        T2.but(
            change=lambda ds, i: spoiled(
                ds, i, lambda ds: delattr(ds, "ImagePositionPatient")
            )
        ),
    )
    dropped(root)


@case("one slice with NaN")
def _(root: Path) -> None:
    def spoil(ds: Dataset) -> None:
        ds.ImagePositionPatient = ["NaN", "1", "2"]

    paths = write_series(root, T2)
    data = paths[3].read_bytes()
    start = data.index(b"\x20\x00\x32\x00DS")
    length = int.from_bytes(data[start + 6 : start + 8], "little")
    paths[3].write_bytes(
        data[: start + 8] + b"NaN\\1\\2".ljust(length) + data[start + 8 + length :]
    )
    dropped(root)


@case("one slice truncated in its pixels")
def _(root: Path) -> None:
    path = write_series(root, T2)[3]
    path.write_bytes(path.read_bytes()[:-700])
    dropped(root)
    assert read_all(root)[1] == [RefusedFile("004.dcm", Reason.CORRUPT_PIXELS)]


@case("one slice truncated in its header")
def _(root: Path) -> None:
    path = write_series(root, T2)[3]
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\x28\x00\x10\x00") + 3])
    dropped(root)
    assert read_all(root)[1] == [RefusedFile("004.dcm", Reason.CORRUPT_FILE)]


@case("one slice undecodable")
def _(root: Path) -> None:
    path = write_series(root, T2.but(syntax="1.2.840.10008.1.2.4.90"))[3]
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\x4f\xff\x51")
    data[start + 120 : -40] = bytes(len(data) - 160 - start)
    path.write_bytes(bytes(data))
    dropped(root)


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
        write_series(
            root / "ax", block, [f"{(7 * (5 * i + k)) % 31:03d}" for k in range(5)]
        )
    series = only_series(read_one(root))
    assert series.role is Role.AXIAL_T2
    assert [len(stack.pixels) for stack in series.stacks] == [5] * 6
    for i, block in enumerate(blocks):
        check_stack(series, block, which=i)


@case("blocks that differ by less than a degree")
def _(root: Path) -> None:
    """Two blocks prescribed at 10.0 and 10.6 degrees, a jump apart: each keeps its own tilt."""
    upper = AXIAL_T2.but(
        orientation=tilted(10.0),
        base_mm=(-60.0, -60.0, 40.0),
        offsets_mm=(0.0, 4.0, 8.0, 12.0, 16.0),
    )
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
        ds.ImageOrientationPatient = [
            0.0,
            1.0,
            0.0005 * (i % 3),
            0.0,
            0.0005 * (i % 3),
            -1.0,
        ]

    write_series(root, T2.but(change=jitter))
    series = only_series(read_one(root))
    assert [len(stack.pixels) for stack in series.stacks] == [8]


@case("a localizer inside the series")
def _(root: Path) -> None:
    write_series(root, T2)
    for i, orientation in enumerate((AXIAL, CORONAL)):
        scout = T2.but(
            orientation=orientation, offsets_mm=(0.0, 10.0, 20.0), seed=40 + 10 * i
        )
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
    write_series(
        root,
        T2.but(rows=16, columns=16, offsets_mm=(1.0, 5.0, 9.0)),
        [f"x{i}" for i in range(3)],
    )
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
        spec = T2.but(
            te=None, seed=60 * echo, extra={"EchoNumbers": echo}, text="sag t2"
        )
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


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, tmp_path: Path) -> None:
    CASES[name](tmp_path)
