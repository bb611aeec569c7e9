"""Names the vertebrae of a whole column at once: a beam search over their classes, from above.

Classes count upwards: 0 is S1, 1-5 L5 .. L1, 6-17 T12 .. T1, 18-23 C7 .. C2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

CLASS_NAMES = (
    "s1",
    *(f"l{n}" for n in range(5, 0, -1)),
    *(f"t{n}" for n in range(12, 0, -1)),
    *(f"c{n}" for n in range(7, 1, -1)),
)
"""The classes of the labelling networks, in the order of their scores (arXiv 2205.01683)."""

S1 = 0

WIDTH = 100
"""Number of columns kept from one vertebra to the next (arXiv 2205.01683)."""

BREAK_COST = 1000.0
"""Cost of a vertebra that is not named as the one below its upper neighbour (arXiv 2205.01683)."""

SACRAL_COST = 100.0
"""Cost of S1 after S1: the lower is then S2 (arXiv 2205.01683)."""


@dataclass(frozen=True, eq=False)
class NamedColumn:
    """The cheapest naming of a column.

    Attributes:
        classes: `(V,)`, the class of each vertebra, from above.
        probability: `(V,)`, the probability of each vertebra's class among the columns left in the beam.
        cost: cost of the whole column.
    """

    classes: I64
    probability: F64
    cost: float

    @property
    def names(self) -> list[str]:
        """The names from above, such as `l4`; a second S1 is `s2`."""
        sacral_numbers = np.cumsum(self.classes == S1).tolist()
        return [
            f"s{number}" if rank == S1 else CLASS_NAMES[rank]
            for rank, number in zip(self.classes.tolist(), sacral_numbers, strict=True)
        ]


def step_costs(missed: int) -> F64:
    """Return the cost `(24, 24)` of class j below class i: 0 for the next one down, or up to `missed` further."""
    costs = np.full((len(CLASS_NAMES), len(CLASS_NAMES)), BREAK_COST)
    for step in range(1, 2 + missed):
        upper = np.arange(step, len(CLASS_NAMES))
        costs[upper, upper - step] = 0.0
    costs[S1, S1] = SACRAL_COST
    return costs


def named_column(
    log_probability: F64, missed: Sequence[int], width: int = WIDTH
) -> NamedColumn:
    """Name the vertebrae of a column, from above, so that the sum of `-ln p` and the step costs is smallest.

    Args:
        log_probability: `(V, 24)` natural logarithm of each vertebra's class probabilities; V at least 1.
        missed: V - 1 numbers: for how many undetected vertebrae there is room between each and the next. The papers
            allow none, and so name everything beyond a missed vertebra wrongly; where there is room, labels decide.
        width: number of columns kept.
    """
    paths = np.arange(len(CLASS_NAMES))[:, None]
    costs = -log_probability[0]
    for row, gap in zip(log_probability[1:], missed, strict=True):
        total = (costs[:, None] + step_costs(gap)[paths[:, -1]] - row).ravel()
        cheapest = np.argsort(total, kind="stable")[:width]
        upper, below = np.divmod(cheapest, len(CLASS_NAMES))
        paths = np.concatenate([paths[upper], below[:, None]], axis=1)
        costs = total[cheapest]
    best = int(np.argmin(costs))
    weight = np.exp(costs[best] - costs)
    probability = weight @ (paths == paths[best]) / weight.sum()
    return NamedColumn(paths[best], probability, float(costs[best]))
