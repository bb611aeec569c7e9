"""How much load a queue in front of equal workers can bear before its slowest answers come too late.

Arrivals are Poisson, each study goes whole to the first free of ``servers`` workers, first come first served: M/G/c, or
M/D/c when every study takes the same. Simulated, because M/D/c has no handy formula for percentiles.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

import numpy as np

ARRIVALS: Final = 50_000
"""Simulated studies: the 99th percentile repeats within 3 % at 75 % load."""

LOADS: Final = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Shares of the workers' capacity that are tried."""


def slowest_percentile(load: float, servers: int, service_s: Sequence[float], percent: float = 99.0) -> float:
    """Return the latency (wait and service) that ``percent`` of the studies keep, in seconds.

    Args:
        load: arrivals as a share of what the workers can do, below 1.
        servers: workers.
        service_s: what studies take, drawn from with equal chances; one number for constant service.
        percent: which percentile.
    """
    rng = np.random.default_rng(0)
    services = rng.choice(np.asarray(service_s, np.float64), ARRIVALS)
    arrivals = np.cumsum(rng.exponential(services.mean() / (load * servers), ARRIVALS))
    free = [0.0] * servers
    latencies = np.empty(ARRIVALS)
    for k, (arrival, service) in enumerate(zip(arrivals.tolist(), services.tolist(), strict=True)):
        end = max(heapq.heappop(free), arrival) + service
        heapq.heappush(free, end)
        latencies[k] = end - arrival
    return float(np.percentile(latencies, percent))


def bearable_load(servers: int, service_s: Sequence[float], bound_s: float) -> float:
    """Return the highest of ``LOADS`` at which 99 % of the studies keep ``bound_s``; 0 when none does."""
    low, high = 0, len(LOADS)
    while low < high:  # latencies rise with the load
        middle = (low + high) // 2
        if slowest_percentile(LOADS[middle], servers, service_s) <= bound_s:
            low = middle + 1
        else:
            high = middle
    return LOADS[low - 1] if low else 0.0
