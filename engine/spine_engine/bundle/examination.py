"""A stranger's bundle is tried in a process of its own, with little memory and little time, before it is used.

What a list of operators cannot say is seen there: constants that a runtime computes while it loads, places outside a
tensor, answers of gigabytes, a division that ends the process. All of that follows from shapes and constants alone
(``operators``), so that one call shows it.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from math import prod
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

from spine_engine.bundle.bundle import Bundle, read_model
from spine_engine.bundle.manifest import ModelEntry
from spine_engine.errors import BundleError, SpineEngineError
from spine_engine.scheduler.process import no_main_module, prepare_process

TIME_S: Final = 8.0
"""A bundle of 64 MB is tried in this time, which is 1.5 s for the packaged one; 0.1 s more for each further MB."""

MEMORY_BYTES: Final = 4 << 30
"""Address space of the process, and eight times the models' bytes besides. The packaged bundle takes 1.5 GiB."""

MAX_TENSOR_BYTES: Final = 1 << 30
"""The largest that a tensor between two operators may be for one slice or level, as float32."""

_ORDINARY_BYTES: Final = 64 << 20
_USUAL_SIDE: Final = 64
"""Pixels of a side that may vary, where a bundle names no profile: a multiple of every detector's stride."""

_TRUST: Final = "--trust runs models of people you trust"


class _TimeUpError(BundleError):
    """A process took longer than it may."""


def open_examined(
    path: Path | None = None, *, backend: str = "openvino", trust: bool = False
) -> Bundle:
    """Verify a bundle as ``Bundle.open`` does and, where it is named and not trusted, try its models apart.

    Raises:
        BundleError: it is refused.
    """
    bundle = Bundle.open(path, trust=trust)
    if (
        path is not None and not trust and backend != "fake"
    ):  # whose models no runtime reads
        examine(bundle)
    return bundle


def examine(bundle: Bundle) -> None:
    """Try every model of a bundle in a process of its own: load it, then run it once.

    A model that is loaded in time may be slow. As its operators cannot loop, it ends, so that running out of time then
    is no reason to refuse it.

    Raises:
        BundleError: a model cannot be loaded, reads outside its tensors, or needs more time or memory than it may.
    """
    allowed_s, begun = time_allowed_s(bundle), time.monotonic()
    facts = (bundle.path, bundle.digest)
    apart(_examined, *facts, bundle=bundle, time_s=allowed_s)
    left_s = max(1.0, allowed_s - (time.monotonic() - begun))
    with suppress(_TimeUpError):
        apart(_run_once, *facts, bundle=bundle, time_s=left_s)


def time_allowed_s(bundle: Bundle) -> float:
    """Return how long a bundle's models may take to be tried, in seconds: more for large ones."""
    return TIME_S + 0.1 * max(0, _size_bytes(bundle) - _ORDINARY_BYTES) / 1e6


def apart(work: Callable[..., Any], *given: Any, bundle: Bundle, time_s: float) -> Any:
    """Return what ``work(*given)`` returns in a process of its own with limited memory.

    Args:
        work: a function of a module; what it takes and returns can be pickled.
        given: its arguments.
        bundle: the models it works with: what a refusal names, and what the memory is measured by.
        time_s: how long it may take, the start of the process included.

    Raises:
        BundleError: the process died, or took longer.
        SpineEngineError: what ``work`` raised.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    memory = MEMORY_BYTES + 8 * _size_bytes(bundle)
    with no_main_module():
        process = context.Process(
            target=_child, args=(theirs, memory, work, given), daemon=True
        )
        process.start()
    theirs.close()
    try:
        if not ours.poll(time_s):
            raise _TimeUpError(
                f"{bundle.manifest.name} is refused: trying it took more than {time_s:.0f} s; {_TRUST}"
            )
        raised, value = ours.recv()
    except EOFError:
        process.join()
        raise BundleError(
            f"{bundle.manifest.name} is refused: the process that tried it died{_death(process.exitcode)}; {_TRUST}"
        ) from None
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        ours.close()
    if raised:
        raise value
    return value


def _death(code: int | None) -> str:
    with suppress(ValueError):
        return f" of {signal.Signals(-(code or 0)).name}"
    return ""


def _child(
    answers: Connection,
    memory_bytes: int,
    work: Callable[..., Any],
    given: tuple[Any, ...],
) -> None:
    """Work in the new process: quietly, within its memory, and answer once."""
    prepare_process()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        answer = (False, work(*given))
    except SpineEngineError as error:
        answer = (True, error)
    except MemoryError:
        answer = (
            True,
            BundleError(
                f"the models are refused: they need more memory than they may; {_TRUST}"
            ),
        )
    except Exception as error:  # noqa: BLE001 - whatever a runtime says of a stranger's model refuses it
        lines = str(error).splitlines() or [type(error).__name__]
        answer = (
            True,
            BundleError(f"the models are refused: {lines[0][:200]}; {_TRUST}"),
        )
    answers.send(answer)
    answers.close()


def _examined(path: Path, digest: str) -> None:
    """Look at every file of a bundle with OpenVINO and load each model, on the processor in float32."""
    bundle = _unchanged(path, digest)
    for entry in bundle.manifest.models.by_role().values():
        for file in entry.files:
            content = read_model(bundle.path, file)
            try:
                check_places(content, _smallest(entry))
            except ValueError as error:
                raise BundleError(
                    f"{file.file} is refused: {error}; {_TRUST}"
                ) from None
        bundle.open_model(entry, precision="f32").close()


def _run_once(path: Path, digest: str) -> None:
    """Run each model of a bundle once with OpenVINO, on the processor in float32."""
    bundle = _unchanged(path, digest)
    for entry in bundle.manifest.models.by_role().values():
        model = bundle.open_model(entry, precision="f32")
        model.run({entry.inputs[0].name: np.zeros(_smallest(entry), np.float32)})
        model.close()


def _unchanged(path: Path, digest: str) -> Bundle:
    bundle = Bundle.open(path, trust=True)  # it was verified by the process that asks
    if bundle.digest != digest:
        raise BundleError(
            f"the bundle {bundle.manifest.name!r} was changed while it was verified; start again"
        )
    return bundle


def _smallest(entry: ModelEntry) -> tuple[int, ...]:
    """Return the shape of the smallest request that a model is asked."""
    if entry.profile is not None:
        return entry.profile.smallest
    shape = entry.inputs[0].shape
    return tuple(
        (1 if axis == 0 else _USUAL_SIDE) if size is None else size
        for axis, size in enumerate(shape)
    )


def check_places(content: bytes, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` where a model gathers outside a tensor, or has one beyond ``MAX_TENSOR_BYTES``."""
    import openvino
    from openvino.passes import ConstantFolding, Manager

    model = openvino.Core().read_model(content)
    model.reshape(list(shape))
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    for node in model.get_ordered_ops():
        for output in node.outputs():
            size = output.get_partial_shape()
            if not size.is_dynamic and 4 * prod(size.to_shape()) > MAX_TENSOR_BYTES:
                raise ValueError(f"a tensor of the shape {tuple(size.to_shape())}")
        if node.get_type_name() in ("Gather", "GatherND", "GatherElements"):
            _check_gather(node)
        if node.get_type_name() == "Pad" and node.get_attributes()["pad_mode"] in (
            "reflect",
            "symmetric",
        ):
            _check_mirror(node)


def _constant(node: Any, place: int) -> np.ndarray[Any, np.dtype[Any]]:
    source = node.input_value(place).get_node()
    if source.get_type_name() != "Constant":
        raise ValueError(
            f"where a {node.get_type_name()} reads is not known before it runs"
        )
    return np.asarray(source.get_data())


def _check_gather(node: Any) -> None:
    """Raise unless every index of a gather is within the sides that it counts along."""
    sides = node.input_value(0).get_shape()
    at = _constant(node, 1)
    if node.get_type_name() == "GatherND":
        first = node.get_attributes()["batch_dims"]
        within = np.array(sides[first : first + at.shape[-1]])
    elif node.get_type_name() == "Gather":
        within = np.array(sides[int(_constant(node, 2).item())])
    else:
        within = np.array(sides[node.get_attributes()["axis"]])
    if at.size and not ((at >= -within) & (at < within)).all():
        raise ValueError(f"a {node.get_type_name()} reads outside its tensor")


def _check_mirror(node: Any) -> None:
    """Raise unless padding that mirrors a tensor is smaller than the tensor."""
    sides = np.array(node.input_value(0).get_shape())
    if not all((_constant(node, place) < sides).all() for place in (1, 2)):
        raise ValueError("padding mirrors more than there is")


def _size_bytes(bundle: Bundle) -> int:
    return sum(
        file.size_bytes
        for entry in bundle.manifest.models.by_role().values()
        for file in entry.files
    )
