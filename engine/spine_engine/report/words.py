"""Words for every code of the results. ``docs/reasons.md`` has the same words; a test compares them cell by cell.

Backticks mark code, which pages show as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from spine_engine.anatomy import LEVELS, Condition, Level, Severity
from spine_engine.errors import Reason, Warn
from spine_engine.results import AlternativeResult, Status


class Words(NamedTuple):
    """A code in words: a title of a few words, its meaning, and what a person can do about it."""

    title: str
    meaning: str
    advice: str


DEMONSTRATION: Final = (
    "The grades are a demonstration: the grader of the packaged bundle was trained on synthetic phantoms and knows "
    "nothing of real disease."
)
DEMONSTRATION_BUNDLE: Final = "lumbar-small"
"""Name of the bundle in the package (its ``bundle.json`` also states that its grades are a demonstration)."""

STATUS_NAMES: Final[Mapping[Status, str]] = {
    Status.GRADED: "Graded",
    Status.PRIOR: "Not gradable",
    Status.FAILED: "Failed",
}
STATUS_MEANINGS: Final[Mapping[Status, str]] = {
    Status.GRADED: "The models graded this study.",
    Status.PRIOR: "The study was read but could not be graded. Its rows hold the prior, which says nothing about it.",
    Status.FAILED: "The study could not be processed. Its rows hold the prior, which says nothing about it.",
}

LEVEL_NAMES: Final[Mapping[Level, str]] = {
    level: level.upper().replace("_", "/") for level in Level
}

CONDITION_NAMES: Final[Mapping[Condition, str]] = {
    Condition.LEFT_NEURAL_FORAMINAL_NARROWING: "Left neural foraminal narrowing",
    Condition.LEFT_SUBARTICULAR_STENOSIS: "Left subarticular stenosis",
    Condition.RIGHT_NEURAL_FORAMINAL_NARROWING: "Right neural foraminal narrowing",
    Condition.RIGHT_SUBARTICULAR_STENOSIS: "Right subarticular stenosis",
    Condition.SPINAL_CANAL_STENOSIS: "Spinal canal stenosis",
}
SHORT_CONDITION_NAMES: Final[Mapping[Condition, str]] = {
    Condition.LEFT_NEURAL_FORAMINAL_NARROWING: "left foramen",
    Condition.LEFT_SUBARTICULAR_STENOSIS: "left recess",
    Condition.RIGHT_NEURAL_FORAMINAL_NARROWING: "right foramen",
    Condition.RIGHT_SUBARTICULAR_STENOSIS: "right recess",
    Condition.SPINAL_CANAL_STENOSIS: "canal",
}
SHOWN_CONDITIONS: Final = (
    Condition.SPINAL_CANAL_STENOSIS,
    Condition.RIGHT_NEURAL_FORAMINAL_NARROWING,
    Condition.LEFT_NEURAL_FORAMINAL_NARROWING,
    Condition.RIGHT_SUBARTICULAR_STENOSIS,
    Condition.LEFT_SUBARTICULAR_STENOSIS,
)
"""The order on pages: the patient's right before the left, as an axial picture shows them."""

SEVERITY_NAMES: Final[Mapping[Severity, str]] = {
    Severity.NORMAL_MILD: "Normal/mild",
    Severity.MODERATE: "Moderate",
    Severity.SEVERE: "Severe",
}
NOT_GRADED: Final = "Not graded (prior)"

SOURCE_NAMES: Final[Mapping[str, str]] = {
    "detector": "found in the images",
    "interpolated": "placed between its neighbours",
    "prior": "not found; a guess from the field of view",
    "given": "midway between the vertebral centres that were given",
}
ROLE_NAMES: Final[Mapping[str | None, str]] = {
    "sagittal_t1": "Sagittal T1",
    "sagittal_t2": "Sagittal T2/STIR",
    "axial_t2": "Axial T2",
    None: "No role",
}
EDGE_NAMES: Final[Mapping[str, str]] = {
    "L": "left",
    "R": "right",
    "A": "anterior",
    "P": "posterior",
    "H": "head",
    "F": "feet",
}
STAGE_NAMES: Final[Mapping[str, str]] = {
    "read": "Reading the images",
    "detect": "Finding the discs",
    "voxelize": "Cutting the grids",
    "grade": "Grading",
}

_ORIGINALS: Final = (
    "Export the original images again; secondary captures and some viewers' exports lose it. Nothing is assumed in its "
    "place."
)

REASONS: Final[Mapping[Reason, Words]] = {
    Reason.NO_SAGITTAL: Words(
        "No sagittal series",
        "No series of the study could be taken as a sagittal T1, T2 or STIR.",
        "Run `inspect`: it says per series why not. If the headers lack echo times and text, state the roles in a "
        "series table (`study_id,series_id,series_description`).",
    ),
    Reason.NO_ORIENTATION: Words(
        "No orientation",
        "The series has no ImageOrientationPatient.",
        _ORIGINALS,
    ),
    Reason.NO_POSITION: Words(
        "No position",
        "The series has no usable ImagePositionPatient.",
        _ORIGINALS,
    ),
    Reason.NO_PIXEL_SPACING: Words(
        "No pixel spacing",
        "The series has no PixelSpacing. ImagerPixelSpacing is not a substitute.",
        _ORIGINALS,
    ),
    Reason.NO_GEOMETRY: Words(
        "No geometry",
        "The series of the study each lack some part of their geometry.",
        _ORIGINALS,
    ),
    Reason.BAD_ORIENTATION: Words(
        "Impossible orientation",
        "The two direction vectors of ImageOrientationPatient are not perpendicular unit vectors (farther off than "
        "0.001).",
        "Export the original images again; the header was altered.",
    ),
    Reason.NOT_A_VOLUME: Words(
        "Not a volume",
        "The series is a single slice, or all its slices lie at one position.",
        "Nothing, if it is a scout or a capture. Otherwise the rest of the series is missing from the folder.",
    ),
    Reason.UNSUPPORTED_TRANSFER_SYNTAX: Words(
        "Compression not read",
        "The pixels are compressed in a way that is not read (video, for example).",
        "Convert to an uncompressed or a JPEG, JPEG-LS, JPEG 2000, HTJ2K or RLE transfer syntax.",
    ),
    Reason.CORRUPT_PIXELS: Words(
        "Damaged pixels",
        "The pixel data is cut short, cannot be decoded, contradicts the header, holds more or less than its pixels, "
        "or is noise where the rest of the series shows a picture.",
        "Copy the file again from its source.",
    ),
    Reason.CORRUPT_FILE: Words(
        "Damaged file",
        "The header is cut short or contradicts itself, or names no StudyInstanceUID of at most 64 characters.",
        "Copy the file again from its source.",
    ),
    Reason.NOT_AN_IMAGE: Words(
        "Not an image",
        "Not DICOM, or a DICOM object without an image: DICOMDIR, structured report, presentation state, key object, "
        "segmentation.",
        "Nothing. The file is counted and left alone.",
    ),
    Reason.NOT_A_REGULAR_FILE: Words(
        "Not a regular file",
        "A FIFO, socket or device, or a link that leads out of the input, in a circle, or nowhere.",
        "Copy what the link points to into the input folder.",
    ),
    Reason.UNREADABLE: Words(
        "Not readable",
        "The file or folder may not be read, or was gone when it was to be read.",
        "Check its permissions, and that nothing moves files during a run.",
    ),
    Reason.TOO_LARGE: Words(
        "Too large",
        "Beyond a limit: file 2 GiB, header or element 64 MiB, a value that is read 4 KiB, nesting 64, 16,384 rows or "
        "columns, 10,000 frames, 256 MiB a frame, 4 GiB or 20,000 files a study, deflated data growing 200 times.",
        "Check the file: no lumbar-spine study comes near these.",
    ),
    Reason.UID_COLLISION: Words(
        "One study id, several patients",
        "Files that name the same study name different patients. They are never merged.",
        "Correct the StudyInstanceUIDs, or put the patients' files into separate inputs.",
    ),
    Reason.GAP_AT_LEVEL: Words(
        "Slices missing at a level",
        "Slices are missing where a level would be graded.",
        "Look for the missing files.",
    ),
    Reason.NOT_LOCALIZED: Words(
        "Discs not found",
        "The discs could not be found in the sagittal images, or were not looked for (`--no-detector`), and the bundle "
        "has no whole-study grader that could do without; the rows hold the prior.",
        "Look at the images: another body part, or a field of view that shows too little of the lumbar spine. With "
        "`--no-detector`, name a bundle with a whole-study grader.",
    ),
    Reason.NOT_LUMBAR: Words(
        "Not a lumbar spine",
        "The discs that were found are not those of a lumbar spine: too few, too close together or too far apart, "
        "hardly seen, or only seen with the pictures turned against their header; the rows hold the prior.",
        "Look at the images: another part of the body, or pictures that lie otherwise than their header says.",
    ),
    Reason.POOR_QUALITY: Words(
        "Not legible",
        "The pictures cannot be read: noise, or slices in an order that is not theirs; the rows hold the prior.",
        "Look at the images, and copy or export the study again.",
    ),
    Reason.TIMEOUT: Words(
        "Took too long",
        "Reading or grading the study took longer than allowed.",
        "Run again; if it happens again, the file or the disk is at fault.",
    ),
    Reason.WORKER_DIED: Words(
        "Its process died",
        "The process that held the study died, more than once. The study is set aside.",
        "Run `inspect` on it alone; a damaged compressed file is the likely cause.",
    ),
    Reason.OUT_OF_MEMORY: Words(
        "Out of memory",
        "There was not enough memory for this study, not even alone. Nothing is said about the patient; the next run "
        "of the same command tries it again.",
        "Use fewer workers or a higher `--max-memory` (a study gets all of it before this is said), or a machine with "
        "more memory.",
    ),
    Reason.INTERNAL_ERROR: Words(
        "Error of the engine",
        "The engine met an error of its own.",
        "Please report it, with the command and the version; never with images.",
    ),
}

WARNINGS: Final[Mapping[Warn, Words]] = {
    Warn.GAP: Words(
        "Slices missing",
        "A stack misses one or more slices. The others keep their true positions; nothing is stretched.",
        "Look for the missing files.",
    ),
    Warn.UNEVEN: Words(
        "Uneven slice distances",
        "The distances between the slices of a stack differ by more than a tenth. True positions are used.",
        "Nothing, if the series was planned like that.",
    ),
    Warn.DUP_POSITION: Words(
        "Images at one position",
        "Several different images lie at one position of a stack. The latest acquisition, then the highest instance "
        "number, is used.",
        "See the evidence, which names both.",
    ),
    Warn.DUP_FILE: Words(
        "Copies left out",
        "Exact copies of images were left out.",
        "Nothing.",
    ),
    Warn.SLICE_DROPPED: Words(
        "Slices dropped",
        "Images of a series could not be used: no position, cut short, not decodable.",
        "See the evidence for how many and why.",
    ),
    Warn.MIXED_MATRIX: Words(
        "Mixed matrix",
        "Parallel slices of a series differ in matrix or pixel spacing. The largest consistent group is used.",
        "See the evidence for how many were left out.",
    ),
    Warn.SERIES_REFUSED: Words(
        "A series was refused",
        "A series of the study could not be used at all; its `reason` says why.",
        "See the series.",
    ),
    Warn.FRAME_OF_REFERENCE: Words(
        "Different frames of reference",
        "The series that are used name different frames of reference. Their positions are taken as they are.",
        "Check that the patient was not moved between the series.",
    ),
    Warn.ROLE_OVERRIDDEN: Words(
        "Stated role disagrees",
        "A stated role and the headers or the geometry disagree about a series.",
        "Check the series table.",
    ),
    Warn.NO_SAGITTAL_T1: Words(
        "No sagittal T1",
        "The study has no sagittal T1: foraminal narrowing is judged without it.",
        "See the evidence per series.",
    ),
    Warn.NO_SAGITTAL_T2: Words(
        "No sagittal T2",
        "The study has no sagittal T2 or STIR: canal stenosis is judged without it.",
        "See the evidence per series.",
    ),
    Warn.NO_AXIAL_T2: Words(
        "No axial T2",
        "The study has no axial T2: subarticular stenosis is not graded, its rows hold the prior.",
        "See the evidence per series.",
    ),
    Warn.LEVEL_INTERPOLATED: Words(
        "Level interpolated",
        "A disc was not found and was placed between its neighbours.",
        "Look at the level before using its grades.",
    ),
    Warn.LEVEL_NOT_COVERED: Words(
        "Level not covered",
        "A level lies outside the images of one of the series.",
        "Look at the level before using its grades.",
    ),
    Warn.LOW_CONFIDENCE: Words(
        "Low confidence",
        "The discs or their labels are uncertain: a short field of view or transitional anatomy, for example.",
        "Check the levels before using the grades.",
    ),
    Warn.NO_SLICE_THICKNESS: Words(
        "No slice thickness",
        "Files without SliceThickness counted as slices of 1 mm in the grids of a recipe.",
        "Compare with the files the model was trained on: its own pipeline would have stopped.",
    ),
    Warn.SERIES_DISAGREE: Words(
        "Series disagree on levels",
        "A sagittal series taken alone names the same discs one or more levels higher or lower than all series "
        "together. `levels` is what all of them say; `alternative_levels` what that series says.",
        "Count the discs from the sacrum, on both series, before using the grades.",
    ),
    Warn.TRANSITIONAL_ANATOMY: Words(
        "Transitional anatomy?",
        "The numbering is open although the end of the spine is in the picture, or its lower half speaks for one "
        "numbering and its upper half for another: six lumbar vertebrae, a lumbarised S1, a sacralised L5. "
        "`alternative_levels` has the other numbering and its probability.",
        "Have the levels numbered by a person, with a view of the whole spine if there is one.",
    ),
    Warn.WHOLE_STUDY_GRADER: Words(
        "Graded as a whole",
        "Levels were not found, or not looked for; the grades come from the whole study at once and are less sure.",
        "Look at the study before using the grades; the places in `levels` are guesses from the field of view.",
    ),
    Warn.FILE_UNREADABLE: Words(
        "Files could not be read",
        "A file or folder of the study could not be read, although it was tried again: the study is used without it, "
        "counted as `incomplete` in `run.json`, and the run ends with the exit code 8.",
        "Mend the cause (permissions, the disk, the share) and run the same command: it tries these studies again.",
    ),
}


def code_words(code: str) -> Words:
    """Return the words of a reason's code; an unknown code gets words that say so."""
    try:
        return REASONS[Reason(code)]
    except ValueError:
        return Words(
            code,
            "This version does not know the code.",
            "Read the documentation of the version that ran.",
        )


def points(share: float) -> str:
    """Return a share in whole hundredths; only an exact 0 or 1 becomes 0 or 100."""
    text = f"{share * 100:.0f}"
    if text == "0" and share > 0:
        return "<1"
    return ">99" if text == "100" and share < 1 else text


def percent(share: float) -> str:
    """Return a share in whole percent, rounded as in ``points``."""
    return f"{points(share)}\u202f%"


def many(number: int, one: str, more: str | None = None) -> str:
    """Return a number with its noun: "1 study", "1,000 studies"."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def duration(seconds: float) -> str:
    """Return a duration in words, in a suitable unit."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    minutes = round(seconds / 60)
    return (
        f"{minutes} min"
        if minutes < 120
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def other_numbering(alternative: AlternativeResult) -> str:
    """Return what another numbering of the discs would mean, in two sentences (``docs/results.md``)."""
    steps = abs(alternative.shift)
    way = "higher" if alternative.shift > 0 else "lower"
    named = len(LEVELS) - 1 if alternative.shift > 0 else 0
    real = named - alternative.shift
    example = ""
    if 0 <= real < len(LEVELS):
        example = f": what is called {LEVEL_NAMES[LEVELS[named]]} here would be {LEVEL_NAMES[LEVELS[real]]}"
    return (
        f"The discs may be numbered wrongly: with a probability of {percent(alternative.probability)} the name of each "
        f"should lie {'one level' if steps == 1 else f'{steps} levels'} {way}{example}. "
        "The grades belong to the numbering shown here, never to the other one."
    )
