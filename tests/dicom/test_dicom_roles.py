"""The rules that give a series its role, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_builder import (
    AXIAL,
    AXIAL_T2,
    CORONAL,
    SAGITTAL,
    T1,
    T2,
    SeriesSpec,
    read_one,
    tilted,
    write_series,
)

from spine_engine.dicom import RoleOverrides
from spine_engine.dicom.roles import contrast_of_text
from spine_engine.errors import Reason, UsageError, Warn
from spine_engine.study import Role, Series

OBLIQUE = tuple(
    float(v)
    for v in (*np.array([1, 1, 0]) / np.sqrt(2), *np.array([-1, 1, 2]) / np.sqrt(6))
)
"""A plane between all others: |normal| = 0.58 along each axis."""


def series_of(
    root: Path, spec: SeriesSpec, overrides: RoleOverrides | None = None
) -> Series:
    write_series(root / "s", spec)
    study = read_one(root, overrides)
    assert len(study.series) == 1
    return study.series[0]


def table(path: Path, *rows: str) -> RoleOverrides:
    path.write_text("study_id,series_id,series_description\n" + "\n".join(rows) + "\n")
    return RoleOverrides.from_csv(path)


# --- rule 1: overrides ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("study", "series"),
    [("1.2.3", "1.2.3.1"), ("1.2.3", "s"), ("1.2.3", "1")],
    ids=["uid", "folder", "last-part"],
)
def test_override_wins_over_numbers(tmp_path: Path, study: str, series: str) -> None:
    overrides = table(tmp_path / "roles.csv", f"{study},{series},Sagittal T1")
    write_series(tmp_path / "in" / "s", T2)
    found = read_one(tmp_path / "in", overrides)
    assert found.series[0].role is Role.SAGITTAL_T1
    assert Warn.ROLE_OVERRIDDEN in found.warnings
    assert "override says sagittal T1" in found.series[0].evidence


def test_override_that_agrees_is_no_warning(tmp_path: Path) -> None:
    overrides = table(tmp_path / "roles.csv", "1.2.3,s,Sagittal T2/STIR")
    write_series(tmp_path / "in" / "s", T2)
    assert Warn.ROLE_OVERRIDDEN not in read_one(tmp_path / "in", overrides).warnings


def test_override_loses_against_the_geometry(tmp_path: Path) -> None:
    overrides = table(tmp_path / "roles.csv", "1.2.3,s,Axial T2")
    write_series(tmp_path / "in" / "s", T2)
    study = read_one(tmp_path / "in", overrides)
    assert study.series[0].role is Role.SAGITTAL_T2
    assert Warn.ROLE_OVERRIDDEN in study.warnings


def test_override_names_short_stacks_and_unknown_contrasts(tmp_path: Path) -> None:
    """RSNA's axial blocks of three or four slices count, because its table says what they are."""
    overrides = table(tmp_path / "roles.csv", "1.2.3,s,Axial T2")
    for i, tilt in enumerate((0.0, 10.0, 20.0)):
        block = AXIAL_T2.but(
            orientation=tilted(tilt),
            base_mm=(-60.0, -60.0, -40.0 * i),
            offsets_mm=(0.0, 4.0, 8.0),
            te=None,
            tr=None,
        )
        write_series(tmp_path / "in" / "s", block, [f"{i}{k}" for k in range(3)])
    (series,) = read_one(tmp_path / "in", overrides).series
    assert series.role is Role.AXIAL_T2
    assert len(series.stacks) == 3


def test_rsna_layout_finds_its_table_beside_the_input(tmp_path: Path) -> None:
    for spec, name in ((T2, "11"), (T1, "22"), (AXIAL_T2, "33")):
        plain = spec.but(
            te=None, tr=None, study="4003253", uid=f"4003253.{name}", text=""
        )
        write_series(tmp_path / "train_images" / "4003253" / name, plain)
    (tmp_path / "train_series_descriptions.csv").write_text(
        "study_id,series_id,series_description\n"
        "4003253,11,Sagittal T2/STIR\n4003253,22,Sagittal T1\n4003253,33,Axial T2\n"
    )
    root = tmp_path / "train_images"
    study = read_one(root, RoleOverrides.find(root))
    assert {series.path: series.role for series in study.series} == {
        "4003253/11": Role.SAGITTAL_T2,
        "4003253/22": Role.SAGITTAL_T1,
        "4003253/33": Role.AXIAL_T2,
    }
    assert study.warnings == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study_id,series_id\n1,2\n", "lacks a column"),
        ("study_id,series_id,role\n1,2,coronal\n", "line 2"),
        ("\xff\xfe", "cannot read"),
    ],
)
def test_bad_tables_are_usage_errors(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "roles.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message):
        RoleOverrides.from_csv(path)


def test_a_table_of_roles_by_name(tmp_path: Path) -> None:
    path = tmp_path / "roles.csv"
    path.write_text("study_id,series_id,role\n1,2,sagittal_t2\n")
    assert RoleOverrides.from_csv(path).role("1", "9.9", "x/2") is Role.SAGITTAL_T2


# --- rule 2: eligible -------------------------------------------------------------------------------------------------


def test_four_slices_take_no_role(tmp_path: Path) -> None:
    series = series_of(tmp_path, T2.but(offsets_mm=(0.0, 4.0, 8.0, 12.0)))
    assert series.role is None
    assert "4 slices" in series.evidence


def test_five_slices_do(tmp_path: Path) -> None:
    assert (
        series_of(tmp_path, T2.but(offsets_mm=(0.0, 4.0, 8.0, 12.0, 16.0))).role
        is Role.SAGITTAL_T2
    )


def test_no_modality_is_eligible(tmp_path: Path) -> None:
    assert (
        series_of(tmp_path, T2.but(change=lambda ds, i: delattr(ds, "Modality"))).role
        is Role.SAGITTAL_T2
    )


# --- rule 3: plane ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orientation", "text", "role"),
    [
        (SAGITTAL, "", Role.SAGITTAL_T2),
        (AXIAL, "", Role.AXIAL_T2),
        (tilted(44.0), "", Role.AXIAL_T2),
        (tilted(-44.0), "", Role.AXIAL_T2),
        (CORONAL, "", None),
        (SAGITTAL, "AX T2", Role.SAGITTAL_T2),
        (AXIAL, "Sag T2", Role.AXIAL_T2),
        (OBLIQUE, "", None),
        (OBLIQUE, "T2 SAG", Role.SAGITTAL_T2),
        (OBLIQUE, "t2_tse_tra", Role.AXIAL_T2),
        (OBLIQUE, "Ax T2 and Sag T2", None),
    ],
)
def test_plane(
    tmp_path: Path, orientation: tuple[float, ...], text: str, role: Role | None
) -> None:
    assert series_of(tmp_path, T2.but(orientation=orientation, text=text)).role is role


# --- rule 4: contrast from numbers ------------------------------------------------------------------------------------

T1_ROLE, T2_ROLE = Role.SAGITTAL_T1, Role.SAGITTAL_T2


@pytest.mark.parametrize(
    ("te", "tr", "ti", "text", "role", "contrast"),
    [
        (10, 550, None, "", T1_ROLE, "t1"),
        (30, 1200, None, "", T1_ROLE, "t1"),
        (10, 550, None, "sag T2", T1_ROLE, "t1"),
        (100, 3500, None, "sag T1", T2_ROLE, "t2"),
        (60, 1500, None, "", T2_ROLE, "t2"),
        (60, 4000, 160, "", T2_ROLE, "stir"),
        (10, 2200, 860, "", T1_ROLE, "t1"),
        (50, 2200, 860, "", None, "pd"),
        (35, 3000, None, "", None, "pd"),
        (35, 3000, None, "PD T2", None, "pd"),
        (46, 3000, None, "sag T2", T2_ROLE, "t2"),
        (44, 3000, None, "sag T2", None, "pd"),
        (46, 3000, None, "sag", None, "pd"),
        (20, 2000, None, "", None, None),
        (20, 2000, None, "T1 tse", T1_ROLE, "t1"),
    ],
)
def test_contrast_from_numbers(
    tmp_path: Path,
    te: float,
    tr: float,
    ti: float | None,
    text: str,
    role: Role | None,
    contrast: str | None,
) -> None:
    series = series_of(tmp_path, T2.but(te=te, tr=tr, ti=ti, text=text))
    assert (series.role, series.contrast) == (role, contrast)
    assert f"TE {te} ms" in series.evidence


@pytest.mark.parametrize(
    ("sequence", "role"),
    [("GR", None), (["GR", "SE"], T2_ROLE), ("SE", T2_ROLE), (["SE", "IR"], T2_ROLE)],
)
def test_gradient_echo_without_spin_echo_is_not_eligible(
    tmp_path: Path, sequence: Any, role: Role | None
) -> None:
    assert (
        series_of(tmp_path, T2.but(extra={"ScanningSequence": sequence})).role is role
    )


# --- rule 5: text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "contrast"),
    [
        (["SAG T1 SE"], "t1"),
        (["SAGT2"], "t2"),
        (["T2_STIR_SAG"], "stir"),
        (["T1 TIRM"], "stir"),
        (["T2*"], None),
        (["T2 *"], None),
        (["T2_STAR"], None),
        (["T12-S1"], None),
        (["T11 T2"], "t2"),
        (["T1 AND T2"], None),
        (["T1 AND T2", "T2 TSE"], "t2"),
        (["", "", "SE T1"], "t1"),
        (["LOCALIZER"], None),
    ],
)
def test_contrast_of_text(texts: list[str], contrast: str | None) -> None:
    assert contrast_of_text(texts) == contrast


def test_text_serves_where_numbers_are_missing(tmp_path: Path) -> None:
    series = series_of(tmp_path, T2.but(te=None, tr=None, text="secret name t1 sag"))
    assert series.role is Role.SAGITTAL_T1
    assert "text says T1" in series.evidence


def test_header_text_is_never_echoed(tmp_path: Path) -> None:
    series = series_of(tmp_path, T2.but(te=None, tr=None, text="JOHN DOE [bold] T2"))
    assert "DOE" not in series.evidence.upper()
    assert "BOLD" not in series.evidence.upper()


# --- rule 6: abstain --------------------------------------------------------------------------------------------------


def test_abstains_without_numbers_and_text(tmp_path: Path) -> None:
    write_series(tmp_path, T2.but(te=None, tr=None, text=""))
    study = read_one(tmp_path)
    assert study.series[0].role is None
    assert "contrast unknown" in study.series[0].evidence
    assert study.reason is Reason.NO_SAGITTAL


# --- rule 7: among equals ---------------------------------------------------------------------------------------------

TALL = T2.but(rows=160, base_mm=(10.0, -60.0, 100.0))


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (T2, TALL),
        (T2, T2.but(offsets_mm=tuple(3.0 * i for i in range(9)))),
        (T2, T2.but(extra={"PixelSpacing": [1.24, 0.75]})),
        (T2.but(extra={"ScanOptions": "FS"}), T2),
        (T1.but(extra={"ContrastBolusAgent": "GD"}), T1),
        (
            T2.but(extra={"AcquisitionDate": "20240101"}),
            T2.but(extra={"AcquisitionDate": "20240102"}),
        ),
        (
            T2.but(
                te=60.0,
                tr=4000.0,
                ti=160.0,
                offsets_mm=tuple(2.0 * i for i in range(20)),
            ),
            T2,
        ),
        (T2, TALL.but(te=60.0, tr=4000.0, ti=160.0)),
    ],
    ids=[
        "levels",
        "slices",
        "finer",
        "fat-suppression",
        "agent",
        "latest",
        "t2-before-stir",
        "tall-stir-before-short-t2",
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_among_equals(
    tmp_path: Path, worse: SeriesSpec, better: SeriesSpec, swapped: bool
) -> None:
    worse, better = worse.but(uid="1.2.3.7"), better.but(uid="1.2.3.8")
    write_series(tmp_path / ("b" if swapped else "a"), worse)
    write_series(tmp_path / ("a" if swapped else "b"), better)
    study = read_one(tmp_path)
    playing = [series for series in study.series if series.role]
    assert [series.path for series in playing] == ["a" if swapped else "b"]
    loser = next(series for series in study.series if series.role is None)
    assert "another series is the better" in loser.evidence


# --- rule 8: what is missing ------------------------------------------------------------------------------------------


def test_missing_roles_are_warned_of(tmp_path: Path) -> None:
    write_series(tmp_path / "t1", T1)
    assert read_one(tmp_path).warnings == (Warn.NO_SAGITTAL_T2, Warn.NO_AXIAL_T2)
    write_series(tmp_path / "t2", T2)
    write_series(tmp_path / "ax", AXIAL_T2)
    assert read_one(tmp_path).warnings == ()


def test_axial_only_has_no_sagittal(tmp_path: Path) -> None:
    write_series(tmp_path / "ax", AXIAL_T2)
    study = read_one(tmp_path)
    assert study.reason is Reason.NO_SAGITTAL
    assert [series.role for series in study.series] == [Role.AXIAL_T2]
