"""Opening a bundle: sound ones open, and each way of being wrong is refused in one line before anything runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spine_engine.backends import Profile
from spine_engine.bundle import Bundle, file_facts, write_manifest
from spine_engine.bundle.manifest import (
    Manifest,
    ModelEntry,
    TensorEntry,
    manifest_text,
    parse_manifest,
)
from spine_engine.errors import BackendError, BundleError


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's JSON in place."""
    path = folder / "bundle.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


VARIANT = {"file": "grader.f16.onnx", "sha256": "0" * 64, "size_bytes": 1}


def profile(
    smallest: list[int], usual: list[int], largest: list[int]
) -> dict[str, Any]:
    return {"smallest": smallest, "usual": usual, "largest": largest}


def test_a_sound_bundle_opens(fake_bundle: Path) -> None:
    bundle = Bundle.open(fake_bundle)
    assert bundle.facts.keys() == {"name", "version", "digest", "path"}
    assert (bundle.facts["path"], Bundle.open().facts["path"]) == (
        str(fake_bundle.resolve()),
        "",
    )
    assert (bundle.manifest.name, len(bundle.digest)) == ("fake", 64)
    assert bundle.grader.grid.spec.shape == (4, 5, 6)
    assert bundle.detector.spec is not None


def test_writer_and_reader_share_one_definition(fake_bundle: Path) -> None:
    manifest = Bundle.open(fake_bundle).manifest
    assert parse_manifest(manifest_text(manifest)) == manifest
    before = (fake_bundle / "bundle.json").read_bytes()
    write_manifest(fake_bundle, manifest)
    assert (fake_bundle / "bundle.json").read_bytes() == before


def test_the_digest_stands_for_the_models(fake_bundle: Path) -> None:
    before = Bundle.open(fake_bundle).digest
    model = fake_bundle / "grader.onnx"
    model.write_bytes(model.read_bytes() + b" ")
    edit(
        fake_bundle,
        lambda content: content["models"]["grader"].update(file_facts(model)),
    )
    assert Bundle.open(fake_bundle).digest != before


def test_models_open_and_answer(fake_bundle: Path) -> None:
    bundle = Bundle.open(fake_bundle)
    backend = bundle.open_model(bundle.grader, name="fake", precision="f32")
    grades = backend.run({"image": np.zeros((5, 3, 4, 5, 6), np.float32)})[
        "probabilities"
    ]
    assert grades.shape == (5, 5, 3)
    np.testing.assert_allclose(grades.sum(-1), 1, atol=1e-6)


def test_a_precision_that_did_not_pass_parity_is_refused(fake_bundle: Path) -> None:
    bundle = Bundle.open(fake_bundle)
    with pytest.raises(
        BackendError, match=r"detector\.onnx passed parity in f32, not in bf16"
    ):
        bundle.open_model(bundle.detector, name="fake", precision="bf16")


def test_a_model_that_is_not_what_the_manifest_says_never_runs(
    fake_bundle: Path,
) -> None:
    def lie(content: dict[str, Any]) -> None:
        content["models"]["grader"]["inputs"][0]["name"] = "picture"

    edit(fake_bundle, lie)
    bundle = Bundle.open(fake_bundle)
    with pytest.raises(
        BundleError,
        match=r"grader\.onnx has the inputs image .*manifest says otherwise",
    ):
        bundle.open_model(bundle.grader, name="fake")


def changed_byte(folder: Path) -> None:
    path = folder / "grader.onnx"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(bytes(content))


def linked_out(folder: Path) -> None:
    outside = folder.parent / "grader.onnx"
    (folder / "grader.onnx").rename(outside)
    (folder / "grader.onnx").symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "bundle.json").unlink(), "cannot be read"),
        (
            lambda folder: (folder / "bundle.json").write_bytes(
                b"{" + b" " * (1 << 20)
            ),
            "larger than",
        ),
        (lambda folder: (folder / "grader.onnx").unlink(), "not a file"),
        (lambda folder: (folder / "grader.onnx").write_bytes(b""), "0 bytes"),
        (changed_byte, "SHA-256"),
        (linked_out, "not a file in the bundle's folder"),
    ],
)
def test_damaged_folders_are_refused(
    fake_bundle: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(fake_bundle)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(fake_bundle)
    assert "\n" not in str(caught.value)


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change that sets ``models.grader.file`` and the like."""
    *parents, last = path.split(".")

    def change(content: dict[str, Any]) -> None:
        for parent in parents:
            content = content[parent]
        content[last] = value

    return change


CONDITIONS_SWAPPED = [
    "right_neural_foraminal_narrowing",
    "left_subarticular_stenosis",
    "left_neural_foraminal_narrowing",
    "right_subarticular_stenosis",
    "spinal_canal_stenosis",
]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("schema", 2), "schema is 2, this engine reads 1"),
        (put("schema", True), "bundle.json.schema: got true, want a whole number"),
        (put("name", "../x"), "plain word"),
        (put("authors", []), "unknown key 'authors'"),
        (lambda content: content.pop("licence"), "'licence' is missing"),
        (put("metrics", {"score": "good"}), 'metrics.score: got "good", want a number'),
        (put("models.critic", {}), "unknown key 'critic'"),
        (lambda content: content["models"].pop("detector"), "needs a detector"),
        (
            lambda content: content.update(models={}),
            "must be a grader or a whole_study_grader",
        ),
        (put("models.grader.file", "../grader.onnx"), "plain name"),
        (put("models.grader.file", "/etc/passwd"), "plain name"),
        (put("models.grader.file", "grader.xml"), "plain name"),
        (put("models.grader.sha256", "ABC"), "64 lower-case"),
        (put("models.grader.precisions", ["bf16"]), "must contain f32"),
        (put("models.grader.precisions", ["f32", "f8"]), "'f8' is none of"),
        (
            put("models.grader.channels", ["sagittal_t1", "axial_t2", "coronal"]),
            r"channels\[2\]: 'coronal' is none of",
        ),
        (
            put("models.grader.channels", ["sagittal_t1", "axial_t2"]),
            "does not end in channels and grid",
        ),
        (
            put("models.grader.channels", ["sagittal_t1", "axial_t2", "axial_t2"]),
            "only one channel",
        ),
        (put("models.grader.grid.shape", [4, 5]), "want 3 entries, got 2"),
        (put("models.grader.grid.spacing_mm", [1, 1, -1]), "positive"),
        (
            put("models.grader.output_channels", CONDITIONS_SWAPPED),
            "output_channels of grader must be in the order",
        ),
        (
            put("models.grader.outputs", [{"name": "p", "shape": [None, 5, 4]}]),
            "grader's output must be",
        ),
        (
            put(
                "models.grader.calibration", {"temperature": [[1.0]], "shift": [[0.0]]}
            ),
            "5 rows",
        ),
        (
            put(
                "models.grader.calibration",
                {"temperature": [[0] * 5] * 5, "shift": [[0] * 5] * 5},
            ),
            "positive",
        ),
        (
            put("models.grader.variants", {"bf16": VARIANT}),
            "variants are f16 or int8, got 'bf16'",
        ),
        (
            put("models.grader.precisions", ["f32", "int8"]),
            "int8 lives in a file of its own",
        ),
        (
            put("models.grader.variants", {"f16": {**VARIANT, "file": "../x.onnx"}}),
            "plain name",
        ),
        (
            put(
                "models.grader.profile",
                profile([1, 3, 4, 5, 6], [1, 3, 4, 5, 6], [1, 3, 4, 5, 7]),
            ),
            "is no input",
        ),
        (
            put(
                "models.grader.profile",
                profile([2, 3, 4, 5, 6], [1, 3, 4, 5, 6], [4, 3, 4, 5, 6]),
            ),
            "must ascend",
        ),
        (
            put("models.detector.decoder", "guess"),
            "'guess' is none of level_heatmaps, vfr",
        ),
        (put("models.detector.decoder", "vfr"), "spec belongs to the decoder"),
        (put("models.detector.spec.pixel_mm", "2"), "pixel_mm"),
        (put("models.detector.output_channels", ["disc"]), "names 1 channels"),
        (
            put("labels.conditions", CONDITIONS_SWAPPED),
            "conditions must be in the order",
        ),
        (
            put("labels.levels", ["l5_s1", "l4_l5", "l3_l4", "l2_l3", "l1_l2"]),
            "levels must be in the order",
        ),
    ],
)
def test_manifests_that_say_something_wrong_are_refused(
    fake_bundle: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(fake_bundle, change)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(fake_bundle)
    assert "\n" not in str(caught.value)


def with_variant(
    folder: Path, precisions: tuple[str, ...] = ("f32", "bf16", "f16", "int8")
) -> Bundle:
    """Give the grader files of its own for f16 and int8."""
    for name in ("f16", "int8"):
        (folder / f"grader.{name}.onnx").write_bytes(name.encode())

    def change(content: dict[str, Any]) -> None:
        files = {
            name: file_facts(folder / f"grader.{name}.onnx") for name in ("f16", "int8")
        }
        content["models"]["grader"].update(variants=files, precisions=precisions)

    edit(folder, change)
    return Bundle.open(folder, trust=True)  # its variants are no models


@pytest.mark.parametrize(
    ("runtime", "device", "asked", "file", "given"),
    [
        ("openvino", "cpu", "auto", "grader.onnx", "auto"),
        ("openvino", "cpu", "int8", "grader.int8.onnx", "int8"),
        ("openvino", "gpu", "auto", "grader.onnx", "f16"),
        ("onnxruntime", "cpu", "auto", "grader.onnx", "f32"),
        ("onnxruntime", "cpu", "f16", "grader.f16.onnx", "f16"),
        ("onnxruntime", "cuda", "auto", "grader.f16.onnx", "f16"),
        ("tensorrt", "gpu", "auto", "grader.f16.onnx", "f16"),
        ("tensorrt", "gpu", "f32", "grader.onnx", "f32"),
    ],
)
def test_a_runtime_gets_the_file_of_its_precision(
    fake_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
    device: str,
    asked: str,
    file: str,
    given: str,
) -> None:
    class SeenError(Exception):
        pass

    def capture(model: bytes, **options: Any) -> None:
        raise SeenError(model, options)

    monkeypatch.setattr("spine_engine.bundle.bundle.open_backend", capture)
    bundle = with_variant(fake_bundle)
    with pytest.raises(SeenError) as seen:
        bundle.open_model(bundle.grader, name=runtime, device=device, precision=asked)  # type: ignore[arg-type]
    model, options = seen.value.args
    assert model == (fake_bundle / file).read_bytes()
    assert (options["precision"], options["name"], options["profile"]) == (
        given,
        runtime,
        None,
    )


def test_a_variant_that_failed_parity_does_not_run_and_one_that_is_missing_is_named(
    fake_bundle: Path,
) -> None:
    bundle = with_variant(fake_bundle, ("f32",))
    with pytest.raises(BackendError, match=r"passed parity in f32, not in int8"):
        bundle.open_model(bundle.grader, precision="int8")
    edit(
        fake_bundle,
        lambda content: content["models"]["grader"].update(
            precisions=["f32", "f16"], variants={}
        ),
    )
    bundle = Bundle.open(fake_bundle)
    with pytest.raises(
        BackendError, match=r"onnxruntime needs an f16 file of grader\.onnx"
    ):
        bundle.open_model(bundle.grader, name="onnxruntime", precision="f16")


def test_the_digests_of_variants_are_checked(fake_bundle: Path) -> None:
    with_variant(fake_bundle)
    (fake_bundle / "grader.int8.onnx").write_bytes(b"int9")
    with pytest.raises(BundleError, match=r"SHA-256 of grader\.int8\.onnx"):
        Bundle.open(fake_bundle, trust=True)


def test_profiles_and_figures_of_parity_are_kept(fake_bundle: Path) -> None:
    manifest = Bundle.open(fake_bundle).manifest
    one = Profile(
        smallest=(1, 3, 4, 5, 6),
        usual=(5, 3, 4, 5, 6),
        largest=(8, 3, 4, 5, 6),
        batches=(1, 5),
    )
    assert manifest.models.grader is not None
    grader = dataclasses.replace(
        manifest.models.grader,
        profile=one,
        parity={"bf16": {"mean": 0.1, "changed": 2.0}},
    )
    again = dataclasses.replace(
        manifest, models=dataclasses.replace(manifest.models, grader=grader)
    )
    assert parse_manifest(manifest_text(again)) == again


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"schema": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, "\xff"],
)
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="the manifest is refused"):
        parse_manifest(text.encode("latin-1"))


def test_a_vfr_detector_needs_no_spec_but_those_who_name_its_vertebrae(
    fake_bundle: Path,
) -> None:
    manifest = Bundle.open(fake_bundle).manifest
    models = manifest.models
    assert models.detector is not None
    vfr = dataclasses.replace(models.detector, decoder="vfr", spec=None)
    facts = {
        "sha256": "0" * 64,
        "size_bytes": 1,
        "outputs": (TensorEntry(name="scores", shape=(None, 24)),),
    }
    volumes = TensorEntry(name="volumes", shape=(None, 1, 224, 224, 16))
    labeller = ModelEntry(file="appearance.onnx", inputs=(volumes,), **facts)
    columns = TensorEntry(name="columns", shape=(None, 1, None, 24))
    context = ModelEntry(file="context.onnx", inputs=(columns,), **facts)
    with pytest.raises(ValueError, match="belong to a detector with the decoder vfr"):
        dataclasses.replace(models, detector=vfr, vertebra_appearance=labeller)
    with pytest.raises(ValueError, match="belong to a detector with the decoder vfr"):
        dataclasses.replace(
            models, vertebra_appearance=labeller, vertebra_context=labeller
        )
    both = {"vertebra_appearance": labeller, "vertebra_context": context}
    with pytest.raises(ValueError, match="detector must take patches and give maps"):
        dataclasses.replace(models, detector=vfr, **both)
    patches, maps = (
        TensorEntry(name="patches", shape=(None, 1, 224, 224)),
        TensorEntry(name="maps", shape=(None, 13, 224, 224)),
    )
    channels = tuple(f"map_{n}" for n in range(13))
    vfr = dataclasses.replace(
        vfr, inputs=(patches,), outputs=(maps,), output_channels=channels
    )
    with pytest.raises(ValueError, match="vertebra_context must take columns"):
        dataclasses.replace(
            models,
            detector=vfr,
            vertebra_appearance=labeller,
            vertebra_context=labeller,
        )
    whole = dataclasses.replace(models, detector=vfr, **both)
    again: Manifest = parse_manifest(
        manifest_text(dataclasses.replace(manifest, models=whole))
    )
    assert again.models == whole
