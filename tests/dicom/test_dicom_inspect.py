"""``inspect`` shows what the engine sees, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from dicom_builder import AXIAL_T2, T1, T2, write_series
from typer.testing import CliRunner, Result

from spine_engine.cli.inspect import inspect


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for name, spec in (("t1", T1), ("t2", T2), ("axial [red]", AXIAL_T2)):
        write_series(root / "study" / name, spec)
    (root / "README").write_text("hello")
    return root


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(inspect)
    return CliRunner().invoke(
        app,
        list(arguments),
        env={"COLUMNS": "160", "TERM": "dumb"},
        catch_exceptions=False,
    )


def test_json_has_one_study_a_line(folder: Path) -> None:
    result = run(str(folder), "--json")
    assert result.exit_code == 0
    study, summary = map(json.loads, result.stdout.splitlines())
    assert study["study_id"] == "1.2.3"
    assert {series["path"]: series["role"] for series in study["series"]} == {
        "study/t1": "sagittal_t1",
        "study/t2": "sagittal_t2",
        "study/axial [red]": "axial_t2",
    }
    stack = study["series"][0]["stacks"][0]
    assert (stack["slices"], stack["rows"], stack["columns"]) == (8, 32, 28)
    assert stack["slice_spacing_mm"] == 4.0
    assert summary == {"studies": 1, "refused": {"not_an_image": 1}}


def test_table_shows_roles_stacks_and_why(folder: Path) -> None:
    shown = run(str(folder)).stdout
    for words in (
        "study 1.2.3",
        "sagittal_t1",
        "axial [red]",
        "8 x 32 x 28",
        "TE 100 ms",
        "not_an_image",
    ):
        assert words in shown
    assert "JANE" not in shown


def test_a_series_descriptions_states_roles(folder: Path, tmp_path: Path) -> None:
    roles = tmp_path / "roles.csv"
    roles.write_text(
        "study_id,series_id,role\n1.2.3,t1,sagittal_t2\n1.2.3,t2,sagittal_t1\n"
    )
    study = json.loads(
        run(
            str(folder), "--json", "--series-descriptions", str(roles)
        ).stdout.splitlines()[0]
    )
    stated = {series["path"]: series["role"] for series in study["series"]}
    assert stated["study/t1"] == "sagittal_t2"
    assert stated["study/t2"] == "sagittal_t1"
    assert study["warnings"] == ["role_overridden"]
