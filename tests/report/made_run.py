"""What the fixtures' run recorded, for tests of its report."""

from spine_engine.bundle import Bundle
from spine_engine.dicom import RoleOverrides
from spine_engine.report.reading import StudySource
from spine_engine.run.ledger import LEDGER_FILE, LedgerReader


def recorded(output):
    reader = LedgerReader(output / LEDGER_FILE)
    try:
        return list(reader.studies())
    finally:
        reader.close()


def source(graded, **changes):
    facts = {
        "root": graded / "studies",
        "overrides": RoleOverrides.find(graded / "studies"),
        "grader": Bundle.open().grader,
        "provenance": (),
        "with_identity": False,
    }
    return StudySource(**{**facts, **changes})


def first_graded(output):
    return next(study for study in recorded(output) if study.result.status == "graded")
