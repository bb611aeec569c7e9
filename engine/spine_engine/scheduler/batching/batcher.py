"""Dynamic batches: what many studies ask of one model, answered in few calls of it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spine_engine.backends.base import Backend

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class BatchPolicy:
    """How requests are joined.

    Attributes:
        sizes: the batch sizes the model is called with, ascending; a batch is padded with zeros to the next one, so
            that runtimes meet few shapes.
        max_delay_ms: how long a request may wait for company while the model has nothing else to do.

    Raises:
        ValueError: no size, sizes that do not ascend, or a negative delay.
    """

    sizes: tuple[int, ...]
    max_delay_ms: float

    def __post_init__(self) -> None:
        if (
            not self.sizes
            or self.sizes[0] < 1
            or list(self.sizes) != sorted({*self.sizes})
        ):
            raise ValueError(
                f"batch sizes must be positive and ascend, got {self.sizes}"
            )
        if not self.max_delay_ms >= 0:
            raise ValueError(
                f"max_delay_ms must not be negative, got {self.max_delay_ms}"
            )

    @property
    def largest(self) -> int:
        """The most items one call takes."""
        return self.sizes[-1]

    def padded(self, items: int) -> int:
        """Return the size of the call that takes ``items`` items."""
        return next(size for size in self.sizes if size >= items)


def doubling(unit: int, most: int) -> tuple[int, ...]:
    """Return ``unit``, twice that, four times ... as far as ``most`` allows; at least ``unit`` itself."""
    sizes = [unit]
    while sizes[-1] * 2 <= most:
        sizes.append(sizes[-1] * 2)
    return tuple(sizes)


@dataclass
class BatchCounts:
    """What a batcher has done so far: calls, items asked for, items added as padding, seconds inside the model."""

    calls: int = 0
    items: int = 0
    padding: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class _Request:
    inputs: Tensors
    items: int
    since: float
    answer: Future[dict[str, NDArray[np.float32]]] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """What requests must have in common to go into one batch: the shape of an item."""
        return tuple(
            (name, array.shape[1:]) for name, array in sorted(self.inputs.items())
        )


class Batcher:
    """Owns a model and the one thread that calls it; any number of threads ask.

    Greedy: an idle model takes all that waits and fits, at once when the batch is full, else when the oldest request
    has waited ``max_delay_ms``. Only items of one shape go together; oldest first, so nothing starves. When a call
    raises, its requests are tried again in halves until the one that is to blame stands alone: it gets the error, the
    others their answers.

    A model whose batch dimension is fixed, or that has several inputs, takes requests one by one, as they are.
    """

    def __init__(self, backend: Backend, policy: BatchPolicy) -> None:
        self.backend = backend
        self.policy = policy
        self.counts = BatchCounts()
        self.busy_since: float | None = None
        self._joins = len(backend.inputs) == 1 and all(
            info.shape[:1] == (None,) for info in (*backend.inputs, *backend.outputs)
        )
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="batcher", daemon=True)
        self._thread.start()

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """Return the model's outputs for ``inputs``; waits. Callable from any thread.

        Raises:
            Exception: what the model raised for this request.
            RuntimeError: the batcher has been closed.
        """
        parts = [self._ask(part) for part in self._parts(inputs)]
        answers = [part.result() for part in parts]
        if len(answers) == 1:
            return answers[0]
        return {
            name: np.concatenate([answer[name] for answer in answers])
            for name in answers[0]
        }

    def close(self) -> None:
        """Answer what waits with an error, end the thread and release the model."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self.backend.close()

    def _parts(self, inputs: Tensors) -> list[Tensors]:
        """Cut a request that is larger than the largest batch."""
        most = self.policy.largest
        items = len(next(iter(inputs.values())))
        if not self._joins or items <= most:
            return [inputs]
        return [
            {name: array[k : k + most] for name, array in inputs.items()}
            for k in range(0, items, most)
        ]

    def _ask(self, inputs: Tensors) -> Future[dict[str, NDArray[np.float32]]]:
        request = _Request(inputs, len(next(iter(inputs.values()))), time.monotonic())
        with self._changed:
            if self._closed:
                raise RuntimeError("the model has been closed")
            self._waiting.append(request)
            self._changed.notify_all()
        return request.answer

    # -- in the batcher's thread ---------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)
        for request in self._waiting:
            request.answer.set_exception(RuntimeError("the model has been closed"))

    def _next_batch(self) -> list[_Request]:
        """Wait for a batch and take it; empty when the batcher is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            if self._joins:
                due = self._waiting[0].since + self.policy.max_delay_ms / 1000
                self._changed.wait_for(
                    lambda: self._closed or self._full(),
                    max(0.0, due - time.monotonic()),
                )
            if self._closed:
                return []
            return self._take()

    def _full(self) -> bool:
        kind = self._waiting[0].kind
        return (
            sum(request.items for request in self._waiting if request.kind == kind)
            >= self.policy.largest
        )

    def _take(self) -> list[_Request]:
        """Remove the oldest request and those that fit with it from the queue."""
        batch = [self._waiting.popleft()]
        if not self._joins:
            return batch
        items, kind = batch[0].items, batch[0].kind
        for request in [request for request in self._waiting if request.kind == kind]:
            if items + request.items > self.policy.largest:
                break
            batch.append(request)
            items += request.items
        for request in batch[1:]:
            self._waiting.remove(request)
        return batch

    def _answer(self, batch: Sequence[_Request]) -> None:
        try:
            outputs = self._call(batch)
        except Exception as error:  # noqa: BLE001 - it is raised again where the culprit waits
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            middle = len(batch) // 2
            self._answer(batch[:middle])
            self._answer(batch[middle:])
            return
        start = 0
        for request in batch:
            stop = start + request.items
            request.answer.set_result(
                outputs
                if len(batch) == 1 and not self._joins
                else {n: a[start:stop] for n, a in outputs.items()}
            )
            start = stop

    def _call(self, batch: Sequence[_Request]) -> dict[str, NDArray[np.float32]]:
        items = sum(request.items for request in batch)
        size = self.policy.padded(items) if self._joins else items
        inputs = (
            batch[0].inputs
            if len(batch) == 1 and size == items
            else _joined(batch, size)
        )
        began = self.busy_since = time.monotonic()
        try:
            return self.backend.run(inputs)
        finally:
            self.busy_since = None
            self.counts.calls += 1
            self.counts.items += items
            self.counts.padding += size - items
            self.counts.seconds += time.monotonic() - began


def _joined(batch: Sequence[_Request], size: int) -> Tensors:
    """Return the requests' inputs behind each other, filled up with zeros to ``size`` items."""
    joined = {}
    for name, first in batch[0].inputs.items():
        array = np.empty((size, *first.shape[1:]), np.float32)
        start = 0
        for request in batch:
            array[start : start + request.items] = request.inputs[name]
            start += request.items
        array[start:] = 0.0
        joined[name] = array
    return joined
