"""What the ledger holds against a study while it is tried again: seen in runs that are ended in the middle."""

import threading

import pytest
from fakes import FakeWorker, Later, discover, opened, start, write_exam

from spine_engine.errors import Reason
from spine_engine.run.ledger import Ledger
from spine_engine.run.memory import Resources
from spine_engine.scheduler import MemoryShare, SharedFaultError, WorkerSlot


def ended_while_it_waits(run, root, out, in_process):
    """End the run when a study waits; return what the ledger holds against its one unit."""
    finished = threading.Thread(target=run.finish)
    finished.start()
    in_process.await_wait("w")
    run.abort()
    finished.join()
    ledger = Ledger(out / "ledger.sqlite", {})
    (unit,) = discover(root)
    known = ledger.meet(unit)
    ledger.close()
    return known.attempts, known.faults, known.last_fault


def test_a_death_is_recorded_before_the_next_attempt(root, out, in_process):
    class Fragile(FakeWorker):
        def do(self, deed):
            super().do("die-once a")
            raise Later("w")

    write_exam(root, "a", "1")
    run = start(root, out, worker=Fragile)
    assert ended_while_it_waits(run, root, out, in_process) == (
        1,
        1,
        Reason.WORKER_DIED,
    )


@pytest.mark.parametrize(
    ("losses", "held"), [(1, (1, 0, None)), (2, (2, 1, Reason.WORKER_DIED))]
)
def test_models_lost_alone_are_recorded_and_in_company_held_against_nobody(
    root, out, in_process, monkeypatch, losses, held
):
    attempt, left = WorkerSlot.run, [None] * losses

    async def losing(self, unit):
        if left:
            left.pop()
            raise SharedFaultError
        return await attempt(self, unit)

    monkeypatch.setattr(WorkerSlot, "run", losing)
    write_exam(root, "a", "1", "wait w")
    assert ended_while_it_waits(start(root, out), root, out, in_process) == held


def test_the_attempt_that_was_short_of_memory_is_taken_back(root, out, in_process):
    class Wanting(FakeWorker):
        def do(self, deed):
            if self.limit_bytes == 4:
                raise MemoryError
            raise Later("w")

    write_exam(root, "a", "1")
    resources = Resources(workers=1, memory=MemoryShare(usual_bytes=4, alone_bytes=9))
    run = start(root, out, resources=resources, worker=Wanting)
    assert ended_while_it_waits(run, root, out, in_process) == (0, 0, None)
    assert opened(root) == ["a", "a"]
