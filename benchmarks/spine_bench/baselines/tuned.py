"""``tuned-torch``: the best that a good engineer does in PyTorch alone, and our reader and voxelizer given to them.

A process for each core takes studies as they come and gives them back as they are done, out of order, as the workers
of a ``DataLoader`` would. It grades a whole study on one thread: on a busy machine that was faster than workers that
read for models on all cores in the main process, since no volume crosses a process and cores never wait for each other
(docs/decisions/0014-baselines.md). Networks run in bfloat16 under autocast, in channels-last memory, all slices of a
stack in the first call for any of them. Networks with inputs of one size are compiled by ``torch.compile`` with frozen
weights; the level heat-map detector, whose canvases differ from study to study, is not: compiled, it is 3 % faster in
batches of a stack and every new size costs 20 s; compiled for any size it is 1.4 times slower.

The detector looks at every slice of every sagittal series, as is usual. ``tuned-torch-lean`` is told which of them the
engine looks at, and so does the engine's very work.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spine_bench.baselines.grading import EngineWay, TorchNetwork
from spine_bench.baselines.pool import PooledSystem
from spine_bench.baselines.weights import torch_models
from spine_bench.harness.interfaces import F32, StudyLibrary, read_sample
from spine_engine.backends import Backend
from spine_engine.bundle import Bundle
from spine_engine.options import usable_cpus


def system(library: StudyLibrary, folder: Path | None) -> PooledSystem:
    """Make ``tuned-torch``; see the module's description."""
    return PooledSystem(
        "tuned-torch", folder, partial(_grader, every_slice=True), usable_cpus()
    )


def lean(library: StudyLibrary, folder: Path | None) -> PooledSystem:
    """Make ``tuned-torch-lean``."""
    return PooledSystem(
        "tuned-torch-lean", folder, partial(_grader, every_slice=False), usable_cpus()
    )


def _grader(bundle: Bundle, *, every_slice: bool) -> EngineWay:
    """Build the networks in bfloat16 on one thread, prove their weights, compile them and grade a phantom."""
    warnings.simplefilter(
        "ignore"
    )  # torch warns of what it does itself when it compiles
    torch.set_num_threads(1)
    entries = bundle.manifest.models.by_role()
    networks: dict[str, Backend] = {}
    compiled = []
    modules = torch_models(bundle)
    modules.pop("whole_study_grader", None)
    for role, module in modules.items():
        fixed = None not in entries[role].inputs[0].shape[1:]
        if fixed and shutil.which("g++"):
            compiled.append(role)
            module = compile_network(module)
        networks[role] = TorchNetwork(module, entries[role], bf16=True)
    networks["detector"] = BatchedStack(networks["detector"])
    facts = {
        "runtime": "PyTorch, channels_last, autocast",
        "precision": "bf16",
        "compiled": compiled,
        "not compiled": ""
        if shutil.which("g++")
        else "torch.compile needs a C++ compiler, and there is none",
        "threads": 1,
        "reader": "spine_engine.dicom",
        "versions": {"torch": version("torch")},
    }
    return EngineWay(
        bundle, networks, read_sample, every_slice=every_slice, facts=facts
    )


def compile_network(module: nn.Module) -> nn.Module:
    """Return a network compiled by inductor for inputs of one size, its weights constants of the code."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    inductor.freezing = True
    dynamo.recompile_limit = 64
    return cast(nn.Module, torch.compile(module, dynamic=False))


class BatchedStack:
    """A detector that is asked for the slices of a stack one after the other, and looks at all of them at once.

    Detection gives each slice as a view of its stack's canvas ``(S, H, W)``, in order. At the first of them the network
    runs on the whole canvas, and its answers are handed out as they are asked for. An array that is no such view is
    given to the network as it is.
    """

    def __init__(self, network: Backend) -> None:
        self.inputs = network.inputs
        self.outputs = network.outputs
        self.device = network.device
        self._network = network
        self._stack: NDArray[Any] | None = None
        self._left: F32 = np.empty(0, np.float32)

    def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
        """Run the network on the whole stack, or return what it answered to these slices."""
        given = self.inputs[0].name
        gives = self.outputs[0].name
        part = inputs[given]
        stack = part.base
        if stack is None or stack.ndim != 3 or stack.shape[1:] != part.shape[2:]:
            return self._network.run(inputs)
        if stack is not self._stack or len(self._left) < len(part):
            self._stack = stack
            self._left = self._network.run({given: stack[:, None]})[gives]
        answers = self._left[: len(part)]
        self._left = self._left[len(part) :]
        return {gives: answers}

    def close(self) -> None:
        """Let the last stack go."""
        self._stack = None
