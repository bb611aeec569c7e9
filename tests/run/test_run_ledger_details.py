"""When the ledger commits, what it sorts by, which version it reads, and how long it remembers."""

import sqlite3

import pytest
from fakes import graded

from spine_engine.dicom.discovery import InputFile, RefusedFile, WorkUnit
from spine_engine.errors import OutputError, Reason
from spine_engine.results import Status, ungraded
from spine_engine.run.ledger import Ledger, LedgerReader


def unit(key="a", size=1, study_id="1"):
    return WorkUnit(key, (InputFile(f"{key}/x", size),), study_id)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    ledger = Ledger(path, {"bundle": "b1"})
    yield ledger
    ledger.close()


def on_disk(path, query):
    other = sqlite3.connect(path)
    try:
        return other.execute(query).fetchall()
    finally:
        other.close()


def refuse(ledger, count, first=0):
    for number in range(first, first + count):
        ledger.refuse(RefusedFile(f"{number:04}", Reason.NOT_AN_IMAGE))


REFUSED = "SELECT count(*) FROM refused"


def test_small_notes_are_committed_500_at_a_time(path, ledger):
    refuse(ledger, 499)
    assert on_disk(path, REFUSED) == [(0,)]
    refuse(ledger, 1, 499)
    assert on_disk(path, REFUSED) == [(500,)]
    refuse(ledger, 499, 500)
    assert on_disk(path, REFUSED) == [(500,)]
    refuse(ledger, 1, 999)
    assert on_disk(path, REFUSED) == [(1000,)]


def test_units_met_again_are_such_notes(path):
    ledger = Ledger(path, {})
    ledger.meet(unit())
    ledger.close()
    again = Ledger(path, {})
    for _ in range(499):
        again.meet(unit())
    assert on_disk(path, "SELECT met FROM units") == [(1,)]
    again.meet(unit())
    assert on_disk(path, "SELECT met FROM units") == [(2,)]
    again.close()


EVENTS = {
    "begin": lambda ledger: ledger.begin(unit()),
    "fault": lambda ledger: ledger.fault(unit(), Reason.TIMEOUT),
    "withdraw": lambda ledger: ledger.withdraw(unit()),
    "finish": lambda ledger: ledger.finish(unit(), [graded("1", b"")], []),
    "split": lambda ledger: ledger.split(unit(), [unit("a#1")], []),
    "sweep": lambda ledger: ledger.sweep(merged=True),
    "agree": lambda ledger: ledger.agree("colour", "red"),
    "agree_device": lambda ledger: ledger.agree_device("grader", {"device": "cpu"}),
    "close": lambda ledger: ledger.close(),
}


@pytest.mark.parametrize("event", EVENTS)
def test_whatever_counts_is_on_the_disk_at_once_with_all_notes_before_it(path, event):
    ledger = Ledger(path, {})
    ledger.meet(unit())
    refuse(ledger, 3)
    assert on_disk(path, "SELECT count(*) FROM units") == [(0,)]
    EVENTS[event](ledger)
    assert on_disk(path, REFUSED) == [(3,)]
    assert on_disk(path, "SELECT count(*) FROM units WHERE key = x'61'") == [(1,)]
    if event != "close":
        refuse(ledger, 497, 3)  # the count of notes begins anew
        assert on_disk(path, REFUSED) == [(3,)]
        ledger.close()


def test_commits_are_synced_to_the_disk(path, ledger):
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_ledger_is_one_file_after_the_end(path, tmp_path):
    Ledger(path, {}).close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["ledger.sqlite"]


def test_runs_are_counted(path):
    for number in (1, 2, 3):
        ledger = Ledger(path, {})
        assert ledger.fact("runs") == str(number)
        assert ledger.fact("colour") is None
        ledger.close()


def test_faults_are_told_apart_from_attempts_that_vanished(ledger):
    ledger.meet(unit())
    for _ in range(3):
        ledger.begin(unit())
    ledger.fault(unit(), Reason.TIMEOUT)
    ledger.fault(unit(), Reason.WORKER_DIED)
    known = ledger.meet(unit())
    assert (known.attempts, known.faults, known.last_fault) == (
        3,
        2,
        Reason.WORKER_DIED,
    )
    assert (known.done, known.split) == (False, ())
    ledger.finish(unit(), [graded("1", b"")], [])
    known = ledger.meet(unit())
    assert (known.done, known.attempts, known.faults) == (True, 0, 0)


def test_a_split_unit_starts_its_count_afresh(ledger):
    ledger.meet(unit())
    ledger.begin(unit())
    ledger.fault(unit(), Reason.TIMEOUT)
    ledger.split(unit(), [unit("a#1")], [])
    known = ledger.meet(unit())
    assert (known.attempts, known.faults, known.done, known.split) == (
        0,
        0,
        False,
        (unit("a#1"),),
    )


def test_a_unit_split_anew_forgets_its_earlier_parts_and_their_studies(ledger):
    ledger.meet(unit())
    ledger.split(
        unit(), [unit("a#1"), unit("a#2")], [RefusedFile("a/odd", Reason.CORRUPT_FILE)]
    )
    ledger.finish(
        unit("a#1"), [graded("1", b"")], [RefusedFile("a/x", Reason.NOT_AN_IMAGE)]
    )
    ledger.meet(unit(size=2))
    assert ledger.refused_counts() == {"not_an_image": 1}
    ledger.split(unit(size=2), [unit("a#3")], [])
    assert ledger.meet(unit(size=2)).split == (unit("a#3"),)
    assert list(ledger.outcomes()) == []
    assert ledger.refused_counts() == {}


def test_parts_of_a_part_belong_to_it_alone(ledger):
    ledger.meet(unit())
    ledger.meet(unit("b"))
    ledger.split(unit(), [unit("a#2"), unit("a#1")], [])
    ledger.split(unit("b"), [unit("b#1")], [])
    assert ledger.meet(unit()).split == (unit("a#1"), unit("a#2"))
    assert ledger.meet(unit("b")).split == (unit("b#1"),)
    assert ledger.meet(unit("a#1")).split == ()


def test_a_part_met_by_itself_still_belongs_to_its_whole(ledger):
    ledger.meet(unit())
    ledger.split(unit(), [unit("a#1")], [])
    ledger.meet(unit("a#1"))
    assert ledger.meet(unit()).split == (unit("a#1"),)


@pytest.mark.parametrize("merged", [True, False])
def test_a_sweep_forgets_units_of_its_kind_that_this_run_did_not_meet(path, merged):
    whole = WorkUnit("//merged/1", unit().files, "1")
    ledger = Ledger(path, {})
    for each in (unit(), unit("b"), whole):
        ledger.meet(each)
        ledger.finish(
            each,
            [graded(f"of {each.key}", b"")],
            [RefusedFile(f"{each.key}/odd", Reason.CORRUPT_FILE)],
        )
    refuse(ledger, 1)
    ledger.close()
    again = Ledger(path, {})
    again.meet(unit("b"))
    again.sweep(merged=merged)
    left = {"of a", "of b", "of //merged/1"} - (
        {"of //merged/1"} if merged else {"of a"}
    )
    assert {study_id for study_id, _, _ in again.outcomes()} == left
    assert again.refused_counts() == {
        "corrupt_file": 2,
        **({"not_an_image": 1} if merged else {}),
    }
    again.close()


def test_refused_files_are_counted_once_by_reason_and_named_by_path(ledger):
    ledger.meet(unit())
    ledger.refuse(RefusedFile("b", Reason.UNREADABLE))
    ledger.refuse(RefusedFile("c\udcff", Reason.TOO_LARGE))
    ledger.refuse(
        RefusedFile("b", Reason.NOT_AN_IMAGE)
    )  # told again: the later word counts
    again = RefusedFile("c\udcff", Reason.TOO_LARGE)
    ledger.finish(
        unit(),
        [],
        [
            RefusedFile("a", Reason.CORRUPT_FILE),
            RefusedFile("b", Reason.UNREADABLE),
            again,
        ],
    )
    assert list(ledger.refused_counts().items()) == [
        ("corrupt_file", 1), ("not_an_image", 1), ("too_large", 1), ("unreadable", 1),
    ]  # fmt: skip
    named = [("a", "corrupt_file"), ("b", "not_an_image"), ("c\udcff", "too_large")]
    assert ledger.refused_files(limit=9) == named
    assert ledger.refused_files(limit=2) == named[:2]
    assert ledger.refused_files(limit=0) == []


def test_scattered_studies_come_sorted_each_with_its_files_once(ledger):
    shared = InputFile("z/shared", 3)
    for key, study_id in (("b", "2"), ("a", "1"), ("c", "1"), ("d", "2"), ("e", "3")):
        each = WorkUnit(key, (InputFile(f"{key}/x", 1), shared), study_id)
        ledger.meet(each)
        ledger.finish(each, [graded(study_id, b"")], [])
    assert list(ledger.scattered()) == [
        WorkUnit("//merged/1", (InputFile("a/x", 1), InputFile("c/x", 1), shared), "1"),
        WorkUnit("//merged/2", (InputFile("b/x", 1), InputFile("d/x", 1), shared), "2"),
    ]


def test_a_study_counts_once_by_the_outcome_of_all_its_files_or_else_of_the_first_unit(
    path, ledger
):
    for key, reason in (
        ("b", Reason.TIMEOUT),
        (".", Reason.NO_SAGITTAL),
    ):  # the input itself sorts before all else
        ledger.meet(unit(key))
        ledger.finish(unit(key), [ungraded("1", Status.FAILED, reason)], [])
    assert [dict(counts) for counts in ledger.counts()] == [
        {"failed": 1},
        {"no_sagittal": 1},
    ]
    whole = WorkUnit("//merged/1", (*unit(".").files, *unit("b").files), "1")
    ledger.meet(whole)
    ledger.finish(whole, [graded("1", b"whole")], [])
    assert [dict(counts) for counts in ledger.counts()] == [{"graded": 1}, {}]
    ((_, rows, _),) = ledger.outcomes()
    assert tuple(map(tuple, rows)) == graded("1", b"whole").rows
    reader = LedgerReader(path)
    assert (
        [study.unit for study in reader.studies()]
        == [reader.study("1").unit]
        == [whole]
    )
    reader.close()


def test_a_ledger_of_another_version_is_refused(path):
    Ledger(path, {}).close()
    with sqlite3.connect(path) as other:
        other.execute("UPDATE facts SET value = '1' WHERE name = 'schema'")
    other.close()
    with pytest.raises(OutputError, match="made with schema 1, this run has 3"):
        Ledger(path, {})
    with pytest.raises(
        OutputError,
        match="another version of spine-engine; run again into a new folder",
    ):
        LedgerReader(path)


def test_a_ledger_without_a_version_is_refused_by_a_reader(path):
    Ledger(path, {}).close()
    with sqlite3.connect(path) as other:
        other.execute("DELETE FROM facts")
    other.close()
    with pytest.raises(OutputError, match="another version"):
        LedgerReader(path)


def test_a_reader_changes_nothing_and_makes_no_file(tmp_path):
    path = tmp_path / "odd ?#%41 name" / "ledger.sqlite"
    path.parent.mkdir()
    ledger = Ledger(path, {"bundle": "b1"})
    ledger.meet(unit())
    ledger.finish(unit(), [graded("1", b"")], [])
    ledger.close()
    reader = LedgerReader(path)
    assert [study.result.study_id for study in reader.studies()] == ["1"]
    assert (reader.fact("bundle"), reader.fact("colour")) == ("b1", None)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._db.execute("DELETE FROM outcomes")
    reader.close()
    with pytest.raises(OutputError, match="output folder of a run"):
        LedgerReader(tmp_path / "missing" / "ledger.sqlite")
    assert not (tmp_path / "missing").exists()


def test_a_folder_whose_ledger_holds_no_outcome_is_bound_to_nothing_but_its_version(
    path,
):
    ledger = Ledger(path, {"bundle": "b1"})
    ledger.agree_device("grader", {"device": "gpu"})
    ledger.close()
    again = Ledger(path, {"bundle": "b2"})
    assert (
        again.fact("bundle"),
        again.fact("runs"),
        again.fact("schema"),
        again.devices(),
    ) == ("b2", "2", "3", {})
    again.meet(unit())
    again.finish(unit(), [graded("1", b"")], [])
    again.close()
    with pytest.raises(OutputError, match="bundle b2, this run has b3"):
        Ledger(path, {"bundle": "b3"})
