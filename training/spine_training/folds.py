"""Folds of studies: which fifth of the data a model never sees."""

from __future__ import annotations

import hashlib
from typing import Final

FOLDS: Final = 5
"""Every model is judged on the fifth of the studies that it was not trained on."""


def fold_of_study(study_id: str, folds: int = FOLDS) -> int:
    """Return the fold of a study, 0 to ``folds - 1``.

    It is the SHA-256 of the id, so it depends on nothing but the id: not on the other studies, the machine or the
    order of files. A detector and a grader trained on the same folds never see each other's held-out studies.
    """
    if folds < 1:
        raise ValueError(f"folds must be at least 1, got {folds}")
    return (
        int.from_bytes(
            hashlib.sha256(study_id.encode("utf-8", "surrogateescape")).digest()[:8],
            "big",
        )
        % folds
    )
