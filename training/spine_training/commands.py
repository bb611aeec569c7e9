"""``spine-engine train detector|grader|whole-study|calibration``."""

from __future__ import annotations

from typing import Final

import typer

from spine_training.detector.__main__ import train_command as train_detector
from spine_training.evaluation.calibration import calibration_command
from spine_training.grader.commands import train_grader, train_whole_study

train: Final = typer.Typer(
    help="Train a detector, a level grader or a whole-study grader; fit their calibration.",
    no_args_is_help=True,
    add_completion=False,
)
train.command("detector")(train_detector)
train.command("grader")(train_grader)
train.command("whole-study")(train_whole_study)
train.command("calibration")(calibration_command)
