"""Two results over the same library, beside each other."""

from __future__ import annotations

from itertools import product
from statistics import median, quantiles
from typing import Final

from spine_bench.harness.figures import Spread, turns_of
from spine_bench.harness.loadgen import Scenario
from spine_bench.harness.result import Result
from spine_bench.harness.tables import Table
from spine_engine.errors import UsageError

SAME: Final = 1.0

ONE_SIDED: Final = 0.9
"""Share of all ratios that must lie on one side of 1 before a system has changed. Of pairs of equal runs of 5 rounds
each, 3 % are then called changed (8 of the 252 orders of 10 rounds); of 3 rounds each, 10 %."""


def compare(before: Result, after: Result) -> Table:
    """Return how many times the studies a second of ``before`` each system reaches in ``after``.

    Rounds of two runs are no pairs, so every round of one is compared with every round of the other; the spread is the
    middle half of those ratios. A system that graded nothing in a round of ``before`` is left out.

    Raises:
        UsageError: the libraries differ, or no system was measured in both.
    """
    if before.library.digest != after.library.digest:
        raise UsageError(
            f"the results are over different studies ({before.library.name}; {after.library.name}) and cannot be "
            "compared: measure both with the same --input, or the same --studies"
        )
    rows = []
    for system, scenario in product(
        [record.name for record in before.systems], (Scenario.OFFLINE, Scenario.SINGLE_STREAM)
    ):
        old, new = (
            [turn.studies_per_s for turn in turns_of(result, system, scenario).values()] for result in (before, after)
        )
        if old and new and all(old):
            change = ratio(old, new)
            spread = f"{change.median:.3f} ({change.low:.3f} to {change.high:.3f})"
            rows.append((system, str(scenario), f"{median(old):.3g}", f"{median(new):.3g}", spread, changed(old, new)))
    if not rows:
        raise UsageError("no system was measured in both results")
    columns = ("system", "scenario", "studies/s before", "after", "ratio", "")
    return Table(title="Comparison", columns=columns, rows=tuple(rows))


def ratio(before: list[float], after: list[float]) -> Spread:
    """Return the median and the middle half of all ratios ``after / before``."""
    ratios = [new / old for old, new in product(before, after)]
    if len(ratios) == 1:
        return Spread(median=ratios[0], low=ratios[0], high=ratios[0])
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    return Spread(median=middle, low=low, high=high)


def changed(before: list[float], after: list[float]) -> str:
    """Return ``faster`` or ``slower`` when nearly all ratios ``after / before`` say so, else an empty text."""
    ratios = [new / old for old, new in product(before, after)]
    if sum(ratio > SAME for ratio in ratios) >= ONE_SIDED * len(ratios):
        return "faster"
    return "slower" if sum(ratio < SAME for ratio in ratios) >= ONE_SIDED * len(ratios) else ""


def differences(before: Result, after: Result) -> list[str]:
    """Return what else is different between two results, a line each."""
    pairs = {
        "engine": (before.engine_version, after.engine_version),
        "bundle": (before.settings.bundle.get("digest", ""), after.settings.bundle.get("digest", "")),
        "processor": (before.machine.processor, after.machine.processor),
        "cores": (before.machine.cores, after.machine.cores),
        "Python": (before.machine.python, after.machine.python),
    }
    packages = {*before.machine.packages, *after.machine.packages}
    pairs |= {
        name: (before.machine.packages.get(name, "none"), after.machine.packages.get(name, "none"))
        for name in sorted(packages)
    }
    return [f"{name}: {old} before, {new} after" for name, (old, new) in pairs.items() if old != new]
