"""A batcher in simulated time: no thread, no clock; requests arrive, the model takes its time, all of it is noted."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spine_engine.backends.base import Device, TensorInfo
from spine_engine.scheduler.batching import batcher
from spine_engine.scheduler.batching.batcher import Batcher, BatchPolicy

POISON = 13.0


@dataclass
class Call:
    """A call of the model: when, and the numbers it was given, an item each."""

    at: float
    values: list[float]
    width: int


@dataclass
class Asked:
    """A request: when it came, what it holds, and when it was answered with what."""

    at: float
    array: np.ndarray
    futures: list[Any] = field(default_factory=list)
    answered_at: float = -1.0

    @property
    def answer(self) -> Any:
        """The doubled numbers, or the exception."""
        assert all(future.done() for future in self.futures), "somebody waits for ever"
        errors = [
            future.exception()
            for future in self.futures
            if future.exception() is not None
        ]
        return (
            errors[0]
            if errors
            else np.concatenate(
                [future.result()["y"] for future in self.futures]
            ).tolist()
        )


class Timeline:
    """Runs one batcher over requests that arrive at given times, seconds; stops when none is left."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        policy: BatchPolicy,
        *,
        takes_s: float = 0.0,
        fixed: int | None = None,
        fails: Callable[[list[float]], Exception | None] | None = None,
    ) -> None:
        self.now = 0.0
        self.calls: list[Call] = []
        self.closed_model = False
        self._takes_s = takes_s
        self._fails = fails
        self._arrivals: list[tuple[float, int, Asked]] = []
        self._at_end: list[Callable[[], None]] = []
        self.inputs = (TensorInfo("x", (fixed, None)),)
        self.outputs = (TensorInfo("y", (fixed, None)),)
        self.device = Device("fake", "CPU", "f32")
        threads = SimpleNamespace(Condition=lambda: self, Thread=self._thread)
        monkeypatch.setattr(batcher, "threading", threads)
        monkeypatch.setattr(
            batcher, "time", SimpleNamespace(monotonic=lambda: self.now)
        )
        self.batcher = Batcher(self, policy)

    def play(self, *arrivals: tuple[float, list[float]], width: int = 1) -> list[Asked]:
        """Let requests arrive, each ``(seconds, numbers)``, one number an item, and serve them all."""
        asked = [
            Asked(at, np.repeat(np.array(values, np.float32)[:, None], width, 1))
            for at, values in arrivals
        ]
        return self.serve(asked)

    def serve(self, asked: list[Asked]) -> list[Asked]:
        """Let these arrive and serve them all."""
        for number, request in enumerate(asked):
            heapq.heappush(self._arrivals, (request.at, number, request))
        self._target()
        return asked

    # -- the model -----------------------------------------------------------------------------------------------------

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = inputs["x"]
        self.calls.append(Call(self.now, x[:, 0].tolist(), x.shape[1]))
        assert self.batcher.busy_since == self.now
        self._pass(self.now + self._takes_s)
        error = (
            self._fails(x[:, 0].tolist())
            if self._fails
            else ValueError("poison")
            if (x == POISON).any()
            else None
        )
        if error is not None:
            raise error
        return {"y": x * 2}

    def close(self) -> None:
        self.closed_model = True

    # -- what stands for threading -------------------------------------------------------------------------------------

    def _thread(self, *, target: Callable[[], None], **_: object) -> SimpleNamespace:
        self._target = target
        return SimpleNamespace(start=lambda: None, join=lambda: None)

    def __enter__(self) -> Timeline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def notify_all(self) -> None:
        pass

    def wait_for(self, true: Callable[[], Any], timeout: float | None = None) -> Any:
        deadline = None if timeout is None else self.now + timeout
        while not true():
            if self._arrivals and (
                deadline is None or self._arrivals[0][0] <= deadline
            ):
                self._pass(self._arrivals[0][0])
            elif deadline is not None:
                self._pass(deadline)
                return true()
            else:
                self.batcher.close()  # nobody will come any more
        return True

    def _pass(self, until: float) -> None:
        """Let time pass; who arrives meanwhile asks."""
        while self._arrivals and self._arrivals[0][0] <= until:
            at, _, request = heapq.heappop(self._arrivals)
            self.now = max(self.now, at)
            for part in self.batcher._parts({"x": request.array}):
                future = self.batcher._ask(part)
                request.futures.append(future)
                future.add_done_callback(
                    lambda _, request=request: setattr(request, "answered_at", self.now)
                )
        self.now = max(self.now, until)
