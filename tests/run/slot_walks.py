"""A walk that does what its units' keys say, and a scheduler of it."""

import asyncio

from fakes import Died, Hung, Later

from spine_engine.backends.base import Device
from spine_engine.dicom.discovery import FileEntry, WorkUnit
from spine_engine.scheduler import Scheduler, UnitOutcome
from spine_engine.scheduler.remote import ModelsGoneError

CPU, GPU = Device("fake", "cpu", "f32"), Device("fake", "gpu", "f32")
UNIT = WorkUnit("a", (FileEntry("a/x", 1),), "1")
DONE = UnitOutcome()


class Walk:
    """Does what its units' keys say."""

    def __init__(self):
        self.devices = {"grader": CPU}
        self.waited = False

    def __call__(self, unit):
        if unit.key == "die":
            raise Died
        if unit.key == "hang":
            raise Hung
        if unit.key == "wait" and not self.waited:
            raise Later("w")
        if unit.key == "turns" and not self.waited:
            raise Later("50")
        if unit.key == "gone":
            raise ModelsGoneError(7)
        if unit.key == "raise":
            raise ZeroDivisionError
        if unit.key == "open":
            self.devices = {**self.devices, "detector": GPU}
        return DONE


def named(key):
    return WorkUnit(key, UNIT.files, "1")


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 60))


async def walked(scheduler, key="a", **how):
    async with scheduler.slot(**how) as slot:
        return await slot.walk(named(key))


def scheduler_of(factory=Walk, **options):
    return Scheduler(factory, **{"workers": 1, "timeout_s": 60, **options})
