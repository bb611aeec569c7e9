"""``spine-engine view`` step by step, its drawing and its models made up: what it writes, says and refuses."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_space import a_study, some_levels
from typer.testing import CliRunner

from spine_engine.anatomy import LEVELS, Level
from spine_engine.bundle import Bundle
from spine_engine.cli import app, view
from spine_engine.errors import StudyError, UsageError
from spine_engine.report import montage, offscreen, ply
from spine_engine.study import Study
from spine_engine.voxels import PRESETS, GridLayout


@pytest.fixture
def made(monkeypatch):
    """View a made-up study; what is written and drawn is noted, ``made`` says what the models find."""
    noted = []
    state = SimpleNamespace(
        noted=noted,
        levels=some_levels(),
        detection=None,
        entry=None,
        problem=None,
        asked=[],
    )
    monkeypatch.setattr(ply, "open3d", lambda: noted.append("open3d"))
    monkeypatch.setattr(montage, "pillow", lambda: noted.append("pillow"))
    monkeypatch.setattr(
        ply,
        "write_cloud",
        lambda path, cloud: noted.append((path.name, len(cloud.values))),
    )
    monkeypatch.setattr(
        ply, "write_levels", lambda path, levels: noted.append((path.name, len(levels)))
    )
    monkeypatch.setattr(
        offscreen,
        "picture",
        lambda study, levels, path: noted.append(path.name) or state.problem,
    )
    monkeypatch.setattr(
        offscreen,
        "window",
        lambda cloud, levels: noted.append("window") or state.problem,
    )
    monkeypatch.setattr(
        view, "_detected", lambda study, bundle: (state.detection, state.entry)
    )
    monkeypatch.setattr(
        view, "_shown_study", lambda *asked: state.asked.append(asked) or a_study()
    )
    monkeypatch.setattr(
        "spine_engine.pipeline.outcome.level_results", lambda detection: state.levels
    )
    monkeypatch.setattr(
        view, "_write_grids", lambda *_, pictures: iter([f"grids, pictures {pictures}"])
    )
    return state


def viewed(tmp_path, *more):
    return CliRunner().invoke(
        app, ["view", str(tmp_path), "--output", str(tmp_path / "out"), *more]
    )


def test_without_levels_there_are_the_cloud_the_page_and_the_picture(made, tmp_path):
    done = viewed(tmp_path)
    assert done.exit_code == 0, done.output
    assert [str(one[0] if isinstance(one, tuple) else one) for one in made.noted] == [
        "open3d", "pillow", "cloud.ply", "cloud.png",
    ]  # fmt: skip
    lines = done.output.replace("\n", " ")
    assert "view.html: the study in 3-D, for any browser" in lines
    assert "points, Sagittal T2, Sagittal T1, Axial T2, Axial T2 (2)" in lines
    assert "cloud.png: the study, opened at the middle" in lines
    assert "levels.ply" not in lines
    assert "1.2.840.77" in (tmp_path / "out" / "view.html").read_text()


def test_with_levels_their_boxes_and_grids_are_written_too(made, tmp_path):
    made.detection, made.entry = object(), object()
    done = viewed(tmp_path)
    assert ("levels.ply", 5) in made.noted
    assert "levels.ply: the boxes of 5 levels" in done.output.replace("\n", " ")
    assert "grids, pictures True" in done.output
    made.entry = None
    assert "grids, pictures" not in viewed(tmp_path).output


def test_without_pictures_pillow_is_not_needed_and_nothing_is_drawn(made, tmp_path):
    made.detection, made.entry = object(), object()
    done = viewed(tmp_path, "--no-png")
    assert "pillow" not in made.noted
    assert "cloud.png" not in made.noted
    assert "grids, pictures False" in done.output


def test_a_picture_that_cannot_be_drawn_is_told_and_costs_nothing_else(made, tmp_path):
    made.problem = "the drawing process ended with -6"
    done = viewed(tmp_path, "--window")
    assert done.exit_code == 0
    text = " ".join(done.output.split())
    assert (
        "no cloud.png: the drawing process ended with -6; Open3D draws without a screen through Vulkan"
        in text
    )
    assert "apt-get install libvulkan1 mesa-vulkan-drivers" in text
    assert "no window: the drawing process ended with -6; it needs a screen" in text


def test_the_window_is_opened_only_when_asked_for(made, tmp_path):
    viewed(tmp_path)
    assert "window" not in made.noted
    viewed(tmp_path, "--window")
    assert made.noted[-1] == "window"


def test_the_folder_study_and_table_that_are_named_are_looked_at(made, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("study_id,series_id,series_description\n")
    assert (
        viewed(
            tmp_path, "--study", "1.2", "--series-descriptions", str(table)
        ).exit_code
        == 0
    )
    (folder, wanted, _), = made.asked  # fmt: skip
    assert (folder, wanted) == (tmp_path, "1.2")


def test_a_folder_that_cannot_be_written_is_said(made, tmp_path):
    (tmp_path / "out").write_text("a file")
    done = viewed(tmp_path)
    assert done.exit_code == 6
    assert f"cannot write to {tmp_path / 'out'}" in done.output.replace("\n", "")


def test_a_level_without_a_place_has_no_grid_and_the_others_each_have_one(
    monkeypatch, tmp_path
):
    written = []
    monkeypatch.setattr(
        "spine_engine.pipeline.level_grids.level_grids",
        lambda *_: (np.zeros((5, 3, 2, 2, 2)), np.ones((5, 3))),
    )
    monkeypatch.setattr(
        view,
        "_write_grid",
        lambda grid, share, entry, level, *_, **__: written.append(level) or iter(()),
    )
    sources = dict(
        zip(
            LEVELS,
            ("prior", "detector", "interpolated", "prior", "detector"),
            strict=True,
        )
    )
    detection = SimpleNamespace(
        levels={
            level: SimpleNamespace(source=source) for level, source in sources.items()
        }
    )
    lines = list(
        view._write_grids(
            a_study(),
            detection,
            SimpleNamespace(layout=None, grid_recipe=PRESETS["native"]),
            some_levels(),
            tmp_path,
            pictures=True,
        )
    )
    assert written == [Level.L2_L3, Level.L3_L4, Level.L5_S1]
    assert lines == [
        "no grid of l1_l2, l4_l5: only the field of view places them, and the grader skips them"
    ]


def test_a_grid_lies_at_its_offset_from_the_disc_in_the_disc_s_own_frame(
    monkeypatch, tmp_path
):
    poses = []
    monkeypatch.setattr(
        ply,
        "write_grid",
        lambda path, grid, spec, pose: poses.append((path.name, pose)),
    )
    axes = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])
    disc = SimpleNamespace(center_mm=np.array([1.0, 2.0, 3.0]), axes=axes)
    layout = GridLayout(channels=(), spec="spec", center_offset_mm=(5.0, 18.0, 7.0))
    entry = SimpleNamespace(grid=SimpleNamespace(spec="spec"), layout=layout)
    grid = np.zeros((2, 3, 4, 5), np.float32)
    grid[0, 1, 1, 1] = grid[1, 1, 1, 1] = grid[1, 2, 2, 2] = 0.5
    (line,) = view._write_grid(
        grid,
        np.ones(2),
        entry,
        Level.L2_L3,
        SimpleNamespace(levels={Level.L2_L3: disc}),
        None,
        tmp_path,
        pictures=False,
    )
    ((name, pose),) = poses
    assert name == "grid_l2_l3.ply"
    assert pose.center_mm.tolist() == [1 + 7, 2 + 18, 3 - 5]
    assert line.endswith("grid_l2_l3.ply: 2 of 3 x 4 x 5 voxels hold something")


def test_a_bundle_that_looks_for_no_levels_and_a_study_without_sagittals_say_so(
    monkeypatch, capsys
):
    bundle = Bundle(Path(), None, None)
    monkeypatch.setattr(Bundle, "grader", "grader")
    closed = []

    class Models:
        detector, grader = "detector", None

        def __init__(self, *_):
            pass

        def find_levels(self, sagittal):
            if not any(sagittal):
                raise StudyError("no_sagittal", "none")
            return "found"

        def close(self):
            closed.append(True)

    monkeypatch.setattr(Bundle, "open", lambda folder, trust: bundle)
    monkeypatch.setattr("spine_engine.pipeline.study_pipeline.PipelineModels", Models)
    monkeypatch.setattr("spine_engine.pipeline.models.in_two_stages", lambda *_: False)
    assert view._detected(a_study(), None) == (None, None)
    assert "the bundle has no detector" in capsys.readouterr().out
    assert closed == []
    monkeypatch.setattr("spine_engine.pipeline.models.in_two_stages", lambda *_: True)
    assert view._detected(a_study(), None) == ("found", "grader")
    assert view._detected(Study("1", ()), None) == (None, None)
    assert "the levels were not located (no_sagittal)" in capsys.readouterr().out
    assert closed == [True, True], "the models are closed either way"


def test_a_study_of_which_nothing_can_be_shown_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "spine_engine.dicom.one_study.read_study", lambda *_, **__: Study("1.2", ())
    )
    with pytest.raises(UsageError, match=r"study 1\.2 has no series to show"):
        view._shown_study(tmp_path, None, None)


def test_grids_of_another_recipe_are_not_shown_as_if_they_were_the_engines_own(
    tmp_path,
):
    entry = SimpleNamespace(grid_recipe=PRESETS["rsna2024-level-128"])
    (said,) = view._write_grids(
        a_study(), None, entry, some_levels(), tmp_path, pictures=True
    )
    assert said == "no grids: those of the recipe rsna2024-level-128 are not shown here"
