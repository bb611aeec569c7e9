"""Results survive the way through a file, are compared only with their like, and can be shown."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from bench_fakes import made_library

from spine_bench.findings import Findings, tell
from spine_bench.harness.figures import efficiency, inference_share, server, speedup
from spine_bench.harness.result import (
    Latencies,
    LibraryFacts,
    Machine,
    Result,
    Settings,
    SystemRecord,
    Turn,
)
from spine_bench.harness.stages import StageTimes
from spine_bench.harness.tables import (
    changed,
    compare,
    differences,
    notes,
    page,
    ratio,
    tables,
)
from spine_engine.errors import UsageError

LATE = Latencies(mean_s=0.1, p50_s=0.1, p90_s=0.12, p99_s=0.2, worst_s=0.3)
RATES = {
    "engine": (10.0, 20.0, 30.0),
    "notebook": (1.0, 1.0, 3.0),
    "null": (1e5, 1e5, 1e5),
}


def turn(system, scenario, round_, studies_per_s, **more):
    return Turn(
        **{
            "system": system,
            "scenario": scenario,
            "round": round_,
            "studies": 10,
            "studies_per_s": studies_per_s,
            "cpu_s": 0.05,
            "latencies": LATE,
            "failures": {},
            "stage_seconds": {"read": 0.01},
            "verdict": "valid",
            "doubts": (),
            **more,
        }
    )


def made_result(rates=RATES, digest="0" * 64):
    turns = [
        turn(name, "offline", k, rate)
        for name, each in rates.items()
        for k, rate in enumerate(each)
    ]
    turns += [turn(name, "single-stream", k, 10.0) for name in rates for k in range(3)]
    turns += [
        turn("engine", "server", 0, 9.0, rate=10.0, bound_s=0.3),
        turn(
            "engine",
            "server",
            0,
            11.0,
            rate=13.0,
            bound_s=0.3,
            verdict="invalid",
            doubts=("late: no",),
        ),
    ]
    look = StageTimes(alone_s={"read": 0.02, "grader": 0.06}, together_s={"read": 0.03, "grader": 0.06},
                      inference_studies_per_s=25.0)  # fmt: skip
    return Result(
        schema=1,
        engine_version="1.2.3",
        date="2026-11-22T00:00:00+00:00",
        machine=Machine(
            processor="Some",
            cores=2,
            memory_bytes=8_000_000_000,
            system="Linux",
            python="3.11.0",
            packages={"numpy": "2"},
        ),
        library=LibraryFacts(
            name="made", studies=5, files=9, size_bytes=1_000_000, digest=digest
        ),
        settings=Settings(
            scenarios=("offline",),
            rounds=3,
            seconds=1.0,
            server_queries=500,
            bundle={"name": "lumbar-small"},
        ),
        systems=(
            *(
                SystemRecord(
                    name=name, facts={"workers": "2"}, peak_memory_bytes=5_000_000
                )
                for name in rates
            ),
            SystemRecord(name="tuned-torch", problem="no PyTorch here"),
        ),
        turns=tuple(turns),
        stages=(look, look, look),
    )


def test_a_result_survives_the_way_through_a_file(tmp_path):
    result = made_result()
    tell(Findings(tables=[], record=asdict(result)), tmp_path / "r.json", None, False)
    assert Result.read(tmp_path / "r.json") == result


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(schema=2), "schema is 2"),
        (lambda c: c.pop("turns"), "'turns' is missing"),
        (lambda c: c["turns"][0].update(studies="many"), "studies"),
        (lambda c: c["machine"].update(colour="red"), "colour"),
        (lambda c: c["turns"][0].update(verdict="perhaps"), "perhaps"),
    ],
)
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path, change, said):
    content = json.loads(json.dumps(asdict(made_result())))
    change(content)
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=said):
        Result.read(tmp_path / "r.json")


def test_ratios_are_taken_within_a_round_and_then_their_median():
    result = made_result()
    assert (
        speedup(result, "engine", "notebook").median == 10.0
    )  # of 10, 20, 10; of the medians it would be 20
    assert speedup(result, "engine", "tuned-torch") is None


def test_efficiency_is_what_the_stages_need_over_what_a_study_takes():
    result = made_result()
    assert efficiency(result).median == pytest.approx(0.08 * 20 / 2)
    assert efficiency(result, together=True).median == pytest.approx(0.09 * 20 / 2)
    assert inference_share(result).median == pytest.approx(20 / 25)
    assert server(result, "engine").share == pytest.approx(10 / 20)


def test_results_over_other_studies_are_not_compared():
    with pytest.raises(UsageError, match="different studies"):
        compare(made_result(), made_result(digest="1" * 64))


def test_a_comparison_names_the_ratio_its_spread_and_who_changed():
    faster = made_result({**RATES, "engine": (40.0, 41.0, 42.0)})
    rows = {(row[0], row[1]): row for row in compare(made_result(), faster).rows}
    assert rows["engine", "offline"][-1] == "faster"
    assert rows["notebook", "offline"][-1] == ""
    assert rows["engine", "single-stream"][-2].startswith("1.000")
    change = ratio([1.0, 1.0], [2.0, 2.0])
    assert (change.median, change.low, change.high) == (2.0, 2.0, 2.0)


def test_runs_of_an_unchanged_system_are_seldom_called_changed():
    rng = np.random.default_rng(0)
    pairs = [
        (rng.normal(10, 1, 5).tolist(), rng.normal(10, 1, 5).tolist())
        for _ in range(1000)
    ]
    assert sum(changed(*pair) != "" for pair in pairs) < 60  # 3 % by theory
    assert changed([9.0, 10.0, 11.0, 10.0, 9.5], [7.0, 8.0, 7.5, 8.5, 9.2]) == "slower"


def test_what_else_is_different_is_said():
    other = replace(made_result(), engine_version="2.0.0")
    assert differences(made_result(), other) == ["engine: 1.2.3 before, 2.0.0 after"]


def test_the_tables_and_the_page_hold_every_system_and_problem():
    result = made_result()
    text = page(result, command="spine-engine bench", chart="bench.svg")
    for wanted in (
        "![Studies a second",
        "| notebook | 1.00 (1.00 to 3.00) | 10.0x (10.0 to 20.0)",
        "no PyTorch here",
    ):
        assert wanted in text
    promises = next(table for table in tables(result) if table.title == "Promises")
    verdicts = {row[0]: row[-1] for row in promises.rows}
    assert verdicts["studies/s over notebook"] == "no"
    assert any("M/D/c" in note for note in notes(result))
    assert not [
        row
        for table in tables(result)
        for row in table.rows
        if len(row) != len(table.columns)
    ]


def test_percentiles_need_studies_enough_in_every_round():
    def cells(*counts):
        turns = tuple(
            turn("engine", "single-stream", k, 10.0, studies=count)
            for k, count in enumerate(counts)
        )
        (row,) = next(
            t
            for t in tables(replace(made_result(), turns=turns))
            if t.title == "Latency and grades"
        ).rows
        return row[1:4]

    assert cells(100, 9) == ("100 ms", "-", "-")
    assert cells(99, 10) == ("100 ms", "120 ms", "-")
    assert cells(100, 100) == ("100 ms", "120 ms", "200 ms")


def test_a_failure_of_the_engine_breaks_a_promise():
    def promised(result):
        rows = next(table for table in tables(result) if table.title == "Promises").rows
        return next(row[1:] for row in rows if row[0] == "no study failed")

    result = made_result()
    count = sum(one.studies for one in result.turns if one.system == "engine")
    assert promised(result) == (f"0 of {count}", "0", "yes")
    turns = (replace(result.turns[0], failures={"corrupt_file": 2}), *result.turns[1:])
    assert promised(replace(result, turns=turns)) == (f"2 of {count}", "0", "no")


def test_promises_are_for_the_packaged_bundle_only():
    other = replace(
        made_result(), settings=replace(made_result().settings, bundle={"name": "mine"})
    )
    assert "Promises" not in [table.title for table in tables(other)]


@pytest.mark.parametrize("name", ["chart.svg", "chart.png"])
def test_the_chart_is_written(tmp_path, name):
    pytest.importorskip("matplotlib")
    from spine_bench.harness.chart import draw

    draw(made_result(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    assert len(content) > 4000


def test_a_chart_of_an_unknown_kind_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    from spine_bench.harness.chart import draw

    with pytest.raises(UsageError, match=r"chart\.words"):
        draw(made_result(), tmp_path / "chart.words")


def test_the_digest_is_that_of_names_and_sizes(tmp_path):
    library = made_library(tmp_path)
    assert (
        library.digest
        == replace(library, name="other", units=library.units[::-1]).digest
    )
    assert library.digest != replace(library, units=library.units[:-1]).digest
    assert (library.files, library.size_bytes) == (5, 15)
