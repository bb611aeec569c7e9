"""Writes phantom studies as DICOM MR files: one classic image per file, with the headers of an ordinary scanner."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, RLELossless

from spine_engine.phantom.render import PhantomSeries, PhantomStudy
from spine_engine.study import Stack

IMPLEMENTATION_UID: Final = UID("2.25.251874017234880113")

_SCANNING: Final = {
    "t1": ("SE", "SK"),
    "t2": ("SE", "SK"),
    "stir": (["SE", "IR"], "SK"),
}
"""ScanningSequence and SequenceVariant of each contrast."""

_SAME_IN_ALL: Final = {
    "SpecificCharacterSet": "ISO_IR 192",
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
    "SOPClassUID": MRImageStorage,
    "StudyDate": "20260101",
    "SeriesDate": "20260101",
    "AcquisitionDate": "20260101",
    "StudyTime": "120000",
    "AccessionNumber": "",
    "Modality": "MR",
    "Manufacturer": "PHANTOM",
    "ManufacturerModelName": "spine-engine phantom",
    "StudyDescription": "MR LUMBAR SPINE PHANTOM",
    "PatientBirthDate": "",
    "PatientSex": "O",
    "PatientIdentityRemoved": "YES",
    "BodyPartExamined": "LSPINE",
    "ScanOptions": "",
    "MRAcquisitionType": "2D",
    "NumberOfAverages": "2",
    "ImagingFrequency": "63.87",
    "MagneticFieldStrength": "1.5",
    "FlipAngle": "150",
    "PatientPosition": "HFS",
    "StudyID": "1",
    "PositionReferenceIndicator": "",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
}
"""Elements that are the same in all phantom images; everything about the patient is plainly synthetic."""


def write_study(
    study: PhantomStudy, root: Path, *, shuffled: bool = False, rle: bool = False
) -> Path:
    """Write ``<root>/<StudyInstanceUID>/<SeriesInstanceUID>/<instance number>.dcm`` and return the study's folder.

    Args:
        study: a study from ``render``.
        root: folder for the study's folder; created if missing.
        shuffled: number the instances in random order, which no reader may rely on.
        rle: RLE Lossless, as in the RSNA 2024 files, instead of explicit little endian; some 20 times slower.
    """
    folder = root / study.study_id
    for number, series in enumerate(study.series, start=1):
        target = folder / series_uid(study, series)
        target.mkdir(parents=True, exist_ok=True)
        shared = _series_elements(study, series, number)
        for instance, stack, index in numbered_slices(study, series, shuffled=shuffled):
            dataset = _instance(shared, study, series, stack, index, instance)
            if rle:
                dataset.compress(
                    RLELossless, encoding_plugin="pydicom", generate_instance_uid=False
                )
            dataset.save_as(target / f"{instance}.dcm", enforce_file_format=True)
    return folder


def numbered_slices(
    study: PhantomStudy, series: PhantomSeries, *, shuffled: bool = False
) -> Iterator[tuple[int, Stack, int]]:
    """Yield ``(instance number, stack, slice)`` of every image; some series are numbered in the other direction."""
    slices = [(stack, k) for stack in series.stacks for k in range(len(stack.pixels))]
    rng = np.random.default_rng(_entropy(study.study_id, series.name, "order"))
    numbers = np.arange(1, len(slices) + 1)
    if shuffled:
        numbers = rng.permutation(numbers)
    elif (
        rng.random() < 0.36
    ):  # the share of RSNA's sagittal T1 series that run right to left
        numbers = numbers[::-1]
    for number, (stack, k) in zip(numbers, slices, strict=True):
        yield int(number), stack, k


def series_uid(study: PhantomStudy, series: PhantomSeries) -> str:
    """Return the SeriesInstanceUID, derived from the study's."""
    return _uid(study.study_id, series.name)


def _uid(*parts: str) -> str:
    return f"2.25.{_entropy(*parts)}"


def _entropy(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:15], "big")


def _series_elements(
    study: PhantomStudy, series: PhantomSeries, number: int
) -> Dataset:
    """Return the elements that all images of a series share."""
    sequence = series.sequence
    ds = Dataset()
    for keyword, value in _SAME_IN_ALL.items():
        setattr(ds, keyword, value)
    ds.SeriesDescription = series.description
    ds.PatientName = f"PHANTOM^{study.spine.seed}"
    ds.PatientID = f"PHANTOM-{study.spine.seed}"
    ds.ScanningSequence, ds.SequenceVariant = _SCANNING[sequence.contrast]
    ds.SliceThickness = f"{series.thickness_mm:.2f}"
    ds.RepetitionTime = f"{sequence.tr_ms:g}"
    ds.EchoTime = f"{sequence.te_ms:g}"
    if sequence.ti_ms > 0:
        ds.InversionTime = f"{sequence.ti_ms:g}"
    ds.EchoTrainLength = 4 if sequence.contrast == "t1" else 18
    ds.ProtocolName = series.description.lower().replace(" ", "_") + "_tse"
    ds.StudyInstanceUID = study.study_id
    ds.SeriesInstanceUID = series_uid(study, series)
    ds.SeriesNumber = number
    ds.FrameOfReferenceUID = _uid(study.study_id, "frame of reference")
    return ds


def _instance(
    shared: Dataset,
    study: PhantomStudy,
    series: PhantomSeries,
    stack: Stack,
    index: int,
    number: int,
) -> Dataset:
    """Return one image: the shared elements, its place (PS3.3 C.7.6.2.1.1) and its pixels."""
    pixels: NDArray[np.uint16] = stack.pixels[index].astype("<u2", copy=False)
    ds = Dataset()
    ds.update(shared)
    ds.SOPInstanceUID = _uid(
        study.study_id, series.name, f"{stack.origins_mm[index].round(3).tolist()}"
    )
    ds.InstanceNumber = number
    ds.AcquisitionNumber = 1
    ds.ImagePositionPatient = [f"{v:.6f}" for v in stack.origins_mm[index]]
    # PS3.3: first the direction of a row (column index grows), then that of a column.
    ds.ImageOrientationPatient = [f"{v:.10f}" for v in (*stack.axes[2], *stack.axes[1])]
    ds.Rows, ds.Columns = pixels.shape
    ds.PixelSpacing = [f"{v:.8f}" for v in stack.spacing_mm]
    ds.WindowCenter = f"{float(np.median(pixels)) * 1.5 + 1:.0f}"
    ds.WindowWidth = f"{max(float(np.ptp(pixels)), 1):.0f}"
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    ds.file_meta = meta
    return ds
