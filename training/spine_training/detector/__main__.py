"""`python -m spine_training.detector train|evaluate|export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from spine_engine.detection.spec import DetectorSpec
from spine_training.detector.augment import ExamArrays, arrays_from_exam
from spine_training.detector.evaluate import OnnxBackend, TorchBackend, evaluate, rows_as_json, table
from spine_training.detector.export import export_onnx
from spine_training.detector.phantoms import exams_from_phantom
from spine_training.detector.train import TrainOptions, train

#: First seed of the training phantoms; the demo and the tests use small seeds.
PHANTOM_SEED = 700_000


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run one command."""
    parser = argparse.ArgumentParser(prog="python -m spine_training.detector")
    defaults = TrainOptions()
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train", help="train on the public data folder")
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--resume", action="store_true", help="go on from OUT/last.pt")
    one.add_argument("--fold", type=int, default=defaults.fold, help="fold held out; -1 trains on everything")
    one.add_argument("--steps", type=int, default=defaults.steps)
    one.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    one.add_argument("--seed", type=int, default=defaults.seed)
    one.add_argument("--phantoms", type=int, default=defaults.phantoms, help="phantom studies mixed in")
    one.add_argument("--start", help="checkpoint to begin from")
    two = commands.add_parser("evaluate", help="held-out figures per source and contrast")
    two.add_argument("--data", type=Path, required=True)
    two.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint (.pt) or an exported model (.onnx)")
    two.add_argument(
        "--fold", type=int, default=defaults.fold, help="the fold the checkpoint did not see; -1: all exams"
    )
    two.add_argument("--precision", choices=("f32", "bf16"), default="f32", help="of an exported model under OpenVINO")
    two.add_argument("--rows", type=Path, help="write every disc as a line of JSON")
    three = commands.add_parser("export", help="write a checkpoint as ONNX")
    three.add_argument("--checkpoint", type=Path, required=True)
    three.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    {"train": _train, "evaluate": _evaluate, "export": _export}[args.command](args)


def _train(args: argparse.Namespace) -> None:
    options = TrainOptions(
        steps=args.steps,
        fold=args.fold,
        seed=args.seed,
        start=args.start,
        phantoms=args.phantoms,
        learning_rate=args.learning_rate,
    )
    print(train(args.data, args.out, options, resume=args.resume, extra=_phantom_group(args.phantoms)))


def _evaluate(args: argparse.Namespace) -> None:
    onnx = args.checkpoint.suffix == ".onnx"
    backend = OnnxBackend(args.checkpoint, precision=args.precision) if onnx else TorchBackend(args.checkpoint)
    rows = evaluate(args.data, backend, args.fold)
    print(table(rows))
    if args.rows:
        args.rows.write_text(rows_as_json(rows) + "\n")


def _export(args: argparse.Namespace) -> None:
    print(export_onnx(args.checkpoint, args.out))


def _phantom_group(count: int) -> dict[str, list[ExamArrays]]:
    """Sagittal series of `count` phantom studies as a training group of their own."""
    if not count:
        return {}
    spec = DetectorSpec()
    seeds = range(PHANTOM_SEED, PHANTOM_SEED + count)
    return {"PHANTOM": [arrays_from_exam(exam, spec) for seed in seeds for exam in exams_from_phantom(seed)]}


if __name__ == "__main__":
    main()
