"""``spine-engine run``: its options, its exit codes, and what it prints."""

import json
from pathlib import Path

import pytest
from fakes import no_backend, start, write_exam
from typer.testing import CliRunner

from spine_engine import cli
from spine_engine.engine import Engine
from spine_engine.errors import BundleError
from spine_engine.options import RunOptions
from spine_engine.run.folders import locked
from spine_engine.run.shards import WHOLE

IN, OUT = "--input", "--output"


@pytest.fixture
def spine_engine(monkeypatch, in_process):
    """The command with fake exams instead of DICOM and models: returns what a call printed and its exit code."""
    asked = {}

    class FakeEngine:
        def __init__(self, options):
            self.options = options

        def run(self, folder, output, *, shard=WHOLE):
            asked.update(folder=folder, output=output)
            return self.start(Path(folder), output, shard=shard)

        def merge(self, shards, folder, output):
            return self.start(
                Path(folder), output, shards=shards, discover=lambda root: iter(())
            )

        def start(self, folder, output, **how):
            names = ("timeout_s", "max_attempts", "precision", "detector")
            options = {name: getattr(self.options, name) for name in names}
            return start(folder, output, factory=asked.get("factory"), **how, **options)

    def open_engine(bundle=None, *, options=None, trust=False):
        asked.update(bundle=bundle, options=options)
        if bundle is not None and not Path(bundle).exists():
            raise BundleError(f"{bundle} holds no bundle; name one")
        return FakeEngine(options)

    monkeypatch.setattr(Engine, "open", open_engine)

    def call(*words, factory=None):
        asked["factory"] = factory
        return CliRunner().invoke(cli.app, [str(word) for word in words])

    call.asked = asked
    return call


@pytest.fixture
def root(tmp_path):
    write_exam(tmp_path / "input", "a", "1")
    return tmp_path / "input"


def test_a_run_ends_with_a_short_summary(spine_engine, root, tmp_path):
    done = spine_engine("run", IN, root, OUT, tmp_path / "out")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) <= 8
    assert lines[0] == "1 studies: 1 graded, 0 prior, 0 failed"
    assert (
        f"Results: {tmp_path / 'out'}/predictions.csv, studies.jsonl, run.json" in lines
    )
    assert (
        lines[-1]
        == "Research use only; the grades of the packaged bundle are a demonstration."
    )
    write_exam(root, "b", "2", "prior")
    done = spine_engine(
        "run", IN, root, OUT, tmp_path / "out", "--bundle", tmp_path, "--json"
    )
    assert done.exit_code == 8
    assert json.loads(done.stdout)["studies"] == {
        "total": 2,
        "graded": 1,
        "prior": 1,
        "failed": 0,
        "incomplete": 0,
    }
    assert json.loads(done.stdout)["options"]["detector"] is True
    done = spine_engine(
        "run", IN, root, OUT, tmp_path / "other", "--no-detector", "--json"
    )
    assert json.loads(done.stdout)["options"]["detector"] is False


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--workers", "0"], 2, "workers must be between"),
        (["--timeout-s", "-1"], 2, "timeout_s must be above"),
        (["--max-attempts", "99"], 2, "max_attempts must be between"),
        ([IN, "missing"], 2, "does not exist"),
        (["--bundle", "missing"], 3, "holds no bundle"),
        ([OUT, "/proc/spine-engine"], 6, "cannot write"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    spine_engine, root, tmp_path, words, code, message
):
    done = spine_engine("run", IN, root, OUT, tmp_path / "out", *words)
    assert done.exit_code == code
    assert message in done.stderr
    assert done.stderr.startswith("spine-engine: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_no_backend_and_a_busy_output_have_codes_of_their_own(
    spine_engine, root, tmp_path
):
    done = spine_engine("run", IN, root, OUT, tmp_path / "out", factory=no_backend)
    assert (done.exit_code, done.stderr) == (4, "spine-engine: no such backend here\n")
    with locked(tmp_path / "out"):
        assert spine_engine("run", IN, root, OUT, tmp_path / "out").exit_code == 5


OPTIONS = {
    "--workers 3": {"workers": 3},
    "--threads 2": {"threads": 2},
    "--schedule batch": {"schedule": "batch"},
    "--max-batch 7": {"max_batch": 7},
    "--max-delay-ms 0.5": {"max_delay_ms": 0.5},
    "--max-memory 4GiB": {"max_memory_bytes": 4 << 30},
    "--backend onnxruntime": {"backend": "onnxruntime"},
    "--device gpu": {"device": "gpu"},
    "--precision bf16": {"precision": "bf16"},
    "--series-descriptions table.csv": {"series_descriptions": Path("table.csv")},
    "--timeout-s 7.5": {"timeout_s": 7.5},
    "--max-attempts 4": {"max_attempts": 4},
    "--no-detector": {"detector": False},
}


@pytest.mark.parametrize("words", ["", *OPTIONS])
def test_each_option_says_what_it_says_and_nothing_else(
    spine_engine, tmp_path, monkeypatch, words
):
    monkeypatch.setattr(
        Engine,
        "open",
        lambda bundle, *, options, trust: (
            spine_engine.asked.update(options=options) or 1 / 0
        ),
    )
    done = spine_engine("run", IN, tmp_path, OUT, tmp_path / "out", *words.split())
    assert isinstance(done.exception, ZeroDivisionError)
    assert spine_engine.asked["options"] == RunOptions(**OPTIONS.get(words, {}))


def test_the_input_output_and_bundle_named_are_those_used(spine_engine, root, tmp_path):
    assert spine_engine("run", IN, root, OUT, tmp_path / "out").exit_code == 0
    asked = spine_engine.asked
    assert (asked["bundle"], asked["folder"], asked["output"]) == (
        None,
        root,
        tmp_path / "out",
    )
    done = spine_engine("run", IN, root, OUT, tmp_path / "out", "--bundle", tmp_path)
    assert done.stdout.splitlines()[-1] == "Research use only; not a medical device."
    assert spine_engine.asked["bundle"] == tmp_path


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("1", 1), ("1b", 1), ("1k", 1024), ("1KiB", 1024), ("2kb", 2048), ("1500MiB", 1500 << 20),
        ("4096MB", 4 << 30), ("4g", 4 << 30), ("1.5GiB", 3 << 29), ("4 GiB", 4 << 30), (" 2T ", 2 << 40),
        ("1TB", 1 << 40),
    ],
)  # fmt: skip
def test_a_size_of_memory_counts_in_1024(text, size):
    from spine_engine.cli.run import memory_size

    assert memory_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "-1G", "1.G", "4PiB", "4 Gi B", "4GiB more", "0x10", "1e9", "1,5G"],
)
def test_what_is_no_size_of_memory_is_wrong_usage(spine_engine, root, tmp_path, text):
    done = spine_engine("run", IN, root, OUT, tmp_path / "out", f"--max-memory={text}")
    assert done.exit_code == 2
    assert "is not a memory size: write it like 4GiB or 1500MiB" in " ".join(
        done.stderr.replace("│", "").split()
    )


def summary(**changed):
    from spine_engine.run.summary import RunSummary

    values = {
        "engine_version": "9", "bundle": {}, "devices": {}, "options": {}, "interrupted": False,
        "statuses": {"graded": 12}, "reasons": {}, "refused_files": {}, "refused_examples": [], "walked": 12,
        "resumed": 0,
        "wall_s": 1.94, "stage_seconds": {}, "peak_memory_bytes": {"main": 1, "workers": [2], "total": 688_600_000},
    }  # fmt: skip
    return RunSummary(**{**values, **changed})


PACKAGED = "Research use only; the grades of the packaged bundle are a demonstration."
OWN = "Research use only; not a medical device."
RESULTS = "Results: r/predictions.csv, studies.jsonl, run.json"


@pytest.mark.parametrize(
    ("changed", "packaged", "lines"),
    [
        (
            {},
            True,
            ["12 studies: 12 graded, 0 prior, 0 failed", "12 walked in 1.9 s; peak memory 689 MB", RESULTS, PACKAGED],
        ),
        (
            {"statuses": {"failed": 2, "graded": 1, "prior": 3}, "reasons": {"timeout": 2, "no_sagittal": 3},
             "refused_files": {"unreadable": 1, "not_an_image": 4}, "walked": 4, "resumed": 2, "interrupted": True},
            False,
            ["6 studies: 1 graded, 3 prior, 2 failed (no_sagittal 3, timeout 2)",
             "5 files or folders not used (not_an_image 4, unreadable 1)",
             "4 walked in 1.9 s, 2 done earlier; peak memory 689 MB", RESULTS,
             "Interrupted: the same command resumes the run.", OWN],
        ),
        (
            {"statuses": {}, "walked": 0},
            True,
            ["0 studies: 0 graded, 0 prior, 0 failed",
             "No MR study was found in the input; 'spine-engine inspect DIR' shows what it holds.",
             "0 walked in 1.9 s; peak memory 689 MB", RESULTS, PACKAGED],
        ),
    ],
)  # fmt: skip
def test_a_run_ends_with_these_lines(changed, packaged, lines):
    from spine_engine.cli.run import closing_lines

    assert (
        list(closing_lines(summary(**changed), Path("r"), packaged=packaged)) == lines
    )


@pytest.fixture
def reports(monkeypatch):
    """Reports that were asked for; none is written."""
    asked = []
    monkeypatch.setattr(
        "spine_engine.cli.report.write_with_progress",
        lambda out, **how: asked.append((out, how)) or "w",
    )
    monkeypatch.setattr(
        "spine_engine.cli.report.closing_line", lambda written: f"Report: {written}"
    )
    return asked


def test_a_report_is_written_where_asked(spine_engine, reports, root, tmp_path):
    out = tmp_path / "out"
    assert "Report" not in spine_engine("run", IN, root, OUT, out).output
    assert reports == []
    done = spine_engine("run", IN, root, OUT, out, "--report", "--workers", 3)
    assert reports == [(out, {"workers": 3})]
    assert done.stdout.splitlines()[-1] == "Report: w"
    done = spine_engine("run", IN, root, OUT, out, "--report", "--json")
    assert json.loads(done.stdout)["studies"]["total"] == 1
    assert done.stderr == "Report: w\n"
    assert done.exit_code == 0


def test_no_report_is_written_of_a_run_that_was_interrupted(
    spine_engine, reports, root, tmp_path, monkeypatch
):
    from spine_engine.run.run import Run

    monkeypatch.setattr(Run, "finish", lambda self: summary(interrupted=True))
    done = spine_engine("run", IN, root, OUT, tmp_path / "out", "--report")
    assert (done.exit_code, reports) == (130, [])
    assert "Interrupted" in done.stdout


def test_shards_are_merged_and_a_missing_one_is_told(
    spine_engine, root, tmp_path, monkeypatch
):
    for index in range(9):
        write_exam(root, f"f{index}", f"1.{index}")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    for out, words in {
        "one": (),
        "a": ("--shard", "1/2"),
        "b": ("--shard", "auto", "--shards", "2"),
    }.items():
        done = spine_engine("run", IN, root, OUT, tmp_path / out, *words)
        assert done.exit_code == 0, done.output
    both = (tmp_path / "a", tmp_path / "b")
    done = spine_engine("merge", *both, OUT, tmp_path / "all")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("10 studies: 10 graded")
    merged, one = (tmp_path / out / "predictions.csv" for out in ("all", "one"))
    assert merged.read_bytes() == one.read_bytes()
    done = spine_engine("merge", both[0], OUT, tmp_path / "half")
    assert done.exit_code == 8
    assert "Missing: shard 2/2 was not given" in done.stdout


def test_a_merge_asks_for_what_its_shards_ran_with(spine_engine, root, tmp_path):
    out = tmp_path / "a"
    words = ("--shard", "1/1", "--precision", "f32", "--no-detector")
    assert spine_engine("run", IN, root, OUT, out, *words).exit_code == 0
    assert spine_engine("merge", out, OUT, tmp_path / "all").exit_code == 0
    options = spine_engine.asked["options"]
    assert (options.precision, options.detector) == ("f32", False)


def test_shards_without_auto_are_wrong_usage(spine_engine, root, tmp_path):
    done = spine_engine("run", IN, root, OUT, tmp_path / "a", "--shards", "4")
    assert done.exit_code == 2
    assert "--shards needs --shard auto" in done.stderr


def test_merging_a_folder_without_results_is_said(spine_engine, tmp_path):
    done = spine_engine("merge", tmp_path, OUT, tmp_path / "all")
    assert done.exit_code == 6
    assert "name the output folder of a run" in done.stderr
