"""``spine-engine export``: what its commands hand on, say and refuse; over parts that export nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="needs the export extra: no export is shown")
pytest.importorskip("timm_3d", reason="needs the export extra: no export is shown")
pytest.importorskip("onnxscript", reason="needs the export extra: no export is shown")

from typer.testing import CliRunner

from spine_engine.bundle import Bundle
from spine_engine.errors import UsageError
from spine_engine.pipeline.parity import Parity
from spine_export import __main__ as command
from spine_export.sources import PipelineConfig, SpineNetFiles

FILES = SpineNetFiles(vfr=Path("v"), appearance=Path("a"), context=Path("c"))


def probabilities(largest, mean=0.0, changed=0):
    return Parity(mean=mean, largest=largest, changed=changed)


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """Run ``export grader`` over a part that writes a file, with what its comparison finds."""

    def export(found, *words):
        part = SimpleNamespace(
            module="module",
            export=lambda path, precision: (
                path.write_bytes(b"x" * 2_500_000),
                asked.append(precision),
            ),
            describe=lambda path: "entry",
        )
        asked = []
        monkeypatch.setattr(
            command, "grader_part", lambda checkpoint, config, weights: part
        )
        monkeypatch.setattr(command, "phantom_samples", lambda: "samples")
        monkeypatch.setattr(
            command, "verify", lambda *given: (asked.append(given), found)[1]
        )
        out = tmp_path / "g.onnx"
        return (
            CliRunner().invoke(
                command.app, ["grader", "g.pt", "--out", str(out), *words]
            ),
            asked,
            out,
        )

    return export


def test_an_export_says_its_size_and_compares_only_when_asked(exported):
    ended, asked, out = exported({}, "--precision", "f16")
    assert (ended.exit_code, asked) == (0, ["f16"])
    assert ended.output == f"{out}: 2.5 MB\n"


def test_an_export_that_is_compared_tells_every_way_and_ends_with_1_where_it_strays(
    exported, tmp_path
):
    good = {
        "openvino f32": probabilities(1e-5),
        "openvino bf16": probabilities(0.5, 0.5, 3),
    }
    ended, asked, out = exported(good, "--verify", "--worst", str(tmp_path / "w"))
    assert ended.exit_code == 0
    assert asked == ["f32", ("module", out, "entry", "f32", "samples", tmp_path / "w")]
    assert [line.split(":")[0] for line in ended.output.splitlines()[1:]] == [
        "  openvino f32",
        "  openvino bf16",
    ]
    ended, _, _ = exported({"openvino f32": probabilities(1e-3)}, "--verify")
    assert ended.exit_code == 1
    assert ended.output.endswith(
        "the exported file does not give the model's answers\n"
    )


def test_the_worst_case_needs_the_comparison(exported):
    ended, asked, _ = exported({}, "--worst", "w")
    assert isinstance(ended.exception, UsageError)
    assert str(ended.exception) == "--worst keeps what --verify finds: give both"
    assert not asked


@pytest.mark.parametrize(
    "words",
    [
        ["--vfr", "v"],
        ["--vfr", "v", "--appearance", "a"],
        ["--appearance", "a", "--context", "c"],
        ["--vfr", "v", "--appearance", "a", "--context", "c", "--detector", "d"],
    ],
)
def test_spinenets_three_come_together_and_alone(words):
    ended = CliRunner().invoke(
        command.app, ["bundle", "--out", "x", "--name", "x", *words]
    )
    assert isinstance(ended.exception, UsageError)
    assert "--vfr, --appearance and --context together, without --detector" in str(
        ended.exception
    )


def test_a_bundle_is_written_from_what_was_given(tmp_path, monkeypatch):
    asked = []
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "m").write_bytes(b"x" * 3_000_000)
    (tmp_path / "card.json").write_text('{"licence": "CC0"}')
    (tmp_path / "d.json").write_text('{"recipe": "native", "shape": [8, 12, 16]}')
    monkeypatch.setattr(
        command,
        "write_bundle",
        lambda out, recipe: (asked.append(vars(recipe)), Bundle.open())[1],
    )
    words = [
        "bundle",
        "--out",
        str(tmp_path / "b"),
        "--name",
        "mine",
        "--version",
        "2",
        "--int8",
        "--phantoms",
        "3",
    ]
    words += [
        "--vfr",
        "v",
        "--appearance",
        "a",
        "--context",
        "c",
        "--grader",
        "g",
        "--whole-study",
        "w",
    ]
    words += [
        "--card",
        str(tmp_path / "card.json"),
        "--whole-study-described",
        str(tmp_path / "d.json"),
    ]
    ended = CliRunner().invoke(command.app, words)
    assert ended.exit_code == 0, ended.exception
    (given,) = asked
    assert given["detector"] == FILES
    assert (given["grader"], given["whole_study"]) == (Path("g"), Path("w"))
    assert (given["name"], given["version"], given["int8"], given["phantoms"]) == (
        "mine",
        "2",
        True,
        3,
    )
    assert given["card"].licence == "CC0"
    assert given["described"] == {
        "whole_study_grader": PipelineConfig(shape=(8, 12, 16))
    }
    assert given["calibration"] is None
    own = Bundle.open()
    assert ended.output == (
        f"{tmp_path / 'b'}: {own.manifest.name} {own.manifest.version}, 3.0 MB, digest {own.digest[:12]}\n"
    )
