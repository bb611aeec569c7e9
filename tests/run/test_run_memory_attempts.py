"""Running out of its share of the memory is held against no study."""

import threading

from fakes import FakeWalk, Later, discover, opened, start, write_exam

from spine_engine.ledger import Ledger
from spine_engine.resources import Resources
from spine_engine.scheduler import MemoryShare


def test_the_attempt_that_was_short_of_memory_is_taken_back(root, out, in_process):
    class Wanting(FakeWalk):
        def do(self, deed):
            if self.limit_bytes == 4:
                raise MemoryError
            raise Later("w")

    write_exam(root, "a", "1")
    resources = Resources(workers=1, memory=MemoryShare(usual_bytes=4, alone_bytes=9))
    run = start(root, out, resources=resources, factory=lambda: Wanting(root, root.parent / "opened.log"))
    finished = threading.Thread(target=run.finish)
    finished.start()
    in_process.await_wait("w")
    assert opened(root) == ["a", "a"]
    run.abort()
    finished.join()
    ledger = Ledger(out / "ledger.sqlite", {})
    (unit,) = discover(root)
    known = ledger.meet(unit)
    ledger.close()
    assert (known.attempts, known.faults) == (0, 0)
