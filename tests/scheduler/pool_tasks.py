"""Tasks of one word, a worker that does what they say, and a pool of it."""

import asyncio

from fakes import Died, Hung, Later

from spine_engine.scheduler import CompanionLostError, WorkerPool

CPU, GPU = "on the CPU", "on the GPU"
OUTCOME = "done"


class WordWorker:
    """Does what its tasks say."""

    def __init__(self):
        self.facts = {"grader": CPU}
        self.waited = False

    def run(self, task):
        if task == "die":
            raise Died
        if task == "hang":
            raise Hung
        if task == "wait" and not self.waited:
            raise Later("w")
        if task == "turns" and not self.waited:
            raise Later("50")
        if task == "gone":
            raise CompanionLostError(7)
        if task == "raise":
            raise ZeroDivisionError
        if task == "open":
            self.facts = {**self.facts, "detector": GPU}
        return OUTCOME, self.facts


def made():
    worker = WordWorker()
    return worker, worker.facts


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 60))


async def done(pool, task="a", **how):
    async with pool.slot(**how) as slot:
        return await slot.run(task)


def pool_of(factory=made, **options):
    return WorkerPool(factory, **{"workers": 1, "timeout_s": 60, **options})
