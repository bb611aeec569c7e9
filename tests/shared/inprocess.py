"""Workers without processes: a pool that runs tasks in the run's own thread, so that a test need start nothing.

A task is done the moment it is submitted, unless its deed says that it takes a while; a hang never ends. Deaths break
the pool as they break a real one.
"""

import asyncio
import os
import time
from collections import defaultdict
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

from fakes import Died, Hung, Later

from spine_engine.scheduler import pool as room


class Workers:
    """All workers that were started, what they were told, and who was at work beside whom."""

    def __init__(self):
        self.pools = []
        self.limits = []
        self.in_flight = set()
        self.beside = defaultdict(list)
        self.waiting = {}
        self.most_in_flight = 0

    def pool(self, *arguments, **named):
        self.pools.append(Pool(self, -1 - len(self.pools), arguments, named))
        return self.pools[-1]

    def limit_memory(self, pid, limit_bytes, most_bytes):
        self.limits.append((pid, limit_bytes, most_bytes))
        self.pools[-1 - pid].worker.limit_bytes = limit_bytes

    def await_wait(self, name):
        """Return once a task waits under ``name``."""
        deadline = time.monotonic() + 60
        while name not in self.waiting:
            assert time.monotonic() < deadline, f"no task came to wait for {name}"
            time.sleep(0.001)

    def let_go(self, name):
        """Let the task that waits under ``name`` go on. Callable from any thread."""
        loop, carry_on = self.waiting.pop(name)
        loop.call_soon_threadsafe(carry_on)


class Pool:
    """Stands in for ``ProcessPoolExecutor(1, ...)``."""

    def __init__(self, workers, pid, arguments, named):
        self.workers, self.pid, self.arguments, self.named = (
            workers,
            pid,
            arguments,
            named,
        )
        self.worker = self.key = None
        self.broken = self.ended = False

    def submit(self, call, *arguments):
        if self.broken or self.ended:
            raise BrokenProcessPool("no worker")
        future = Future()
        if call is os.getpid:
            future.set_result(self.pid)
            return future
        if call is room._run_task:
            self._enter(getattr(arguments[0], "key", arguments[0]), future)
        self._carry_out(future, call, arguments)
        return future

    def shutdown(self, *, wait, cancel_futures):
        assert not wait, "a worker that hangs would be waited for"
        assert cancel_futures
        self.ended = True
        self.workers.in_flight.discard(self.key)

    def _enter(self, key, future):
        workers, self.key = self.workers, key
        workers.beside[key].append(frozenset(workers.in_flight))
        workers.in_flight.add(key)
        workers.most_in_flight = max(workers.most_in_flight, len(workers.in_flight))
        future.add_done_callback(lambda _: workers.in_flight.discard(key))

    def _carry_out(self, future, call, arguments):
        if self.ended or future.done():
            return
        room._worker, before = self.worker, room._worker
        try:
            future.set_result(call(*arguments))
        except Died:
            self.broken = True
            future.set_exception(BrokenProcessPool("died"))
        except Hung:
            pass
        except Later as later:
            self._later(later.until, lambda: self._again(future, call, arguments))
        except Exception as error:  # noqa: BLE001 - as a real pool does
            future.set_exception(error)
        finally:
            self.worker, room._worker = room._worker, before

    def _again(self, future, call, arguments):
        self.worker.waited = True
        self._carry_out(future, call, arguments)
        self.worker.waited = False

    def _later(self, until, carry_on):
        loop = asyncio.get_running_loop()
        if not until.isdigit():
            self.workers.waiting[until] = (loop, carry_on)
            return

        def turn(left):
            if left:
                loop.call_soon(turn, left - 1)
            else:
                carry_on()

        turn(int(until))
