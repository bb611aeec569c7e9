"""The names of a whole column at once: a beam search over the classes of its vertebrae, from above.

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
"""Columns that are kept from one vertebra to the next (arXiv 2205.01683)."""

BREAK_COST = 1000.0
"""What it costs when a vertebra is not named as the one below its upper neighbour (arXiv 2205.01683)."""

SACRAL_COST = 100.0
"""What S1 after S1 costs: the lower is then S2 (arXiv 2205.01683)."""


@dataclass(frozen=True, eq=False)
class NamedColumn:
    """The cheapest naming of a column.

    Attributes:
        classes: `(V,)` from above.
        probability: `(V,)` of each vertebra's class, among the columns left in the beam.
        cost: of the whole column.
    """

    classes: I64
    probability: F64
    cost: float

    @property
    def names(self) -> list[str]:
        """Names from above, such as `l4`; S1 once more is `s2`."""
        sacral = np.cumsum(self.classes == S1)
        return [
            f"s{number}" if rank == S1 else CLASS_NAMES[rank]
            for rank, number in zip(self.classes.tolist(), sacral.tolist(), strict=True)
        ]


def step_costs(missed: int) -> F64:
    """Cost `(24, 24)` of class j below class i: 0 for the next one down, and where `missed` others fit between them."""
    costs = np.full((len(CLASS_NAMES), len(CLASS_NAMES)), BREAK_COST)
    for step in range(1, 2 + missed):
        upper = np.arange(step, len(CLASS_NAMES))
        costs[upper, upper - step] = 0.0
    costs[S1, S1] = SACRAL_COST
    return costs


def named_column(log_probability: F64, missed: Sequence[int], width: int = WIDTH) -> NamedColumn:
    """Name the vertebrae of a column, from above: the sum of `-ln p` and the costs of the steps is least.

    Args:
        log_probability: `(V, 24)` natural logarithm of each vertebra's class probabilities; V at least 1.
        missed: V - 1 numbers: for how many undetected vertebrae there is room between each and the next. The papers
            know of none, and so name everything beyond a missed vertebra wrongly; where there is room, labels decide.
        width: columns kept.
    """
    paths = np.arange(len(CLASS_NAMES))[:, None]
    costs = -log_probability[0]
    for row, gap in zip(log_probability[1:], missed, strict=True):
        total = (costs[:, None] + step_costs(gap)[paths[:, -1]] - row).ravel()
        kept = np.argsort(total, kind="stable")[:width]
        upper, below = np.divmod(kept, len(CLASS_NAMES))
        paths = np.concatenate([paths[upper], below[:, None]], axis=1)
        costs = total[kept]
    best = int(np.argmin(costs))
    weight = np.exp(costs[best] - costs)
    probability = weight @ (paths == paths[best]) / weight.sum()
    return NamedColumn(paths[best], probability, float(costs[best]))
