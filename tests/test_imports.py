"""The runtime stays light: what an import costs, and what it must never pull in."""

import json
import subprocess
import sys

import pytest

import spine_engine

ROOMS = (
    "scheduler", "pipeline.study_pipeline", "run.dispatcher", "engine", "run.ledger", "dicom", "detection",
    "pipeline.grading", "voxels", "phantom", "bundle", "backends", "pipeline.parity", "cli",
)  # fmt: skip
"""One of each floor of the runtime; the command line brings nearly all of it."""

PROBE = """
import importlib, json, sys
known, new = set(sys.modules), {}
for name in ["spine_engine", *sys.argv[1:]]:
    importlib.import_module(name)
    new[name] = sorted(set(sys.modules) - known)
    known.update(new[name])
print(json.dumps(new))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """The modules that each import added, in a process that imports one after the other."""
    command = [sys.executable, "-c", PROBE, *(f"spine_engine.{room}" for room in ROOMS)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300
    )
    modules: dict[str, list[str]] = json.loads(done.stdout)
    return modules


def test_importing_the_package_pulls_in_no_other_package(imported):
    """That is what keeps it at some 30 ms: each public name is loaded when it is first used."""
    others = {
        name
        for name in imported["spine_engine"]
        if name.split(".")[0] not in sys.stdlib_module_names
    }
    assert others == {"spine_engine", "spine_engine._version"}


@pytest.mark.parametrize("room", ROOMS)
def test_no_runtime_module_imports_a_training_or_plotting_library(imported, room):
    packages = {name.split(".")[0] for name in imported[f"spine_engine.{room}"]}
    assert not packages & {
        "torch",
        "torchvision",
        "onnx",
        "onnxruntime",
        "matplotlib",
        "pandas",
        "open3d",
    }


def test_the_public_names_are_sorted_and_exist():
    assert list(spine_engine.__all__) == sorted(spine_engine.__all__)
    for name in spine_engine.__all__:
        assert getattr(spine_engine, name) is not None


def test_dir_lists_the_public_names():
    assert dir(spine_engine) == spine_engine.__all__


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(
        AttributeError, match=r"'spine_engine' has no attribute 'Enigne'"
    ):
        spine_engine.Enigne  # noqa: B018
