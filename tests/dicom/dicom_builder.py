"""Small synthetic DICOM series, written as awkwardly as a case asks for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import config
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.pixels.encoders.native import _encode_segment
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID

from spine_engine.dicom import RefusedFile, RoleOverrides, discover, read_unit
from spine_engine.study import Study

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
MR_CLASS = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_CLASS = "1.2.840.10008.5.1.4.1.1.4.1"

SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
"""Rows run posterior, columns inferior; the normal is -x: slices ascend towards the patient's right."""
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)

Change = Callable[[Dataset, int], None]


def normal(orientation: Sequence[float]) -> NDArray[np.float64]:
    """Return right x down."""
    return np.cross(orientation[:3], orientation[3:])


def tilted(degrees: float) -> tuple[float, ...]:
    """An axial orientation tilted about the x axis."""
    a = np.deg2rad(degrees)
    return (1.0, 0.0, 0.0, 0.0, float(np.cos(a)), float(np.sin(a)))


def image(index: int, rows: int = 32, columns: int = 28) -> NDArray[np.uint16]:
    """Deterministic 12-bit pixels, different for every index."""
    return (
        np.random.default_rng(index)
        .integers(0, 4096, (rows, columns))
        .astype(np.uint16)
    )


@dataclass(frozen=True)
class SeriesSpec:
    """One classic series; ``change`` edits each slice's data set before it is written."""

    uid: str = "1.2.3.1"
    study: str = "1.2.3"
    patient: str = "PATIENT"
    orientation: tuple[float, ...] = SAGITTAL
    offsets_mm: tuple[float, ...] = tuple(4.0 * i for i in range(8))
    base_mm: tuple[float, float, float] = (10.0, -60.0, 80.0)
    rows: int = 32
    columns: int = 28
    te: float | None = 100.0
    tr: float | None = 3500.0
    ti: float | None = None
    text: str = "series"
    syntax: str = EXPLICIT
    seed: int = 0
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "M")
    change: Change | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> SeriesSpec:
        """Return a changed copy."""
        return replace(self, **changes)


T2 = SeriesSpec()
T1 = SeriesSpec(uid="1.2.3.2", te=10.0, tr=550.0, seed=100)
AXIAL_T2 = SeriesSpec(
    uid="1.2.3.3", orientation=AXIAL, base_mm=(-60.0, -60.0, 0.0), seed=200
)


def datasets(spec: SeriesSpec) -> list[Dataset]:
    """The data sets of a series, uncompressed, in spatial order."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        return _datasets(spec)


def _datasets(spec: SeriesSpec) -> list[Dataset]:
    made = []
    for i, offset in enumerate(spec.offsets_mm):
        ds = Dataset()
        ds.SOPClassUID = MR_CLASS
        ds.SOPInstanceUID = f"{spec.uid}.{i + 1}"
        ds.ImageType = list(spec.image_type)
        ds.Modality = "MR"
        ds.SeriesDescription = spec.text
        ds.PatientName = "DOE^JANE"
        ds.PatientID = spec.patient
        ds.ScanningSequence = "SE"
        if spec.te is not None:
            ds.EchoTime = spec.te
        if spec.tr is not None:
            ds.RepetitionTime = spec.tr
        if spec.ti is not None:
            ds.InversionTime = spec.ti
        ds.StudyInstanceUID = spec.study
        ds.SeriesInstanceUID = spec.uid
        ds.SeriesNumber = 1
        ds.AcquisitionNumber = 1
        ds.InstanceNumber = i + 1
        position = np.array(spec.base_mm) + offset * normal(spec.orientation)
        ds.ImagePositionPatient = [round(float(v), 6) for v in position]
        ds.ImageOrientationPatient = [round(float(v), 8) for v in spec.orientation]
        ds.PixelSpacing = [1.25, 0.75]
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.Rows, ds.Columns = spec.rows, spec.columns
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = (
            16,
            12,
            11,
            0,
        )
        ds.PixelData = image(spec.seed + i, spec.rows, spec.columns).tobytes()
        for keyword, value in spec.extra.items():
            setattr(ds, keyword, value)
        if spec.change is not None:
            spec.change(ds, i)
        made.append(ds)
    return made


def write(
    path: Path, ds: Dataset, syntax: str = EXPLICIT, meta_class: str | None = None
) -> Path:
    """Write a data set as a DICOM file; ``PixelData`` must already be in ``syntax`` where that is encapsulated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0  # updated on writing
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID = UID(meta_class or ds.get("SOPClassUID", MR_CLASS))
    meta.MediaStorageSOPInstanceUID = UID(ds.get("SOPInstanceUID", "1.2.3.4"))
    if "PixelData" in ds:
        ds["PixelData"].VR = (
            "OB" if syntax not in (EXPLICIT, IMPLICIT, BIG, DEFLATED) else "OW"
        )
        ds["PixelData"].is_undefined_length = syntax not in (
            EXPLICIT,
            IMPLICIT,
            BIG,
            DEFLATED,
        )
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        dcmwrite(
            path,
            FileDataset(str(path), ds, file_meta=meta, preamble=b"\0" * 128),
            enforce_file_format=False,
        )
    return path


def write_series(
    folder: Path, spec: SeriesSpec, names: Sequence[str] | None = None
) -> list[Path]:
    """Write a series, one file a slice, in the transfer syntax of ``spec``."""
    paths = []
    for i, ds in enumerate(datasets(spec)):
        name = names[i] if names else f"{i + 1:03d}.dcm"
        if spec.syntax == BIG:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").byteswap().tobytes()
        elif spec.syntax in ENCODERS:
            array = np.frombuffer(ds.PixelData, np.uint16).reshape(ds.Rows, ds.Columns)
            ds.PixelData = encapsulate([ENCODERS[spec.syntax](array)])
        paths.append(write(folder / name, ds, spec.syntax))
    return paths


def rle(array: NDArray[np.uint16]) -> bytes:
    """Encode 16-bit pixels as DICOM RLE: the high bytes, then the low bytes, row by row."""
    high, low = (array >> 8).astype(np.uint8), (array & 255).astype(np.uint8)
    segments = [
        bytes(_encode_segment(plane.tobytes(), array.shape[1])) for plane in (high, low)
    ]
    header = np.zeros(16, "<u4")
    header[:3] = 2, 64, 64 + len(segments[0])
    return header.tobytes() + b"".join(segments)


ENCODERS: dict[str, Callable[[NDArray[np.uint16]], bytes]] = {
    RLE: rle,
    "1.2.840.10008.1.2.4.57": lambda a: imagecodecs.ljpeg_encode(a, bitspersample=12),
    "1.2.840.10008.1.2.4.70": lambda a: imagecodecs.ljpeg_encode(a, bitspersample=12),
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.90": lambda a: imagecodecs.jpeg2k_encode(
        a, level=0, codecformat="j2k", bitspersample=12
    ),
    "1.2.840.10008.1.2.4.91": lambda a: imagecodecs.jpeg2k_encode(
        a, level=0, codecformat="j2k", bitspersample=12
    ),
    "1.2.840.10008.1.2.4.201": imagecodecs.htj2k_encode,
    "1.2.840.10008.1.2.4.203": imagecodecs.htj2k_encode,
}
"""Lossless encoders by transfer syntax."""


def enhanced(
    spec: SeriesSpec, per_frame: Callable[[Dataset, int], None] | None = None
) -> Dataset:
    """One enhanced multi-frame data set of the slices of ``spec``."""
    slices = datasets(spec)
    ds = Dataset()
    for keyword in (
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "PatientID",
        "Modality",
        "Rows",
        "Columns",
        "SamplesPerPixel",
    ):
        setattr(ds, keyword, slices[0].get(keyword))
    ds.SOPClassUID, ds.SOPInstanceUID = ENHANCED_CLASS, f"{spec.uid}.1"
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.NumberOfFrames = len(slices)
    ds.PixelData = b"".join(s.PixelData for s in slices)
    shared = Dataset()
    shared.PlaneOrientationSequence = DicomSequence(
        [_only(slices[0], "ImageOrientationPatient")]
    )
    shared.PixelMeasuresSequence = DicomSequence([_only(slices[0], "PixelSpacing")])
    timing = Dataset()
    timing.RepetitionTime = spec.tr
    shared.MRTimingAndRelatedParametersSequence = DicomSequence([timing])
    echo = Dataset()
    echo.EffectiveEchoTime = float(spec.te or 0)
    shared.MREchoSequence = DicomSequence([echo])
    ds.SharedFunctionalGroupsSequence = DicomSequence([shared])
    groups = []
    for i, s in enumerate(slices):
        group = Dataset()
        group.PlanePositionSequence = DicomSequence([_only(s, "ImagePositionPatient")])
        if per_frame is not None:
            per_frame(group, i)
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = DicomSequence(groups)
    return ds


def _only(source: Dataset, keyword: str) -> Dataset:
    item = Dataset()
    setattr(item, keyword, source.get(keyword))
    return item


def read_all(
    root: Path, overrides: RoleOverrides | None = None
) -> tuple[list[Study], list[RefusedFile]]:
    """Discover and read everything under ``root``, following splits, as a run does."""
    studies: list[Study] = []
    refused: list[RefusedFile] = []
    for found in _units(root):
        if isinstance(found, RefusedFile):
            refused.append(found)
            continue
        waiting = [found]
        while waiting:
            reading = read_unit(root, waiting.pop(0), overrides)
            waiting += reading.split
            studies += reading.studies
            refused += reading.refused
    return studies, refused


def _units(root: Path) -> Iterator[Any]:
    yield from discover(root)


def read_one(root: Path, overrides: RoleOverrides | None = None) -> Study:
    """Read a folder that holds exactly one study."""
    studies, _ = read_all(root, overrides)
    assert len(studies) == 1, [s.study_id for s in studies]
    return studies[0]
