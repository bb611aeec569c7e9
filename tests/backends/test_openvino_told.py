"""What OpenVINO is told and what it is believed: options, threads, the key of a kept model, precisions, errors."""

from __future__ import annotations

import io
import os
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spine_engine.backends import Profile, open_backend
from spine_engine.backends import openvino as room
from spine_engine.backends.cache import store_compiled
from spine_engine.errors import BackendError

X = {"image": np.random.default_rng(1).normal(size=(1, 2, 16, 16)).astype(np.float32)}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_compiled_model_really_has_the_threads_that_were_asked_for(
    model: bytes, threads: int
):
    for _ in range(2):  # compiled, then from the cache
        backend = open_backend(model, precision="f32", threads=threads)
        compiled = backend._compiled
        assert compiled.get_property("INFERENCE_NUM_THREADS") == min(
            threads, os.cpu_count() or 1
        )
        assert compiled.get_property("NUM_STREAMS") == 1
        assert compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") == 1
        assert compiled.get_property("ENABLE_CPU_PINNING") is False
        backend.close()


class Typed(str):
    def get_type_name(self) -> str:
        return str(self)


class Side:
    """A size of a shape, None where it varies."""

    def __init__(self, size: int | None) -> None:
        self.is_dynamic = size is None
        self.get_length = lambda: size


class Port:
    def __init__(
        self, name: str, shape: tuple[int | None, ...], kind: str = "f32"
    ) -> None:
        self.name, self.shape, self.kind = name, shape, kind

    def get_any_name(self) -> str:
        return self.name

    def get_element_type(self) -> Typed:
        return Typed(self.kind)

    def get_partial_shape(self) -> list[Side]:
        return [Side(size) for size in self.shape]


class Core:
    """A pretended OpenVINO: notes what it is told; answers as a runtime that does as it is told."""

    def __init__(self) -> None:
        self.available_devices = ["CPU", "GPU.0", "GPU.1"]
        self.compiled: list[tuple[str, dict[str, Any]]] = []
        self.imported: list[tuple[bytes, str, dict[str, Any]]] = []
        self.reshaped: list[Any] = []
        self.shape: tuple[int | None, ...] = (None, 2, None, None)
        self.output_kind = "f32"
        self.runs_on: list[str] | None = None
        self.runs_in: str | None = None
        self.error: Exception | None = None
        self.import_error: Exception | None = None
        self.hardware = "Some CPU"

    def get_property(self, device: str, name: str) -> str:
        assert name == "FULL_DEVICE_NAME"
        return f"{self.hardware} {device}"

    def read_model(self, model: bytes) -> Any:
        return SimpleNamespace(
            inputs=[Port("image", self.shape)], reshape=self._reshape
        )

    def _reshape(self, shape: Any) -> None:
        self.reshaped.append(shape)
        self.shape = tuple(
            None if isinstance(size, tuple) and size[0] != size[1] else 1
            for size in shape
        )

    def compile_model(self, network: Any, device: str, options: dict[str, Any]) -> Any:
        if self.error is not None:
            raise self.error
        self.compiled.append((device, dict(options)))
        return self._model(device, options)

    def import_model(
        self, blob: io.BytesIO, device: str, options: dict[str, Any]
    ) -> Any:
        if self.import_error is not None:
            raise self.import_error
        self.imported.append((blob.read(), device, dict(options)))
        return self._model(device, options)

    def _model(self, device: str, options: dict[str, Any]) -> Any:
        properties = {
            "EXECUTION_DEVICES": self.runs_on or [device],
            "INFERENCE_PRECISION_HINT": Typed(
                self.runs_in or options["INFERENCE_PRECISION_HINT"]
            ),
        }
        return SimpleNamespace(
            inputs=[Port("image", self.shape)],
            outputs=[Port("maps", (self.shape[0], 3, None, None), self.output_kind)],
            get_property=properties.__getitem__,
            create_infer_request=lambda: SimpleNamespace(),
            export_model=lambda: io.BytesIO(b"compiled"),
        )


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    core = Core()
    monkeypatch.setattr(room, "_core", lambda: (core, "99.1"))
    monkeypatch.setattr(room, "has_native_bf16", lambda: True)
    monkeypatch.setattr(room, "instruction_sets", lambda: frozenset({"avx2", "fma"}))
    return core


def test_all_options_are_told_when_compiled_and_when_taken_from_the_cache(
    core: Core, model: bytes
):
    wanted = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 3,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "EXECUTION_MODE_HINT": "PERFORMANCE",
    }
    open_backend(model, precision="f32", threads=3)
    open_backend(model, precision="f32", threads=3)
    assert core.compiled == [("CPU", wanted)]
    assert core.imported == [(b"compiled", "CPU", wanted)]


@pytest.mark.parametrize(
    ("device", "precision", "native", "told", "named"),
    [
        ("CPU", "auto", True, "bf16", "bf16"),
        ("CPU", "auto", False, "f32", "f32"),
        ("CPU", "f32", True, "f32", "f32"),
        ("CPU", "bf16", True, "bf16", "bf16"),
        ("CPU", "int8", True, "bf16", "int8"),
        ("CPU", "int8", False, "f32", "int8"),
        ("GPU.0", "f16", False, "f16", "f16"),
        ("gpu.1", "f32", False, "f32", "f32"),
        ("GPU.1", "bf16", False, "bf16", "bf16"),
    ],
)
def test_the_precision_that_is_told_and_named(
    core, model, monkeypatch, device, precision, native, told, named
):
    monkeypatch.setattr(room, "has_native_bf16", lambda: native)
    backend = open_backend(model, device=device, precision=precision)
    assert core.compiled[0][0] == device.upper()
    assert core.compiled[0][1]["INFERENCE_PRECISION_HINT"] == told
    assert (
        backend.device.backend,
        backend.device.device,
        backend.device.precision,
    ) == (
        "openvino",
        device.upper(),
        named,
    )


@pytest.mark.parametrize(
    ("precision", "native"), [("f16", True), ("f16", False), ("bf16", False)]
)
def test_a_precision_that_a_processor_would_emulate_is_refused(
    core, model, monkeypatch, precision, native
):
    monkeypatch.setattr(room, "has_native_bf16", lambda: native)
    with pytest.raises(BackendError) as caught:
        open_backend(model, precision=precision)
    assert str(caught.value) == (
        f"this processor does not compute in {precision}: ask for the precision f32 or auto"
    )
    assert not core.compiled


def test_a_device_that_is_not_there_is_named_with_those_that_are(core, model):
    with pytest.raises(
        BackendError,
        match=r"^openvino has no device 'NPU' here, only CPU, GPU\.0, GPU\.1$",
    ):
        open_backend(model, device="npu")


@pytest.mark.parametrize(
    ("runs_on", "runs_in", "message"),
    [
        (["GPU.0"], None, "asked openvino for CPU in f32, got GPU.0 in f32"),
        (["CPU", "GPU.0"], None, r"got CPU\+GPU.0 in f32"),
        (None, "bf16", "asked openvino for CPU in f32, got CPU in bf16"),
    ],
)
def test_another_device_or_precision_than_asked_for_is_refused(
    core, model, runs_on, runs_in, message
):
    core.runs_on, core.runs_in = runs_on, runs_in
    with pytest.raises(BackendError, match=message):
        open_backend(model, precision="f32")


VARIED = Profile(smallest=(1, 2, 8, 8), usual=(1, 2, 16, 16), largest=(4, 2, 64, 48))


def keys(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("*.blob")}


def test_whatever_shapes_a_compiled_model_is_part_of_its_name_in_the_cache(
    core, model, make_model, cache, monkeypatch
):
    def opened(content: bytes = model, **options: Any) -> None:
        core.shape = (None, 2, None, None)
        open_backend(content, **{"precision": "f32", **options})

    def changed_core(name: str, value: Any) -> None:
        monkeypatch.setattr(core, name, value)

    changes: dict[str, Any] = {
        "another model": lambda: opened(make_model(seed=1)),
        "another precision": lambda: opened(precision="bf16"),
        "another device": lambda: opened(device="GPU.0"),
        "threads": lambda: opened(threads=2),
        "a profile": lambda: opened(profile=VARIED),
        "another profile": lambda: opened(
            profile=Profile(
                smallest=(1, 2, 8, 8), usual=(1, 2, 16, 16), largest=(4, 2, 64, 64)
            )
        ),
        "a profile that begins elsewhere": lambda: opened(
            profile=Profile(
                smallest=(1, 2, 4, 8), usual=(1, 2, 16, 16), largest=(4, 2, 64, 48)
            )
        ),
        "another processor": lambda: (changed_core("hardware", "Other CPU"), opened()),
        "more instructions": lambda: (
            monkeypatch.setattr(
                room, "instruction_sets", lambda: frozenset({"avx2", "fma", "amx_int8"})
            ),
            opened(),
        ),
        "another architecture": lambda: (
            monkeypatch.setattr(platform, "machine", lambda: "sparc"),
            opened(),
        ),
        "another version": lambda: (
            monkeypatch.setattr(room, "_core", lambda: (core, "99.2")),
            opened(),
        ),
    }
    opened()
    seen = keys(cache)
    assert len(seen) == 1
    for what, change in changes.items():
        change()
        assert len(keys(cache) - seen) == 1, what
        seen = keys(cache)
    compiled = len(core.compiled)
    assert compiled == len(seen) == 12
    opened()
    opened(
        profile=Profile(
            smallest=(1, 2, 8, 8),
            usual=(1, 2, 48, 16),
            largest=(4, 2, 64, 48),
            batches=(1, 2),
        )
    )
    assert len(keys(cache)) == 13, (
        "what is usual does not matter, but the version is another now"
    )
    opened(profile=VARIED)
    assert len(keys(cache)) == 13


def test_a_kept_model_that_does_not_open_is_compiled_again_and_kept(core, model, cache):
    open_backend(model, precision="f32")
    (blob,) = cache.glob("*.blob")
    core.import_error = RuntimeError("made by another build")
    store_compiled(blob.stem, b"of another build")
    open_backend(model, precision="f32")
    assert len(core.compiled) == 2
    assert blob.read_bytes()[32:] == b"compiled"
    core.error = RuntimeError("nor does the model")
    with pytest.raises(BackendError, match="nor does the model"):
        open_backend(model, precision="f32")
    assert not blob.exists(), "what did not open is not kept"


@pytest.mark.parametrize(
    "word",
    ["std::bad_alloc", "failed to allocate 3 bytes", "out of memory", "out_of_memory"],
)
def test_a_runtime_without_memory_is_a_memory_error(core, model, cache, word):
    core.error = RuntimeError(f"Exception from src:\n {word}")
    with pytest.raises(MemoryError):
        open_backend(model)
    assert not keys(cache)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Check failed\n at line 3:\n  no such layer \n\n", "no such layer"),
        ("", "RuntimeError"),
        ("one", "one"),
    ],
)
def test_another_failure_is_told_by_its_last_line(core, model, said, told):
    core.error = RuntimeError(said)
    with pytest.raises(BackendError) as caught:
        open_backend(model)
    assert str(caught.value) == f"openvino cannot load the model: {told}"


def test_a_model_that_gives_another_type_is_refused(core, model):
    core.output_kind = "f16"
    with pytest.raises(BackendError, match=r"^maps must be float32, got f16$"):
        open_backend(model)


@pytest.mark.parametrize(
    ("profile", "device", "reshaped"),
    [
        (None, "CPU", []),
        (VARIED, "CPU", [[1, (2, 2), (8, 64), (8, 48)]]),
        (VARIED, "GPU.0", []),  # which is fastest with whole batches
        (
            Profile(smallest=(2, 2, 8, 8), usual=(2, 2, 8, 8), largest=(4, 2, 64, 48)),
            "CPU",
            [],
        ),  # never one item
        (
            Profile(smallest=(1, 2, 8, 8), usual=(1, 2, 8, 8), largest=(1, 2, 64, 48)),
            "CPU",
            [],
        ),  # never more
        (
            Profile(smallest=(1, 3, 8, 8), usual=(1, 3, 8, 8), largest=(4, 3, 64, 48)),
            "CPU",
            [],
        ),  # not its sizes
        (Profile(smallest=(1, 2, 8), usual=(1, 2, 8), largest=(4, 2, 64)), "CPU", []),
        (
            Profile(smallest=(1, 2, 8, 8), usual=(1, 2, 8, 8), largest=(4, 2, 8, 48)),
            "CPU",
            [],
        ),  # would fix a size
    ],
)
def test_a_model_is_compiled_for_one_item_where_its_profile_fits(
    core, model, profile, device, reshaped
):
    core.shape = (None, 2, None, None)
    open_backend(model, device=device, precision="f32", profile=profile)
    assert core.reshaped == reshaped


def request_that(error: RuntimeError, monkeypatch, backend) -> None:
    def fail() -> None:
        raise error

    real = backend._request
    monkeypatch.setattr(
        backend,
        "_request",
        SimpleNamespace(
            set_tensor=real.set_tensor, infer=fail, get_tensor=real.get_tensor
        ),
    )


def test_a_run_without_memory_is_a_memory_error_and_another_failure_is_its_own(
    model, monkeypatch
):
    backend = open_backend(model, precision="f32")
    with monkeypatch.context() as patch:
        request_that(RuntimeError("could not allocate"), patch, backend)
        with pytest.raises(MemoryError):
            backend.run(X)
    with monkeypatch.context() as patch:
        request_that(RuntimeError("a fault"), patch, backend)
        with pytest.raises(RuntimeError, match="a fault"):
            backend.run(X)
    assert backend.run(X)["maps"].shape == (1, 3, 16, 16)


def test_status_is_the_runtimes_own(core):
    assert room.status().devices == ("CPU", "GPU.0", "GPU.1")
    assert (room.status().version, room.status().available, room.status().reason) == (
        "99.1",
        True,
        "",
    )


def test_the_version_is_told_without_its_build():
    assert room._core.__wrapped__()[1].count("-") == 0
