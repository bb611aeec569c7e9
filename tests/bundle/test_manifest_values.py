"""Every key of a manifest: there, of its type, within its rule; and a refusal names the place and what it got."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from spine_engine.backends import Profile
from spine_engine.bundle import Bundle
from spine_engine.bundle.manifest import (
    Calibration,
    GraderEntry,
    GridEntry,
    Labels,
    Manifest,
    ModelFile,
    TensorEntry,
    manifest_text,
    parse_manifest,
)
from spine_engine.errors import BundleError


@pytest.fixture
def content(tmp_path: Path, make_bundle) -> dict[str, Any]:
    """A manifest's JSON with all three kinds of models."""
    make_bundle(tmp_path / "all", ("detector", "grader", "whole_study_grader"))
    read: dict[str, Any] = json.loads((tmp_path / "all" / "bundle.json").read_text())
    return read


def refusal(content: Any) -> str:
    """Return why a manifest is refused."""
    with pytest.raises(BundleError) as caught:
        parse_manifest(json.dumps(content))
    message = str(caught.value)
    assert message.startswith("the manifest is refused: ")
    return message.removeprefix("the manifest is refused: ")


def at(content: dict[str, Any], path: str) -> tuple[Any, str]:
    """Return the object that holds the last part of a dotted path, and that part."""
    *parents, last = path.split(".")
    for parent in parents:
        content = content[int(parent)] if isinstance(content, list) else content[parent]
    return content, last


def where(path: str) -> str:
    """Return a path as a refusal writes it: numbers in brackets."""
    parts = path.split(".")
    return "bundle.json" + "".join(
        f"[{part}]" if part.isdigit() else f".{part}" for part in parts
    )


REQUIRED = {
    "": (
        "schema",
        "name",
        "version",
        "licence",
        "intended_use",
        "training_data",
        "metrics",
        "models",
    ),
    "models.detector": (
        *("file", "sha256", "size_bytes", "inputs", "outputs"),
        *("decoder", "output_channels"),
    ),
    "models.grader": (
        *("file", "sha256", "size_bytes", "inputs", "outputs"),
        *("channels", "grid", "output_channels"),
    ),
    "models.grader.grid": ("shape", "spacing_mm"),
    "models.grader.inputs.0": ("name", "shape"),
}


@pytest.mark.parametrize(
    ("path", "key"), [(path, key) for path, keys in REQUIRED.items() for key in keys]
)
def test_a_key_without_a_default_must_be_there(content, path, key):
    holder = content
    for part in path.split(".") if path else ():
        holder = holder[int(part)] if part.isdigit() else holder[part]
    del holder[key]
    assert (
        refusal(content)
        == f"{where(path) if path else 'bundle.json'}: the key {key!r} is missing"
    )


def test_keys_with_a_default_may_be_left_out(content):
    grader = content["models"]["grader"]
    for key in (
        "precisions",
        "variants",
        "parity",
        "profile",
        "normalisation",
        "output",
        "calibration",
    ):
        del grader[key]
    del grader["grid"]["center_offset_mm"]
    del content["labels"]
    del content["models"]["whole_study_grader"]
    manifest = parse_manifest(json.dumps(content))
    read = manifest.models.grader
    assert read is not None
    assert (read.precisions, read.variants, read.parity, read.profile) == (
        ("f32",),
        {},
        {},
        None,
    )
    assert (read.normalisation, read.output, read.calibration) == (
        "series_window",
        "probabilities",
        None,
    )
    assert read.grid.center_offset_mm == (0.0, 0.0, 0.0)
    assert manifest.labels.severities == ("normal_mild", "moderate", "severe")
    assert manifest.models.whole_study_grader is None
    assert list(manifest.models.by_role()) == ["detector", "grader"]


@pytest.mark.parametrize(
    ("path", "value", "want"),
    [
        ("schema", "1", 'got "1", want a whole number'),
        ("schema", 1.0, "got 1.0, want a whole number"),
        ("schema", None, "got null, want a whole number"),
        ("name", 3, "got 3, want a text"),
        ("version", None, "got null, want a text"),
        ("licence", ["MIT"], 'got ["MIT"], want a text'),
        ("intended_use", {}, "got {}, want a text"),
        ("training_data", "phantoms", 'got "phantoms", want a list'),
        ("training_data.0", 1, "got 1, want a text"),
        ("metrics", [], "got [], want another type"),
        ("metrics.score", True, "got true, want a number"),
        ("metrics.score", "0.5", 'got "0.5", want a number'),
        ("models", [], "want an object, got []"),
        ("models.grader", 1, "want an object, got 1"),
        ("models.grader.size_bytes", 1.5, "got 1.5, want a whole number"),
        ("models.grader.size_bytes", True, "got true, want a whole number"),
        ("models.grader.inputs", {}, "got {}, want a list"),
        ("models.grader.inputs.0", "image", 'want an object, got "image"'),
        ("models.grader.inputs.0.shape", 5, "got 5, want a list"),
        ("models.grader.inputs.0.shape.1", 3.0, "got 3.0, want a whole number"),
        (
            "models.grader.channels.0",
            "sagittal",
            "'sagittal' is none of sagittal_t1, sagittal_t2, axial_t2",
        ),
        ("models.grader.channels.0", 1, "got 1, want another type"),
        ("models.grader.grid.shape", [4, 5, 6, 7], "want 3 entries, got 4"),
        ("models.grader.grid.spacing_mm.2", None, "got null, want a number"),
        (
            "models.grader.precisions.1",
            "fp16",
            "'fp16' is none of f32, bf16, f16, int8",
        ),
        ("models.grader.precisions.1", 16, "got 16, want another type"),
        (
            "models.grader.normalisation",
            "z_score",
            "'z_score' is none of series_window, grid_range",
        ),
        ("models.grader.output", "logits", "'logits' is none of probabilities"),
        ("models.grader.variants", [], "got [], want another type"),
        ("models.grader.parity", {"bf16": 1}, None),
        ("models.grader.profile", [], "want an object, got []"),
        ("models.grader.calibration", 1, "want an object, got 1"),
        (
            "models.detector.decoder",
            "heatmaps",
            "'heatmaps' is none of level_heatmaps, vfr",
        ),
        ("models.detector.spec.pixel_mm", True, "got true, want a number"),
        ("labels.levels.0", 1, "got 1, want a text"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_place(content, path, value, want):
    holder, last = at(content, path)
    holder[int(last) if isinstance(holder, list) else last] = value
    if want is None:
        path, want = f"{path}.bf16", "got 1, want another type"
    assert refusal(content) == f"{where(path)}: {want}"


def test_a_long_value_is_cut_to_sixty_characters(content):
    content["name"] = list(range(100))
    assert (
        refusal(content)
        == f"bundle.json.name: got {json.dumps(list(range(100)))[:60]}, want a text"
    )
    content["models"]["grader"] = list(range(100))
    content["name"] = "x"
    assert (
        refusal(content)
        == f"bundle.json.models.grader: want an object, got {json.dumps(list(range(100)))[:60]}"
    )


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_finite_are_refused(content, number):
    content["metrics"]["score"] = 12345
    with pytest.raises(BundleError, match="the manifest is refused: "):
        parse_manifest(json.dumps(content).replace("12345", number))


def test_whole_numbers_are_numbers_and_a_key_twice_is_refused(content):
    content["metrics"]["score"] = 2
    text = json.dumps(content)
    metrics = parse_manifest(text).metrics
    assert metrics == {"score": 2.0}
    assert type(metrics["score"]) is float
    with pytest.raises(BundleError, match="a key appears twice"):
        parse_manifest(text.replace('"score": 2', '"score": 2, "score": 3'))


def test_the_first_unknown_key_is_named_with_those_that_are_known(content):
    content["models"]["grader"]["grid"] |= {"zoom": 1, "angle": 2}
    assert refusal(content) == (
        "bundle.json.models.grader.grid: unknown key 'angle'; known are shape, spacing_mm, center_offset_mm"
    )


@pytest.mark.parametrize("schema", [0, 2, -1])
def test_another_schema_is_refused(content, schema):
    content["schema"] = schema
    assert (
        refusal(content)
        == f"bundle.json: schema is {schema}, this engine reads 1: update spine-mri-engine"
    )


@pytest.mark.parametrize("name", ["a", "7", "lumbar-small", "A.b_c-1"])
def test_plain_names_are_allowed(content, name):
    content["name"] = name
    assert parse_manifest(json.dumps(content)).name == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a/b", "é", "a\n"])
def test_names_that_are_no_plain_word_are_refused(content, name):
    content["name"] = name
    assert refusal(content) == f"bundle.json: name must be a plain word, got {name!r}"


GOOD_DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "file", ["a.onnx", "_a.onnx", "9.onnx", "grader.f16.onnx", "A-b_c.onnx"]
)
def test_plain_files_are_allowed(file):
    assert ModelFile(file=file, sha256=GOOD_DIGEST, size_bytes=1).file == file


@pytest.mark.parametrize(
    "file",
    [
        *(
            "",
            ".onnx",
            "..onnx",
            "-a.onnx",
            "a.ONNX",
            "a.onnx\n",
            "a.onnx.data",
            "a",
            "aonnx",
            "a b.onnx",
        ),
        *(
            "../a.onnx",
            "/a.onnx",
            "x/a.onnx",
            "x\\a.onnx",
            "C:a.onnx",
            "~a.onnx",
            "a\0.onnx",
        ),
    ],
)
def test_files_that_are_no_plain_name_are_refused(file):
    with pytest.raises(ValueError) as caught:
        ModelFile(file=file, sha256=GOOD_DIGEST, size_bytes=1)
    assert (
        str(caught.value)
        == f"file must be the plain name of an .onnx file beside bundle.json, got {file!r}"
    )


@pytest.mark.parametrize(
    "digest",
    [
        "",
        GOOD_DIGEST[:-1],
        GOOD_DIGEST + "0",
        GOOD_DIGEST.upper(),
        "g" * 64,
        GOOD_DIGEST[:-1] + "\n",
    ],
)
def test_digests_are_64_lower_case_hexadecimal_digits(digest):
    with pytest.raises(
        ValueError, match="sha256 must be 64 lower-case hexadecimal digits"
    ):
        ModelFile(file="a.onnx", sha256=digest, size_bytes=1)


def table(
    value: float = 1.0, rows: int = 5, columns: int = 5
) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple([value] * columns) for _ in range(rows))


@pytest.mark.parametrize(
    ("temperature", "shift", "message"),
    [
        (
            table(rows=4),
            table(),
            "temperature must have 5 rows, one a condition, of 5 levels",
        ),
        (table(rows=6), table(), "temperature must have 5 rows"),
        (table(columns=4), table(), "temperature must have 5 rows"),
        (
            table(),
            table(rows=4),
            "shift must have 5 rows, one a condition, of 5 levels",
        ),
        (table(), table(columns=6), "shift must have 5 rows"),
        (table(0.0), table(), "every temperature must be positive"),
        (
            (*table()[:4], (1.0, 1.0, 1.0, 1.0, -1e-9)),
            table(),
            "every temperature must be positive",
        ),
    ],
)
def test_calibrations_of_another_form_are_refused(temperature, shift, message):
    with pytest.raises(ValueError, match=message):
        Calibration(temperature=temperature, shift=shift)


def test_a_calibration_may_shift_either_way():
    assert Calibration(temperature=table(1e-6), shift=table(-3.0)).shift == table(-3.0)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((0, 5, 6), (1.0,) * 3), ((4, 5, 6), (1.0, 0.0, 1.0)), ((4, -1, 6), (1.0,) * 3)],
)
def test_grids_are_positive(shape, spacing):
    with pytest.raises(ValueError, match="positive"):
        GridEntry(shape=shape, spacing_mm=spacing)


def grader(**changes: Any) -> GraderEntry:
    """Return the entry of a level grader, changed."""
    facts: dict[str, Any] = {
        "file": "g.onnx",
        "sha256": GOOD_DIGEST,
        "size_bytes": 1,
        "inputs": (TensorEntry(name="image", shape=(None, 2, 4, 5, 6)),),
        "outputs": (TensorEntry(name="probabilities", shape=(None, 5, 3)),),
        "channels": ("sagittal_t1", "axial_t2"),
        "grid": GridEntry(shape=(4, 5, 6), spacing_mm=(1.0, 1.0, 1.0)),
        "output_channels": tuple(Labels().conditions),
    }
    return GraderEntry(**{**facts, **changes})


SECOND = ModelFile(file="h.onnx", sha256=GOOD_DIGEST, size_bytes=1)


def test_a_graders_files_are_its_own_first():
    entry = grader(variants={"f16": SECOND}, precisions=("f32", "f16"))
    assert [file.file for file in entry.files] == ["g.onnx", "h.onnx"]
    assert entry.grades_levels
    assert not grader(output_channels=("a", "b", "c", "d", "e")).grades_levels
    assert entry.grid.spec.spacing_mm == (1.0, 1.0, 1.0)


def profile(**changes: Any) -> Profile:
    return Profile(
        **{
            "smallest": (1, 2, 4, 5, 6),
            "usual": (2, 2, 4, 5, 6),
            "largest": (4, 2, 4, 5, 6),
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"precisions": ()},
            "precisions must contain f32, the one that the others are compared with",
        ),
        ({"precisions": ("bf16", "f16")}, "precisions must contain f32"),
        ({"variants": {"f32": SECOND}}, "variants are f16 or int8, got 'f32'"),
        (
            {"variants": {"f16": SECOND, "x": SECOND, "b": SECOND}},
            "variants are f16 or int8, got 'b'",
        ),
        ({"precisions": ("f32", "int8")}, "int8 lives in a file of its own"),
        (
            {"precisions": ("f32", "int8"), "variants": {"f16": SECOND}},
            "int8 lives in a file of its own",
        ),
        ({"inputs": ()}, "a model must have one input and one output"),
        ({"inputs": grader().inputs * 2}, "a model must have one input and one output"),
        ({"outputs": ()}, "a model must have one input and one output"),
        (
            {"outputs": grader().outputs * 2},
            "a model must have one input and one output",
        ),
        (
            {"profile": profile(smallest=(1, 1, 4, 5, 6))},
            r"the profile's \(1, 1, 4, 5, 6\) is no input \(any, 2, 4, 5, 6\)",
        ),
        (
            {"profile": profile(largest=(4, 2, 4, 5, 7))},
            r"the profile's \(4, 2, 4, 5, 7\) is no input",
        ),
        (
            {"profile": Profile(smallest=(1, 2), usual=(1, 2), largest=(1, 2))},
            r"the profile's \(1, 2\) is no input",
        ),
        (
            {"channels": ("sagittal_t1",)},
            r"input's shape \(any, 2, 4, 5, 6\) does not end in channels and grid \(1, 4",
        ),
        ({"channels": ("axial_t2", "axial_t2")}, "a role can fill only one channel"),
        (
            {"inputs": (TensorEntry(name="image", shape=(None, 2, 4, 6, 5)),)},
            r"does not end in channels and grid \(2, 4, 5, 6\)",
        ),
        (
            {"output_channels": ("a", "b")},
            r"output_channels names 2 channels, the output's shape is \(any, 5, 3\)",
        ),
        (
            {"outputs": (TensorEntry(name="p", shape=(5,)),)},
            r"names 5 channels, the output's shape is \(5\)",
        ),
        (
            {"outputs": (TensorEntry(name="p", shape=(None, None, 3)),)},
            r"the output's shape is \(any, any, 3\)",
        ),
    ],
)
def test_graders_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        grader(**changes)


@pytest.mark.parametrize(
    "changes", [{"profile": profile()}, {"precisions": ("bf16", "f32", "f16")}]
)
def test_graders_that_do_not_are_accepted(changes):
    (key, value) = next(iter(changes.items()))
    assert getattr(grader(**changes), key) == value


LABELS = {
    "levels": ["l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1"],
    "conditions": [
        *("left_neural_foraminal_narrowing", "left_subarticular_stenosis"),
        *(
            "right_neural_foraminal_narrowing",
            "right_subarticular_stenosis",
            "spinal_canal_stenosis",
        ),
    ],
    "severities": ["normal_mild", "moderate", "severe"],
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_the_engines_in_its_order(content, kind):
    content["labels"] = dict(LABELS)
    assert getattr(parse_manifest(json.dumps(content)).labels, kind) == tuple(
        LABELS[kind]
    )
    for other in (LABELS[kind][::-1], LABELS[kind][:-1], [*LABELS[kind], "more"], []):
        content["labels"] = {**LABELS, kind: other}
        assert (
            refusal(content)
            == f"bundle.json.labels: {kind} must be in the order {', '.join(LABELS[kind])}"
        )


def test_the_text_is_indented_json_that_ends_in_a_line_and_keeps_its_letters(content):
    manifest: Manifest = parse_manifest(json.dumps(content))
    named = dataclasses.replace(manifest, licence="Zukić")
    text = manifest_text(named)
    assert text.endswith("}\n")
    assert '\n  "licence": "Zukić",\n' in text
    assert parse_manifest(text.encode()) == named
    with pytest.raises(ValueError, match="JSON compliant"):
        manifest_text(dataclasses.replace(manifest, metrics={"score": float("nan")}))


def test_a_bundle_that_nests_without_end_is_refused_in_a_line():
    with pytest.raises(
        BundleError, match=r"^the manifest is refused: it nests too deeply$"
    ):
        parse_manifest("[" * 100_000)


def test_bundle_and_manifest_say_the_same(fake_bundle: Path):
    assert Bundle.open(fake_bundle).manifest == parse_manifest(
        (fake_bundle / "bundle.json").read_bytes()
    )
