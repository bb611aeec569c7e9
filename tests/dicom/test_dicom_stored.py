"""What the reader keeps of every image for grids of recipes: nothing renormalised, nothing left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dicom_builder import (
    AXIAL,
    AXIAL_T2,
    T1,
    T2,
    SeriesSpec,
    image,
    read_one,
    write_series,
)

from spine_engine.dicom import RoleOverrides
from spine_engine.phantom.rsna import write_studies
from spine_engine.study import Role, Series, Study


def kinds(study: Study) -> dict[str, tuple[Role | None, int]]:
    """Return the kind of each series, and how many images count as it."""
    return {series.path: (series.kind, len(series.stored)) for series in study.series}


def the(study: Study, path: str) -> Series:
    (series,) = [series for series in study.series if series.path == path]
    return series


def table(tmp_path: Path, *rows: str) -> RoleOverrides:
    path = tmp_path / "t_series_descriptions.csv"
    path.write_text("\n".join(("study_id,series_id,series_description", *rows)))
    return RoleOverrides.from_csv(path)


def write(root: Path, **specs: SeriesSpec) -> Path:
    for name, spec in specs.items():
        write_series(root / name, spec)
    return root


def test_an_image_is_kept_as_its_file_has_it(tmp_path: Path) -> None:
    crooked = (0.0, 1.0002, 0.0, 0.0, 0.0, -0.9997)
    root = write(
        tmp_path / "in",
        t2=T2.but(
            orientation=crooked, extra={"SliceThickness": "4.5", "RescaleSlope": "2"}
        ),
    )
    stored = the(read_one(root), "t2").stored
    assert len(stored) == 8
    for one in stored:
        assert one.orientation == crooked
        assert one.spacing_mm == (1.25, 0.75)
        assert one.thickness_mm == 4.5
    by_position = {one.position_mm[0]: one for one in stored}
    np.testing.assert_array_equal(by_position[10.0].stored, image(0))


def test_pixels_are_not_held_twice(tmp_path: Path) -> None:
    series = the(read_one(write(tmp_path / "in", t2=T2)), "t2")
    assert all(
        np.shares_memory(one.pixels, series.stacks[0].pixels) for one in series.stored
    )


def test_a_file_without_thickness_says_none(tmp_path: Path) -> None:
    assert {
        one.thickness_mm
        for one in the(read_one(write(tmp_path / "in", t2=T2)), "t2").stored
    } == {None}


def test_monochrome1_is_given_back_as_stored(tmp_path: Path) -> None:
    root = write(
        tmp_path / "in", t2=T2.but(extra={"PhotometricInterpretation": "MONOCHROME1"})
    )
    one = next(
        one for one in the(read_one(root), "t2").stored if one.position_mm[0] == 10.0
    )
    np.testing.assert_array_equal(one.stored, image(0))
    np.testing.assert_array_equal(one.pixels, 4095 - image(0))


def test_coincident_slices_stay(tmp_path: Path) -> None:
    """Other pixels at one position: the stack has the latest, the recipe all."""
    offsets = (*T2.offsets_mm, 8.0)
    series = the(read_one(write(tmp_path / "in", t2=T2.but(offsets_mm=offsets))), "t2")
    assert len(series.stacks[0].pixels) == 8
    assert len(series.stored) == 9
    assert len({one.pixels.tobytes() for one in series.stored}) == 9


def test_short_stacks_and_other_matrices_of_a_series_that_plays_a_role_stay(
    tmp_path: Path,
) -> None:
    root = write(tmp_path / "in", t2=T2)
    write_series(
        root / "t2",
        T2.but(offsets_mm=(0.0, 4.0, 8.0), rows=40, seed=50),
        [f"m{n}" for n in range(3)],
    )
    write_series(
        root / "t2",
        T2.but(offsets_mm=(0.0, 4.0), orientation=AXIAL, seed=60),
        ["a1", "a2"],
    )
    study = read_one(root)
    assert sum(len(series.stored) for series in study.series) == 13
    assert {series.kind for series in study.series} == {Role.SAGITTAL_T2}


def test_without_a_table_the_engines_role_decides(tmp_path: Path) -> None:
    root = write(
        tmp_path / "in",
        t1=T1,
        t2=T2,
        ax=AXIAL_T2,
        second=T2.but(uid="1.2.3.9", offsets_mm=T2.offsets_mm[:6]),
    )
    assert kinds(read_one(root)) == {
        "t1": (Role.SAGITTAL_T1, 8),
        "t2": (Role.SAGITTAL_T2, 8),
        "ax": (Role.AXIAL_T2, 8),
        "second": (None, 6),
    }


def test_every_series_that_a_table_states_counts_whatever_its_role(
    tmp_path: Path,
) -> None:
    """A second series of a kind, one whose plane contradicts the table, and one of a single slice."""
    root = write(
        tmp_path / "in",
        t2=T2,
        second=T2.but(uid="1.2.3.9", offsets_mm=T2.offsets_mm[:6]),
        odd=AXIAL_T2,
        single=T1.but(uid="1.2.3.7", offsets_mm=(0.0,)),
        other=T1,
    )
    rows = (
        "in,t2,Sagittal T2/STIR",
        "in,second,Sagittal T2/STIR",
        "in,odd,Sagittal T1",
        "in,single,Axial T2",
    )
    study = read_one(
        root, table(tmp_path, *(row.replace("in,", "1.2.3,") for row in rows))
    )
    assert kinds(study) == {
        "t2": (Role.SAGITTAL_T2, 8),
        "second": (Role.SAGITTAL_T2, 6),
        "odd": (Role.SAGITTAL_T1, 8),
        "single": (Role.AXIAL_T2, 1),
        "other": (Role.SAGITTAL_T1, 8),
    }


def test_images_without_a_place_are_left_out(tmp_path: Path) -> None:
    def lose(ds, i):
        if i == 3:
            del ds.ImagePositionPatient

    assert (
        len(the(read_one(write(tmp_path / "in", t2=T2.but(change=lose))), "t2").stored)
        == 7
    )


def test_phantoms_hold_what_their_files_hold(tmp_path: Path) -> None:
    from spine_engine.dicom import read_study
    from spine_engine.phantom.render import render
    from spine_engine.phantom.rsna import study_seeds
    from spine_engine.phantom.spine import draw_spine

    list(write_studies(tmp_path / "p", 1, 3))
    (seed,) = study_seeds(1, 3)
    made = render(draw_spine(seed), seed=seed).as_study()
    read = read_study(tmp_path / "p" / "train_images")

    def listed(study: Study) -> list[tuple[object, ...]]:
        return sorted(
            (
                series.kind,
                one.position_mm,
                one.orientation,
                one.spacing_mm,
                one.thickness_mm,
                one.pixels.sum(),
            )
            for series in study.series
            for one in series.stored
        )

    assert listed(made) == listed(read)
