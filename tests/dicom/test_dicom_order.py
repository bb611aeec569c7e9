"""Names, instance numbers and the order of files change nothing; and what is read equals what pydicom reads."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_builder import (
    AXIAL_T2,
    ENCODERS,
    RLE,
    T1,
    T2,
    SeriesSpec,
    datasets,
    image,
    read_one,
    tilted,
    write,
    write_series,
)
from pydicom.encaps import encapsulate

from spine_engine.dicom import pixels
from spine_engine.dicom.elements import parse
from spine_engine.dicom.header import WANTED, read_image
from spine_engine.errors import Reason
from spine_engine.study import Study

SCENES: dict[str, tuple[SeriesSpec, ...]] = {
    "plain": (T1, T2, AXIAL_T2),
    "two-echoes": (T2, T2.but(te=20.0, seed=60)),
    "mixed-matrix-tie": (
        T2,
        T2.but(rows=16, columns=16, offsets_mm=tuple(4.0 * i + 1 for i in range(8))),
    ),
    "oblique": tuple(
        AXIAL_T2.but(
            orientation=tilted(7.0 * i), base_mm=(-60.0, -60.0, -40.0 * i), seed=10 * i
        )
        for i in range(4)
    ),
    "nearly-parallel": tuple(
        AXIAL_T2.but(
            orientation=tilted(0.4 * i), base_mm=(-60.0, -60.0, -3.0 * i), seed=10 * i
        )
        for i in range(4)
    ),
    "side-by-side": (AXIAL_T2, AXIAL_T2.but(base_mm=(20.0, -60.0, 0.0), seed=300)),
    "interleaved": (
        T2,
        T2.but(offsets_mm=tuple(4.0 * i + 1.5 for i in range(8)), seed=300),
    ),
}


def same(a: Study, b: Study) -> None:
    """Check that two studies are identical in everything but evidence."""
    assert (a.study_id, a.warnings, a.reason, len(a.series)) == (
        b.study_id,
        b.warnings,
        b.reason,
        len(b.series),
    )
    for left, right in zip(a.series, b.series, strict=True):
        assert (left.role, left.contrast, left.slices, left.path) == (
            right.role,
            right.contrast,
            right.slices,
            right.path,
        )
        assert len(left.stacks) == len(right.stacks)
        for one, two in zip(left.stacks, right.stacks, strict=True):
            np.testing.assert_array_equal(one.pixels, two.pixels)
            np.testing.assert_array_equal(one.origins_mm, two.origins_mm)
            np.testing.assert_array_equal(one.axes, two.axes)
            assert one.spacing_mm == two.spacing_mm


@pytest.mark.parametrize("scene", SCENES)
def test_names_and_instance_numbers_change_nothing(tmp_path: Path, scene: str) -> None:
    shuffle = random.Random(len(scene))
    for root in ("plain", "shuffled"):
        made = [ds for spec in SCENES[scene] for ds in datasets(spec)]
        names = list(range(len(made)))
        if root == "shuffled":
            shuffle.shuffle(names)
        for name, ds in zip(names, made, strict=True):
            ds.InstanceNumber = name
            write(tmp_path / root / "all" / f"{name:04d}", ds)
    same(read_one(tmp_path / "plain"), read_one(tmp_path / "shuffled"))


def test_side_by_side_blocks_are_two_stacks(tmp_path: Path) -> None:
    for i, spec in enumerate(SCENES["side-by-side"]):
        write_series(tmp_path, spec, [f"{i}_{k}" for k in range(8)])
    (series,) = read_one(tmp_path).series
    assert [len(stack.pixels) for stack in series.stacks] == [8, 8]
    assert sorted(stack.origins_mm[0, 0] for stack in series.stacks) == [-60.0, 20.0]


@pytest.mark.parametrize(
    "syntax",
    ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", *ENCODERS],
)
def test_equals_pydicom(tmp_path: Path, syntax: str) -> None:
    """Values in every encoding, against pydicom's own parser, and against its pixels where it has a decoder."""
    path = write_series(
        tmp_path, T2.but(syntax=syntax, extra={"RescaleSlope": 1.5, "EchoNumbers": 2})
    )[3]
    walked = parse(path.read_bytes(), WANTED)
    ours, theirs = read_image(walked), pydicom.dcmread(path)
    frame = ours.frames[0]
    assert frame.position_mm == pytest.approx(tuple(theirs.ImagePositionPatient))
    assert frame.orientation == pytest.approx(tuple(theirs.ImageOrientationPatient))
    assert frame.spacing_mm == tuple(theirs.PixelSpacing)
    assert (frame.slope, frame.echo_number) == (theirs.RescaleSlope, theirs.EchoNumbers)
    assert (frame.echo_time_ms, frame.repetition_time_ms) == (
        theirs.EchoTime,
        theirs.RepetitionTime,
    )
    assert ours.series_uid == theirs.SeriesInstanceUID
    assert ours.transfer_syntax == theirs.file_meta.TransferSyntaxUID
    assert (ours.rows, ours.columns, ours.bits_stored) == (
        theirs.Rows,
        theirs.Columns,
        theirs.BitsStored,
    )
    assert walked.pixel_data is not None
    (values,) = pixels.frames(ours, walked.pixel_data)
    np.testing.assert_array_equal(values, image(3))
    if syntax not in ENCODERS or syntax == RLE:
        np.testing.assert_array_equal(values, theirs.pixel_array)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", RLE])
def test_damaged_bytes_never_raise(tmp_path: Path, syntax: str) -> None:
    """A few hundred damaged copies of one slice: each is read or refused, none stops the study."""
    good = write_series(tmp_path / "good", T2.but(syntax=syntax))
    data = good[3].read_bytes()
    damage = random.Random(7)
    folder = tmp_path / "bad"
    for k in range(25):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path in good[:3]:
            shutil.copy(path, folder)
        for name in ("a", "b", "c"):
            broken = bytearray(data)
            for _ in range(damage.choice((1, 3, 10))):
                broken[damage.randrange(128, min(len(broken), 1100))] = (
                    damage.randrange(256)
                )
            (folder / name).write_bytes(
                broken[: damage.choice((len(broken), damage.randrange(len(broken))))]
            )
        study = next(s for s in _studies(folder) if s.study_id == "1.2.3")
        if (
            study.reason is not Reason.UID_COLLISION
        ):  # the damage may have hit the patient's ID
            assert sum(series.slices for series in study.series) >= 3, k


def _studies(folder: Path) -> list[Study]:
    from dicom_builder import read_all

    return read_all(folder)[0]


def test_encapsulated_pixels_with_padding(tmp_path: Path) -> None:
    for i, ds in enumerate(datasets(T2)):
        ds.PixelData = encapsulate([ENCODERS[RLE](image(i)) + b"\0" * (i % 3)])
        write(tmp_path / f"{i}", ds, RLE)
    np.testing.assert_array_equal(
        read_one(tmp_path).series[0].stacks[0].pixels[4], image(4)
    )
