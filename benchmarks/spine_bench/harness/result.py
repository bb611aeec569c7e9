"""What a measurement leaves behind: frozen records, written as one JSON file and read back with a schema check."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal, Self

import psutil

from spine_bench.harness.interfaces import StudyLibrary
from spine_bench.harness.loadgen import Load, Outcome
from spine_bench.harness.stages import StageTimes
from spine_engine.bundle.strict_json import read_dataclass
from spine_engine.errors import UsageError
from spine_engine.options import usable_cpus

SCHEMA: Final = 1

# Packages whose versions a result names, where they are installed.
PACKAGES: Final = (
    *("numpy", "numba", "openvino", "imagecodecs", "pydicom", "mlcommons-loadgen"),
    *("onnxruntime", "torch", "torchio", "open3d", "SimpleITK", "scipy"),
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it was measured."""

    processor: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    packages: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class LibraryFacts:
    """What was measured on; results over different ``digest`` cannot be compared."""

    name: str
    studies: int
    files: int
    size_bytes: int
    digest: str

    @classmethod
    def of(cls, library: StudyLibrary) -> Self:
        """Say what a library holds."""
        return cls(
            name=library.name,
            studies=len(library),
            files=library.files,
            size_bytes=library.size_bytes,
            digest=library.digest,
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it was measured.

    Attributes:
        scenarios: how queries came.
        rounds: how often every system had its turn.
        seconds: how long a turn was meant to last, for each system and scenario.
        server_queries: queries of each run of the server scenario.
        bundle: name, version and digest of the bundle whose models ran.
    """

    scenarios: tuple[str, ...]
    rounds: int
    seconds: float
    server_queries: int
    bundle: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """From issue to answer, seconds."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    worst_s: float

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        """Sum up an outcome."""
        return cls(
            mean_s=sum(outcome.latencies_s) / len(outcome.latencies_s),
            p50_s=outcome.percentile(50),
            p90_s=outcome.percentile(90),
            p99_s=outcome.percentile(99),
            worst_s=outcome.percentile(100),
        )


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One system's turn in one round and scenario.

    Attributes:
        system, scenario, round: which turn.
        studies: how many were answered, failed ones among them.
        studies_per_s: graded ones, over the turn.
        cpu_s: processor seconds a study, of all processes of the system; those that end within a turn are not counted.
        latencies: of its queries; in the scenario offline they are mostly time in the queue.
        failures: why studies were not graded, with counts.
        stage_seconds: what the system said of its stages, wall seconds a study.
        rate, bound_s: of the scenario server: arrivals a second, and what 99 % of the answers had to keep.
        verdict: LoadGen's: ``valid`` when the run was long enough to be believed and kept the bound;
            never with failures.
        doubts: what LoadGen, or the book beside it, found wanting.
    """

    system: str
    scenario: str
    round: int
    studies: int
    studies_per_s: float
    cpu_s: float
    latencies: Latencies
    failures: dict[str, int]
    stage_seconds: dict[str, float]
    rate: float | None = None
    bound_s: float | None = None
    verdict: Literal["valid", "invalid"]
    doubts: tuple[str, ...]

    @classmethod
    def of(
        cls,
        system: str,
        round_: int,
        load: Load,
        outcome: Outcome,
    ) -> Self:
        """Record an outcome."""
        return cls(
            system=system,
            scenario=str(load.scenario),
            round=round_,
            studies=len(outcome.latencies_s),
            studies_per_s=outcome.studies_per_s,
            cpu_s=outcome.cpu_s,
            latencies=Latencies.of(outcome),
            failures=dict(outcome.failures),
            stage_seconds=dict(outcome.stage_seconds),
            rate=load.rate,
            bound_s=load.bound_s,
            verdict="valid" if outcome.valid else "invalid",
            doubts=outcome.doubts,
        )


@dataclass(frozen=True, kw_only=True)
class SystemRecord:
    """A system that was measured, or was to be.

    Attributes:
        name: its name.
        facts: what it said that it really ran.
        open_s: seconds until it was warm.
        peak_memory_bytes: of all its processes together, while it was under load.
        difference: mean |probability difference| to the engine's, over the studies that both graded while they warmed
            up; null where there are none.
        problem: why it could not be measured, or not to the end; null when it was.
    """

    name: str
    facts: dict[str, str] = field(default_factory=dict)
    open_s: float = 0.0
    peak_memory_bytes: int = 0
    difference: float | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """A whole measurement.

    Attributes:
        schema: version of this schema.
        engine_version: the engine's version.
        date: when it began, UTC, ISO 8601.
        machine, library, settings: where, on what and how.
        systems: in the order in which they were named.
        turns: every turn, in order.
        stages: one look at the engine's stages a round, where they could be measured.
    """

    schema: int
    engine_version: str
    date: str
    machine: Machine
    library: LibraryFacts
    settings: Settings
    systems: tuple[SystemRecord, ...]
    turns: tuple[Turn, ...]
    stages: tuple[StageTimes, ...]

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(
                f"schema is {self.schema}, this version reads {SCHEMA}: measure again"
            )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a result.

        Raises:
            UsageError: the file cannot be read, or is no result of this version.
        """
        try:
            result: Self = read_dataclass(
                cls,
                json.loads(path.read_text(encoding="utf-8")),
                path.name,
            )
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{path} is not a result of 'spine-engine bench': {error}"
            ) from None
        return result


def this_machine() -> Machine:
    """Return what is to be said of this machine."""
    return Machine(
        processor=_processor(),
        cores=usable_cpus(),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages={
            name: found for name in PACKAGES if (found := _version(name)) is not None
        },
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name and its widest instructions, as far as the system tells them."""
    try:
        first, *_ = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")
    except OSError:
        return platform.processor() or platform.machine()
    facts = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in first.splitlines())
    }
    flags = facts.get("flags", "").split()
    return " ".join(
        [
            facts.get("model name", "unknown"),
            *[
                flag
                for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
                if flag in flags
            ],
        ]
    )
