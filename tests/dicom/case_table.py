"""Tables of cases: awkward DICOM that real MR is known for, each as a generated series with its required outcome.

Each case must come out right or be refused with its reason; none may come out wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from dicom_builder import T2, SeriesSpec, image, normal, read_one
from pydicom.dataset import Dataset

from spine_engine.errors import Reason, Warn
from spine_engine.study import Series, Study

Case = Callable[[Path], None]


def case_table() -> tuple[dict[str, Case], Callable[[str], Callable[[Case], Case]]]:
    """Return an empty table of cases by name, and the decorator that enters one."""
    cases: dict[str, Case] = {}

    def case(name: str) -> Callable[[Case], Case]:
        def register(check: Case) -> Case:
            assert name not in cases
            cases[name] = check
            return check

        return register

    return cases, case


def only_series(study: Study) -> Series:
    assert len(study.series) == 1, [(s.role, s.evidence) for s in study.series]
    return study.series[0]


def check_stack(
    series: Series, spec: SeriesSpec, kept: list[int] | None = None, which: int = 0
) -> None:
    """Check pixels, positions and axes of a stack against the slices of ``spec`` with indices ``kept``."""
    stack = series.stacks[which]
    kept = list(range(len(spec.offsets_mm))) if kept is None else kept
    kept.sort(key=lambda i: spec.offsets_mm[i])
    expected = np.stack([image(spec.seed + i, spec.rows, spec.columns) for i in kept])
    np.testing.assert_array_equal(stack.pixels, expected)
    n = normal(spec.orientation)
    origins = np.array([np.array(spec.base_mm) + spec.offsets_mm[i] * n for i in kept])
    np.testing.assert_allclose(stack.origins_mm, origins, atol=1e-4)
    axes = np.array([n, spec.orientation[3:], spec.orientation[:3]])
    np.testing.assert_allclose(stack.axes, axes, atol=1e-6)
    assert stack.spacing_mm == (1.25, 0.75)


def refused_with(root: Path, reason: Reason) -> Study:
    """Check that the one series is refused with ``reason`` and the study says so."""
    study = read_one(root)
    series = only_series(study)
    assert (series.role, series.reason, series.stacks) == (None, reason, ())
    assert Warn.SERIES_REFUSED in study.warnings
    assert study.reason is not None
    return study


def spoiled(
    ds: Dataset, i: int, spoil: Callable[[Dataset], None], which: int = 3
) -> None:
    """Spoil slice ``which`` of a series."""
    if i == which:
        spoil(ds)


def dropped(root: Path) -> None:
    """Check that ``T2`` is read without its slice 3, and that the study says so."""
    study = read_one(root)
    check_stack(only_series(study), T2, [0, 1, 2, 4, 5, 6, 7])
    assert {Warn.SLICE_DROPPED, Warn.GAP} <= set(study.warnings)
    assert "1 slices dropped" in only_series(study).evidence
