"""``spine-engine doctor``: what it says of the machine, the bundle and what is missing. No model is loaded."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from spine_engine._version import __version__
from spine_engine.backends import BackendStatus, Device, TensorInfo
from spine_engine.bundle import Bundle
from spine_engine.cli import doctor
from spine_engine.errors import BackendError, BundleError
from spine_engine.options import RunOptions
from spine_engine.run.tuning import Setting

FACTS = {"name": "fake", "version": "1.2", "digest": "d1", "path": ""}


class Model:
    """A model that keeps what it was run on."""

    device = Device("openvino", "CPU", "bf16")
    outputs = ()

    def __init__(self, shape):
        self.inputs = (TensorInfo("image", shape),)
        self.ran, self.closed = [], False

    def run(self, given):
        assert not self.closed
        self.ran.append(given)
        return {}

    def close(self):
        self.closed = True


def missing(package):
    raise PackageNotFoundError(package)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A machine with everything that is wanted."""
    asked = SimpleNamespace(
        models={
            "detector": Model((None, 1, None, None)),
            "grader": Model((None, 3, 4, 5, 6)),
        },
        remembered=[],
        setting=None,
    )

    class FakeBundle:
        facts = FACTS
        manifest = SimpleNamespace(
            models=SimpleNamespace(
                by_role=lambda: {role: role for role in asked.models}
            )
        )

        def open_model(self, role):
            asked.models[role].closed = False
            return asked.models[role]

    bundle = FakeBundle()
    monkeypatch.setattr(Bundle, "open", lambda *path: bundle)
    monkeypatch.setattr(
        doctor,
        "remembered",
        lambda *given: asked.remembered.append(given) or asked.setting,
    )
    status = (
        BackendStatus(
            name="openvino",
            available=True,
            version="2025.1",
            devices=("CPU", "GPU"),
            reason="",
        ),
        BackendStatus(
            name="tensorrt",
            available=False,
            version="",
            devices=(),
            reason="not installed: pip install it",
        ),
    )
    monkeypatch.setattr(doctor, "available_backends", lambda: status)
    monkeypatch.setattr(doctor, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(doctor, "has_native_bf16", lambda: True)
    monkeypatch.setattr(doctor, "instruction_sets", lambda: {"avx2", "amx_bf16", "sse"})
    monkeypatch.setattr(doctor, "usable_cpus", lambda: 3)
    monkeypatch.setattr(
        doctor.psutil, "virtual_memory", lambda: SimpleNamespace(total=12.34 * 2**30)
    )
    times = count(0.0, 0.25)
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(times))
    installed = {"numpy": "2.1", "openvino": "2025.1", "tensorrt": "10.0"}
    monkeypatch.setattr(
        doctor, "version", lambda package: installed.get(package) or missing(package)
    )
    asked.bundle = bundle
    return asked


def examined(call):
    done = call("doctor", "--json")
    return json.loads(done.stdout), done.exit_code


def test_a_machine_that_can_run_is_told_with_code_0(call, stage, tmp_path):
    report, code = examined(call)
    packages = report.pop("packages")
    assert {name: found for name, found in packages.items() if found} == {
        "numpy": "2.1", "openvino": "2025.1", "tensorrt": "10.0",
    }  # fmt: skip
    assert set(packages) == {
        "numpy", "numba", "pydicom", "imagecodecs", "openvino", "onnxruntime", "onnxruntime-gpu",
        "onnxruntime-ep-nv-tensorrt-rtx", "tensorrt", "tensorrt-rtx-cu13-bindings", "cuda-bindings",
    }  # fmt: skip
    assert [backend.pop("name") for backend in report.pop("backends")] == [
        "openvino",
        "tensorrt",
    ]
    trial = {
        "device": "openvino CPU",
        "precision": "bf16",
        "load_ms": 250.0,
        "run_ms": 250.0,
    }
    assert report == {
        "engine": __version__, "python": platform.python_version(), "platform": platform.platform(), "cpus": 3,
        "memory_gb": 12.3, "instruction_sets": ["avx2", "amx_bf16"], "bundle": FACTS,
        "trials": [{"role": "detector", **trial}, {"role": "grader", **trial}], "tuned": None, "cache": str(tmp_path),
        "problems": [], "exit_code": 0,
    }  # fmt: skip
    assert code == 0


def test_each_model_is_run_once_on_zeros_and_closed(call, stage):
    call("doctor")
    shapes = {"detector": (1, 1, 64, 64), "grader": (1, 3, 4, 5, 6)}
    for role, model in stage.models.items():
        ((name, given),) = model.ran[0].items()
        assert (len(model.ran), name, given.shape, given.dtype, given.any()) == (
            1,
            "image",
            shapes[role],
            np.float32,
            False,
        )
        assert model.closed


def test_it_says_it_to_a_person(call, stage):
    stage.setting = Setting(workers=5, threads=1, schedule="study", precision="auto")
    done = call("doctor")
    lines = [
        " ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()
    ]
    assert lines[0] == f"spine-engine {__version__}"
    for line in (
        f"processor 3 of {os.cpu_count()} cores usable; avx2 amx_bf16",
        "computes bf16 yes",
        "memory 12.3 GB",
        "packages numpy 2.1, openvino 2025.1, tensorrt 10.0",
        "openvino 2025.1 on CPU, GPU",
        "tensorrt not installed: pip install it",
        "bundle fake 1.2, digest d1",
        "detector openvino CPU in bf16: loaded in 250.0 ms, ran in 250.0 ms",
        "grader openvino CPU in bf16: loaded in 250.0 ms, ran in 250.0 ms",
        "tuned 5 workers with models of their own, 1 threads, auto",
    ):
        assert line in lines
    assert lines[-1] == "ready to run"
    assert stage.remembered == [(stage.bundle, RunOptions())]


def test_it_says_what_is_not_there(call, stage, monkeypatch):
    monkeypatch.setattr(doctor, "has_native_bf16", lambda: False)
    text = " ".join(call("doctor").stdout.replace("│", " ").split())
    assert "computes bf16 no: models run in f32" in text
    assert (
        "tuned no: 'spine-engine tune' measures how this machine runs fastest" in text
    )


def test_without_a_safe_cache_a_run_works_all_the_same(call, stage, monkeypatch):
    monkeypatch.setattr(doctor, "cache_folder", lambda: None)
    report, code = examined(call)
    assert report["problems"] == [
        "no safe cache folder: models are compiled at every start; set XDG_CACHE_HOME to one of your own"
    ]
    assert (report["cache"], report["exit_code"], code) == (None, 0, 0)
    text = call("doctor").stdout
    assert "problem: no safe cache folder" in text
    assert "ready to run" in text
    assert "model cache" in text


@pytest.mark.parametrize(("error", "code"), [(BundleError, 3), (BackendError, 4)])
def test_what_would_end_a_run_is_told_with_its_code(
    call, stage, monkeypatch, error, code
):
    def refuse(*_):
        raise error("the model is damaged; get another")

    where = (
        (Bundle, "open")
        if error is BundleError
        else (stage.bundle.__class__, "open_model")
    )
    monkeypatch.setattr(*where, refuse)
    report, ended = examined(call)
    assert (report["problems"], report["exit_code"], ended) == (
        ["the model is damaged; get another"],
        code,
        code,
    )
    assert report["trials"] == []
    assert report["bundle"] == (None if error is BundleError else FACTS)
    done = call("doctor")
    assert done.exit_code == code
    assert "problem: the model is damaged; get another" in done.stdout
    assert done.stdout.splitlines()[-1] == "a run would fail"
