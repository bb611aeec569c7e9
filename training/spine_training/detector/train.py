"""Training of the level heat-map detector: seeded by step, so that a resumed run repeats an uninterrupted one."""

from __future__ import annotations

import csv
import math
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from spine_engine.detection.spec import DetectorSpec
from spine_training.detector.augment import ExamArrays, arrays_from_exam, sample
from spine_training.detector.data import Exam, fold_of, load_exams
from spine_training.detector.loss import detector_loss
from spine_training.detector.model import LevelHeatmapNet

#: Canvas sizes in pixels (2 mm): 384 x 320 mm holds a whole-lumbar exam, 448 x 384 mm a very large field of view,
#: 320 x 256 mm a short one. `(canvas, slices a batch, how often)`; a batch covers about as many pixels in each.
CANVASES = (((192, 160), 12, 0.45), ((160, 128), 18, 0.3), ((224, 192), 9, 0.25))
#: How often each source is drawn. VB1 has the only T1 and STIR exams, so its few exams come oftener than their number.
SOURCE_WEIGHTS = {"VB1": 0.22, "VB2": 0.26, "VB3": 0.27, "SPIDER": 0.25, "PHANTOM": 0.2}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Options of one run.

    `fold` is held out (-1: train on everything); `start` names a checkpoint whose averaged weights begin the run.
    """

    steps: int = 2400
    steps_per_epoch: int = 200
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    ema_decay: float = 0.997
    gradient_clip: float = 1.0
    fold: int = 0
    seed: int = 0
    threads: int = 2
    phantoms: int = 0
    start: str | None = None


class _Draw(Protocol):
    def __call__(self, step: int) -> tuple[Tensor, Tensor]: ...


def batch_drawer(groups: dict[str, list[ExamArrays]], spec: DetectorSpec, seed: int) -> _Draw:
    """A function from step number to its batch `(slices (N, 1, H, W), targets (N, 9, H / 2, W / 2))`."""
    names = sorted(groups)
    weights = np.array([SOURCE_WEIGHTS[name] for name in names])
    weights /= weights.sum()

    def draw(step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((seed, step))
        canvas, count, _ = CANVASES[rng.choice(len(CANVASES), p=[c[2] for c in CANVASES])]
        images, targets = [], []
        for name in rng.choice(names, count, p=weights):
            exams = groups[name]
            image, target = sample(exams[rng.integers(len(exams))], canvas, rng, spec)
            images.append(image)
            targets.append(target)
        slices = torch.from_numpy(np.stack(images)).unsqueeze(1)
        if rng.random() < 0.2:  # a coarser scan
            slices = torch.nn.functional.avg_pool2d(slices, 3, stride=1, padding=1)
        return slices, torch.from_numpy(np.stack(targets))

    return draw


def _prefetch(draw: _Draw, steps: range, depth: int = 3) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Batches of `steps`, drawn by one thread ahead of their use. An error in the thread is raised here."""
    box: queue.Queue[Any] = queue.Queue(depth)

    def work() -> None:
        try:
            for step in steps:
                box.put((step, *draw(step)))
            box.put(None)
        except Exception as error:  # noqa: BLE001 - raised again by the reader of the queue
            box.put(error)

    threading.Thread(target=work, daemon=True).start()
    while (item := box.get()) is not None:
        if isinstance(item, Exception):
            raise item
        yield item


def learning_rate(step: int, options: TrainOptions) -> float:
    """Linear warm-up, then a cosine to 1 % of the peak."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    t = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return options.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, t))))


def exam_groups(exams: Sequence[Exam], fold: int, spec: DetectorSpec) -> dict[str, list[ExamArrays]]:
    """Training exams by source, without those of `fold`; an exam given twice counts once."""
    number = fold_of(list(exams))
    groups: dict[str, list[ExamArrays]] = {}
    for exam in exams:
        if number[exam.name] != fold and exam.name != "VB3-53":  # VB3-53 repeats VB3-51
            groups.setdefault(exam.source, []).append(arrays_from_exam(exam, spec))
    return groups


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """`torch.save` through a temporary file and a rename."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


@dataclass(slots=True)
class _Run:
    """The state of a training: what a checkpoint holds."""

    net: LevelHeatmapNet
    optimizer: torch.optim.AdamW
    ema: dict[str, Tensor]
    step: int

    def save(self, path: Path, options: TrainOptions) -> None:
        state = {"net": self.net.state_dict(), "ema": self.ema, "optimizer": self.optimizer.state_dict()}
        save_atomically({**state, "step": self.step, "options": asdict(options)}, path)


def _begin(options: TrainOptions, checkpoint: Path | None, spec: DetectorSpec) -> _Run:
    """A fresh run, one that starts from `options.start`, or one that goes on from `checkpoint`."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    net = LevelHeatmapNet(spec).to(memory_format=torch.channels_last)
    if options.start:
        net.load_state_dict(torch.load(options.start, weights_only=True)["ema"])
    ema = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    step = 0
    if checkpoint is not None:
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step = state["ema"], state["step"]
    net.train()
    return _Run(net, optimizer, ema, step)


def train(
    data: Path,
    out: Path,
    options: TrainOptions,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    extra: dict[str, list[ExamArrays]] | None = None,
) -> Path:
    """Train and return the path of the last checkpoint `{net, ema, optimizer, step, options}` in `out`.

    Args:
        data: the data folder (`lumbar-mri`, `spider-slices`).
        out: folder of `last.pt` and `curve.csv`, made when missing.
        options: see `TrainOptions`.
        resume: go on from `out/last.pt` when it is there.
        stop_after: leave after this step, as an interruption would (a multiple of `options.steps_per_epoch`).
        extra: further groups of exams (phantoms).
    """
    out.mkdir(parents=True, exist_ok=True)
    spec, path = DetectorSpec(), out / "last.pt"
    run = _begin(options, path if resume and path.exists() else None, spec)
    groups = exam_groups(load_exams(data), options.fold, spec) | (extra or {})
    print({k: len(v) for k, v in groups.items()}, f"step {run.step} of {options.steps}", flush=True)
    steps = range(run.step, stop_after or options.steps)
    sums: dict[str, float] = {}
    began = time.monotonic()
    for step, slices, target in _prefetch(batch_drawer(groups, spec, options.seed), steps):
        for key, value in _step(run, slices, target, options).items():
            sums[key] = sums.get(key, 0.0) + value
        if run.step % options.steps_per_epoch == 0 or run.step == options.steps:
            count = step % options.steps_per_epoch + 1
            per_step = (time.monotonic() - began) / (step - steps.start + 1)
            _report(out / "curve.csv", run.step, {k: v / count for k, v in sums.items()}, options, per_step)
            sums = {}
            run.save(path, options)
    return path


def _step(run: _Run, slices: Tensor, target: Tensor, options: TrainOptions) -> dict[str, float]:
    """One optimiser step; returns the parts of the loss."""
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, options)
    with torch.autocast("cpu", torch.bfloat16):
        output = run.net(slices.contiguous(memory_format=torch.channels_last))
    loss, parts = detector_loss(output.float(), target)
    run.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(run.net.parameters(), options.gradient_clip)
    run.optimizer.step()
    _average(run.ema, run.net, min(options.ema_decay, (run.step + 1) / (run.step + 20)))
    run.step += 1
    return parts


def _average(ema: dict[str, Tensor], net: torch.nn.Module, decay: float) -> None:
    """Exponential moving average of weights and running statistics, in place."""
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if value.dtype.is_floating_point:
                ema[key].lerp_(value, 1.0 - decay)
            else:
                ema[key].copy_(value)


def _report(path: Path, step: int, means: dict[str, float], options: TrainOptions, seconds_per_step: float) -> None:
    """One line on the terminal and one row in the curve."""
    text = "  ".join(f"{k} {v:.4f}" for k, v in means.items())
    eta_s = seconds_per_step * (options.steps - step)
    print(f"step {step}/{options.steps}  {text}  {seconds_per_step:.2f} s a step, {eta_s:.0f} s to go", flush=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", *means, "learning_rate"])
        writer.writerow([step, *(f"{v:.6f}" for v in means.values()), f"{learning_rate(step, options):.3e}"])
