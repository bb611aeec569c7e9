"""What the engine wants to know of an image: one ``Image`` a file, one ``Frame`` a slice, in plain typed values.

Text is matched, never kept for output: it may hold anything. Numbers that do not parse are treated as missing.
Attributes: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.3 (pixels), C.8.3 (MR image), C.7.6.16 (functional groups).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from spine_engine.dicom.elements import Elements, ParsedFile
from spine_engine.dicom.limits import DEFAULT_LIMITS, Limits
from spine_engine.errors import Reason, StudyError

WANTED: Final[dict[int, bytes]] = {
    0x00080008: b"CS",  # ImageType
    0x00080016: b"UI",  # SOPClassUID
    0x00080022: b"DA",  # AcquisitionDate
    0x00080032: b"TM",  # AcquisitionTime
    0x00080060: b"CS",  # Modality
    0x0008103E: b"LO",  # SeriesDescription
    0x00089007: b"CS",  # FrameType
    0x00100010: b"PN",  # PatientName
    0x00100020: b"LO",  # PatientID
    0x00100030: b"DA",  # PatientBirthDate
    0x00180010: b"LO",  # ContrastBolusAgent
    0x00180020: b"CS",  # ScanningSequence
    0x00180022: b"CS",  # ScanOptions
    0x00180024: b"SH",  # SequenceName
    0x00180050: b"DS",  # SliceThickness
    0x00180080: b"DS",  # RepetitionTime
    0x00180081: b"DS",  # EchoTime
    0x00180082: b"DS",  # InversionTime
    0x00180086: b"IS",  # EchoNumbers
    0x00181030: b"LO",  # ProtocolName
    0x00189008: b"CS",  # EchoPulseSequence
    0x00189079: b"FD",  # InversionTimes
    0x00189074: b"DT",  # FrameAcquisitionDateTime
    0x00189082: b"FD",  # EffectiveEchoTime
    0x00189087: b"FD",  # DiffusionBValue
    0x00189112: b"SQ",  # MRTimingAndRelatedParametersSequence
    0x00189114: b"SQ",  # MREchoSequence
    0x00189115: b"SQ",  # MRModifierSequence
    0x00189117: b"SQ",  # MRDiffusionSequence
    0x00189226: b"SQ",  # MRImageFrameTypeSequence
    0x0020000D: b"UI",  # StudyInstanceUID
    0x0020000E: b"UI",  # SeriesInstanceUID
    0x00200011: b"IS",  # SeriesNumber
    0x00200012: b"IS",  # AcquisitionNumber
    0x00200013: b"IS",  # InstanceNumber
    0x00200032: b"DS",  # ImagePositionPatient
    0x00200037: b"DS",  # ImageOrientationPatient
    0x00200052: b"UI",  # FrameOfReferenceUID
    0x00200100: b"IS",  # TemporalPositionIdentifier
    0x00209056: b"SH",  # StackID
    0x00209111: b"SQ",  # FrameContentSequence
    0x00209113: b"SQ",  # PlanePositionSequence
    0x00209116: b"SQ",  # PlaneOrientationSequence
    0x00209128: b"UL",  # TemporalPositionIndex
    0x00280002: b"US",  # SamplesPerPixel
    0x00280004: b"CS",  # PhotometricInterpretation
    0x00280008: b"IS",  # NumberOfFrames
    0x00280010: b"US",  # Rows
    0x00280011: b"US",  # Columns
    0x00280030: b"DS",  # PixelSpacing
    0x00280100: b"US",  # BitsAllocated
    0x00280101: b"US",  # BitsStored
    0x00280102: b"US",  # HighBit
    0x00280103: b"US",  # PixelRepresentation
    0x00281052: b"DS",  # RescaleIntercept
    0x00281053: b"DS",  # RescaleSlope
    0x00289110: b"SQ",  # PixelMeasuresSequence
    0x00289145: b"SQ",  # PixelValueTransformationSequence
    0x52009229: b"SQ",  # SharedFunctionalGroupsSequence
    0x52009230: b"SQ",  # PerFrameFunctionalGroupsSequence
}
"""Tag -> VR (PS3.6) of everything that is read; the VR serves implicit-VR data sets."""

IDENTITY: Final = {0x0020000D: b"UI"}
_BINARY: Final = {
    b"US": "H",
    b"SS": "h",
    b"UL": "L",
    b"SL": "l",
    b"FL": "f",
    b"FD": "d",
}
_REMEMBERED_BYTES: Final = 128
"""Longer than six decimal strings of 16 bytes (PS3.5 6.2), and short enough to remember some thousand of."""
_MAX_UID_BYTES: Final = 64  # PS3.5 9.1
_LARGEST_SPACING_MM: Final = (
    100.0  # of pixels: a localizer has 2 mm, nonsense has 10 million
)
_LARGEST_POSITION_MM: Final = 100_000.0  # a scanner is 2 m long
_LARGEST_NUMBER: Final = (
    1e12  # nothing that is read comes near; keeps later arithmetic finite
)

# Objects that hold no image: SOP class UIDs (PS3.4 B.5) and Modality values (PS3.3 C.7.3.1.1.1).
_NOT_IMAGE_CLASSES: Final = (
    "1.2.840.10008.1.3.10",  # media storage directory (DICOMDIR)
    "1.2.840.10008.5.1.4.1.1.88.",  # structured reports, key objects
    "1.2.840.10008.5.1.4.1.1.11.",  # presentation states
    "1.2.840.10008.5.1.4.1.1.66",  # raw data, registrations, segmentations
    "1.2.840.10008.5.1.4.1.1.104.",  # encapsulated documents
    "1.2.840.10008.5.1.4.1.1.4.2",  # MR spectroscopy
    "1.2.840.10008.5.1.4.1.1.9.",  # waveforms
    "1.2.840.10008.5.1.4.1.1.481.",  # radiotherapy
)
_NOT_IMAGE_MODALITIES: Final = frozenset(
    (
        "SR",
        "PR",
        "KO",
        "SEG",
        "DOC",
        "REG",
        "FID",
        "PLAN",
        "RTSTRUCT",
        "RTPLAN",
        "RTDOSE",
        "ECG",
        "HD",
        "AU",
    )
)


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """One slice of a file. Millimetres, patient LPS; None where the file does not say or says nonsense."""

    index: int
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, float] | None
    slope: float
    intercept: float
    echo_time_ms: float | None
    repetition_time_ms: float | None
    inversion_time_ms: float | None
    echo_number: int | None
    b_value: float | None
    temporal: int | None
    stack_id: str
    image_type: tuple[str, ...]
    acquired: str
    thickness_mm: float | None


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """One file: what its frames share."""

    series_uid: str
    patient: tuple[str, str, str]
    modality: str
    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    monochrome1: bool
    declared_frames: int
    transfer_syntax: str
    frame_of_reference: str
    scanning_sequence: tuple[str, ...]
    contrast_agent: bool
    fat_suppressed: bool
    texts: tuple[str, ...]
    series_number: int
    acquisition_number: int
    instance_number: int
    frames: tuple[FrameHeader, ...]


def _text(elements: Elements, tag: int) -> str:
    found = elements.values.get(tag)
    if found is None or not isinstance(found[1], bytes):
        return ""
    return found[1].decode("latin-1").strip("\0 ")


def _words(elements: Elements, tag: int) -> tuple[str, ...]:
    return _split(_text(elements, tag))


@lru_cache(maxsize=1024)
def _split(text: str) -> tuple[str, ...]:
    """Return the words of a text; all frames of a file share one tuple."""
    return tuple(word.strip().upper() for word in text.split("\\")) if text else ()


def _numbers(elements: Elements, tag: int) -> tuple[float, ...]:
    """Return the numbers of an element, or () when any of them is NaN, infinite or absurd."""
    found = elements.values.get(tag)
    if found is None:
        return ()
    vr, value = found
    if not isinstance(value, bytes) or not value:
        return ()
    return (_parsed if len(value) > _REMEMBERED_BYTES else _remembered)(
        vr, value, elements.little
    )


def _parsed(vr: bytes, value: bytes, little: bool) -> tuple[float, ...]:
    try:
        if vr in _BINARY:
            code = _BINARY[vr]
            count = len(value) // struct.calcsize("<" + code)
            numbers = [
                float(n)
                for n in struct.unpack_from(
                    f"{'<' if little else '>'}{count}{code}", value
                )
            ]
        else:
            numbers = [
                float(part) for part in value.decode("latin-1").strip("\0 ").split("\\")
            ]
    except (ValueError, struct.error):
        return ()
    return (
        tuple(numbers)
        if all(abs(number) < _LARGEST_NUMBER for number in numbers)
        else ()
    )


_remembered = lru_cache(maxsize=4096)(
    _parsed
)  # the slices of a series repeat nearly all of their numbers


def _integer(elements: Elements, tag: int, default: int) -> int:
    numbers = _numbers(elements, tag)
    return int(numbers[0]) if numbers else default


def _exactly(numbers: tuple[float, ...], count: int) -> tuple[float, ...] | None:
    return numbers if len(numbers) == count else None


def _within(
    numbers: tuple[float, ...] | None, largest: float
) -> tuple[float, ...] | None:
    """Return lengths in mm unless one of them is beyond anything that a scanner measures."""
    return None if numbers is None or max(map(abs, numbers)) > largest else numbers


def study_uid(parsed: ParsedFile) -> str:
    """Return the StudyInstanceUID as an opaque key of at most 64 characters, or "" when there is none."""
    uid = _text(parsed.dataset, 0x0020000D)
    return uid if len(uid) <= _MAX_UID_BYTES else ""


def series_uid(parsed: ParsedFile) -> str:
    """Return the SeriesInstanceUID as an opaque key, or ""."""
    return _text(parsed.dataset, 0x0020000E)


def check_is_image(parsed: ParsedFile) -> None:
    """Raise ``StudyError`` unless the file is an image with pixels, within the limits.

    The SOP class of the file meta information counts only where the data set has none: writers copy it blindly.
    """
    dataset = parsed.dataset
    sop_class = _text(dataset, 0x00080016) or _text(parsed.meta, 0x00020002)
    if (
        sop_class.startswith(_NOT_IMAGE_CLASSES)
        or _text(dataset, 0x00080060).upper() in _NOT_IMAGE_MODALITIES
    ):
        raise StudyError(Reason.NOT_AN_IMAGE, "a DICOM object that is not an image")
    if parsed.refusal is not None:
        raise parsed.refusal
    if dataset.damaged or parsed.meta.damaged:
        raise StudyError(
            Reason.CORRUPT_FILE, "the header is cut short or contradicts itself"
        )
    if parsed.pixel_data is None:
        cut_short = (
            _text(dataset, 0x00080060).upper() == "MR"
            or {0x00200032, 0x00280010} & dataset.values.keys()
        )
        raise StudyError(
            Reason.CORRUPT_FILE if cut_short else Reason.NOT_AN_IMAGE, "no pixel data"
        )


def read_image(parsed: ParsedFile, limits: Limits = DEFAULT_LIMITS) -> ImageHeader:
    """Return the typed header of an image.

    Raises:
        StudyError: a declared size is beyond a limit.
    """
    dataset = parsed.dataset
    rows, columns = _integer(dataset, 0x00280010, 0), _integer(dataset, 0x00280011, 0)
    bits_allocated = _integer(dataset, 0x00280100, 16)
    bits_stored = _integer(dataset, 0x00280101, bits_allocated)
    declared_frames = max(_integer(dataset, 0x00280008, 1), 1)
    if max(rows, columns) > limits.matrix or declared_frames > limits.frames:
        raise StudyError(
            Reason.TOO_LARGE,
            f"{declared_frames} frames of {rows} x {columns}; at most {limits.frames} of {limits.matrix} are read",
        )
    samples = _integer(dataset, 0x00280002, 1)
    if (
        rows * columns * max(samples, 1) * max(bits_allocated, 16) // 8
        > limits.frame_bytes
    ):
        raise StudyError(
            Reason.TOO_LARGE,
            f"a frame of {rows} x {columns}, at most {limits.frame_bytes} bytes decoded",
        )
    options = (*_words(dataset, 0x00180022), *_words(dataset, 0x00180024))
    texts = tuple(
        _text(dataset, tag).upper() for tag in (0x0008103E, 0x00181030, 0x00180024)
    )
    return ImageHeader(
        series_uid=series_uid(parsed),
        patient=(
            _text(dataset, 0x00100020),
            _text(dataset, 0x00100030),
            _text(dataset, 0x00100010),
        ),
        modality=_text(dataset, 0x00080060).upper(),
        rows=rows,
        columns=columns,
        samples_per_pixel=samples,
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=_integer(dataset, 0x00280102, bits_stored - 1),
        signed=_integer(dataset, 0x00280103, 0) == 1,
        monochrome1=_text(dataset, 0x00280004).upper() == "MONOCHROME1",
        declared_frames=declared_frames,
        transfer_syntax=parsed.transfer_syntax,
        frame_of_reference=_text(dataset, 0x00200052),
        scanning_sequence=_words(dataset, 0x00180020) or _echo_pulse_sequence(dataset),
        contrast_agent=bool(_text(dataset, 0x00180010)),
        fat_suppressed=any(
            option in ("FS", "FAT_SAT", "SPIR", "SPAIR", "SFS") for option in options
        ),
        texts=texts,
        series_number=_integer(dataset, 0x00200011, 0),
        acquisition_number=_integer(dataset, 0x00200012, 0),
        instance_number=_integer(dataset, 0x00200013, 0),
        frames=_frames(dataset, declared_frames),
    )


def _echo_pulse_sequence(dataset: Elements) -> tuple[str, ...]:
    """Return the enhanced EchoPulseSequence in the words of the classic ScanningSequence."""
    words = {"SPIN": ("SE",), "GRADIENT": ("GR",), "BOTH": ("SE", "GR")}
    return words.get(_text(dataset, 0x00189008).upper(), ())


def _items(elements: Elements, tag: int) -> list[Elements]:
    found = elements.values.get(tag)
    return found[1] if found is not None and isinstance(found[1], list) else []


def _frames(dataset: Elements, declared_frames: int) -> tuple[FrameHeader, ...]:
    """Return one ``Frame`` a declared frame: per-frame functional groups, then shared ones, then the data set."""
    per_frame = _items(dataset, 0x52009230)
    shared = _items(dataset, 0x52009229)[:1]
    if not per_frame and not shared:
        plain = _frame(0, [dataset])
        # Several frames without functional groups share one position: they can be no volume.
        return tuple(replace(plain, index=index) for index in range(declared_frames))
    frames = []
    for index in range(declared_frames):
        groups = [*per_frame[index : index + 1], *shared]
        nested = [
            item
            for group in groups
            for tag in group.values
            for item in _items(group, tag)[:1]
        ]
        frames.append(_frame(index, [*nested, dataset]))
    return tuple(frames)


def _frame(index: int, sources: list[Elements]) -> FrameHeader:
    """Return one frame; every attribute comes from the first source that has it."""

    def source(*tags: int) -> tuple[Elements, int]:
        for elements in sources:
            for tag in tags:
                if tag in elements.values:
                    return elements, tag
        return sources[-1], tags[0]

    def number(*tags: int) -> float | None:
        numbers = _numbers(*source(*tags))
        return numbers[0] if numbers else None

    def integer(*tags: int) -> int | None:
        numbers = _numbers(*source(*tags))
        return int(numbers[0]) if numbers else None

    spacing = _within(_exactly(_numbers(*source(0x00280030)), 2), _LARGEST_SPACING_MM)
    slope = number(0x00281053)
    return FrameHeader(
        index=index,
        position_mm=_within(
            _exactly(_numbers(*source(0x00200032)), 3), _LARGEST_POSITION_MM
        ),
        orientation=_exactly(_numbers(*source(0x00200037)), 6),
        spacing_mm=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
        slope=slope if slope else 1.0,
        intercept=number(0x00281052) or 0.0,
        echo_time_ms=number(0x00189082, 0x00180081),
        repetition_time_ms=number(0x00180080),
        inversion_time_ms=number(0x00189079, 0x00180082),
        echo_number=integer(0x00180086),
        b_value=number(0x00189087),
        temporal=integer(0x00209128, 0x00200100),
        stack_id=_text(*source(0x00209056)),
        image_type=_words(*source(0x00089007, 0x00080008)),
        acquired=_text(*source(0x00189074))
        or _text(sources[-1], 0x00080022) + _text(sources[-1], 0x00080032),
        thickness_mm=number(0x00180050),
    )
