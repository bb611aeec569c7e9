"""``spine-engine train detector|grader``."""

from __future__ import annotations

from typing import Final

import typer

from spine_training.detector.__main__ import train_command as train_detector
from spine_training.grader.__main__ import train_command as train_grader

train: Final = typer.Typer(help="Train a detector or a grader.", no_args_is_help=True, add_completion=False)
train.command("detector")(train_detector)
train.command("grader")(train_grader)
