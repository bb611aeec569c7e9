"""A truth with the label counts of the RSNA 2024 training set: per condition and level, and the worst canal grade."""

import numpy as np

from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES
from spine_engine.results import ROW_ORDER, row_name
from spine_training.metric import MISSING

STUDIES = 1975
CANAL = 4

# Normal-mild, moderate, severe; l1_l2 .. l5_s1; conditions alphabetical.
COUNTS = (
    (
        (1908, 63, 2),
        (1791, 171, 11),
        (1522, 411, 40),
        (1204, 629, 140),
        (1247, 520, 206),
    ),
    (
        (1690, 93, 28),
        (1555, 255, 83),
        (1324, 454, 194),
        (887, 624, 461),
        (1408, 409, 147),
    ),
    (
        (1891, 63, 13),
        (1793, 168, 6),
        (1512, 414, 41),
        (1208, 629, 130),
        (1281, 496, 190),
    ),
    (
        (1680, 110, 24),
        (1577, 243, 73),
        (1322, 454, 197),
        (891, 622, 460),
        (1399, 396, 173),
    ),
    (
        (1886, 67, 21),
        (1770, 151, 53),
        (1622, 230, 122),
        (1482, 237, 255),
        (1904, 51, 19),
    ),
)
WORST_CANAL = (1263, 346, 365)
WORDS = {MISSING: "", 0: "Normal/Mild", 1: "Moderate", 2: "Severe"}


def rsna_grades(seed: int = 0) -> np.ndarray:
    """Grades ``(1975, 5 levels, 5 conditions)``; what a column lacks is missing."""
    rng = np.random.default_rng(seed)
    grades = np.full((STUDIES, len(LEVELS), len(CONDITIONS)), MISSING)
    for condition, levels in enumerate(COUNTS):
        for level, counts in enumerate(levels):
            column = np.repeat([0, 1, 2], counts)
            grades[rng.permutation(STUDIES)[: len(column)], level, condition] = (
                rng.permutation(column)
            )
    grades[..., CANAL] = _canal()
    return grades[rng.permutation(STUDIES)]


def _canal() -> np.ndarray:
    """Canal grades ``(1975, 5)``: 365 studies share the severe labels, 346 others the moderate ones, one has none.

    Every level hands its labels on from where the one above stopped, so none is left without.
    """
    canal = np.zeros((STUDIES, len(LEVELS)), int)
    canal[-1] = MISSING
    first = 0
    for grade in (2, 1):
        owners, at = WORST_CANAL[grade], 0
        for level, counts in enumerate(COUNTS[CANAL]):
            canal[first + (at + np.arange(counts[grade])) % owners, level] = grade
            at += counts[grade]
        first += owners
    return canal


def write_truth(path, studies, grades):
    """Write RSNA's ``train.csv`` of grades ``(S, 5, 5)``."""
    names = [row_name(condition, level) for condition, level in ROW_ORDER]
    lines = [",".join(["study_id", *names])]
    for study, table in zip(studies, grades, strict=True):
        lines.append(
            ",".join([study, *(WORDS[int(grade)] for grade in table.T.ravel())])
        )
    path.write_text("\n".join(lines) + "\n")


def write_rows(path, studies, probabilities, order=None):
    """Write ``predictions.csv`` of probabilities ``(S, 5, 5, 3)``, its rows in the given order."""
    lines = [
        f"{study}_{row_name(condition, level)}," + ",".join(repr(float(p)) for p in row)
        for study, table in zip(studies, probabilities, strict=True)
        for (condition, level), row in zip(
            ROW_ORDER, table.transpose(1, 0, 2).reshape(-1, 3), strict=True
        )
    ]
    if order is not None:
        lines = [lines[k] for k in order]
    path.write_text("\n".join([",".join(["row_id", *SEVERITIES]), *lines]) + "\n")
