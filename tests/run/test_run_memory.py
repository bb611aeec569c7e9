"""A ceiling of memory: who gets how much, and what the kernel makes of it."""

import sys

import pytest
from fakes import start, write_exam

from spine_engine.errors import UsageError
from spine_engine.options import RunOptions
from spine_engine.resources import Resources, divided
from spine_engine.scheduler import MemoryShare

MIB = 1 << 20
GIB = 1 << 30
# docs/decisions/0006 and 0015: 128 MiB for the main process, 384 for a worker, three times its file for a loaded model.


def test_without_a_ceiling_workers_are_as_many_as_asked():
    assert divided(RunOptions(workers=7), model_bytes=GIB) == Resources(workers=7, memory=None)


@pytest.mark.parametrize(
    ("schedule", "workers", "ceiling", "given"),
    [
        # each worker has models of its own: 384 + 3 x 100 = 684 MiB
        ("study", 8, 128 + 3 * 684 + 30, (3, 694, 2082)),
        ("study", 8, 128 + 3 * 684, (3, 684, 2052)),
        ("study", 8, 128 + 3 * 684 - 1, (2, 1025.5, 2051)),
        ("study", 2, 128 + 3 * 684, (2, 1026, 2052)),
        ("study", 8, 128 + 684, (1, 684, 684)),
        # one process holds them for all: 684 MiB once, and 384 for each worker
        ("batch", 8, 128 + 684 + 4 * 384 + 40, (4, 394, 1576)),
        ("batch", 8, 128 + 684 + 384, (1, 384, 384)),
    ],
)
def test_workers_are_as_many_as_the_ceiling_holds_and_share_what_is_left(schedule, workers, ceiling, given):
    options = RunOptions(schedule=schedule, workers=workers, max_memory_bytes=ceiling * MIB)
    count, usual, alone = given
    memory = MemoryShare(usual_bytes=int(usual * MIB), alone_bytes=alone * MIB)
    assert divided(options, model_bytes=100 * MIB) == Resources(workers=count, memory=memory)


@pytest.mark.parametrize(("schedule", "least"), [("study", 524), ("batch", 908)])
def test_a_ceiling_that_holds_no_worker_says_what_would(schedule, least):
    # 128 + 384 + 3 x 4 = 524, shared models need a process of their own of 384 more
    options = {"schedule": schedule, "workers": 4}
    with pytest.raises(UsageError) as refused:
        divided(RunOptions(max_memory_bytes=least * MIB - 1, **options), model_bytes=4 * MIB)
    assert str(refused.value) == (
        f"a ceiling of {least - 1} MiB holds no worker with these models: set --max-memory to {least}MiB or more"
    )
    assert divided(RunOptions(max_memory_bytes=least * MIB, **options), model_bytes=4 * MIB).workers == 1


def test_the_least_that_is_said_is_rounded_up():
    with pytest.raises(UsageError, match="--max-memory to 513MiB or more"):
        divided(RunOptions(max_memory_bytes=100 * MIB), model_bytes=1)


def test_there_is_more_alone_where_several_share():
    def more(usual, alone):
        return Resources(workers=1, memory=MemoryShare(usual_bytes=usual, alone_bytes=alone)).has_more_alone

    assert (more(4, 5), more(5, 5)) == (True, False)
    assert not Resources(workers=1, memory=None).has_more_alone


@pytest.mark.skipif(sys.platform != "linux", reason="the ceiling is the kernel's (RLIMIT_DATA)")
def test_a_study_beyond_its_share_is_walked_alone_with_all_and_beyond_all_is_recorded(tmp_path):
    root = tmp_path / "input"
    for name, deed in {"a": "grade", "b": "allocate 500", "c": "allocate 900"}.items():
        write_exam(root, name, f"1.{name}", deed)
    memory = MemoryShare(usual_bytes=400 * MIB, alone_bytes=800 * MIB)
    results = {r.study_id: r.reason for r in start(root, None, resources=Resources(workers=1, memory=memory))}
    assert results == {"1.a": None, "1.b": None, "1.c": "out_of_memory"}
