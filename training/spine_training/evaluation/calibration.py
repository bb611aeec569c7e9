"""Temperature and shift per condition and level, fitted on predictions of studies the grader was not trained on.

The engine turns a grader's cumulative logits into ``logit / T + b`` (``spine_engine.grading.calibrated``). ``T`` and
``b`` minimise the metric's weighted log loss of held-out rows. Left and right of a condition share theirs, so a
mirrored patient still gets mirrored grades. Labels are scarce (RSNA has 15 severe foraminal ones at L1/L2), so the fit
is hierarchical: a pair for each of the three condition groups, held towards the identity, then a pair for each level,
held towards its group's. It is a maximum a posteriori estimate, the priors being normal in ``log T`` and ``b``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from rich.console import Console

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.bundle.manifest import Calibration
from spine_engine.bundle.strict_json import load_json, read_dataclass
from spine_engine.errors import UsageError
from spine_engine.pipeline.grading import calibrated
from spine_engine.results import DECIMALS, PRIOR_ROWS, write_lines
from spine_training.arrays import F64, Integers
from spine_training.evaluation.command import make_folder
from spine_training.evaluation.reliability import (
    calibration_error,
    calibration_error_unweighted,
)
from spine_training.evaluation.show import calibration_table
from spine_training.evaluation.tables import matched, read_predictions, read_truth
from spine_training.metric import (
    GROUPS,
    MISSING,
    PARTS,
    official_metric,
    row_losses,
    study_sums,
)

GROUP_SPREAD: Final = 0.35
"""Prior standard deviation of a group's ``log T`` and ``b`` round the identity. Measured in ``docs/evaluate.md``: 1.0
loses 0.003 to 0.004 of the metric with 40 studies and gains nothing with 150, where hundreds of labels speak anyway."""

LEVEL_SPREAD: Final = 0.2
"""Prior standard deviation of a level's ``log T`` and ``b`` round its group's. Measured in ``docs/evaluate.md``: within
0.002 of the best choice from 40 to 2,000 studies, and as good as one chosen by cross-validation every time."""

TEMPERATURE_LIMITS: Final = (0.25, 4.0)
"""Limits of a temperature: beyond them a grader is broken rather than uncalibrated."""

SHIFT_LIMIT: Final = 4.0
"""Largest shift of a cumulative logit: odds times 55, the metric's weights (a factor of 4) being far inside."""

FOLDS: Final = 5

_LOGIT_LIMIT = 1e-7  # as spine_engine.grading.calibrated
_EPS = float(np.finfo(np.float64).eps)

IDENTITY: Final = Calibration(
    temperature=((1.0,) * len(LEVELS),) * len(CONDITIONS),
    shift=((0.0,) * len(LEVELS),) * len(CONDITIONS),
)


def fit_calibration(probabilities: F64, grades: Integers) -> Calibration:
    """Fit temperature and shift; a group without labels keeps the identity.

    The fit never scores worse than the identity on its own data: not in a group's log loss, because the identity is
    where the search begins, and not in the metric, because the canal's fit is dropped if "any severe canal" loses more
    than the canal's rows win.

    Args:
        probabilities: uncalibrated held-out predictions ``(S, 5 levels, 5 conditions, 3)``, rows summing to 1.
        grades: ``(S, 5 levels, 5 conditions)``, 0 / 1 / 2 or ``MISSING``.

    Raises:
        ValueError: as ``official_metric`` for shapes and values.
    """
    _, weights = row_losses(probabilities, grades)
    logits = _cumulative_logits(probabilities)
    log_temperature, shift = np.zeros((2, len(CONDITIONS), len(LEVELS)))
    for heads in GROUPS.values():
        chosen = logits[:, :, list(heads)]
        known = grades[:, :, list(heads)]
        weight = weights[:, :, list(heads)]
        common = _fit(
            chosen,
            known,
            weight,
            center=np.zeros(2),
            spread=GROUP_SPREAD,
        )
        for v in range(len(LEVELS)):
            own = _fit(
                chosen[:, v],
                known[:, v],
                weight[:, v],
                center=common,
                spread=LEVEL_SPREAD,
            )
            log_temperature[list(heads), v], shift[list(heads), v] = own
    canal = list(GROUPS["canal"])
    if _canal_loss(
        apply(probabilities, _calibration(log_temperature, shift)),
        grades,
    ) > _canal_loss(apply(probabilities, IDENTITY), grades):
        log_temperature[canal], shift[canal] = 0.0, 0.0
    return _calibration(log_temperature, shift)


def apply(probabilities: F64, calibration: Calibration) -> F64:
    """Return predictions ``(S, 5, 5, 3)`` as the engine gives them with this calibration."""
    return calibrated(probabilities, calibration)


def without_prior_rows(probabilities: F64, grades: Integers) -> Integers:
    """Return the grades with ``MISSING`` where the prediction is the weighted prior, which no grader gave.

    The engine writes the prior where nothing in a study shows a condition, and never calibrates it.
    """
    prior = (
        np.reshape(
            PRIOR_ROWS,
            (len(CONDITIONS), len(LEVELS), -1),
        ).transpose(1, 0, 2)
        / 10**DECIMALS
    )
    given = np.abs(probabilities - prior).max(axis=-1) < 10.0**-DECIMALS
    return np.where(given, MISSING, grades)


def cross_validated(
    probabilities: F64,
    grades: Integers,
) -> F64:
    """Return every study's predictions, calibrated by a fit on the other four fifths of the studies.

    Their score is the calibration's value on unseen studies. Arguments are those of
    ``fit_calibration``; there must be at least ``FOLDS`` studies.
    """
    fold = np.random.default_rng(0).permutation(len(grades)) % FOLDS
    held_out = np.empty_like(probabilities)
    for k in range(FOLDS):
        fitted = fit_calibration(
            probabilities[fold != k],
            grades[fold != k],
        )
        held_out[fold == k] = apply(probabilities[fold == k], fitted)
    return held_out


def figures(
    probabilities: F64, grades: Integers, calibration: Calibration
) -> dict[str, dict[str, float]]:
    """Return the metric, its parts and both calibration errors before, in sample, and cross-validated."""
    stages = {
        "before": probabilities,
        "in_sample": apply(probabilities, calibration),
        "cross_validated": cross_validated(probabilities, grades),
    }
    return {
        stage: {
            **asdict(official_metric(rows, grades)),
            "calibration_error": calibration_error(rows, grades),
            "calibration_error_unweighted": calibration_error_unweighted(rows, grades),
        }
        for stage, rows in stages.items()
    }


def read_calibration(path: Path) -> Calibration:
    """Read the calibration that ``spine-engine train calibration`` wrote.

    Raises:
        UsageError: the file cannot be read, or holds no calibration of five conditions and five levels.
    """
    try:
        content = load_json(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "calibration" not in content:
            raise ValueError("the key 'calibration' is missing")
        calibration: Calibration = read_dataclass(
            Calibration,
            content["calibration"],
            "calibration",
        )
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(
            f"{path} is no calibration: {error}; want a file of `train calibration`"
        ) from error
    return calibration


def calibration_command(
    predictions: Annotated[
        Path,
        typer.Option(
            help="Uncalibrated predictions.csv of studies that no model was trained on."
        ),
    ],
    truth: Annotated[
        Path, typer.Option(help="Labels in the layout of RSNA's train.csv.")
    ],
    out: Annotated[
        Path,
        typer.Option(help="JSON file to write, for `export bundle --calibration`."),
    ] = Path("calibration.json"),
) -> None:
    """Fit a temperature and a shift per condition and level, and score them on unseen studies.

    Rows that hold the weighted prior were not graded and are left out, as the engine never calibrates them.

    Example: spine-engine train calibration --predictions held-out/predictions.csv --truth train.csv
    """
    labels = read_truth(truth)
    if len(labels.studies) < FOLDS:
        raise UsageError(
            f"{truth} has {len(labels.studies)} studies; a calibration needs {FOLDS}, better hundreds"
        )
    rows = matched(
        read_predictions(predictions),
        labels,
        predictions,
    )
    grades = without_prior_rows(rows, labels.grades)
    try:
        calibration = fit_calibration(rows, grades)
        stages = figures(rows, grades, calibration)
    except ValueError as error:
        raise UsageError(
            f"{predictions}: {error}; rows that hold the prior were left out"
        ) from error
    counts = {"studies": len(grades), "labels": int((grades != MISSING).sum())}
    content = {"calibration": asdict(calibration), "figures": {**counts, **stages}}
    make_folder(out.parent)
    write_lines(
        out,
        [
            json.dumps(
                content,
                indent=2,
                allow_nan=False,
            )
        ],
    )
    console = Console(highlight=False, markup=False)
    console.print(calibration_table(stages, **counts))
    if stages["cross_validated"]["metric"] >= stages["before"]["metric"]:
        console.print(
            "On studies it has not seen this calibration does not help: use more studies, or none."
        )
    console.print(f"Calibration: {out}")


def _calibration(log_temperature: F64, shift: F64) -> Calibration:
    tables = (
        tuple(tuple(map(float, row)) for row in table)
        for table in (np.exp(log_temperature), shift)
    )
    return Calibration(temperature=next(tables), shift=next(tables))


def _canal_loss(probabilities: F64, grades: Integers) -> float:
    """Return the canal's two parts of the metric, added; 0 without a canal label."""
    losses, weights = (sums.sum(axis=0) for sums in study_sums(probabilities, grades))
    parts = [PARTS.index("canal"), PARTS.index("any_severe_canal")]
    return float((losses[parts] / np.maximum(weights[parts], 1.0)).sum())


def _cumulative_logits(probabilities: F64) -> F64:
    """Return ``logit(P(y <= k))``, ``(..., 2)``, kept from infinity as the engine does."""
    cumulative = np.cumsum(probabilities, axis=-1)[..., :-1].clip(
        _LOGIT_LIMIT, 1 - _LOGIT_LIMIT
    )
    return np.asarray(np.log(cumulative) - np.log1p(-cumulative))


def _fit(
    logits: F64,
    grades: Integers,
    weights: F64,
    *,
    center: F64,
    spread: float,
) -> F64:
    """Return ``(log T, b)`` that minimise the rows' weighted log loss and the distance from ``center``."""
    from scipy.optimize import minimize

    known = weights > 0
    if not known.any():
        return center
    rows = (logits[known], grades[known], weights[known])
    total = rows[2].sum()

    def objective(point: F64) -> tuple[float, F64]:
        loss, slope = _loss(point, *rows)
        away = (point - center) / spread
        return (loss + 0.5 * float(away @ away)) / total, (
            slope + away / spread
        ) / total

    limits = [tuple(np.log(TEMPERATURE_LIMITS)), (-SHIFT_LIMIT, SHIFT_LIMIT)]
    return np.asarray(
        minimize(
            objective,
            center,
            jac=True,
            method="L-BFGS-B",
            bounds=limits,
        ).x
    )


def _loss(
    point: F64,
    logits: F64,
    grades: Integers,
    weights: F64,
) -> tuple[float, F64]:
    """Return the weighted log loss at ``(log T, b)`` of rows with cumulative ``logits (N, 2)``, and its gradient.

    With ``s_k = sigmoid(l_k / T + b)``, ``P(y) = s_y - s_(y-1)``, where ``s_(-1) = 0`` and ``s_2 = 1``.
    """
    scaled = logits * np.exp(-point[0])
    inner = 1.0 / (1.0 + np.exp(-(scaled + point[1])))
    steep = inner * (1.0 - inner)
    none = np.zeros((len(logits), 1))
    cumulative = np.concatenate([none, inner, none + 1.0], axis=1)
    by_shift = np.concatenate([none, steep, none], axis=1)
    by_temperature = np.concatenate(
        [none, -steep * scaled, none],
        axis=1,
    )
    at = np.arange(len(grades))
    chance, *slopes = (
        t[at, grades + 1] - t[at, grades]
        for t in (cumulative, by_temperature, by_shift)
    )
    chance = np.maximum(chance, _EPS)
    return float(-(weights * np.log(chance)).sum()), np.array(
        [-(weights * slope / chance).sum() for slope in slopes]
    )
