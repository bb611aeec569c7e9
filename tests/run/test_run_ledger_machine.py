"""The ledger under any order of events, crashes among them, against a model of plain dictionaries."""

import copy
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fakes import graded
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from spine_engine.dicom.discovery import InputFile, RefusedFile, WorkUnit
from spine_engine.errors import Reason
from spine_engine.results import Status, ungraded
from spine_engine.run.ledger import Ledger, LedgerReader, UnitState

IDENTITY = {"bundle": "b1"}
MEMORY_DISK = Path("/dev/shm")  # every step is an fsync
KEYS = ("a", "b", "c\udc80")
REASONS = st.sampled_from(
    [Reason.WORKER_DIED, Reason.TIMEOUT, Reason.NOT_AN_IMAGE, Reason.UNREADABLE]
)
MERGED = "//merged/"


def unit_of(key, size):
    """A unit of two files that all units of that size have in part in common."""
    files = (InputFile(f"{key}/x", size), InputFile(f"{key}/y", 7))
    return WorkUnit(key, files, f"s-{key.encode('ascii', 'ignore').decode()}")


@dataclass
class Known:
    """What a unit is known by."""

    unit: WorkUnit
    met: int
    parent: str | None = None
    state: str = "open"
    attempts: int = 0
    faults: int = 0
    last_fault: Reason | None = None


@dataclass
class Model:
    """What the ledger should hold."""

    run: int = 0
    units: dict = field(default_factory=dict)
    outcomes: dict = field(default_factory=dict)  # (study id, part, unit) -> result
    refused: dict = field(default_factory=dict)  # (path, unit) -> (reason, met)

    def forget(self, keys):
        for key in keys:
            del self.units[key]
        self.outcomes = {
            place: result
            for place, result in self.outcomes.items()
            if place[2] not in keys
        }
        self.refused = {
            place: entry
            for place, entry in self.refused.items()
            if place[1] not in keys
        }

    def meet(self, unit, parent):
        known = self.units.get(unit.key)
        if known is None or known.unit.files != unit.files:
            if known is not None:
                self.forget([unit.key])
            self.units[unit.key] = Known(unit, self.run, parent)
            return UnitState()
        known.met, known.parent = self.run, parent or known.parent
        return UnitState(
            done=known.state == "done",
            split=self.parts(unit.key) if known.state == "split" else (),
            attempts=known.attempts,
            faults=known.faults,
            last_fault=known.last_fault,
        )

    def parts(self, key):
        return tuple(
            known.unit for _, known in sorted(self.units.items()) if known.parent == key
        )

    def sweep(self, merged):
        self.forget(
            [
                key
                for key, known in self.units.items()
                if known.met != self.run and key.startswith(MERGED) == merged
            ]
        )
        if not merged:
            self.refused = {
                p: (r, met)
                for p, (r, met) in self.refused.items()
                if p[1] or met == self.run
            }

    def told(self):
        """The outcome that counts of each study, by study id: that of all its files, else the first unit's."""
        first = {}
        for place in sorted(
            self.outcomes,
            key=lambda place: (
                place[0],
                place[1],
                bytes(place[2], "utf8", "surrogatepass"),
            ),
        ):
            first.setdefault(place[0], (place[2], self.outcomes[place]))
        return first

    def scattered(self):
        units = {}
        for study_id, part, key in self.outcomes:
            if part == 1:
                units.setdefault(study_id, []).append(key)
        for study_id in sorted(
            study_id for study_id, keys in units.items() if len(keys) > 1
        ):
            files = {
                file for key in units[study_id] for file in self.units[key].unit.files
            }
            yield WorkUnit(
                MERGED + study_id,
                tuple(sorted(files, key=lambda file: file.path)),
                study_id,
            )


class LedgerMachine(RuleBasedStateMachine):
    """Does to a ledger what runs do, in any order, and crashes."""

    @initialize()
    def open(self):
        self.folder = Path(
            tempfile.mkdtemp(dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None)
        )
        self.path = self.folder / "ledger.sqlite"
        self.model, self.committed = Model(), Model()
        self.reopen()

    def reopen(self):
        self.ledger = Ledger(self.path, IDENTITY)
        self.model.run += 1
        self.commit()

    def commit(self):
        self.committed = copy.deepcopy(self.model)

    def open_units(self):
        model = self.model
        return [
            known
            for _, known in sorted(model.units.items())
            if known.met == model.run and known.state == "open"
        ]

    def pick(self, data):
        return data.draw(st.sampled_from(self.open_units()))

    has_open = precondition(lambda self: self.open_units())

    @rule(key=st.sampled_from(KEYS), size=st.sampled_from([1, 1, 1, 2]))
    def meet(self, key, size):
        unit = unit_of(key, size)
        assert self.ledger.meet(unit) == self.model.meet(unit, None)

    @has_open
    @rule(data=st.data())
    def begin(self, data):
        known = self.pick(data)
        self.ledger.begin(known.unit)
        known.attempts += 1
        self.commit()

    @has_open
    @rule(data=st.data(), reason=REASONS)
    def fault(self, data, reason):
        known = self.pick(data)
        self.ledger.fault(known.unit, reason)
        known.faults, known.last_fault = known.faults + 1, reason
        self.commit()

    @has_open
    @rule(data=st.data())
    def withdraw(self, data):
        known = self.pick(data)
        self.ledger.withdraw(known.unit)
        known.attempts -= 1
        self.commit()

    @has_open
    @rule(
        data=st.data(),
        studies=st.lists(st.sampled_from("123"), unique=True, max_size=2),
        reason=st.none() | REASONS,
    )
    def finish(self, data, studies, reason):
        known = self.pick(data)
        key, seed = known.unit.key, known.unit.key.encode("utf-8", "surrogatepass")
        merged = key.startswith(MERGED)
        studies = [known.unit.study_id] if merged else studies
        results = [
            ungraded(s, Status.FAILED, reason) if reason else graded(s, seed)
            for s in studies
        ]
        refused = [RefusedFile(f"{key}/odd", reason)] if reason else []
        self.ledger.finish(known.unit, results, refused)
        for result in results:
            self.model.outcomes[(result.study_id, 0 if merged else 1, key)] = result
        for file in refused:
            self.model.refused[(file.path, key)] = (file.reason, self.model.run)
        known.state, known.attempts, known.faults = "done", 0, 0
        self.commit()

    @precondition(
        lambda self: any(
            "#" not in k.unit.key and k.unit.key in KEYS for k in self.open_units()
        )
    )
    @rule(data=st.data(), reason=st.none() | REASONS)
    def split(self, data, reason):
        known = data.draw(
            st.sampled_from([k for k in self.open_units() if k.unit.key in KEYS])
        )
        key, model = known.unit.key, self.model
        parts = [
            WorkUnit(f"{key}#{n}", known.unit.files[n : n + 1], str(n)) for n in (0, 1)
        ]
        refused = [RefusedFile(f"{key}/odd", reason)] if reason else []
        self.ledger.split(known.unit, parts, refused)
        model.forget([part.key for part in model.parts(key)])
        for file in refused:
            model.refused[(file.path, key)] = (file.reason, model.run)
        for part in parts:
            model.meet(part, key)
        known.state, known.attempts, known.faults = "split", 0, 0
        self.commit()

    @precondition(
        lambda self: any(known.state == "split" for known in self.model.units.values())
    )
    @rule(data=st.data())
    def meet_parts(self, data):
        keys = sorted(
            key for key, known in self.model.units.items() if known.state == "split"
        )
        key = data.draw(st.sampled_from(keys))
        for part in self.model.parts(key):
            assert self.ledger.meet(part, key) == self.model.meet(part, key)

    @rule(path=st.sampled_from(["q", "r\udcff"]), reason=REASONS)
    def refuse(self, path, reason):
        self.ledger.refuse(RefusedFile(path, reason))
        self.model.refused[(path, "")] = (reason, self.model.run)

    @rule(merged=st.booleans())
    def sweep(self, merged):
        self.ledger.sweep(merged=merged)
        self.model.sweep(merged)
        self.commit()

    @rule()
    def meet_scattered(self):
        expected = list(self.model.scattered())
        assert list(self.ledger.scattered()) == expected
        for unit in expected:
            assert self.ledger.meet(unit) == self.model.meet(unit, None)

    @rule()
    def run_again(self):
        self.ledger.close()
        self.reopen()

    @rule()
    def crash(self):
        self.ledger._db.close()  # without a commit, as by kill -9
        self.model = self.committed
        self.reopen()

    @rule()
    def look_from_outside(self):
        reader = LedgerReader(self.path)
        seen = {
            study.result.study_id: (study.unit.key, study.result)
            for study in reader.studies()
        }
        reader.close()
        expected = self.committed.told()
        assert list(seen) == list(expected)
        for study_id, (key, result) in expected.items():
            assert seen[study_id] == (key, result)

    @invariant()
    def the_ledger_tells_what_the_model_holds(self):
        if not hasattr(self, "ledger"):
            return
        told = self.model.told()
        recorded = [
            (study_id, tuple(map(tuple, rows)))
            for study_id, rows, _ in self.ledger.outcomes()
        ]
        assert recorded == [
            (study_id, result.rows) for study_id, (_, result) in told.items()
        ]
        statuses, reasons = self.ledger.counts()
        assert statuses == Counter(result.status for _, result in told.values())
        assert reasons == Counter(
            result.reason for _, result in told.values() if result.reason
        )
        by_reason = {}
        for (path, _), (reason, _) in self.model.refused.items():
            by_reason.setdefault(str(reason), set()).add(path)
        assert self.ledger.refused_counts() == {
            reason: len(paths) for reason, paths in sorted(by_reason.items())
        }
        paths = sorted(
            {path for path, _ in self.model.refused},
            key=lambda path: path.encode("utf-8", "surrogatepass"),
        )
        assert [path for path, _ in self.ledger.refused_files(limit=99)] == paths
        assert [path for path, _ in self.ledger.refused_files(limit=1)] == paths[:1]

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()
            shutil.rmtree(self.folder)


LedgerMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None
)
test_the_ledger_holds_what_happened_whatever_the_order = LedgerMachine.TestCase
