"""A few of the trials that ``python -m spine_bench.faults`` runs by the hundred, and that its checks can fail."""

import json
from types import MappingProxyType

import pytest

from spine_bench.faults import checked, graded, trial
from spine_engine.results import PRIOR_ROWS, prediction_rows


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_whatever_goes_wrong_every_study_is_recorded_once(seed, tmp_path):
    ends = trial(seed, tmp_path)
    assert sum(ends.values()) == 16
    assert ends["graded"] > 4


def record(out, names, reason=None, rows=25, swapped=MappingProxyType({})):
    out.mkdir()
    lines = [
        {
            "study_id": name,
            "status": "graded" if reason is None else "failed",
            "reason": reason,
        }
        for name in names
    ]
    (out / "studies.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    with (out / "predictions.csv").open("w", newline="") as file:
        file.write("row_id,normal_mild,moderate,severe\n")
        for name in names:
            given = PRIOR_ROWS if reason else graded(swapped.get(name, name)).rows
            file.write(
                "".join(
                    f"{line}\n" for line in list(prediction_rows(name, given))[:rows]
                )
            )


@pytest.mark.parametrize(
    ("recorded", "came", "reason", "rows", "error"),
    [
        (["1"], ["1"], None, 25, "lost a study"),
        (["1", "2", "2"], ["1"], None, 25, "lost a study or has one twice"),
        (["1", "2"], ["1", "1"], None, 25, "came twice"),
        (["1", "2"], ["1"], None, 24, "lost a row"),
        (["1", "2"], ["1"], "no_sagittal", 25, "no_sagittal"),
    ],
)
def test_the_checks_see_what_is_wrong(tmp_path, recorded, came, reason, rows, error):
    record(tmp_path / "out", recorded, reason, rows)
    with pytest.raises(AssertionError, match=error):
        checked(["1", "2"], came, tmp_path / "out")


def test_the_checks_see_a_study_with_the_rows_of_another(tmp_path):
    record(tmp_path / "out", ["1", "2"], swapped={"1": "2"})
    with pytest.raises(AssertionError, match="rows of 1 are not its own"):
        checked(["1", "2"], ["1"], tmp_path / "out")


@pytest.mark.parametrize(
    ("reason", "ends"), [("worker_died", {"worker_died": 2}), (None, {"graded": 2})]
)
def test_the_checks_pass_what_is_right(tmp_path, reason, ends):
    record(tmp_path / "out", ["1", "2"], reason)
    assert checked(["1", "2"], ["2", "1"], tmp_path / "out") == ends
