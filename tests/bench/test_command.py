"""``spine-engine bench`` from the outside, with a fake system."""

import json

import pytest
from typer.testing import CliRunner

from spine_bench.command import app, without_folders

pytest.importorskip("mlperf_loadgen")


def bench(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_measure_show_compare(phantoms, hosts, tmp_path):
    hosts.deeds = {
        "bench_fakes:fast": {"service_s": 0.01},
        "null": {"service_s": 0.001},
    }
    asked = [
        "--input",
        phantoms.root,
        "--scenario",
        "offline",
        "--rounds",
        2,
        "--seconds",
        0.1,
        "--no-stages",
    ]
    out = tmp_path / "a.json"
    done = bench(
        *asked,
        "--systems",
        "bench_fakes:fast,null",
        "--out",
        out,
        "--markdown",
        tmp_path / "a.md",
    )
    assert done.exit_code == 0, done.output
    assert "bench_fakes:fast" in done.stdout
    content = json.loads(out.read_text())
    assert [turn["system"] for turn in content["turns"]].count("null") == 2
    assert "| null |" in (tmp_path / "a.md").read_text()

    shown = bench("show", out, "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout) == content

    compared = bench("compare", out, out)
    assert compared.exit_code == 0, compared.output
    assert "1.000" in compared.stdout


def test_failures_of_the_engine_are_told_and_end_with_1(phantoms, hosts, monkeypatch):
    hosts.deeds = {"bench_fakes:failing_all": {"service_s": 0.01, "failing": True}}
    monkeypatch.setattr("spine_bench.harness.figures.ENGINE", "bench_fakes:failing_all")
    asked = [
        "--input",
        phantoms.root,
        "--scenario",
        "offline",
        "--rounds",
        1,
        "--seconds",
        0.1,
        "--no-stages",
    ]
    done = bench(*asked, "--systems", "bench_fakes:failing_all")
    assert done.exit_code == 1
    assert "the engine failed" in done.stderr
    assert "takes about 1 min on 2 cores" in done.stderr.splitlines()[0]


def test_the_page_names_no_folder_of_the_machine():
    words = [
        "bench",
        "--input",
        "some/exams",
        "--bundle=/opt/models/small",
        "--out",
        "build/a.json",
        "/home/me/b.json",
    ]
    kept = [
        "bench",
        "--input",
        "exams",
        "--bundle=small",
        "--out",
        "build/a.json",
        "b.json",
    ]
    assert without_folders(words) == kept
    assert without_folders(["--chart", "../me/c.svg"]) == ["--chart", "c.svg"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--systems", "engine,enigne"], "no system 'enigne'"),
        (["--systems", ","], "names none"),
        (["compare", "no.json", "no.json"], "cannot read no.json"),
    ],
)
def test_mistakes_are_told(words, said):
    done = bench(*words)
    assert done.exit_code != 0
    assert said in str(done.exception)


def test_a_server_run_that_nobody_would_believe_is_refused():
    done = bench("--server-queries", 100)
    assert done.exit_code == 2
    assert "459" in done.output
