"""Which precision a model runs in, and from which of its files, for every runtime, device and result of parity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spine_engine.backends import TensorInfo
from spine_engine.bundle import Bundle, file_facts
from spine_engine.errors import BackendError, BundleError

PROFILE = {
    "smallest": [1, 3, 4, 5, 6],
    "usual": [5, 3, 4, 5, 6],
    "largest": [8, 3, 4, 5, 6],
    "batches": [1, 5],
}


class Asked(Exception):  # noqa: N818 - it ends the opening where the runtime would be asked
    pass


@pytest.fixture
def asked(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Open a model whose manifest says this, and return the file and the options that the runtime is asked with."""

    def asked(
        *,
        role: str = "grader",
        passed: list[str],
        files: tuple[str, ...] = ("f16", "int8"),
        **options: Any,
    ) -> tuple[str, dict[str, Any]]:
        for name in files:
            (fake_bundle / f"{role}.{name}.onnx").write_bytes(f"{role} {name}".encode())
        path = fake_bundle / "bundle.json"
        content = json.loads(path.read_text())
        variants = {
            name: file_facts(fake_bundle / f"{role}.{name}.onnx") for name in files
        }
        profile = PROFILE if role == "grader" else None
        content["models"][role].update(
            precisions=passed, variants=variants, profile=profile
        )
        path.write_text(json.dumps(content))

        def stop(model: bytes, **given: Any) -> None:
            raise Asked(model, given)

        monkeypatch.setattr("spine_engine.bundle.bundle.open_backend", stop)
        bundle = Bundle.open(fake_bundle, trust=True)
        with pytest.raises(Asked) as caught:
            bundle.open_model(bundle.entry(role), **options)
        model, given = caught.value.args
        (file,) = [
            path.name
            for path in fake_bundle.glob(f"{role}*.onnx")
            if path.read_bytes() == model
        ]
        return file, given

    return asked


ALL = ["f32", "bf16", "f16", "int8"]


@pytest.mark.parametrize(
    ("passed", "name", "device", "precision", "file"),
    [
        # OpenVINO on the processor: auto is left to it only where the model passed in bf16
        (["f32"], "openvino", "CPU", "f32", "grader.onnx"),
        (["f32", "f16"], "openvino", "CPU", "f32", "grader.onnx"),
        (["f32", "int8"], "openvino", "CPU", "f32", "grader.onnx"),
        (["f32", "bf16"], "openvino", "CPU", "auto", "grader.onnx"),
        (["bf16", "f32"], "openvino", "cpu", "auto", "grader.onnx"),
        (ALL, "openvino", "Cpu", "auto", "grader.onnx"),
        # OpenVINO on a GPU is told f16, and takes the file in f32 for it
        (["f32", "bf16"], "openvino", "GPU", "f32", "grader.onnx"),
        (["f32", "f16"], "openvino", "GPU", "f16", "grader.onnx"),
        (ALL, "openvino", "gpu.1", "f16", "grader.onnx"),
        # the others compute in what the file is in
        (ALL, "onnxruntime", "CPU", "f32", "grader.onnx"),
        (["f32", "bf16"], "onnxruntime", "CUDA", "f32", "grader.onnx"),
        (["f32", "f16"], "onnxruntime", "CUDA", "f16", "grader.f16.onnx"),
        (ALL, "tensorrt", "GPU", "f16", "grader.f16.onnx"),
        (["f32", "int8"], "tensorrt", "GPU", "f32", "grader.onnx"),
        (ALL, "tensorrt-rtx", "GPU", "f16", "grader.f16.onnx"),
        (["f32"], "tensorrt-rtx", "GPU", "f32", "grader.onnx"),
    ],
)
def test_auto_is_the_fastest_that_passed_parity_and_that_the_runtime_has(
    asked, passed, name, device, precision, file
):
    got, given = asked(passed=passed, name=name, device=device)
    assert (got, given["precision"]) == (file, precision)


def test_auto_without_a_file_in_f16_is_f32_where_the_runtime_needs_one_and_f16_where_it_does_not(
    asked,
):
    assert (
        asked(passed=["f32", "f16"], files=(), name="tensorrt", device="GPU")[1][
            "precision"
        ]
        == "f32"
    )
    assert (
        asked(passed=["f32", "f16"], files=(), name="openvino", device="GPU")[1][
            "precision"
        ]
        == "f16"
    )


@pytest.mark.parametrize(
    ("precision", "name", "file"),
    [
        ("f32", "openvino", "grader.onnx"),
        ("bf16", "openvino", "grader.onnx"),
        ("f16", "openvino", "grader.onnx"),
        ("int8", "openvino", "grader.int8.onnx"),
        ("f32", "onnxruntime", "grader.onnx"),
        ("f16", "onnxruntime", "grader.f16.onnx"),
        ("int8", "onnxruntime", "grader.int8.onnx"),
        ("f16", "tensorrt", "grader.f16.onnx"),
        ("bf16", "onnxruntime", "grader.onnx"),  # which it refuses itself
    ],
)
def test_a_precision_that_is_named_is_the_one_and_comes_from_its_file(
    asked, precision, name, file
):
    got, given = asked(passed=ALL, name=name, precision=precision)
    assert (got, given["precision"], given["name"]) == (file, precision, name)


def test_what_else_was_asked_for_is_handed_on(asked):
    _, given = asked(passed=["f32"], name="onnxruntime", device="CUDA.1", threads=3)
    assert (given["device"], given["threads"], given["name"]) == (
        "CUDA.1",
        3,
        "onnxruntime",
    )
    assert (given["profile"].usual, given["profile"].batches) == (
        (5, 3, 4, 5, 6),
        (1, 5),
    )
    _, given = asked(passed=["f32"])
    assert (given["name"], given["device"], given["precision"], given["threads"]) == (
        "openvino",
        "CPU",
        "f32",
        1,
    )


@pytest.mark.parametrize(
    ("passed", "precision"),
    [(["f32"], "f32"), (["f32", "bf16"], "auto"), (["f32", "bf16", "f16"], "auto")],
)
def test_int8_is_for_graders_and_a_detector_then_runs_as_in_auto(
    asked, passed, precision
):
    file, given = asked(
        role="detector", passed=passed, files=("f16",), precision="int8"
    )
    assert (file, given["precision"]) == ("detector.onnx", precision)


@pytest.mark.parametrize(
    ("passed", "precision"),
    [
        (passed, precision)
        for passed in (("f32",), ("f32", "bf16"), ("f32", "f16"), ("f32", "int8"))
        for precision in ("bf16", "f16", "int8")
        if precision not in passed
    ],
)
def test_a_precision_that_did_not_pass_is_refused_by_every_runtime(
    fake_bundle: Path, passed, precision
):
    path = fake_bundle / "bundle.json"
    content = json.loads(path.read_text())
    for name in ("f16", "int8"):
        (fake_bundle / f"grader.{name}.onnx").write_bytes(name.encode())
    files = {
        name: file_facts(fake_bundle / f"grader.{name}.onnx")
        for name in ("f16", "int8")
    }
    content["models"]["grader"].update(precisions=passed, variants=files)
    path.write_text(json.dumps(content))
    bundle = Bundle.open(fake_bundle, trust=True)
    for name in ("openvino", "onnxruntime", "tensorrt"):
        with pytest.raises(BackendError) as caught:
            bundle.open_model(bundle.grader, name=name, precision=precision)
        assert (
            str(caught.value)
            == f"grader.onnx passed parity in {' and '.join(passed)}, not in {precision}"
        )


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (
            [TensorInfo("image", (None, 3, 4, 5, 6))],
            [TensorInfo("probabilities", (None, 5, 3))],
            None,
        ),
        (
            [TensorInfo("images", (None, 3, 4, 5, 6))],
            None,
            r"inputs images \(None, 3, 4, 5, 6\); the manifest says",
        ),
        (
            [TensorInfo("image", (1, 3, 4, 5, 6))],
            None,
            r"inputs image \(1, 3, 4, 5, 6\)",
        ),
        (
            [TensorInfo("image", (None, 3, 4, 5, 7))],
            None,
            r"inputs image \(None, 3, 4, 5, 7\)",
        ),
        ([], None, "inputs ;"),
        (
            [TensorInfo("image", (None, 3, 4, 5, 6))] * 2,
            None,
            "inputs image .*, image ",
        ),
        (None, [TensorInfo("grades", (None, 5, 3))], r"outputs grades \(None, 5, 3\)"),
        (
            None,
            [TensorInfo("probabilities", (None, 3, 5))],
            r"outputs probabilities \(None, 3, 5\)",
        ),
        (
            None,
            [TensorInfo("probabilities", (None, 5, 3)), TensorInfo("more", (1,))],
            r"outputs .*more \(1,\)",
        ),
    ],
)
def test_real_tensors_are_compared_with_the_manifest_before_anything_runs(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch, inputs, outputs, message
):
    class Loaded:
        def __init__(self) -> None:
            self.inputs = tuple(
                [TensorInfo("image", (None, 3, 4, 5, 6))] if inputs is None else inputs
            )
            self.outputs = tuple(
                [TensorInfo("probabilities", (None, 5, 3))]
                if outputs is None
                else outputs
            )
            self.closed = 0

        def close(self) -> None:
            self.closed += 1

    loaded = Loaded()
    monkeypatch.setattr(
        "spine_engine.bundle.bundle.open_backend", lambda model, **options: loaded
    )
    bundle = Bundle.open(fake_bundle, trust=True)
    if message is None:
        assert bundle.open_model(bundle.grader) is loaded
        assert not loaded.closed
        return
    with pytest.raises(BundleError, match=rf"^grader\.onnx has the .*{message}"):
        bundle.open_model(bundle.grader)
    assert loaded.closed == 1


def test_a_model_that_is_changed_after_the_bundle_was_opened_does_not_run(
    fake_bundle: Path,
):
    bundle = Bundle.open(fake_bundle, trust=True)
    content = (fake_bundle / "grader.onnx").read_bytes()
    (fake_bundle / "grader.onnx").write_bytes(content.replace(b"image", b"imagf"))
    with pytest.raises(BundleError, match=r"SHA-256 of grader\.onnx"):
        bundle.open_model(bundle.grader, name="fake")
