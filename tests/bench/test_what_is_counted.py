"""A server run with failures sets no rate, a disc that was not found is no near miss, a broken promise ends with 1."""

import numpy as np
import pytest

from spine_bench import acceptance
from spine_bench.acceptance import Figure, _errors_mm
from spine_bench.harness.interfaces import Answer
from spine_bench.harness.loadgen import _Book

GOOD = "Result is : VALID\n"


def closed(*answers):
    book = _Book(lambda query: None)
    book.issued(range(len(answers)))
    for query, answer in enumerate(answers):
        book.close(query, answer)
    return book


GRADED = Answer(probabilities=np.full((5, 5, 3), 1 / 3))
FAILED = Answer(probabilities=None, failure="timeout")


@pytest.mark.parametrize(
    ("answers", "summary", "valid", "doubts"),
    [
        ([GRADED, GRADED], GOOD, True, ()),
        ([GRADED, FAILED], GOOD, False, ("1 studies were not graded",)),
        (
            [GRADED, Answer(probabilities=None)],
            GOOD,
            False,
            ("1 studies were not graded",),
        ),
        ([GRADED], "Result is : INVALID\n", False, ()),
    ],
)
def test_a_run_is_valid_when_every_study_was_graded_and_loadgen_says_so(
    answers, summary, valid, doubts
):
    outcome = closed(*answers).outcome(summary)
    assert (outcome.valid, outcome.doubts) == (valid, doubts)


def test_a_query_that_is_answered_twice_spoils_the_run():
    book = closed(GRADED)
    book.close(0, GRADED)
    outcome = book.outcome(GOOD)
    assert (outcome.valid, outcome.doubts) == (
        False,
        ("1 queries were answered twice",),
    )


def test_a_disc_that_was_not_found_is_infinitely_far_off():
    line = {
        "series": [{"path": "a/t2"}],
        "levels": {"l1_l2": {"center_mm": [0, 0, 3]}, "l2_l3": {"center_mm": None}},
    }
    truth = {"a": {"l1_l2": [0, 4, 0], "l2_l3": [0, 0, 0], "l3_l4": [0, 0, 0]}}
    assert _errors_mm(line, truth).tolist() == [5.0, np.inf, np.inf]


@pytest.mark.parametrize(
    ("verdicts", "failure"),
    [((True, None), ""), ((True, False), "a promise is not kept")],
)
def test_one_broken_promise_of_many_is_a_failure(monkeypatch, verdicts, failure):
    figures = [Figure("promise", "1", "2", met) for met in verdicts]
    for name in ("mirror", "pose", "upright", "scan_again", "same_bytes", "memory"):
        given = figures if name == "pose" else []
        monkeypatch.setattr(acceptance, name, lambda *args, given=given, **named: given)
    monkeypatch.delenv("SPINE_REAL_DATA", raising=False)
    assert acceptance.measure(phantom_studies=1, many=1).failure == failure
