"""numba keeps compiled kernels until the file that holds them changes. It does not see what they compile in from other
files, so each file of kernels carries a stamp of that, and changes with it."""

import ast
import hashlib
import importlib
import re
import tomllib
from pathlib import Path

import numba
import pytest

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "engine/spine_engine"
KERNELS = sorted(
    str(path.relative_to(ENGINE.parent).with_suffix("")).replace("/", ".")
    for path in ENGINE.rglob("*.py")
    if "cache=True" in path.read_text() and "_source_stamp" not in path.read_text()
)


def stamp(module: str) -> str:
    """Return a digest of the constants that a module of kernels imports, and of the sources of what is no constant."""
    digest = hashlib.sha256()
    tree = ast.parse(Path(importlib.import_module(module).__file__).read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
            "spine_engine."
        ):
            continue
        source = importlib.import_module(node.module)
        for alias in sorted(node.names, key=lambda alias: alias.name):
            value = getattr(source, alias.name)
            if isinstance(value, int | float | tuple):
                digest.update(f"{alias.name}={value!r}".encode())
            elif type(value).__module__.startswith("numba."):
                digest.update(Path(source.__file__).read_bytes())
    return digest.hexdigest()[:12]


def test_the_kernels_are_found():
    assert {
        "spine_engine.voxels.kernels",
        "spine_engine.voxels.aligned",
        "spine_engine.detection.kernels",
    } <= {*KERNELS}


@pytest.mark.parametrize("module", KERNELS)
def test_a_file_of_kernels_changes_with_what_it_compiles_in(module):
    wanted = stamp(module)
    nothing = hashlib.sha256().hexdigest()[:12]
    text = Path(importlib.import_module(module).__file__).read_text()
    if wanted == nothing:
        assert "# Compiled in from other files" not in text
    else:
        line = f"# Compiled in from other files: {wanted}"
        assert line in text.splitlines(), (
            f"write this line into it, in place of an older one: {line}"
        )


def test_the_newest_numba_that_is_allowed_is_the_one_that_is_tested():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "dependencies"
    ]
    (bound,) = [
        re.search(r"<0\.(\d+)$", line)
        for line in dependencies
        if line.startswith("numba")
    ]
    assert int(bound[1]) == int(numba.__version__.split(".")[1]) + 1
