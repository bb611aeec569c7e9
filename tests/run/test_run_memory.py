"""A ceiling of memory: who gets how much, and what the kernel makes of it."""

import pytest

from spine_engine.errors import UsageError
from spine_engine.options import RunOptions
from spine_engine.run.memory import Resources, divide_memory
from spine_engine.scheduler import MemoryShare

MIB = 1 << 20
GIB = 1 << 30
# docs/decisions/0006 and 0015: 128 MiB for the main process, 384 for a worker, three times its file for a loaded model.


def test_without_a_ceiling_workers_are_as_many_as_asked_and_each_has_a_high_one():
    most = MemoryShare(usual_bytes=7 * GIB, alone_bytes=7 * GIB)
    assert divide_memory(RunOptions(workers=7), model_bytes=GIB) == Resources(
        workers=7, memory=most
    )


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
def test_workers_are_as_many_as_the_ceiling_holds_and_share_what_is_left(
    schedule, workers, ceiling, given
):
    options = RunOptions(
        schedule=schedule, workers=workers, max_memory_bytes=ceiling * MIB
    )
    count, usual, alone = given
    memory = MemoryShare(usual_bytes=int(usual * MIB), alone_bytes=alone * MIB)
    assert divide_memory(options, model_bytes=100 * MIB) == Resources(
        workers=count, memory=memory
    )


@pytest.mark.parametrize(("schedule", "least"), [("study", 524), ("batch", 908)])
def test_a_ceiling_that_holds_no_worker_says_what_would(schedule, least):
    # 128 + 384 + 3 x 4 = 524, shared models need a process of their own of 384 more
    options = {"schedule": schedule, "workers": 4}
    with pytest.raises(UsageError) as refused:
        divide_memory(
            RunOptions(max_memory_bytes=least * MIB - 1, **options), model_bytes=4 * MIB
        )
    assert str(refused.value) == (
        f"a ceiling of {least - 1} MiB holds no worker with these models: set --max-memory to {least}MiB or more"
    )
    assert (
        divide_memory(
            RunOptions(max_memory_bytes=least * MIB, **options), model_bytes=4 * MIB
        ).workers
        == 1
    )


def test_the_least_that_is_said_is_rounded_up():
    with pytest.raises(UsageError, match="--max-memory to 513MiB or more"):
        divide_memory(RunOptions(max_memory_bytes=100 * MIB), model_bytes=1)
