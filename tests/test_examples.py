"""The examples and the README's Python run as written, on one small set of phantoms; the reference is whole."""

import csv
import json
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

import spine_engine
import spine_engine.phantom
from spine_engine.phantom import Protocol, write_studies

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SMALL = Protocol(sagittal_matrix=224, axial_matrix=144)
LEVELS = ["l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Two studies of low resolution, which take a fraction of the time."""
    folder = tmp_path_factory.mktemp("examples") / "set"
    assert len(list(write_studies(folder, 2, seed=1, protocol=SMALL))) == 2
    return folder


@pytest.fixture(scope="module")
def study(phantoms) -> Path:
    """The folder of the first study alone."""
    return sorted((phantoms / "train_images").iterdir())[0]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where examples write when they are told nothing


@pytest.fixture
def _one_worker(monkeypatch):
    """Every worker imports and compiles for seconds; two studies need no second one."""
    monkeypatch.setattr("spine_engine.options.usable_cpus", lambda: 1)


def run_example(name, *arguments):
    """Run an example as a script with arguments, in this process; return its variables and what it printed."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(
            str(EXAMPLES / name), run_name="__main__"
        ), printed.getvalue()


@pytest.fixture(scope="module")
def example_4(study):
    """What example 4 leaves behind, with a model it has made."""
    pytest.importorskip(
        "onnx", reason="onnx is not installed: example 4 cannot make its model"
    )
    return run_example("4_own_backend.py", study)


@pytest.fixture
def ready_phantoms(monkeypatch, phantoms):
    """Studies made before stand in for those that examples make for themselves, rendered in seconds each."""

    def copied(root, count, seed):
        studies = sorted((phantoms / "train_images").iterdir())[:count]
        for folder in studies:
            shutil.copytree(folder, root / "train_images" / folder.name)
            yield folder.name

    monkeypatch.setattr(spine_engine.phantom, "write_studies", copied)


def test_every_example_is_run_here():
    names = sorted(
        path.name for path in EXAMPLES.iterdir() if path.name != "__pycache__"
    )
    text = Path(__file__).read_text()
    assert [name[0] for name in names] == ["1", "2", "3", "4", "5", "6"]
    assert all(f'"{name}"' in text for name in names)


def test_one_study_that_it_makes(ready_phantoms, study):
    variables, printed = run_example("1_one_study.py")
    first, outcome, *levels = printed.splitlines()
    assert first.startswith(f"phantom study {study.name} in ")
    assert variables["result"].study_id == study.name
    assert outcome.startswith("graded")
    assert [line.split(":")[0] for line in levels] == LEVELS


def test_level_grids_and_their_picture(study, tmp_path):
    variables, printed = run_example("2_level_grids.py", study, tmp_path / "grids.png")
    assert variables["grids"].shape == (5, 3, 24, 40, 48)
    assert "(5, 3, 24, 40, 48)" in printed
    image = pytest.importorskip(
        "PIL.Image", reason="Pillow is not installed: example 2 writes no picture"
    )
    with image.open(tmp_path / "grids.png") as picture:
        assert picture.size == (3 * 40, 5 * 24)
        assert np.asarray(picture).std() > 20


def test_a_ball_of_ones_own_keeps_its_volume():
    variables, _ = run_example("3_own_voxel_grid.py")
    sampled, pooled = variables["sampled"], variables["pooled"]
    ball_mm3 = 4 / 3 * np.pi * 25**3
    assert sampled.values.sum() / 1000 * 8 == pytest.approx(ball_mm3, rel=0.02)
    assert sampled.coverage == (1.0,)
    assert pooled.coverage[0] == pytest.approx(
        2 / 3, abs=0.01
    )  # slices 3 mm apart in voxels of 2 mm


def test_an_array_of_ones_own(tmp_path):
    np.save(tmp_path / "array.npy", np.full((20, 60, 60), 7, np.int16))
    variables, _ = run_example("3_own_voxel_grid.py", tmp_path / "array.npy")
    assert variables["sampled"].values.max() == pytest.approx(7, rel=1e-4)


def test_a_model_of_ones_own(example_4):
    variables, printed = example_4
    means = variables["grids"].mean(axis=(2, 3, 4))
    np.testing.assert_allclose(variables["values"].reshape(5, 3), means, atol=1e-4)
    assert "(5, 3, 1, 1, 1)" in printed


def test_a_file_of_ones_own(study, example_4, tmp_path):
    (tmp_path / "mine.onnx").write_bytes(example_4[0]["mean_of_each_channel"]())
    _, printed = run_example("4_own_backend.py", study, tmp_path / "mine.onnx")
    assert printed == example_4[1]


@pytest.mark.usefixtures("_one_worker")
def test_a_dataset_of_ones_own(phantoms, tmp_path):
    run_example("5_own_dataset.py", phantoms, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["study_id"] for row in table] == sorted(
        path.name for path in (phantoms / "train_images").iterdir()
    )
    assert all(
        row["status"] == "graded" and 0 <= float(row[level]) <= 1
        for row in table
        for level in LEVELS
    )


def test_the_notebook(ready_phantoms):
    notebook = json.loads((EXAMPLES / "6_notebook.ipynb").read_text())
    variables = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], (
                "outputs of cells do not belong into the repository"
            )
            exec(compile("".join(cell["source"]), cell["id"], "exec"), variables)
    assert variables["result"].status == "graded"
    assert variables["montage"].shape == (5 * 24, 3 * 40)


def in_python() -> list[str]:
    """The blocks of Python of the README's section, in order."""
    section = (
        (ROOT / "README.md").read_text().split("\n## In Python\n")[1].split("\n## ")[0]
    )
    return re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def snippet(study, tmp_path):
    """Run the n-th block of the README's section in a folder that has ``exams/patient7``; return its variables."""

    def run(n):
        shutil.copytree(study, tmp_path / "exams" / "patient7")
        variables = {}
        exec(
            compile(in_python()[n], f"README.md, block {n} of In Python", "exec"),
            variables,
        )
        return variables

    return run


def test_the_snippets_of_the_readme_have_under_ten_lines():
    assert [len(block.strip().splitlines()) < 10 for block in in_python()] == [True] * 5


def test_the_readme_grades_one_study(snippet, study):
    result = snippet(0)["result"]
    assert (result.study_id, result.status) == (study.name, "graded")


def test_the_readme_shows_level_grids(snippet):
    image = pytest.importorskip(
        "PIL.Image",
        reason="Pillow is not installed: the README's picture is not written",
    )
    assert snippet(1)["grids"].shape == (5, 3, 24, 40, 48)
    with image.open("l4_l5.png") as picture:
        assert np.asarray(picture).shape == (24, 40)


def test_the_readme_voxelizes_an_array(snippet):
    grid = snippet(2)["grid"]
    assert grid.values.shape == (1, 32, 32, 32)
    assert grid.coverage == (1.0,)


def test_the_readme_runs_a_model(snippet, example_4):
    Path("model.onnx").write_bytes(example_4[0]["mean_of_each_channel"]())
    assert snippet(3)["outputs"]["means"].shape == (5, 3, 1, 1, 1)


@pytest.mark.usefixtures("_one_worker")
def test_the_readme_grades_many(snippet, study):
    assert snippet(4)["study"].study_id == study.name


def test_every_public_name_is_in_the_reference():
    pages = {
        path.name: path.read_text() for path in (ROOT / "docs" / "api").glob("*.md")
    }
    described = {
        line.rsplit(".", 1)[1]
        for page in pages.values()
        for line in re.findall(r"^::: (\S+)$", page, re.M)
    }
    assert set(spine_engine.__all__) - {"__version__"} <= described
    assert all(
        f"[`{name}`]" in pages["index.md"]
        for name in spine_engine.__all__
        if name != "__version__"
    )


@pytest.mark.slow
def test_an_example_as_a_user_starts_it(tmp_path):
    command = [sys.executable, str(EXAMPLES / "1_one_study.py")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300, cwd=tmp_path
    )
    assert "\ngraded" in done.stdout
