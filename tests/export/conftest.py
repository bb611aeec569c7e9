"""Exports are made once: the same module, face and precision give the same bytes, and tracing takes seconds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and on a busy machine the second only waits."""
    try:
        import torch
    except ImportError:  # building engines needs none
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def exports_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where exports lie, for all processes of this test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (
        base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    ) / "exports"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def exported_once(exports_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``Part.export`` take what this run has exported before, where nothing differs."""
    torch = pytest.importorskip(
        "torch", reason="needs the export extra: no export is shown"
    )
    from spine_export import parts
    from spine_export.onnx import export_module

    def export_once(model: Any, path: Path, face: Any, **options: Any) -> Path:
        digest = hashlib.sha256(
            f"{model!r} {face!r} {sorted(options.items())}".encode()
        )
        for name, tensor in model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(
                tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
                if tensor.ndim
                else b""
            )
        kept = exports_folder / f"{digest.hexdigest()}.onnx"
        if not kept.exists():
            partial = kept.with_suffix(f".{os.getpid()}")
            export_module(model, path, face, **options)
            partial.write_bytes(path.read_bytes())
            os.replace(partial, kept)
        model.eval()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kept.read_bytes())
        return path

    monkeypatch.setattr(parts, "export_module", export_once)


@pytest.fixture
def tiny_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a bundle's detector be one convolution: what a bundle makes of it does not depend on what it computes."""
    torch = pytest.importorskip(
        "torch", reason="needs the export extra: no export is shown"
    )
    from functools import partial

    from spine_engine.detection.spec import DetectorSpec
    from spine_export import bundle, parts
    from spine_export.onnx import DETECTOR
    from spine_training.detector.model import load_detector

    def part(checkpoint: Path) -> parts.Part:
        load_detector(checkpoint)  # refuses what is none
        torch.manual_seed(0)
        net = torch.nn.Conv2d(1, DetectorSpec().channels, 4, stride=2, padding=1)
        torch.nn.init.constant_(net.bias, -3.0)
        torch.nn.init.constant_(net.weight, 0.0)
        return parts.Part(
            net.eval(), DETECTOR, partial(parts.detector_entry, spec=DetectorSpec())
        )

    monkeypatch.setattr(bundle, "detector_part", part)
