"""A ceiling of memory: who gets how much, and what becomes of a study that needs more."""

import sys

import pytest
from fakes import start, write_exam

from spine_engine.errors import UsageError
from spine_engine.options import RunOptions
from spine_engine.resources import MAIN_BYTES, WORKER_BYTES, Resources, divided
from spine_engine.scheduler import MemoryShare

MIB = 1 << 20
GIB = 1 << 30


def test_without_a_ceiling_workers_are_as_many_as_asked():
    assert divided(RunOptions(workers=7), model_bytes=GIB) == Resources(workers=7, memory=None)


def test_workers_are_as_many_as_the_ceiling_holds_and_share_what_is_left():
    ceiling = MAIN_BYTES + 3 * (WORKER_BYTES + 300 * MIB) + 30 * MIB
    given = divided(RunOptions(workers=8, max_memory_bytes=ceiling), model_bytes=100 * MIB)
    assert given.workers == 3
    assert given.memory == MemoryShare(
        usual_bytes=WORKER_BYTES + 310 * MIB, alone_bytes=3 * (WORKER_BYTES + 300 * MIB) + 30 * MIB
    )
    few = divided(RunOptions(workers=2, max_memory_bytes=ceiling), model_bytes=100 * MIB)
    assert few.workers == 2
    assert few.memory.usual_bytes > given.memory.usual_bytes


def test_shared_models_are_counted_once():
    options = {"workers": 16, "max_memory_bytes": 8 * GIB}
    own = divided(RunOptions(schedule="study", **options), model_bytes=500 * MIB)
    shared = divided(RunOptions(schedule="batch", **options), model_bytes=500 * MIB)
    assert own.workers < shared.workers


def test_a_ceiling_that_holds_no_worker_says_what_would():
    with pytest.raises(UsageError, match=r"300 MiB holds no worker .* --max-memory to 524MiB or more") as refused:
        divided(RunOptions(max_memory_bytes=300 * MIB), model_bytes=4 * MIB)
    least = int(str(refused.value).rsplit("--max-memory to ", 1)[1].split("MiB")[0])
    assert divided(RunOptions(max_memory_bytes=least * MIB), model_bytes=4 * MIB).workers == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the ceiling is the kernel's (RLIMIT_DATA)")
def test_a_study_beyond_its_share_is_walked_alone_with_all_and_beyond_all_is_recorded(tmp_path):
    root = tmp_path / "input"
    for name, deed in {"a": "grade", "b": "allocate 500", "c": "grade", "d": "allocate 900", "e": "grade"}.items():
        write_exam(root, name, f"1.{name}", deed)
    memory = MemoryShare(usual_bytes=400 * MIB, alone_bytes=800 * MIB)
    results = {r.study_id: r.reason for r in start(root, None, resources=Resources(workers=2, memory=memory))}
    assert results == {"1.a": None, "1.b": None, "1.c": None, "1.d": "out_of_memory", "1.e": None}
