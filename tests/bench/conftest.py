"""Makes ``bench_fakes`` importable for the tests and for the processes that systems live in; a made-up library."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    from spine_bench.harness.interfaces import folder_library
    from spine_engine.phantom import Protocol, write_studies

    root = tmp_path_factory.mktemp("phantoms")
    small = Protocol(sagittal_slices=7, sagittal_matrix=160, axial_matrix=128)
    assert len(list(write_studies(root, 2, 5, protocol=small))) == 2
    return folder_library(root)


@pytest.fixture
def library(tmp_path):
    from bench_fakes import made_library

    return made_library(tmp_path)


@pytest.fixture
def hosts(monkeypatch):
    """Systems without processes, whose answers and times are made up; what becomes of each is in ``deeds``."""
    from bench_fakes import MadeHost

    from spine_bench.harness import rounds

    MadeHost.deeds, MadeHost.opened, MadeHost.closed = {}, [], []
    monkeypatch.setattr(rounds, "Host", MadeHost)
    monkeypatch.setattr(rounds, "usable_cpus", lambda: 2)
    return MadeHost
