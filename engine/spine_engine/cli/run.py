"""``spine-engine run``: grades every study under a folder."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from spine_engine.backends import BACKENDS
from spine_engine.errors import UsageError

if TYPE_CHECKING:
    from spine_engine.run.run import Run
    from spine_engine.run.shards import Shard
    from spine_engine.run.summary import RunSummary

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) *([kmgt]?)(i?b)?", re.IGNORECASE)

DEMONSTRATION = (
    "Research use only; the grades of the packaged bundle are a demonstration."
)


def memory_size(text: str) -> int:
    """Parse a memory size such as ``4GiB``, ``4G`` or ``4096MB`` into bytes; prefixes are powers of 1024.

    Raises:
        typer.BadParameter: ``text`` is not a memory size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is not a memory size: write it like 4GiB or 1500MiB"
        )
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def run(
    folder: Annotated[
        Path,
        typer.Option(
            "--input", metavar="DIR", help="Folder with the DICOM files, any layout."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", metavar="OUT", help="Folder for the results; made if missing."
        ),
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Bundle of models; by default the packaged one."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Worker processes; by default as tuned, or one per usable CPU.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="CPU threads of a model; by default as tuned, or 1 (all CPUs if shared).",
        ),
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            help="study: each worker has its own models; batch: they share them (GPUs; last digits vary)."
        ),
    ] = "auto",
    max_batch: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Largest number of slices or levels in one call of a shared model.",
        ),
    ] = 32,
    max_delay_ms: Annotated[
        float, typer.Option(metavar="MS", help="Longest wait for a batch to fill up.")
    ] = 2.0,
    max_memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=memory_size,
            help="Memory limit of all processes together, e.g. 4GiB.",
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(help=f"Runtime of the models: {', '.join(BACKENDS)}.")
    ] = "openvino",
    device: Annotated[
        str, typer.Option(help="Device of the runtime; no other is used in its place.")
    ] = "cpu",
    precision: Annotated[
        str, typer.Option(help="Precision: auto, f32, bf16, f16, or int8 (graders).")
    ] = "auto",
    series_descriptions: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Table of the series' roles; one beside the input is used by default.",
        ),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time limit of one study.")
    ] = 300.0,
    max_attempts: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Attempts at a study that kills its worker or exceeds the time limit.",
        ),
    ] = 2,
    no_detector: Annotated[
        bool,
        typer.Option(
            "--no-detector",
            help="Grade with the whole-study grader alone, without finding levels.",
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N|auto",
            help="Grade part I of N; auto: that of this task of a Slurm array or Indexed Job.",
        ),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many shards there are, for --shard auto in Kubernetes.",
        ),
    ] = None,
    centers: Annotated[
        Path | None,
        typer.Option(
            "--centres",
            metavar="CSV",
            help="Vertebral centres (study_id,level,x,y,z: L1 to S1, LPS mm), for graders cut between them.",
        ),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Use models of any operators, untried: for bundles of people you trust.",
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Also write the pages of 'spine-engine report' to OUT/report.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print run.json instead of the summary.")
    ] = False,
) -> None:
    """Grade every study under a folder.

    The run writes predictions.csv, studies.jsonl and run.json. The same command resumes an interrupted run.

    Example: spine-engine run --input exams --output results

    Exit codes: 0 all graded, 8 some not graded, 2 wrong usage, 3 bundle refused, 4 no backend as asked,
    5 output in use, 6 output not writable, 130 interrupted.
    """
    from spine_engine.cli.progress import shown
    from spine_engine.engine import Engine
    from spine_engine.options import RunOptions, Schedule

    options = RunOptions(
        workers=workers,
        threads=threads,
        schedule=cast(Schedule, schedule),
        max_batch=max_batch,
        max_delay_ms=max_delay_ms,
        max_memory_bytes=max_memory,
        backend=backend,
        device=device,
        precision=precision,
        timeout_s=timeout_s,
        max_attempts=max_attempts,
        series_descriptions=series_descriptions,
        detector=not no_detector,
        centers=centers,
    )
    work = Engine.open(bundle, options=options, trust=trust).run(
        folder, output, shard=chosen_shard(shard, shards)
    )
    with stopping_on_signals(work), shown(work.progress):
        summary = work.finish()
    if as_json:
        typer.echo(json.dumps(summary.record(), indent=2))
    else:
        for line in closing_lines(summary, output, packaged=bundle is None):
            typer.echo(line)
    if report and not summary.interrupted:
        from spine_engine.cli.report import closing_line, write_with_progress

        typer.echo(
            closing_line(write_with_progress(output, workers=workers)), err=as_json
        )
    raise typer.Exit(summary.exit_code)


def chosen_shard(shard: str | None, shards: int | None) -> Shard:
    """Return what ``--shard`` and ``--shards`` ask for; the whole folder without them.

    Raises:
        UsageError: they are no shard, or do not go together.
    """
    from spine_engine.run.shards import WHOLE, Shard

    if shard == "auto":
        return Shard.from_environment(shards)
    if shards is not None:
        raise UsageError("--shards needs --shard auto: give --shard I/N alone")
    return WHOLE if shard is None else Shard.parse(shard)


@contextmanager
def stopping_on_signals(work: Run) -> Iterator[None]:
    """Make the first Ctrl-C (or SIGTERM) finish the studies in flight and the second end the run at once."""

    def on_signal(number: int, frame: Any) -> None:
        if work.progress.stopped:
            work.abort()
        else:
            typer.echo(
                "finishing the studies in flight; interrupt again to stop at once",
                err=True,
            )
            work.stop()

    previous = {
        number: signal.signal(number, on_signal)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def closing_lines(
    summary: RunSummary, output: Path, *, packaged: bool
) -> Iterator[str]:
    """Yield the summary of a run in at most eight lines."""
    from spine_engine.results import Status
    from spine_engine.run.folders import shared_file_system

    record = summary.record()
    counts = ", ".join(f"{record['studies'][status]} {status}" for status in Status)
    yield f"{summary.studies} studies: {counts}{_listed(summary.reasons)}"
    if summary.incomplete:
        yield f"{summary.incomplete} incomplete: files could not be read; the same command tries these studies again"
    if not summary.studies and summary.shard.count == 1:
        yield "No MR study was found in the input; 'spine-engine inspect DIR' shows what it holds."
    if record["refused_files"]["total"]:
        yield f"{record['refused_files']['total']} files or folders not used{_listed(summary.refused_files)}"
    resumed = f", {summary.resumed} done earlier" if summary.resumed else ""
    memory_mb = summary.peak_memory_bytes["total"] / 1e6
    yield f"{summary.walked} walked in {summary.wall_s:.1f} s{resumed}; peak memory {memory_mb:.0f} MB"
    yield f"Results: {output}/predictions.csv, studies.jsonl, run.json"
    for name in summary.series_tables.get("used", ()):
        yield f"Series roles from {name}"
    for why in summary.series_tables.get("left_out", {}).values():
        yield f"Not used: {why}"
    if (kind := shared_file_system(output)) is not None:
        yield f"The ledger keeps a rollback journal, which is slower: {output} is on {kind}"
    for shard in summary.missing_shards:
        yield f"Missing: shard {shard}"
    if summary.interrupted:
        yield "Interrupted: the same command resumes the run."
    yield DEMONSTRATION if packaged else "Research use only; not a medical device."


def _listed(numbers: Any) -> str:
    listed = ", ".join(f"{name} {number}" for name, number in sorted(numbers.items()))
    return f" ({listed})" if listed else ""
