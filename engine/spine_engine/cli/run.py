"""``spine-engine run``."""

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

if TYPE_CHECKING:
    from spine_engine.run.run import Run
    from spine_engine.run.summary import RunSummary

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) *([kmgt]?)(i?b)?", re.IGNORECASE)

DEMONSTRATION = "Research use only; the grades of the packaged bundle are a demonstration."


def memory_size(text: str) -> int:
    """Return the bytes that a size such as ``4GiB``, ``4G`` or ``4096MB`` means; the prefixes count in 1024.

    Raises:
        typer.BadParameter: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size of memory: write it like 4GiB or 1500MiB")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def run(
    folder: Annotated[Path, typer.Option("--input", metavar="DIR", help="Folder with the DICOM files, any layout.")],
    output: Annotated[Path, typer.Option("--output", metavar="OUT", help="Folder for the results; made if missing.")],
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Bundle of models; the packaged one if not given.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Worker processes; as tuned, or one for each usable CPU.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads of a model on a CPU; as tuned, or 1 (all CPUs if shared).")
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(help="study: each worker has its own models; batch: they share them (GPUs; last digits vary)."),
    ] = "auto",
    max_batch: Annotated[int, typer.Option(metavar="N", help="Slices or levels in one call of a shared model.")] = 32,
    max_delay_ms: Annotated[float, typer.Option(metavar="MS", help="How long a batch may wait to fill up.")] = 2.0,
    max_memory: Annotated[
        int | None,
        typer.Option(metavar="SIZE", parser=memory_size, help="Ceiling of all processes together, e.g. 4GiB."),
    ] = None,
    backend: Annotated[str, typer.Option(help=f"Runtime of the models: {', '.join(BACKENDS)}.")] = "openvino",
    device: Annotated[str, typer.Option(help="Device asked of the runtime; no other is used instead.")] = "cpu",
    precision: Annotated[str, typer.Option(help="auto, f32, bf16, f16, or int8 (graders).")] = "auto",
    series_descriptions: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Which series plays which part; one beside the input is found by itself."),
    ] = None,
    timeout_s: Annotated[float, typer.Option(metavar="SECONDS", help="Time one study may take.")] = 300.0,
    max_attempts: Annotated[
        int, typer.Option(metavar="N", help="Attempts at a study that kills its worker or runs out of time.")
    ] = 2,
    no_detector: Annotated[
        bool, typer.Option("--no-detector", help="Grade with the whole-study grader alone; no level is looked for.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write OUT/report too: pages to look at, as 'spine-engine report' does.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print run.json instead of the summary.")] = False,
) -> None:
    """Grade every study under a folder.

    Writes predictions.csv, studies.jsonl and run.json. The same command again goes on where it was interrupted.

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
    )
    work = Engine.open(bundle, options=options).run(folder, output)
    with stopping_on_signals(work), shown(work.progress):
        summary = work.finish()
    if as_json:
        typer.echo(json.dumps(summary.record(), indent=2))
    else:
        for line in closing_lines(summary, output, packaged=bundle is None):
            typer.echo(line)
    if report and not summary.interrupted:
        from spine_engine.cli.report import closing_line, write_with_progress

        typer.echo(closing_line(write_with_progress(output, workers=workers)), err=as_json)
    raise typer.Exit(summary.exit_code)


@contextmanager
def stopping_on_signals(work: Run) -> Iterator[None]:
    """Let the first Ctrl-C (or SIGTERM) end the run in good order and the second end it at once."""

    def on_signal(number: int, frame: Any) -> None:
        if work.progress.stopped:
            work.abort()
        else:
            typer.echo("finishing the studies in flight; once more to end now", err=True)
            work.stop()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def closing_lines(summary: RunSummary, output: Path, *, packaged: bool) -> Iterator[str]:
    """Yield what a person wants to know at the end, in at most eight lines."""
    from spine_engine.results import Status

    record = summary.record()
    counts = ", ".join(f"{record['studies'][status]} {status}" for status in Status)
    yield f"{summary.studies} studies: {counts}{_listed(summary.reasons)}"
    if summary.incomplete:
        yield f"{summary.incomplete} incomplete: files could not be read; the same command tries these studies again"
    if not summary.studies:
        yield "No MR study was found in the input; 'spine-engine inspect DIR' says what lies there."
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
    if summary.interrupted:
        yield "Interrupted: the same command again goes on from here."
    yield DEMONSTRATION if packaged else "Research use only; not a medical device."


def _listed(numbers: Any) -> str:
    return " (" + ", ".join(f"{name} {number}" for name, number in sorted(numbers.items())) + ")" if numbers else ""
