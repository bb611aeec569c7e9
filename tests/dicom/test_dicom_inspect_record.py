"""What ``inspect`` prints: every field of its records, every word of its tables, in the order in which studies come."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from raw_dicom import dicom, mr, series
from rich.console import Console
from typer.testing import CliRunner

from spine_engine.cli import inspect as inspect_module
from spine_engine.cli.inspect import inspect, study_record, study_table
from spine_engine.errors import Reason, UsageError, Warn
from spine_engine.study import Role, Series, Stack, Study


def stack(
    slices: int = 4, step: float = 4.12345, rows: int = 30, columns: int = 20
) -> Stack:
    one = np.ones(slices, np.float32)
    axes = np.array([[-1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    origins = np.array([1.23456, 2, 3]) + step * np.arange(slices)[:, None] * axes[0]
    return Stack(
        np.zeros((slices, rows, columns), np.uint16),
        one,
        one,
        origins,
        axes,
        (2.0, 1.5),
    )


SOUND = Series(
    "a/b",
    Role.SAGITTAL_T2,
    "TE 100 ms: T2",
    (stack(), stack(), stack(3, rows=31)),
    11,
    "t2",
)
REFUSED = Series("c", None, "1 slices dropped", (), 0, reason=Reason.NO_POSITION)
IDLE = Series("d", None, "localizer images", (), 3)
STUDY = Study(
    "1.2.3", (SOUND, REFUSED, IDLE), (Warn.GAP, Warn.NO_AXIAL_T2), Reason.NO_SAGITTAL
)


def test_a_record_has_every_field() -> None:
    one = {
        "slices": 4,
        "rows": 30,
        "columns": 20,
        "slice_spacing_mm": 4.1235,
        "spacing_mm": [2.0, 1.5],
        "center_mm": [-4.951, 16.25, -26.0],
    }
    assert json.loads(json.dumps(study_record(STUDY))) == {
        "study_id": "1.2.3",
        "reason": "no_sagittal",
        "warnings": ["gap", "no_axial_t2"],
        "series": [
            {
                "path": "a/b",
                "role": "sagittal_t2",
                "contrast": "t2",
                "evidence": "TE 100 ms: T2",
                "reason": None,
                "slices": 11,
                "stacks": [
                    one,
                    one,
                    one
                    | {"slices": 3, "rows": 31, "center_mm": [-2.889, 16.25, -27.0]},
                ],
            },
            {
                "path": "c",
                "role": None,
                "contrast": None,
                "evidence": "1 slices dropped",
                "reason": "no_position",
                "slices": 0,
                "stacks": [],
            },
            {
                "path": "d",
                "role": None,
                "contrast": None,
                "evidence": "localizer images",
                "reason": None,
                "slices": 3,
                "stacks": [],
            },
        ],
    }
    assert list(study_record(STUDY)) == ["study_id", "reason", "warnings", "series"]


def shown(study: Study) -> list[list[str]]:
    """The cells of each line of a table as a terminal shows it."""
    out = io.StringIO()
    Console(file=out, width=160, color_system=None).print(study_table(study))
    lines = (line.replace("┃", "│") for line in out.getvalue().splitlines())
    return [
        [
            cell.strip()
            for cell in (line[1:-1] if line.startswith("│") else line).split("│")
        ]
        for line in lines
    ]


def test_a_table_has_a_row_a_series() -> None:
    lines = shown(STUDY)
    assert lines[0] == ["study 1.2.3  cannot be graded: no_sagittal"]
    assert lines[2] == ["series", "role", "stacks (slices x rows x columns)", "why"]
    assert lines[4:8] == [
        [
            "a/b",
            "sagittal_t2",
            "2 of 4 x 30 x 20, 4.12 x 2.00 x 1.50 mm",
            "TE 100 ms: T2",
        ],
        ["", "", "3 x 31 x 20, 4.12 x 2.00 x 1.50 mm", ""],
        ["c", "-", "-", "no_position: 1 slices dropped"],
        ["d", "-", "-", "localizer images"],
    ]
    assert lines[9] == ["warnings: gap, no_axial_t2"]


def test_a_table_of_a_sound_study_says_no_more() -> None:
    lines = shown(Study("1.2.4", (SOUND,)))
    assert lines[0] == ["study 1.2.4"]
    assert len(lines) == 7


def test_markup_and_lone_bytes_are_shown_as_they_are() -> None:
    odd = Series("[red]x\udce9", None, "[bold]why", (), 0)
    lines = shown(Study("[link]1\udcff", (odd,)))
    assert lines[0] == ["study [link]1\\udcff"]
    assert lines[4] == ["[red]x\\udce9", "-", "-", "[bold]why"]


# --- the command ------------------------------------------------------------------------------------------------------


def put(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(inspect)
    result = CliRunner().invoke(
        app,
        list(arguments),
        env={"COLUMNS": "160", "TERM": "dumb"},
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    return result.stdout


def records(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*arguments, "--json").splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two studies in one folder, a third that is met twice, and files that are none."""
    root = tmp_path / "in"
    put(root, {f"a/{name}": data for name, data in series(5).items()})
    put(
        root,
        {
            f"a/z{name}": data
            for name, data in series(5, StudyInstanceUID="1.2.4").items()
        },
    )
    put(
        root,
        {
            f"b/{name}": data
            for name, data in series(5, StudyInstanceUID="1.2.5").items()
        },
    )
    put(
        root,
        {
            "c/1": dicom(mr(StudyInstanceUID="1.2.6")),
            "d/1": dicom(mr(9, StudyInstanceUID="1.2.5")),
        },
    )
    put(
        root,
        {
            "x/README": b"words" * 90,
            "x/b.txt": b"words" * 90,
            "x/cut": dicom(mr())[:-200],
        },
    )
    (root / "x" / "link").symlink_to("/nowhere")
    return root


def test_studies_come_as_they_are_met_and_a_split_in_its_place(folder: Path) -> None:
    *studies, summary = records(str(folder))
    assert [study["study_id"] for study in studies] == [
        "1.2.3",
        "1.2.4",
        "1.2.5",
        "1.2.6",
        "1.2.5",
        "1.2.3",
    ]
    assert summary == {
        "studies": 6,
        "refused": {"corrupt_file": 1, "not_a_regular_file": 1, "not_an_image": 2},
    }
    assert list(summary["refused"]) == sorted(summary["refused"])


def test_the_terminal_tells_what_was_met_again_and_what_was_not_read(
    folder: Path,
) -> None:
    lines = [line.rstrip() for line in run(str(folder)).splitlines()]
    again = (
        "this study also has files in a folder shown above; a run reads them together"
    )
    assert [line for line in lines if line.startswith(("study ", "this "))] == [
        "study 1.2.3",
        "study 1.2.4",
        "study 1.2.5",
        "study 1.2.6  cannot be graded: not_a_volume",
        "study 1.2.5  cannot be graded: not_a_volume",
        again,
        "study 1.2.3  cannot be graded: corrupt_file",
        again,
    ]
    assert lines[-4:] == [
        "6 studies",
        "1 files or folders not read: corrupt_file",
        "1 files or folders not read: not_a_regular_file",
        "2 files or folders not read: not_an_image",
    ]


def test_a_table_beside_the_input_is_used_unless_another_is_named(
    tmp_path: Path,
) -> None:
    root = tmp_path / "in"
    put(root, {f"s/{name}": data for name, data in series(5).items()})
    head = "study_id,series_id,series_description\n"
    (tmp_path / "train_series_descriptions.csv").write_text(
        head + "1.2.3,s,Sagittal T1\n"
    )
    assert records(str(root))[0]["series"][0]["role"] == "sagittal_t1"
    (tmp_path / "other.csv").write_text(head)
    named = records(str(root), "--series-descriptions", str(tmp_path / "other.csv"))
    assert named[0]["series"][0]["role"] == "sagittal_t2"


def test_persons_are_named_on_a_page_only(folder: Path) -> None:
    app = typer.Typer()
    app.command()(inspect)
    with pytest.raises(UsageError, match="--with-identity needs --html FILE"):
        CliRunner().invoke(
            app, [str(folder), "--with-identity"], catch_exceptions=False
        )


def test_one_study_is_in_memory_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is told before the next unit is read."""
    order: list[str] = []
    really = inspect_module.read_unit

    def reading(root: Path, unit: Any, *rest: Any) -> Any:
        order.append(f"read {unit.key.partition('#')[0]}")
        return really(root, unit, *rest)

    monkeypatch.setattr(inspect_module, "read_unit", reading)
    monkeypatch.setattr(inspect_module.typer, "echo", lambda text: order.append("told"))
    inspect(folder, as_json=True)
    assert order == [
        *("read a", "read a", "told", "read a", "told", "read b", "told"),
        *("read c", "told", "read d", "told", "read x", "told", "told"),
    ]
