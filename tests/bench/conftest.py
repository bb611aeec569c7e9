"""Makes ``bench_fakes`` importable for the tests and for the processes that systems live in; a made-up library."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    from spine_bench.harness.library import folder_library
    from spine_engine.phantom import write_studies

    root = tmp_path_factory.mktemp("phantoms")
    assert len(list(write_studies(root, 2, 5))) == 2
    return folder_library(root)


@pytest.fixture
def library(tmp_path):
    from bench_fakes import made_library

    return made_library(tmp_path)
