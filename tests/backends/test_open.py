"""Asking for a backend, a device and a precision: had or refused, never swapped."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from spine_engine.backends import available_backends, open_backend, processor
from spine_engine.backends import openvino as openvino_backend
from spine_engine.backends.cache import cache_folder, load_compiled, store_compiled
from spine_engine.errors import BackendError

X = {"image": np.random.default_rng(1).normal(size=(1, 2, 16, 16)).astype(np.float32)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "tpu"}, "unknown backend 'tpu'"),
        ({"precision": "f8"}, "unknown precision"),
        ({"threads": 0}, "threads"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        open_backend(b"", **options)  # type: ignore[arg-type]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="No such file"):
        open_backend(tmp_path / "none.onnx")


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_missing_runtime_names_the_line_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    openvino_backend._core.cache_clear()
    status = next(status for status in available_backends() if status.name == name)
    assert not status.available
    assert "pip install" in status.reason
    with pytest.raises(BackendError, match="pip install"):
        open_backend(b"model", name=name)
    openvino_backend._core.cache_clear()


def test_bf16_is_refused_where_it_would_be_emulated(
    model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(openvino_backend, "has_native_bf16", lambda: False)
    with pytest.raises(BackendError, match="does not compute in bf16"):
        open_backend(model, precision="bf16")
    assert open_backend(model).device.precision == "f32"
    with pytest.raises(BackendError, match="f32 or auto"):
        open_backend(model, name="onnxruntime", precision="bf16")


def test_int8_is_the_files_and_what_it_leaves_wide_runs_as_auto_does(
    model: bytes,
) -> None:
    pytest.importorskip("openvino")
    named, wide = open_backend(model, precision="int8"), open_backend(model)
    assert (named.device.precision, wide.device.precision) == (
        "int8",
        "bf16" if processor.has_native_bf16() else "f32",
    )
    assert np.array_equal(
        named.run(X)["maps"], wide.run(X)["maps"]
    )  # this file has nothing narrow in it


def test_bf16_where_native(model: bytes) -> None:
    if not processor.has_native_bf16():
        pytest.skip(
            "this processor has no bf16: that OpenVINO really computes in it is not shown, only that it is told to"
        )
    reduced, full = (
        open_backend(model, precision="bf16"),
        open_backend(model, precision="f32"),
    )
    assert (reduced.device.precision, open_backend(model).device.precision) == (
        "bf16",
        "bf16",
    )
    one, two = reduced.run(X)["maps"], full.run(X)["maps"]
    assert 0 < np.abs(one - two).max() < 0.05


def test_compiled_model_is_kept_privately_and_a_damaged_one_is_rebuilt(
    model: bytes, cache: Path
) -> None:
    want = open_backend(model, precision="f32").run(X)["maps"]
    (blob,) = cache.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700
    assert blob.stat().st_mode & 0o777 == 0o600
    good = blob.read_bytes()
    assert np.array_equal(open_backend(model, precision="f32").run(X)["maps"], want)
    assert blob.read_bytes() == good
    for bad in (b"", good[:100], good[:-1] + bytes([good[-1] ^ 1])):
        blob.write_bytes(bad)
        assert np.array_equal(open_backend(model, precision="f32").run(X)["maps"], want)
        assert len(blob.read_bytes()) == len(good)
    store_compiled(blob.stem, b"right digest, but no model")
    assert np.array_equal(open_backend(model, precision="f32").run(X)["maps"], want)
    assert len(list(cache.iterdir())) == 1
    open_backend(model, precision="f32", threads=2)
    assert len(list(cache.iterdir())) == 2


def test_unsafe_cache_folders_are_not_used(
    model: bytes, cache: Path, tmp_path: Path
) -> None:
    cache.mkdir(mode=0o755)
    cache.chmod(0o755)
    assert cache_folder() is None
    store_compiled("key", b"content")
    assert load_compiled("key") is None
    assert open_backend(model, precision="f32").run(X)["maps"].shape == (1, 3, 16, 16)
    assert not list(cache.iterdir())
    cache.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.symlink_to(tmp_path / "elsewhere")
    assert cache_folder() is None
