"""Every reason and warning of docs/reasons.md: an input that gets it, or the test file that holds it elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import pytest
from raw_dicom import AXIAL, dicom, encapsulated, image, mr, read_files, series

from spine_engine.dicom import (
    Limits,
    RefusedFile,
    RoleOverrides,
    WorkUnit,
    discover,
    reading,
)
from spine_engine.errors import Reason, Warn
from spine_engine.study import Role, Study

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs" / "reasons.md"

Told = tuple[Reason | None, list[Reason | None], list[Reason]]
"""What a user reads: the reason of the study, of each of its series, and of each file that is not used."""

REASONS: dict[str, Callable[[Path], Told]] = {}
WARNINGS: dict[str, Callable[[Path], tuple[Warn, ...]]] = {}

REASONS_ELSEWHERE = {
    "gap_at_level": "pipeline/test_unit_worker.py",
    "not_localized": "pipeline/test_unit_worker.py",
    "not_lumbar": "pipeline/test_gate.py",
    "poor_quality": "pipeline/test_gate.py",
    "worker_died": "run/test_run_shared_models.py",
    "internal_error": "pipeline/test_unit_worker.py",
}
WARNINGS_ELSEWHERE = {
    "level_interpolated": "detection/test_detect.py",
    "level_not_covered": "pipeline/test_unit_worker.py",
    "low_confidence": "detection/test_detect.py",
    "no_slice_thickness": "pipeline/test_recipes_end_to_end.py",
    "series_disagree": "detection/test_numbering.py",
    "transitional_anatomy": "detection/test_numbering.py",
    "whole_study_grader": "pipeline/test_unit_worker.py",
}


def codes(title: str) -> list[str]:
    """The codes of the table rows under a heading of docs/reasons.md."""
    section = (
        PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    )
    return re.findall(r"^\| `([a-z0-9_]+)` \|", section, re.MULTILINE)


def told(root: Path, *groups: dict[str, bytes], limits: Limits | None = None) -> Told:
    """Read files as one unit and return what is said about them."""
    read = read_files(root, dict(chain(*(group.items() for group in groups))), limits)
    refused = [file.reason for file in read.refused]
    if not read.studies:
        return None, [], refused
    (study,) = read.studies
    return study.reason, [one.reason for one in study.series], refused


def named(prefix: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{prefix}/{name}": data for name, data in files.items()}


def reason(check: Callable[[Path], Told]) -> Callable[[Path], Told]:
    REASONS[check.__name__] = check
    return check


# --- reasons ----------------------------------------------------------------------------------------------------------


@reason
def no_sagittal(root: Path) -> Told:
    return told(root, series(ImageOrientationPatient=AXIAL))


@reason
def no_orientation(root: Path) -> Told:
    return told(root, series(ImageOrientationPatient=None))


@reason
def no_position(root: Path) -> Told:
    return told(root, series(ImagePositionPatient=None))


@reason
def no_pixel_spacing(root: Path) -> Told:
    return told(root, series(PixelSpacing=None, ImagerPixelSpacing=(1.0, 1.0)))


@reason
def bad_orientation(root: Path) -> Told:
    return told(root, series(ImageOrientationPatient=(0.0, 1.0, 0.0, 0.0, 0.1, -1.0)))


@reason
def not_a_volume(root: Path) -> Told:
    return told(root, series(count=1))


@reason
def unsupported_transfer_syntax(root: Path) -> Told:
    return told(
        root,
        {
            "video": dicom(
                mr(PixelData=encapsulated(b"\0\0\0\x01" * 9)), "1.2.840.10008.1.2.4.102"
            )
        },
    )


@reason
def corrupt_pixels(root: Path) -> Told:
    return told(root, {f"{i}": dicom(mr(i))[:-10] for i in range(5)})


@reason
def corrupt_file(root: Path) -> Told:
    return told(root, {f"{i}": dicom(mr(i))[:-150] for i in range(5)})


@reason
def too_large(root: Path) -> Told:
    return told(root, series(Rows=16_385))


@reason
def no_geometry(root: Path) -> Told:
    """Each series lacks another part: no single one of the reasons holds for the study."""
    return told(
        root,
        named("a", series(ImageOrientationPatient=None)),
        named("b", series(SeriesInstanceUID="1.2.3.2", PixelSpacing=None)),
    )


@reason
def not_an_image(root: Path) -> Told:
    return told(root, {"README": b"These are pictures of a spine.\n" * 9})


@reason
def not_a_regular_file(root: Path) -> Told:
    os.mkfifo(root / "pipe")
    (found,) = discover(root)
    assert isinstance(found, RefusedFile)
    return None, [], [found.reason]


@reason
def unreadable(root: Path) -> Told:
    """A file that was gone when it was to be read."""
    unit = reading.WorkUnit(".", (reading.InputFile("gone", 1),))
    return None, [], [file.reason for file in reading.read_unit(root, unit).refused]


@reason
def uid_collision(root: Path) -> Told:
    return told(
        root,
        named("a", series()),
        named("b", series(SeriesInstanceUID="1.2.3.2", PatientID="OTHER")),
    )


@reason
def timeout(root: Path) -> Told:
    return told(root, series(), limits=Limits(study_s=-1.0))


@reason
def out_of_memory(root: Path) -> Told:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading.pixels, "frames", no_memory)
        return told(root, series())


def no_memory(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("code", "series_reasons", "files"),
    [
        ("no_sagittal", [None], 0),
        ("no_orientation", ["no_orientation"], 0),
        ("no_position", ["no_position"], 0),
        ("no_pixel_spacing", ["no_pixel_spacing"], 0),
        ("no_geometry", ["no_orientation", "no_pixel_spacing"], 0),
        ("bad_orientation", ["bad_orientation"], 0),
        ("not_a_volume", ["not_a_volume"], 0),
        ("unsupported_transfer_syntax", ["unsupported_transfer_syntax"], 1),
        ("corrupt_pixels", ["corrupt_pixels"], 5),
        ("corrupt_file", ["corrupt_file"], 5),
        ("too_large", ["too_large"], 8),
        ("uid_collision", [], 0),
        ("timeout", [], 0),
        ("out_of_memory", [], 0),
    ],
)
def test_a_study_carries_the_reason(
    tmp_path: Path, code: str, series_reasons: list[str | None], files: int
) -> None:
    assert REASONS[code](tmp_path) == (
        Reason(code),
        series_reasons,
        [Reason(code)] * files,
    )


@pytest.mark.parametrize("code", ["not_an_image", "not_a_regular_file", "unreadable"])
def test_a_file_carries_the_reason(tmp_path: Path, code: str) -> None:
    assert REASONS[code](tmp_path) == (None, [], [Reason(code)])


# --- warnings ---------------------------------------------------------------------------------------------------------

T1 = {"SeriesInstanceUID": "1.2.3.2", "EchoTime": 10, "RepetitionTime": 550}
AX = {"SeriesInstanceUID": "1.2.3.3", "ImageOrientationPatient": AXIAL}


def warnings_of(
    root: Path, *groups: dict[str, bytes], overrides: RoleOverrides | None = None
) -> tuple[Warn, ...]:
    """The warnings of a study of three sound series and ``groups``; the sagittal T2 comes with the case."""
    whole = (named("t1", series(**T1)), named("ax", series(**AX)), *groups)
    files = dict(chain(*(group.items() for group in whole)))
    (study,) = read_files(root, files, overrides=overrides).studies
    assert study.reason is None
    return study.warnings


def at(*positions: float) -> dict[str, bytes]:
    return {
        f"{i}": dicom(mr(i, at_mm=position)) for i, position in enumerate(positions)
    }


def gap(root: Path) -> tuple[Warn, ...]:
    return warnings_of(root, at(0, 4, 8, 16, 20, 24))


def uneven(root: Path) -> tuple[Warn, ...]:
    return warnings_of(root, at(0, 4, 8, 13, 17, 21))


def dup_position(root: Path) -> tuple[Warn, ...]:
    return warnings_of(root, series(), {"other": dicom(mr(3, PixelData=image(99)))})


def dup_file(root: Path) -> tuple[Warn, ...]:
    return warnings_of(root, series(), {"copy": dicom(mr(3))})


def slice_dropped(root: Path) -> tuple[Warn, ...]:
    return warnings_of(
        root, series(), {"lost": dicom(mr(8, ImagePositionPatient=None))}
    )


def mixed_matrix(root: Path) -> tuple[Warn, ...]:
    return warnings_of(
        root,
        series(),
        {f"x{i}": dicom(mr(i, at_mm=4 * i + 1, Rows=4)) for i in range(3)},
    )


def series_refused(root: Path) -> tuple[Warn, ...]:
    return warnings_of(
        root,
        series(),
        named("x", series(SeriesInstanceUID="1.2.3.4", PixelSpacing=None)),
    )


def frame_of_reference(root: Path) -> tuple[Warn, ...]:
    return warnings_of(
        root,
        series(FrameOfReferenceUID="1.1"),
        named("t1", series(**T1, FrameOfReferenceUID="1.2")),
    )


def role_overridden(root: Path) -> tuple[Warn, ...]:
    stated = RoleOverrides(
        {("1.2.3", "1.2.3.1"): Role.SAGITTAL_T2, ("1.2.3", "1.2.3.3"): Role.SAGITTAL_T2}
    )
    return warnings_of(root, series(), overrides=stated)


def file_unreadable(root: Path) -> tuple[Warn, ...]:
    study_of(root, series(), series(**T1), series(**AX))
    (unit,) = (found for found in discover(root) if isinstance(found, WorkUnit))
    (root / unit.files[0].path).unlink()  # the first slice: the others have no gap
    (study,) = reading.read_unit(root, unit).studies
    return study.warnings


def no_sagittal_t1(root: Path) -> tuple[Warn, ...]:
    return study_of(root, series(), series(**AX)).warnings


def no_sagittal_t2(root: Path) -> tuple[Warn, ...]:
    return study_of(root, series(**T1), series(**AX)).warnings


def no_axial_t2(root: Path) -> tuple[Warn, ...]:
    return study_of(root, series(), series(**T1)).warnings


def study_of(root: Path, *groups: dict[str, bytes]) -> Study:
    files = dict(
        chain(*(named(f"{i}", group).items() for i, group in enumerate(groups)))
    )
    (study,) = read_files(root, files).studies
    return study


WARNING_CASES: Sequence[Callable[[Path], tuple[Warn, ...]]] = (
    gap, uneven, dup_position, dup_file, slice_dropped, mixed_matrix, series_refused, frame_of_reference,
    role_overridden, no_sagittal_t1, no_sagittal_t2, no_axial_t2, file_unreadable,
)  # fmt: skip


@pytest.mark.parametrize("case", WARNING_CASES, ids=lambda case: case.__name__)
def test_a_study_carries_this_warning_and_no_other(
    tmp_path: Path, case: Callable[[Path], tuple[Warn, ...]]
) -> None:
    assert case(tmp_path) == (Warn(case.__name__),)


def test_a_sound_study_has_no_warning(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, series()) == ()


# --- the lists are whole ----------------------------------------------------------------------------------------------


def test_no_reason_of_the_page_is_without_a_test() -> None:
    assert sorted([*REASONS, *REASONS_ELSEWHERE]) == sorted(codes("Reasons"))


def test_no_warning_of_the_page_is_without_a_test() -> None:
    assert sorted(
        [*(case.__name__ for case in WARNING_CASES), *WARNINGS_ELSEWHERE]
    ) == sorted(codes("Warnings"))


@pytest.mark.parametrize(
    ("code", "file"), sorted((REASONS_ELSEWHERE | WARNINGS_ELSEWHERE).items())
)
def test_the_file_that_holds_a_code_elsewhere_names_it(code: str, file: str) -> None:
    assert re.search(
        rf"\b(Reason|Warn)\.{code.upper()}\b|[\"']{code}[\"']",
        (TESTS / file).read_text(encoding="utf-8"),
    )


def test_warnings_come_in_the_order_of_the_page(tmp_path: Path) -> None:
    files = at(0, 4, 8, 16, 20, 24) | {
        "copy": dicom(mr(0, at_mm=0)),
        "lost": dicom(mr(9, PixelSpacing=None)),
    }
    (study,) = read_files(tmp_path, files).studies
    assert study.warnings == (
        Warn.GAP,
        Warn.DUP_FILE,
        Warn.SLICE_DROPPED,
        Warn.NO_SAGITTAL_T1,
        Warn.NO_AXIAL_T2,
    )
