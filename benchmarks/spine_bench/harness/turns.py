"""Contestants that take turns in one process, so that a busy machine slows all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def take_turns(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float],
    spared: Mapping[str, int] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds that each contestant took in each round, after a first round that does not count.

    Args:
        contestants: what is measured, by name.
        rounds: how often.
        clock: gives seconds.
        spared: fewer rounds, for contestants that are slow.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            if turn > (spared or {}).get(name, rounds):
                continue
            began = clock()
            run()
            if turn:
                times[name].append(clock() - began)
    return times
