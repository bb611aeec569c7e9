"""The command line: exit codes, what it prints, and what it imports."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import discover, no_backend, start, write_exam
from typer.testing import CliRunner

from spine_engine import cli
from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.cli.demo import agreement, grades_table
from spine_engine.engine import Engine
from spine_engine.errors import BundleError
from spine_engine.output import held
from spine_engine.results import LevelResult, Status, StudyResult

IN, OUT = "--input", "--output"


@pytest.fixture
def spine_engine(monkeypatch):
    """The command with fake exams instead of DICOM and models: returns what a call printed and its exit code."""
    asked = {}

    class FakeEngine:
        def __init__(self, options):
            self.options = options

        def run(self, folder, output):
            names = ("timeout_s", "max_attempts", "precision", "detector")
            options = {name: getattr(self.options, name) for name in names}
            return start(Path(folder), output, factory=asked.get("factory"), **options)

    def open_engine(bundle=None, *, options=None):
        if bundle is not None and not Path(bundle).exists():
            raise BundleError(f"{bundle} holds no bundle; name one")
        return FakeEngine(options)

    monkeypatch.setattr(Engine, "open", open_engine)

    def call(*words, factory=None):
        asked["factory"] = factory
        return CliRunner().invoke(cli.app, [str(word) for word in words])

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
    assert f"Results: {tmp_path / 'out'}/predictions.csv, studies.jsonl, run.json" in lines
    assert lines[-1] == "Research use only; the grades of the packaged bundle are a demonstration."
    write_exam(root, "b", "2", "prior")
    done = spine_engine("run", IN, root, OUT, tmp_path / "out", "--bundle", tmp_path, "--json")
    assert done.exit_code == 8
    assert json.loads(done.stdout)["studies"] == {"total": 2, "graded": 1, "prior": 1, "failed": 0}
    assert json.loads(done.stdout)["options"]["detector"] is True
    done = spine_engine("run", IN, root, OUT, tmp_path / "other", "--no-detector", "--json")
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
def test_a_mistake_is_one_line_and_its_exit_code(spine_engine, root, tmp_path, words, code, message):
    done = spine_engine("run", IN, root, OUT, tmp_path / "out", *words)
    assert done.exit_code == code
    assert message in done.stderr
    assert done.stderr.startswith("spine-engine: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_no_backend_and_a_busy_output_have_codes_of_their_own(spine_engine, root, tmp_path):
    done = spine_engine("run", IN, root, OUT, tmp_path / "out", factory=no_backend)
    assert (done.exit_code, done.stderr) == (4, "spine-engine: no such backend here\n")
    with held(tmp_path / "out"):
        assert spine_engine("run", IN, root, OUT, tmp_path / "out").exit_code == 5


def test_wrong_words_are_wrong_usage(spine_engine):
    assert spine_engine("run", "--input", "x").exit_code == 2
    assert spine_engine("rum").exit_code == 2
    assert spine_engine("run", "--no-such-option").exit_code == 2


def test_help_names_every_command_and_run_has_an_example(spine_engine):
    shown = spine_engine("--help").stdout
    for name in ("run", "demo", "inspect", "doctor", "bundle", "phantom"):
        assert f"  {name} " in shown
    assert "Research use only" in shown
    assert "spine-engine run --input" in spine_engine("run", "--help").stdout
    assert spine_engine("--version").stdout.startswith("spine-engine 0.")


@pytest.mark.parametrize("name", ["run", "demo", "inspect", "doctor", "bundle", "phantom"])
def test_every_command_loads_and_has_an_example(spine_engine, name):
    done = spine_engine(name, "--help")
    assert done.exit_code == 0, done.output
    assert name == "bundle" or f"Example: spine-engine {name}" in " ".join(done.stdout.split())


class Point:
    """An installed entry point."""

    def __init__(self, name, target):
        self.name, self.target = name, target

    def load(self):
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


def test_other_packages_add_commands(spine_engine, monkeypatch):
    def greet(name: str) -> None:
        """Say hello."""
        print("hello", name)

    missing = Point("train", ModuleNotFoundError("No module named 'torch'", name="torch"))
    monkeypatch.setattr(cli, "entry_points", lambda group: [Point("greet", greet), missing])
    assert spine_engine("greet", "world").stdout == "hello world\n"
    done = spine_engine("train")
    assert done.exit_code == 2
    assert done.stderr == "spine-engine: 'train' needs torch of the extra 'train'; in a clone: pip install '.[train]'\n"
    shown = spine_engine("--help").stdout
    assert "greet" in shown
    assert "train" in shown


def test_a_command_that_is_not_installed_says_so_in_one_line(spine_engine, monkeypatch):
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    done = spine_engine("train")
    assert done.exit_code == 2
    assert "extra 'train'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_is_quick_and_imports_no_runtime():
    code = "import sys\nfrom spine_engine.cli import app\ntry:\n app(['--help'])\nexcept SystemExit: pass\n"
    code += "print('\\n'.join(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stderr.split())
    assert "Commands" in done.stdout
    assert loaded.isdisjoint({"numpy", "numba", "pydicom", "openvino", "sqlite3", "torch"})


@pytest.mark.parametrize("module", ["bundle", "doctor"])
def test_commands_that_read_no_pixels_do_not_load_the_compiler(module):
    code = f"import sys, spine_engine.cli.{module}; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import fakes
from spine_engine.cli.run import stopping_on_signals
if __name__ == "__main__":
    work = fakes.start(Path(sys.argv[1]), Path(sys.argv[2]), workers=1)
    with stopping_on_signals(work):
        sys.exit(work.finish().exit_code)
"""


@pytest.mark.parametrize(("signals", "most"), [([signal.SIGINT], 4), ([signal.SIGTERM, signal.SIGINT], 2)])
def test_the_first_signal_finishes_what_is_open_and_the_second_ends_at_once(tmp_path, signals, most):
    root, out = tmp_path / "input", tmp_path / "out"
    for index in range(5):
        write_exam(root, f"f{index}", f"1.{index}", "sleep 0.2" if index == 0 else "sleep 3")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent.parent / "run")))
    process = subprocess.Popen([sys.executable, str(script), str(root), str(out)], stderr=subprocess.PIPE)
    log = tmp_path / "opened.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().splitlines()) == 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for number in signals:
        os.kill(process.pid, number)
        time.sleep(0.3)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert b"finishing" in said
    assert b"Traceback" not in said
    assert len(log.read_text().splitlines()) == 2
    if len(signals) == 1:
        assert len((out / "studies.jsonl").read_text().splitlines()) == 2  # the one in flight was finished
    else:
        assert not (out / "studies.jsonl").exists()
    work = start(root, out)
    if len(signals) == 1:
        next(iter(work))  # the next one, not the first again
        assert len(log.read_text().splitlines()) >= 3
    assert len(list(discover(root))) == 5


def test_the_demo_shows_grades_beside_the_truth():
    from rich.console import Console

    sure = tuple((900_000, 60_000, 40_000) for _ in range(25))
    axes = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    level = LevelResult(center_mm=(0, 3, 4), axes=axes, size_mm=(1, 1, 1), confidence=1, source="detector")
    result = StudyResult(study_id="1", status=Status.GRADED, rows=sure, levels=dict.fromkeys(LEVELS, level))
    conditions = {str(condition): {"grade": 2 if condition is CONDITIONS[4] else 0} for condition in CONDITIONS}
    truth = {"1": {"levels": {str(level): {"center_mm": [0, 0, 0], "conditions": conditions} for level in LEVELS}}}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(grades_table([result] * 3, {"1": truth["1"]}))
    text = console.export_text()
    assert text.count("mild (sev)") == 15
    assert "L5-S1" in text
    assert len(text.splitlines()) <= 24
    assert agreement([result], truth) == [
        "20 of 25 grades are the phantom's own. Discs lie 5.0 mm from the truth on average, 5.0 mm at most."
    ]
