import dataclasses
import json
import sqlite3
import time

import pytest
from fakes import graded

from spine_engine.anatomy import LEVELS
from spine_engine.dicom.discovery import InputFile, RefusedFile, WorkUnit
from spine_engine.errors import OutputError, Reason
from spine_engine.results import AlternativeResult, Status, ungraded
from spine_engine.run.ledger import Ledger, LedgerReader

IDENTITY = {"bundle": "b1"}


def unit(key="a", *, size=1, study_id="1", name="x"):
    return WorkUnit(key, (InputFile(f"{key}/{name}", size),), study_id)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def seen_from_outside(path, query):
    with sqlite3.connect(path) as other:
        return other.execute(query).fetchall()


def ids(ledger):
    return [study_id for study_id, _, _ in ledger.outcomes()]


def test_an_attempt_is_on_disk_before_the_unit_is_opened(path):
    ledger = Ledger(path, IDENTITY)
    assert seen_from_outside(path, "PRAGMA journal_mode") == [("wal",)]
    ledger.meet(unit())
    ledger.begin(unit())
    assert seen_from_outside(path, "SELECT attempts, faults, state FROM units") == [
        (1, 0, "open")
    ]
    ledger.fault(unit(), Reason.TIMEOUT)
    ledger.begin(unit())
    assert seen_from_outside(
        path, "SELECT attempts, faults, last_fault FROM units"
    ) == [(2, 1, "timeout")]
    ledger.finish(unit(), [graded("1", b"")], [])
    assert seen_from_outside(path, "SELECT state FROM units") == [("done",)]
    assert seen_from_outside(path, "SELECT study_id, status FROM outcomes") == [
        ("1", "graded")
    ]
    ledger.close()


def test_what_an_earlier_run_left_is_known(path):
    ledger = Ledger(path, IDENTITY)
    for name in "abc":
        ledger.meet(unit(name))
    ledger.begin(unit("a"))
    ledger.begin(unit("b"))
    ledger.finish(unit("b"), [graded("1", b"")], [])
    ledger.begin(unit("c"))
    ledger.withdraw(unit("c"))
    ledger._db.close()  # as if killed
    again = Ledger(path, IDENTITY)
    assert (again.meet(unit("a")).attempts, again.meet(unit("a")).faults) == (1, 0)
    assert again.meet(unit("b")).done
    assert again.meet(unit("c")).attempts == 0


def test_a_unit_whose_files_changed_starts_afresh(path):
    ledger = Ledger(path, IDENTITY)
    ledger.meet(unit(size=1))
    ledger.begin(unit(size=1))
    ledger.finish(
        unit(size=1), [graded("1", b"")], [RefusedFile("a/y", Reason.NOT_AN_IMAGE)]
    )
    assert not ledger.meet(unit(size=2)).done
    assert ids(ledger) == []
    assert ledger.refused_counts() == {}


def test_what_the_input_no_longer_holds_is_forgotten(path):
    ledger = Ledger(path, IDENTITY)
    for name, study in (("a", "1"), ("b", "2")):
        ledger.meet(unit(name))
        ledger.finish(unit(name), [graded(study, b"")], [])
    ledger.refuse(RefusedFile("old", Reason.NOT_AN_IMAGE))
    ledger.close()
    again = Ledger(path, IDENTITY)
    again.meet(unit("b"))
    again.refuse(RefusedFile("new", Reason.UNREADABLE))
    again.sweep(merged=False)
    assert ids(again) == ["2"]
    assert again.refused_counts() == {"unreadable": 1}


def test_parts_of_a_split_unit_come_back_with_their_files(path):
    ledger = Ledger(path, IDENTITY)
    whole = WorkUnit("a", (InputFile("a/1", 5), InputFile("a/2\udc80", 6)), "1")
    parts = (
        WorkUnit("a#1", whole.files[:1], "1"),
        WorkUnit("a#2", whole.files[1:], "2"),
    )
    ledger.meet(whole)
    ledger.split(whole, parts, [RefusedFile("a/3", Reason.NOT_AN_IMAGE)])
    ledger.close()
    again = Ledger(path, IDENTITY)
    assert again.meet(whole).split == parts
    assert again.refused_counts() == {"not_an_image": 1}
    for part in parts:
        again.meet(part, "a")
    again.sweep(merged=False)
    assert again.meet(whole).split == parts


def test_a_study_in_two_units_is_offered_once_more_with_all_files_and_then_counts_once(
    path,
):
    ledger = Ledger(path, IDENTITY)
    for name in "bac":
        ledger.meet(unit(name))
        ledger.finish(
            unit(name), [graded("7" if name != "c" else "8", name.encode())], []
        )
    (merged,) = ledger.scattered()
    assert [entry.path for entry in merged.files] == ["a/x", "b/x"]
    assert merged.study_id == "7"
    ledger.meet(merged)
    ledger.finish(merged, [ungraded("7", Status.FAILED, Reason.UID_COLLISION)], [])
    assert ids(ledger) == ["7", "8"]
    statuses, reasons = ledger.counts()
    assert (dict(statuses), dict(reasons)) == (
        {"failed": 1, "graded": 1},
        {"uid_collision": 1},
    )
    ledger.close()
    # when one of the two is gone the merged outcome goes with it
    again = Ledger(path, IDENTITY)
    again.meet(unit("b"))
    again.sweep(merged=False)
    assert list(again.scattered()) == []
    again.sweep(merged=True)
    assert dict(again.counts()[0]) == {"graded": 1}


def test_a_run_that_could_not_begin_binds_nothing(path):
    ledger = Ledger(path, IDENTITY)
    ledger.agree_device("grader", {"device": "gpu"})
    ledger.meet(unit())
    ledger.begin(unit())
    ledger.close()
    again = Ledger(path, {"bundle": "b2"})
    assert (again.fact("bundle"), again.devices()) == ("b2", {})
    assert (
        again.meet(unit()).attempts == 1
    )  # what may have killed a worker is still known


def test_results_of_something_else_are_not_mixed_in(path):
    ledger = Ledger(path, IDENTITY)
    ledger.meet(unit())
    ledger.finish(unit(), [graded("1", b"")], [])
    ledger.close()
    with pytest.raises(OutputError, match="bundle b1, this run has b2"):
        Ledger(path, {"bundle": "b2"})
    ledger = Ledger(path, IDENTITY)
    ledger.agree("colour", "red")
    with pytest.raises(OutputError, match="colour red"):
        ledger.agree("colour", "green")
    ledger.agree_device("grader", {"device": "cpu"})
    ledger.agree_device("detector", {"device": "npu"})
    with pytest.raises(OutputError, match=r"device of the grader .*cpu"):
        ledger.agree_device("grader", {"device": "gpu"})
    assert list(ledger.devices().items()) == [
        ("detector", {"device": "npu"}),
        ("grader", {"device": "cpu"}),
    ]


def test_a_study_comes_back_with_its_other_numbering(path):
    other = AlternativeResult(
        shift=-1, probability=0.25, centers_mm={LEVELS[0]: (1.0, -2.0, 3.5)}
    )
    ledger = Ledger(path, IDENTITY)
    ledger.meet(unit())
    ledger.finish(
        unit(), [dataclasses.replace(graded("1", b""), alternative=other)], []
    )
    ledger.close()
    ((_, _, line),) = Ledger(path, IDENTITY).outcomes()
    assert json.loads(line)["alternative_levels"] == {
        "shift": -1, "probability": 0.25, "levels": {"l1_l2": [1.0, -2.0, 3.5]},
    }  # fmt: skip


def test_a_damaged_ledger_is_an_output_error(path):
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(OutputError, match="cannot use"):
        Ledger(path, IDENTITY)


def test_outcomes_are_sorted_as_bytes_sort(path):
    ledger = Ledger(path, IDENTITY)
    names = ["é", "b", "10", "9", "B", "a,b", "=x", "", "\U0001f9b4", "\uffee"]
    for index, name in enumerate(names):
        ledger.meet(unit(str(index)))
        ledger.finish(unit(str(index)), [graded(name, b"")], [])
    assert ids(ledger) == sorted(names)


def test_a_reader_gives_the_studies_with_their_files_and_times(path):
    began = time.time()
    ledger = Ledger(path, IDENTITY)
    for key, study_id in (("b", "2"), ("a", "1")):
        ledger.meet(unit(key, study_id=study_id))
        ledger.finish(unit(key, study_id=study_id), [graded(study_id, b"x")], [])
    reader = LedgerReader(path)  # while the ledger is open
    studies = list(reader.studies())
    assert [study.result for study in studies] == [graded("1", b"x"), graded("2", b"x")]
    assert [study.unit for study in studies] == [
        unit("a", study_id="1"),
        unit("b", study_id="2"),
    ]
    assert all(began <= study.finished <= time.time() for study in studies)
    assert reader.study("2") == studies[1]
    assert reader.fact("bundle") == "b1"
    with pytest.raises(KeyError):
        reader.study("3")
    reader.close()
    ledger.close()


def test_a_reader_gives_a_study_of_several_places_once_from_all_of_them(path):
    ledger = Ledger(path, IDENTITY)
    for key in "ab":
        ledger.meet(unit(key, study_id="1"))
        ledger.finish(unit(key, study_id="1"), [graded("1", key.encode())], [])
    (merged,) = ledger.scattered()
    ledger.meet(merged)
    ledger.finish(merged, [graded("1", b"both")], [])
    (study,) = LedgerReader(path).studies()
    assert study.result == graded("1", b"both")
    assert [file.path for file in study.unit.files] == ["a/x", "b/x"]


def test_a_reader_refuses_what_is_no_ledger(path):
    with pytest.raises(OutputError, match="output folder of a run"):
        LedgerReader(path)
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(OutputError, match="cannot read"):
        LedgerReader(path)
