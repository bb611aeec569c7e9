"""How this machine runs a bundle fastest: a short measurement, remembered in the user's cache.

What was found is used by runs that leave ``workers``, ``threads``, ``schedule`` or ``precision`` open, with the same
bundle, backend, device, engine version and processor. Nothing is measured unless asked for (``spine-engine tune``).
"""

from __future__ import annotations

import asyncio
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Final, Literal

from spine_engine._version import __version__
from spine_engine.backends.cache import cache_key, load_compiled, store_compiled
from spine_engine.backends.processor import instruction_sets
from spine_engine.bundle import Bundle
from spine_engine.dicom import WorkUnit
from spine_engine.errors import BackendError, UsageError
from spine_engine.options import MAX_WORKERS, RunOptions, usable_cpus
from spine_engine.results import Status
from spine_engine.run.plan import plan_run
from spine_engine.scheduler import WorkerError

MARGIN: Final = 1.03
"""The defaults stay unless something is this much faster: rounds on one quiet machine differ by 1 to 3 %."""
STUDIES_EACH: Final = 4
"""Studies a worker walks in a round, after one that is not counted: the first pays for loading the kernels."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A way to run: what ``RunOptions`` leave open, decided."""

    workers: int
    threads: int
    schedule: Literal["study", "batch"]
    precision: str

    @property
    def words(self) -> str:
        """The setting as a person says it."""
        models = "shared models" if self.schedule == "batch" else "models of their own"
        return f"{self.workers} workers with {models}, {self.threads} threads, {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A setting and the studies a second it reached in each round; none where it cannot run here, and why."""

    setting: Setting
    rates: tuple[float, ...]
    failure: str | None = None

    @property
    def rate(self) -> float:
        """The median of the rounds; 0 where it cannot run."""
        return statistics.median(self.rates) if self.rates else 0.0


def default_setting(options: RunOptions) -> Setting:
    """Return the setting that runs without any tuning."""
    return Setting(
        workers=options.worker_count,
        threads=options.thread_count,
        schedule="batch" if options.batched else "study",
        precision=options.precision,
    )


def settings_to_try(options: RunOptions, cpus: int) -> list[Setting]:
    """Return the settings to measure, the default first.

    On a CPU: full precision, fewer workers with more threads, one worker more than cores (it reads while the others
    compute); not shared models, whose results vary in the last digits. On a GPU, where the workers share the models:
    more workers, and full precision.
    """
    default = default_setting(options)
    tried = [default]
    if options.device.lower() == "cpu":
        tried += [replace(default, workers=min(cpus + 1, MAX_WORKERS))]
        if cpus > 1:
            tried += [replace(default, workers=min(cpus // 2, MAX_WORKERS), threads=2)]
    else:
        tried += [
            replace(default, workers=min(count, MAX_WORKERS))
            for count in (cpus, 2 * cpus, 3 * cpus)
        ]
    if options.precision == "auto":
        tried += [replace(default, precision="f32")]
    return list(dict.fromkeys(tried))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is measured: studies, graded again and again, the models, and the options that no setting changes.

    Attributes:
        root: the folder the units lie in.
        units: the studies.
        bundle: the models.
        options: how they run, but for what a setting decides.
    """

    root: Path
    units: Sequence[WorkUnit]
    bundle: Bundle
    options: RunOptions


def measure(
    workload: Workload,
    settings: Sequence[Setting],
    *,
    rounds: int,
    done: Callable[[Measured], None] = lambda measured: None,
) -> list[Measured]:
    """Grade studies in each setting, the settings in turns so that a busy machine slows all alike.

    Args:
        workload: the studies and the models.
        settings: the ways to run.
        rounds: how often each is measured; one that cannot run here is measured once.
        done: told after each measurement what is known of the setting by then.
    """
    known = {setting: Measured(setting=setting, rates=()) for setting in settings}
    for _ in range(rounds):
        for setting in settings:
            if known[setting].failure is not None:
                continue
            try:
                rate = asyncio.run(_rate(workload, setting))
                known[setting] = replace(
                    known[setting], rates=(*known[setting].rates, rate)
                )
            except (BackendError, WorkerError) as error:
                known[setting] = replace(known[setting], failure=str(error))
            done(known[setting])
    return list(known.values())


async def _rate(workload: Workload, setting: Setting) -> float:
    """Return studies a second, once every worker has graded one study."""
    options = replace(workload.options, **asdict(setting))
    plan = plan_run(workload.root, workload.bundle, options)
    units = workload.units
    pool = plan.open_pool()
    workers = pool.workers
    started = asyncio.Barrier(workers + 1)
    work = islice(cycle(units), workers * STUDIES_EACH)

    async def worker(first: WorkUnit) -> None:
        async with pool.slot() as slot:
            await slot.run(first)
            await started.wait()
            for unit in work:
                outcome = await slot.run(unit)
                if any(result.status is Status.FAILED for result in outcome.results):
                    raise UsageError(
                        "a study failed; tune with studies that 'spine-engine run' can grade"
                    )

    async def timed() -> float:
        await started.wait()
        return time.perf_counter()

    try:
        async with asyncio.TaskGroup() as tasks:
            begun = tasks.create_task(timed())
            for first in islice(cycle(units), workers):
                tasks.create_task(worker(first))
        return workers * STUDIES_EACH / (time.perf_counter() - begun.result())
    except ExceptionGroup as group:
        raise next(_leaves(group)) from None
    finally:
        pool.close()


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def chosen(measured: Sequence[Measured]) -> Measured:
    """Return the fastest setting, or the default (the first) where nothing is clearly faster.

    Raises:
        BackendError: none can run; with the reason of the default.
    """
    default, best = measured[0], max(measured, key=lambda one: one.rate)
    if not best.rates:
        raise BackendError(default.failure or "nothing could be measured")
    return best if best.rate > MARGIN * default.rate else default


def remember(bundle: Bundle, options: RunOptions, best: Measured) -> None:
    """Keep a setting for the runs to come."""
    store_compiled(_key(bundle, options), json.dumps(asdict(best.setting)).encode())


def remembered(bundle: Bundle, options: RunOptions) -> Setting | None:
    """Return the setting found best here for such runs; None where nothing was measured."""
    kept = load_compiled(_key(bundle, options))
    return None if kept is None else Setting(**json.loads(kept))


def tuned(options: RunOptions, bundle: Bundle) -> RunOptions:
    """Return the options with what they leave open set to what was found best here; unchanged where nothing was.

    Workers, threads and schedule belong together: where one of them is given, none is filled in.
    """
    found = remembered(bundle, options)
    if found is None:
        return options
    if (options.workers, options.threads, options.schedule) == (None, None, "auto"):
        options = replace(
            options,
            workers=found.workers,
            threads=found.threads,
            schedule=found.schedule,
        )
    if options.precision == "auto":
        options = replace(options, precision=found.precision)
    return options


def _key(bundle: Bundle, options: RunOptions) -> str:
    """Return the name that a setting is kept under: what it holds for, in one digest."""
    machine = (
        f"{platform.machine()} {usable_cpus()} {' '.join(sorted(instruction_sets()))}"
    )
    detector = "detector" if options.detector else "no detector"
    held = " ".join(field.name for field in fields(Setting))
    runs = (options.backend, options.device.lower(), detector)
    return cache_key(bundle.digest.encode(), "tuned", __version__, held, *runs, machine)
