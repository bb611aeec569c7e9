"""The runtime stays light: what an import costs, and what it must never pull in."""

import subprocess
import sys
import time

import pytest

HEAVY = ("numba", "torch", "onnx", "onnxruntime", "openvino", "matplotlib", "pydicom")


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_importing_the_package_pulls_in_nothing_heavy():
    assert not modules_after("import spine_engine").intersection(HEAVY)


@pytest.mark.parametrize("module", ["scheduler", "walk", "dicom", "detection", "grading", "voxels", "phantom", "cli"])
def test_no_runtime_module_imports_a_training_or_plotting_library(module):
    assert not modules_after(f"import spine_engine.{module}").intersection({"torch", "onnx", "matplotlib"})


def test_the_package_imports_in_half_a_second():
    def seconds() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import spine_engine"], check=True, timeout=60)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < 0.5


def test_the_public_names_are_sorted_and_exist():
    import spine_engine

    assert list(spine_engine.__all__) == sorted(spine_engine.__all__)
    for name in spine_engine.__all__:
        assert getattr(spine_engine, name) is not None
