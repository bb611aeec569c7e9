"""``tuned-torch``: the best that a good engineer does in PyTorch alone, and our reader and voxelizer given to them.

A ``DataLoader`` with a worker for each core takes studies as they come and gives them back as they are done, out of
order. A worker grades a whole study on one thread: on a busy machine that was faster than workers that read for models
on all cores in the main process, since no volume crosses a process and cores never wait for each other
(docs/decisions/0014-baselines.md). Networks run in bfloat16 under autocast, in channels-last memory, all slices of a
stack in the first call for any of them. Networks with inputs of one size are compiled by ``torch.compile`` with frozen
weights; the level heat-map detector, whose canvases differ from study to study, is not: compiled, it is 3 % faster in
batches of a stack and every new size costs 20 s; compiled for any size it is 1.4 times slower.

The detector looks at every slice of every sagittal series, as is usual. ``tuned-torch-lean`` is told which of them the
engine looks at, and so does the engine's very work.
"""

from __future__ import annotations

import multiprocessing
import queue
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from spine_bench.baselines.grading import F32, TorchNetwork, finder, sagittal, warm_up_study
from spine_bench.baselines.serial import CLOSED, Clock, Done, told
from spine_bench.baselines.weights import torch_models
from spine_bench.harness.children import end_with_parent
from spine_bench.harness.interfaces import Answer, Sample
from spine_engine.backends import Backend
from spine_engine.bundle import Bundle
from spine_engine.dicom import RoleOverrides, read_unit
from spine_engine.errors import BackendError
from spine_engine.grading import grade
from spine_engine.manifest import ModelEntry
from spine_engine.options import usable_cpus

START_S: Final = 1800.0
"""Longest that workers may take to compile: the largest networks took minutes on two cores."""

WATCH_S: Final = 1.0
"""How often it is looked whether a worker that starts has died."""


class TunedTorchSystem:
    """See the module's description."""

    def __init__(self, bundle: Bundle, *, every_slice: bool = True) -> None:
        self.name = "tuned-torch" if every_slice else "tuned-torch-lean"
        self._bundle, self._every_slice = bundle, every_slice
        self._workers = usable_cpus()
        self._context = multiprocessing.get_context("spawn")
        self._waiting: Any = self._context.Queue()
        self._ready: Any = self._context.Queue()
        self._open: dict[int, Done] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._compiled: tuple[str, ...] = ()
        self._number = 0

    def open(self) -> None:
        """Start the workers, and wait until each has proven the weights, compiled and graded a phantom.

        Raises:
            BackendError: the weights are not the bundle's, or a worker does not start.
        """
        studies = _Studies(self._bundle, self._waiting, self._ready, every_slice=self._every_slice)
        loader = DataLoader(
            studies,
            batch_size=None,
            num_workers=self._workers,
            multiprocessing_context=self._context,
            prefetch_factor=1,
            in_order=False,
        )
        results = iter(loader)
        for _ in range(self._workers):
            said = self._hear(results)
            if isinstance(said, str):
                raise BackendError(f"a worker of {self.name} did not start: {said}")
            self._compiled = said
        self._thread = threading.Thread(target=self._collect, args=(results,), name=self.name, daemon=True)
        self._thread.start()

    def submit(self, sample: Sample, done: Callable[[Answer], None]) -> None:
        """Queue a study for the next free worker."""
        with self._lock:
            self._number += 1
            self._open[self._number] = done
            self._waiting.put((self._number, sample))

    def facts(self) -> dict[str, object]:
        """Return what was compiled, threads, processes and versions."""
        return {
            "bundle": self._bundle.facts,
            "runtime": "PyTorch, channels_last, autocast",
            "precision": "bf16",
            "compiled": list(self._compiled),
            "not compiled": "" if shutil.which("g++") else "torch.compile needs a C++ compiler, and there is none",
            "threads": 1,
            "processes": self._workers,
            "reader": "spine_engine.dicom",
            "versions": {"torch": version("torch")},
        }

    def close(self) -> None:
        """End the workers; what still waits is answered with a failure."""
        with self._lock:
            self._drain()
            for _ in range(self._workers):
                self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._fail_rest(CLOSED)

    def _hear(self, results: Any) -> tuple[str, ...] | str:
        """Wait for one worker's word that it is ready, or for what went wrong."""
        waited = 0.0
        while waited < START_S:
            try:
                said: tuple[str, ...] | str = self._ready.get(timeout=WATCH_S)
                return said
            except queue.Empty:
                waited += WATCH_S
                if not all(worker.is_alive() for worker in results._workers):
                    return "it died"
        return f"it took more than {START_S:.0f} s"

    def _collect(self, results: Any) -> None:
        try:
            for number, answer in results:
                with self._lock:
                    done = self._open.pop(number)
                done(answer)
        except Exception as error:  # noqa: BLE001 - a worker died: whatever waits must be answered
            self._fail_rest(told(error))

    def _drain(self) -> None:
        try:
            while True:
                self._waiting.get(timeout=0.01)
        except queue.Empty:
            return

    def _fail_rest(self, failure: str) -> None:
        with self._lock:
            left, self._open = self._open, {}
        for done in left.values():
            done(Answer(probabilities=None, failure=failure))


class _Studies(IterableDataset[tuple[int, Answer]]):
    """What a worker of the loader does: load the networks once, then grade what comes."""

    def __init__(self, bundle: Bundle, waiting: Any, ready: Any, *, every_slice: bool) -> None:
        self._bundle, self._waiting, self._ready, self._every_slice = bundle, waiting, ready, every_slice

    def __iter__(self) -> Iterator[tuple[int, Answer]]:
        end_with_parent()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of what it does itself when it compiles
                walk = _Walk(self._bundle, every_slice=self._every_slice)
        except Exception as error:  # noqa: BLE001 - it is told where it can be raised
            self._ready.put(told(error))
            return
        self._ready.put(walk.compiled)
        while (item := self._waiting.get()) is not None:
            number, sample = item
            yield number, walk.answered(sample)


class _Walk:
    """Networks in bfloat16 and the way of a study through them, on one thread."""

    def __init__(self, bundle: Bundle, *, every_slice: bool) -> None:
        torch.set_num_threads(1)
        entries = bundle.manifest.models.by_role()
        networks: dict[str, Backend] = {}
        compiled = []
        for role, module in torch_models(bundle).items():
            if role == "whole_study_grader":
                continue
            fixed = None not in entries[role].inputs[0].shape[1:]
            if fixed and shutil.which("g++"):
                compiled.append(role)
            ready = compile_network(module) if role in compiled else module
            network = TorchNetwork(ready, entries[role], bf16=True, channels_last=True)
            networks[role] = BatchedStack(network, entries[role]) if role == "detector" else network
        self.compiled = tuple(compiled)
        self._networks, self._entry = networks, bundle.grader
        self._find = finder(bundle, networks, every_slice=every_slice)
        self._overrides: dict[object, RoleOverrides] = {}
        study = warm_up_study()
        found = self._find(sagittal(study))
        grade(study, found.levels, networks["grader"], self._entry)

    def answered(self, sample: Sample) -> Answer:
        """Read, detect, cut the levels, grade."""
        clock = Clock()
        try:
            probabilities = self._probabilities(sample, clock)
        except Exception as error:  # noqa: BLE001 - a study that cannot be graded is an answer as well
            return Answer(probabilities=None, failure=told(error), stage_seconds=clock.wall)
        return Answer(probabilities=probabilities, stage_seconds=clock.wall)

    def _probabilities(self, sample: Sample, clock: Clock) -> NDArray[np.float64]:
        overrides = self._overrides.get(sample.root)
        if overrides is None:
            overrides = self._overrides[sample.root] = RoleOverrides.find(sample.root)
        with clock.stage("read"):
            (study,) = read_unit(sample.root, sample.unit, overrides).studies
        with clock.stage("detect"):
            levels = self._find(sagittal(study)).levels
        with clock.stage("voxelize and grade"):
            return grade(study, levels, self._networks["grader"], self._entry).probabilities


def compile_network(module: nn.Module) -> nn.Module:
    """Return a network compiled by inductor for inputs of one size, its weights constants of the code."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    inductor.freezing = True
    dynamo.recompile_limit = 64
    return cast(nn.Module, torch.compile(module, dynamic=False))


@dataclass
class BatchedStack:
    """A detector that is asked for the slices of a stack part by part, and looks at all of them in the first call.

    Detection gives every part, a few slices, as a view of its stack's canvas ``(S, H, W)``, so that the others lie in
    memory beside it. An array that is no such view is given to the network as it is.
    """

    network: TorchNetwork
    entry: ModelEntry

    def __post_init__(self) -> None:
        self.inputs, self.outputs, self.device = self.network.inputs, self.network.outputs, self.network.device
        self._stack: NDArray[Any] | None = None
        self._answers: F32 = np.empty(0, np.float32)

    def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
        """Run the network on the whole stack, or return what it said of these slices."""
        given, gives = self.inputs[0].name, self.outputs[0].name
        part = inputs[given]
        stack = part.base
        if stack is None or stack.ndim != 3 or stack.shape[1:] != part.shape[2:] or not stack.flags.c_contiguous:
            return self.network.run(inputs)
        if stack is not self._stack:
            self._stack, self._answers = stack, self.network.run({given: stack[:, None]})[gives]
        number = (part.ctypes.data - stack.ctypes.data) // stack[0].nbytes
        return {gives: self._answers[number : number + len(part)]}

    def close(self) -> None:
        """Let the last stack go."""
        self._stack = None
