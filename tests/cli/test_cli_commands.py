"""The command ``spine-engine`` around its commands: help, versions, extras, errors, and what it imports."""

import re
import subprocess
import sys

import pytest

from spine_engine import cli
from spine_engine.errors import (
    BackendError,
    BundleError,
    OutputBusyError,
    OutputError,
    SpineEngineError,
    UsageError,
)


def test_wrong_words_are_wrong_usage(call):
    assert call("run", "--input", "x").exit_code == 2
    assert call("rum").exit_code == 2
    assert call("run", "--no-such-option").exit_code == 2


def test_help_names_every_command_and_run_has_an_example(call):
    shown = call("--help").stdout
    for name in ("run", "demo", "inspect", "doctor", "bundle", "phantom"):
        assert f"  {name} " in shown
    assert "Research use only" in shown
    assert "spine-engine run --input" in call("run", "--help").stdout
    assert call("--version").stdout.startswith("spine-engine 0.")
    assert call("-V").stdout == call("--version").stdout


def test_the_package_runs_as_the_command():
    ran = subprocess.run(
        [sys.executable, "-m", "spine_engine", "-V"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.startswith("spine-engine 0.")


@pytest.mark.parametrize(
    "name", ["run", "merge", "demo", "inspect", "doctor", "bundle", "phantom"]
)
def test_every_command_loads_and_has_an_example(call, name):
    done = call(name, "--help")
    assert done.exit_code == 0, done.output
    assert name == "bundle" or f"Example: spine-engine {name}" in " ".join(
        done.stdout.split()
    )


class Point:
    """An installed entry point."""

    def __init__(self, name, target):
        self.name, self.target = name, target

    def load(self):
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


def test_other_packages_add_commands(call, monkeypatch):
    def greet(name: str) -> None:
        """Say hello."""
        print("hello", name)

    missing = Point(
        "train", ModuleNotFoundError("No module named 'torch'", name="torch")
    )
    monkeypatch.setattr(
        cli, "entry_points", lambda group: [Point("greet", greet), missing]
    )
    assert call("greet", "world").stdout == "hello world\n"
    done = call("train")
    assert done.exit_code == 2
    assert (
        done.stderr
        == "spine-engine: 'train' needs torch of the extra 'train'; in a clone: pip install '.[train]'\n"
    )
    shown = call("--help").stdout
    assert "greet" in shown
    assert "train" in shown


def test_a_command_that_is_not_installed_says_so_in_one_line(call, monkeypatch):
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    done = call("train")
    assert done.exit_code == 2
    assert "extra 'train'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_imports_no_runtime_and_commands_that_read_no_pixels_no_compiler():
    code = (
        "import sys\nfrom spine_engine.cli import app\n"
        "try:\n app(['--help'])\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)\n"
        "import spine_engine.cli.bundle, spine_engine.cli.doctor\n"
        "print('numba' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    loaded, later = done.stderr.splitlines()
    assert "Commands" in done.stdout
    assert "typer" in loaded.split()
    assert set(loaded.split()).isdisjoint(
        {"numpy", "numba", "pydicom", "openvino", "sqlite3", "torch"}
    )
    assert later == "False True"


OWN = [
    "run",
    "merge",
    "demo",
    "inspect",
    "report",
    "view",
    "doctor",
    "tune",
    "bundle",
    "phantom",
]


def listed(text):
    """The commands of a help page with their lines."""
    return dict(
        re.findall(
            r"^  ([a-z-]+)  +(\S.*)$", text.split("Commands")[1], flags=re.MULTILINE
        )
    )


def test_help_lists_the_own_commands_in_their_order_and_then_the_joined_ones_sorted(
    call, monkeypatch
):
    points = [Point(name, None) for name in ("train", "zeta", "bench", "run", "alpha")]
    monkeypatch.setattr(
        cli,
        "entry_points",
        lambda group: points if group == "spine_engine.commands" else [],
    )
    shown = listed(call("--help").stdout)
    names = re.findall(
        r"^  ([a-z]+)(?:  |$)",
        call("--help").stdout.split("Commands")[1],
        flags=re.MULTILINE,
    )
    assert names == [*OWN, "alpha", "bench", "train", "zeta"]
    assert shown["run"] == "Grade a folder of DICOM studies."
    assert shown["train"].startswith(
        "Train a detector, a level grader or a whole-study grader"
    )
    assert shown["bench"].startswith("Measure how fast studies are graded")


def test_a_joined_command_cannot_take_the_place_of_an_own_one(call, monkeypatch):
    monkeypatch.setattr(
        cli, "entry_points", lambda group: [Point("doctor", ZeroDivisionError())]
    )
    assert "exit code is 0 when a run would work" in " ".join(
        call("doctor", "--help").stdout.split()
    )


def test_no_words_at_all_show_the_help(call):
    assert "Usage: spine-engine" in call().output
    assert "Usage: spine-engine" in call("-h").stdout
    assert call("-h").exit_code == 0


def test_the_version_is_printed(call):
    from spine_engine import __version__

    done = call("--version")
    assert (done.stdout, done.exit_code) == (f"spine-engine {__version__}\n", 0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpineEngineError, 1), (UsageError, 2), (BundleError, 3), (BackendError, 4), (OutputBusyError, 5),
        (OutputError, 6),
    ],
)  # fmt: skip
def test_an_error_a_user_can_meet_is_one_line_and_its_code(
    call, monkeypatch, error, code
):
    def fail() -> None:
        """Fail."""
        raise error("what we got; what to do")

    monkeypatch.setattr(cli, "entry_points", lambda group: [Point("fail", fail)])
    done = call("fail")
    assert (done.exit_code, done.stderr, done.stdout) == (
        code,
        "spine-engine: what we got; what to do\n",
        "",
    )


def test_a_bug_is_not_hidden(call, monkeypatch):
    def fail() -> None:
        """Fail."""
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "entry_points", lambda group: [Point("fail", fail)])
    assert isinstance(call("fail").exception, ZeroDivisionError)


EXTRAS = {"train": "train", "evaluate": "train", "export": "export", "bench": "bench"}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_command_of_an_extra_names_it_when_it_is_missing(call, monkeypatch, name):
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    done = call(name)
    assert done.exit_code == 2
    assert (
        f"it comes with the extra '{EXTRAS[name]}' (in a clone: pip install '.[{EXTRAS[name]}]')"
        in done.stderr
    )
    assert name not in listed(call("--help").stdout)


def test_a_command_whose_package_is_missing_names_it(call, monkeypatch):
    points = [
        Point("evaluate", ImportError("broken")),
        Point("x", ImportError("b", name="y")),
    ]
    monkeypatch.setattr(cli, "entry_points", lambda group: points)
    assert call("evaluate").stderr == (
        "spine-engine: 'evaluate' needs a package of the extra 'train'; in a clone: pip install '.[train]'\n"
    )
    assert (
        call("x").stderr
        == "spine-engine: 'x' needs y of the extra 'x'; in a clone: pip install '.[x]'\n"
    )
    assert call("x").exit_code == 2


def test_a_group_of_commands_may_join(call, monkeypatch):
    import typer

    many = typer.Typer()
    many.command("one")(lambda: print("one"))
    many.command("two")(lambda: print("two"))
    monkeypatch.setattr(cli, "entry_points", lambda group: [Point("many", many)])
    assert call("many", "two").stdout == "two\n"


def test_python_m_is_the_command(monkeypatch):
    import runpy

    called = []
    monkeypatch.setattr(cli, "main", lambda: called.append("main"))
    runpy.run_module("spine_engine.cli", run_name="__main__")
    runpy.run_module("spine_engine.cli.__main__", run_name="other")
    assert called == ["main"]
