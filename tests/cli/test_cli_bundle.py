"""``spine-engine bundle``: which models are opened how, and when the answers of a precision are refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from spine_engine.backends import Device
from spine_engine.bundle import Bundle
from spine_engine.bundle.manifest import Calibration
from spine_engine.cli.bundle import _described
from spine_engine.errors import BundleError
from spine_engine.options import RunOptions
from spine_engine.pipeline import parity


class Verdict:
    """What comparing a model's answers gave."""

    def __init__(self, passed):
        self.passed = passed

    def __str__(self):
        return "max |d| 0.1"


@pytest.fixture
def stage(monkeypatch):
    """A bundle of two models; returns what was asked of it."""
    asked = SimpleNamespace(
        folders=[],
        opened=[],
        closed=[],
        parity=[],
        verdicts={"detector": True, "grader": True},
    )

    class FakeBundle:
        digest = "d1"
        manifest = SimpleNamespace(
            name="fake",
            version="1.2",
            models=SimpleNamespace(
                by_role=lambda: {
                    r: SimpleNamespace(file=f"{r}.onnx") for r in asked.verdicts
                }
            ),
        )

        def open_model(self, entry, **how):
            asked.opened.append((entry.file, how))
            device = Device(how["name"], how["device"].upper(), "bf16")
            return SimpleNamespace(
                device=device, close=lambda: asked.closed.append(entry.file)
            )

    def bundle_parity(bundle, reference, other, studies, worst):
        asked.parity.append((bundle.digest, reference, other, studies, worst))
        return {role: Verdict(passed) for role, passed in asked.verdicts.items()}

    monkeypatch.setattr(
        Bundle,
        "open",
        lambda folder, trust=False: asked.folders.append(folder) or FakeBundle(),
    )
    monkeypatch.setattr(parity, "bundle_parity", bundle_parity)
    return asked


def test_verify_opens_and_closes_every_model_as_a_run_would(call, stage, tmp_path):
    done = call("bundle", "verify", tmp_path, "--trust")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "detector: detector.onnx is as the manifest says, on openvino CPU in bf16",
        "grader: grader.onnx is as the manifest says, on openvino CPU in bf16",
        "fake 1.2 is sound, digest d1",
    ]
    how = {"name": "openvino", "device": "cpu", "precision": "auto"}
    assert stage.opened == [("detector.onnx", how), ("grader.onnx", how)]
    assert stage.closed == ["detector.onnx", "grader.onnx"]
    assert (stage.folders, stage.parity) == ([tmp_path], [])
    call("bundle", "verify")
    assert stage.folders == [tmp_path, None]


def test_verify_opens_them_as_asked(call, stage):
    call(
        "bundle",
        "verify",
        "--backend",
        "onnxruntime",
        "--device",
        "gpu",
        "--precision",
        "f16",
    )
    assert {tuple(how.values()) for _, how in stage.opened} == {
        ("onnxruntime", "gpu", "f16")
    }


def test_parity_compares_what_was_asked_with_float32_on_the_cpu(call, stage, tmp_path):
    done = call(
        "bundle", "verify", "--parity", "--precision", "bf16", "--device", "gpu"
    )
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-2:] == [
        "detector: max |d| 0.1: passed",
        "grader: max |d| 0.1: passed",
    ]
    words = ["--reference", "onnxruntime", "--studies", 3, "--worst", tmp_path]
    call("bundle", "verify", "--parity", *words)
    assert stage.parity == [
        (
            "d1",
            RunOptions(precision="f32"),
            RunOptions(precision="bf16", device="gpu"),
            8,
            None,
        ),
        (
            "d1",
            RunOptions(backend="onnxruntime", precision="f32"),
            RunOptions(),
            3,
            tmp_path,
        ),
    ]


@pytest.mark.parametrize("refused", ["detector", "grader"])
def test_one_model_whose_answers_differ_too_much_is_told_with_code_1(
    call, stage, refused
):
    stage.verdicts[refused] = False
    done = call("bundle", "verify", "--parity")
    assert done.exit_code == 1
    for role in ("detector", "grader"):
        assert (
            f"{role}: max |d| 0.1: {'REFUSED' if role == refused else 'passed'}"
            in done.stdout
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--worst", "x"], "--worst keeps what --parity finds: give both"),
        (
            ["--precision", "f64"],
            "--precision must be one of auto, bf16, f16, f32, int8, got 'f64'",
        ),
        (["--parity", "--studies", "0"], "--studies"),
    ],
)
def test_wrong_words_are_told_before_anything_is_opened(call, stage, words, said):
    done = call("bundle", "verify", *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert stage.folders == []


def test_a_damaged_bundle_has_its_code(call, monkeypatch):
    def refuse(folder, trust=False):
        raise BundleError("damaged; get another")

    monkeypatch.setattr(Bundle, "open", refuse)
    for word in ("verify", "show"):
        done = call("bundle", word)
        assert (done.exit_code, done.stderr) == (
            3,
            "spine-engine: damaged; get another\n",
        )


def test_show_tells_the_packaged_bundle_to_a_person(call):
    text = " ".join(call("bundle", "show").stdout.replace("│", " ").split())
    bundle = Bundle.open()
    manifest = bundle.manifest
    for words in (
        f"{manifest.name} {manifest.version}",
        f"digest {bundle.digest}",
        f"licence {manifest.licence}",
        f"intended use {manifest.intended_use.split()[0]}",
        f"trained on {manifest.training_data[0].split()[0]}",
        f"held out {next(iter(manifest.metrics))}:",
        f"detector {manifest.models.detector.file}, {manifest.models.detector.size_bytes / 1e6:.1f} MB, runs in ",
        f"grader {manifest.models.grader.file}, {manifest.models.grader.size_bytes / 1e6:.1f} MB, runs in ",
    ):
        assert words in text


def test_show_tells_of_each_model_its_size_precisions_inputs_and_calibration():
    models = Bundle.open().manifest.models
    detector = replace(
        models.detector,
        size_bytes=1_250_000,
        precisions=("f32", "bf16"),
        parity={"bf16": {"a": 0.25}, "f16": {"b": 2.0}},
    )
    assert _described(detector) == [
        f"{detector.file}, 1.2 MB, runs in f32, bf16",
        "bf16 passed: a 0.25",
        "f16 refused: b 2",
        f"{detector.decoder}, {len(detector.output_channels)} maps, pixels of {detector.spec.pixel_mm:g} mm",
    ]
    grader = replace(models.grader, parity={})
    grid = grader.grid
    shape, spacing = (
        "x".join(f"{value:g}" for value in row) for row in (grid.shape, grid.spacing_mm)
    )
    described = _described(replace(grader, calibration=None))
    calibration = Calibration(temperature=((1.0,) * 5,) * 5, shift=((0.0,) * 5,) * 5)
    assert (
        described[1]
        == f"channels {', '.join(grader.channels)}; grid {shape} of {spacing} mm"
    )
    assert described[2] == "not calibrated"
    assert _described(replace(grader, calibration=calibration))[2] == "calibrated"
