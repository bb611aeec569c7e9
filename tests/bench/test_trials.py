"""A trial's parameters are the options of its command, and what it finds is shown, written and ends the command."""

import inspect
import json
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from spine_bench import command, decode, same
from spine_bench.command import TRIALS, Trial, app
from spine_bench.findings import Findings, Table, chosen, figures_found
from spine_bench.harness.bare import WAYS
from spine_bench.harness.turns import take_turns
from spine_engine.errors import UsageError
from spine_engine.phantom import Protocol, write_studies


def bench(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def twice(number: int = 1, failing: bool = False) -> Findings:
    """Double a number."""
    table = Table(
        title="Twice",
        columns=("number", "twice"),
        rows=[(str(number), str(2 * number))],
    )
    return Findings(
        tables=[table],
        notes=["done"],
        record={"twice": 2 * number},
        failure="no" if failing else "",
    )


@pytest.fixture
def doubling(monkeypatch):
    monkeypatch.setitem(TRIALS, "twice", Trial(f"{__name__}:twice", "Double a number."))


def test_a_trial_is_a_command_with_a_table_a_page_and_a_record(doubling, tmp_path):
    done = bench(
        "twice",
        "--number",
        21,
        "--out",
        tmp_path / "a.json",
        "--markdown",
        tmp_path / "a.md",
    )
    assert done.exit_code == 0, done.output
    assert "42" in done.stdout
    assert "done" in done.stdout
    assert json.loads((tmp_path / "a.json").read_text()) == {"twice": 42}
    assert (
        (tmp_path / "a.md").read_text()
        == "## Twice\n\n| number | twice |\n|---|--:|\n| 21 | 42 |\n\n- done\n"
    )
    assert json.loads(bench("twice", "--json").stdout) == {"twice": 2}


def test_a_trial_that_fails_says_why_and_ends_with_1(doubling):
    done = bench("twice", "--failing")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "no"


def test_the_help_lists_every_trial_and_imports_none(monkeypatch):
    monkeypatch.setattr(
        command, "import_module", lambda name: pytest.fail(f"{name} was imported")
    )
    shown = bench("--help").stdout
    assert [name for name in TRIALS if name not in shown] == []
    assert {"compare", "show"} <= set(shown.split())


@pytest.mark.parametrize("name", sorted(TRIALS))
def test_every_trial_measures_and_returns_findings(name):
    module, _, function = TRIALS[name].measure.partition(":")
    try:
        measure = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    assert inspect.signature(measure, eval_str=True).return_annotation is Findings
    assert bench(name, "--help").exit_code == 0


def test_a_missing_package_is_told_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(TRIALS, "lost", Trial("no_such_package:measure", ""))
    assert "'lost' needs no_such_package" in str(bench("lost").exception)


def test_figures_and_chosen_names():
    found = figures_found("Sizes", {"a, MB": 1.5})
    assert (found.record, found.tables[0].rows) == (
        {"a, MB": 1.5},
        [("a, MB", "1.500")],
    )
    assert chosen("b, a,b", ["a", "b"], "letter") == ["b", "a"]
    for words in ("a,c", ""):
        with pytest.raises(UsageError, match=r"no letter .*: choose from a, b"):
            chosen(words, ["a", "b"], "letter")


def test_contestants_take_turns_after_a_round_that_does_not_count():
    order = []
    ticks = iter(range(100))
    contestants = {name: lambda name=name: order.append(name) for name in "abc"}
    times = take_turns(contestants, 3, lambda: next(ticks), spared={"c": 1})
    assert "".join(order) == "abcabcabab"
    assert times == {"a": [1, 1, 1], "b": [1, 1, 1], "c": [1]}


def test_no_way_of_calling_a_model_loses_an_item():
    parts = [np.full((1, 2, 3), number, np.float32) for number in range(9)] + [
        np.full((2, 5), 9, np.float32)
    ]
    wanted = sorted(float(item.ravel()[0]) for part in parts for item in part)
    for way, make in WAYS.items():
        assert (
            sorted(float(item.ravel()[0]) for call in make(parts) for item in call)
            == wanted
        ), way
    assert [len(call) for call in WAYS["4 calls in one"](parts)] == [4, 4, 1, 2]


def test_reading_is_compared_over_the_files_of_a_folder(tmp_path, monkeypatch):
    tiny = Protocol(
        axial="none", sagittal=("t2",), sagittal_matrix=64, sagittal_slices=5
    )
    assert len(list(write_studies(tmp_path, 1, 3, protocol=tiny, rle=True))) == 1
    monkeypatch.setattr(decode, "ROUNDS", 1)
    ms = decode.measure(tmp_path).record[tmp_path.name]
    assert {
        "the file's bytes",
        "engine, header",
        "engine, decode",
        "engine, read_unit",
        "pydicom",
    } <= set(ms)
    assert all(value > 0 for value in ms.values())
    monkeypatch.setattr(decode, "pydicom_decode", lambda path: np.zeros(1))
    with pytest.raises(
        UsageError, match="engine, decode reads other pixels than pydicom"
    ):
        decode.measure(tmp_path)


@pytest.mark.parametrize(("content", "verdict"), [(b"a", True), (b"b", False)])
def test_two_revisions_are_the_same_when_no_byte_differs(monkeypatch, content, verdict):
    monkeypatch.delenv("SPINE_REAL_DATA", raising=False)
    monkeypatch.setattr(
        same, "revision", lambda name: __import__("contextlib").nullcontext("old")
    )
    monkeypatch.setattr(same, "write_studies", lambda *_: iter(()))
    runs = []

    def graded(tree, folder):
        runs.append(tree)
        return (
            (b"a", 2.0) if tree == "old" else (content, 3.0 if len(runs) > 2 else 9.0)
        )

    monkeypatch.setattr(same, "graded", graded)
    found = same.measure("HEAD", studies=1, rounds=2)
    assert runs == ["old", same.HERE] * 3, (
        "they take turns; the first pair only warms up"
    )
    assert found.record == {"phantoms": {"same": verdict, "ratio": 1.5}}
    assert found.failure == ("" if verdict else "predictions.csv differs")


def test_a_tree_is_measured_by_a_run_of_its_own_engine(monkeypatch):
    def run(folder, output, **environment):
        assert environment == {"PYTHONPATH": str(Path("tree/engine"))}
        (output / "predictions.csv").write_bytes(folder.name.encode())
        return {"studies_per_s": 7.0}

    monkeypatch.setattr(same, "run", run)
    assert same.graded(Path("tree"), Path("in/studies")) == (b"studies", 7.0)


@pytest.mark.skipif(
    shutil.which("git") is None or not (same.HERE / ".git").exists(),
    reason="no git checkout",
)
def test_a_revision_is_checked_out_and_removed():
    with same.revision("HEAD") as tree:
        assert (tree / "engine" / "spine_engine" / "__init__.py").is_file()
    assert not tree.exists()
