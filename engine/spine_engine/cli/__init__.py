"""The command ``spine-engine``. Subcommands are imported only when they are called, so ``--help`` imports none of them.

Other packages add commands through the entry-point group ``spine_engine.commands``: the entry point's name is the
command's name, its object is a ``typer.Typer`` or a function.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import typer
import typer.core

from spine_engine._version import __version__
from spine_engine.errors import SpineEngineError, UsageError

COMMAND_GROUP: Final = "spine_engine.commands"

_OWN: Final[dict[str, tuple[str, str]]] = {
    "run": ("spine_engine.cli.run:run", "Grade a folder of DICOM studies."),
    "merge": (
        "spine_engine.cli.merge:merge",
        "Join the results of the shards of a run.",
    ),
    "demo": (
        "spine_engine.cli.demo:demo",
        "Make three phantom studies, grade them and show the grades.",
    ),
    "inspect": (
        "spine_engine.cli.inspect:inspect",
        "Show the studies, series and stacks in a folder, and their roles.",
    ),
    "report": (
        "spine_engine.cli.report:report",
        "Write HTML pages of a run and its studies.",
    ),
    "view": (
        "spine_engine.cli.view:view",
        "Write one study in 3-D: point cloud, level boxes, voxel grids.",
    ),
    "doctor": (
        "spine_engine.cli.doctor:doctor",
        "Show what this machine can run, and what is missing.",
    ),
    "tune": (
        "spine_engine.cli.tune:tune",
        "Measure the fastest settings of this machine for a bundle and save them.",
    ),
    "bundle": ("spine_engine.cli.bundle:app", "Verify or describe a bundle of models."),
    "phantom": (
        "spine_engine.cli.phantom:phantom",
        "Write phantom studies with known anatomy and grades.",
    ),
}
"""The engine's own commands: the function of each, and its line in the help."""

_EXTRAS: Final[dict[str, tuple[str, str]]] = {
    "train": (
        "train",
        "Train a detector, a level grader or a whole-study grader; fit their calibration.",
    ),
    "evaluate": (
        "train",
        "Score predictions against a truth file with the official metric.",
    ),
    "export": ("export", "Turn checkpoints into ONNX models and bundles."),
    "bench": (
        "bench",
        "Measure how fast studies are graded, beside what people use today.",
    ),
}
"""Commands that come with an extra: the name of the extra, and the command's line in the help."""


class _LazyGroup(typer.core.TyperGroup):
    """Finds commands in the tables above and among the entry points; turns the engine's errors into exit codes."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the available commands."""
        added = (name for name in _entry_points() if name not in _OWN)
        return [*_OWN, *sorted(added)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command if it is called, else a stand-in with the command's help line."""
        if ctx.meta.get(_CALLED) == cmd_name:
            return _loaded(cmd_name)
        if cmd_name in _OWN:
            return typer.core.TyperCommand(cmd_name, help=_OWN[cmd_name][1])
        if cmd_name in _EXTRAS or cmd_name in _entry_points():
            return typer.core.TyperCommand(
                cmd_name, help=_EXTRAS.get(cmd_name, ("", ""))[1]
            )
        return None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Mark the command that is called, so that only that one is imported."""
        if args and (
            args[0] in _OWN or args[0] in _EXTRAS or args[0] in _entry_points()
        ):
            ctx.meta[_CALLED] = args[0]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; print a user's error as one line and return its exit code."""
        try:
            return super().invoke(ctx)
        except SpineEngineError as error:
            typer.echo(f"spine-engine: {error}", err=True)
            raise typer.Exit(error.exit_code) from None


_CALLED: Final = f"{__name__}.called"


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=COMMAND_GROUP)}


def _loaded(name: str) -> Any:
    """Import a command and return it as a command of the command-line library."""
    if name in _OWN:
        module, _, attribute = _OWN[name][0].partition(":")
        return _as_command(name, getattr(import_module(module), attribute))
    point = _entry_points().get(name)
    extra = _EXTRAS.get(name, (name, ""))[0]
    if point is None:
        raise UsageError(
            f"'{name}' is not part of spine-engine {__version__} as installed here; it comes with the extra '{extra}' "
            f"(in a clone: pip install '.[{extra}]')"
        )
    try:
        return _as_command(name, point.load())
    except ImportError as error:
        raise UsageError(
            f"'{name}' needs {error.name or 'a package'} of the extra '{extra}'; in a clone: pip install '.[{extra}]'"
        ) from error


def _as_command(name: str, target: typer.Typer | Callable[..., Any]) -> Any:
    if isinstance(target, typer.Typer):
        app = target
    else:
        app = typer.Typer(
            add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
        )
        app.command(name)(target)
    command = typer.main.get_command(app)
    command.name = name
    return command


app = typer.Typer(
    name="spine-engine",
    cls=_LazyGroup,
    help="Grades lumbar-spine MRI in bulk: a folder of DICOM studies in, severity probabilities out.\n\n"
    "Research use only; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # such tracebacks show local values, which may name a patient
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spine-engine {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False,
        "--version",
        "-V",
        callback=_print_version,
        is_eager=True,
        help="Print the version and exit.",
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line of ``spine-engine``."""
    app()
