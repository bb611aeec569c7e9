"""``bundle verify``, ``bundle show`` and ``doctor``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.backends import BACKENDS
from spine_engine.bundle import Bundle
from spine_engine.bundle.manifest import Manifest
from spine_engine.cli import bundle as bundle_command
from spine_engine.cli import doctor as doctor_command
from spine_engine.errors import BackendError, BundleError

ALL_ROLES = ("detector", "grader", "whole_study_grader")

doctor_app = typer.Typer()
doctor_app.command()(doctor_command.doctor)


def test_verify_says_what_the_models_run_on(fake_bundle: Path) -> None:
    done = CliRunner().invoke(
        bundle_command.app, ["verify", str(fake_bundle), "--backend", "fake"]
    )
    assert done.exit_code == 0
    assert (
        "grader: grader.onnx is as the manifest says, on fake CPU in f32" in done.output
    )
    assert (
        f"fake 1.2.0 is sound, digest {Bundle.open(fake_bundle).digest}" in done.output
    )


def test_verify_fails_on_a_changed_model(fake_bundle: Path) -> None:
    (fake_bundle / "detector.onnx").write_bytes(b"x")
    done = CliRunner().invoke(
        bundle_command.app, ["verify", str(fake_bundle), "--backend", "fake"]
    )
    assert isinstance(done.exception, BundleError)


def test_show_is_readable_and_json_is_the_manifest(fake_bundle: Path) -> None:
    shown = CliRunner().invoke(bundle_command.app, ["show", str(fake_bundle)])
    assert shown.exit_code == 0
    for text in ("Apache-2.0", "Tests only.", "nothing at all", "score: 0.5", "4x5x6"):
        assert text in shown.output
    as_json = CliRunner().invoke(
        bundle_command.app, ["show", str(fake_bundle), "--json"]
    )
    assert as_json.output == (fake_bundle / "bundle.json").read_text()


@pytest.fixture
def packaged(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        "spine_engine.bundle.bundle.packaged_folder", lambda: fake_bundle
    )
    return fake_bundle


def test_doctor_is_content_when_everything_runs(
    packaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open = Bundle.open_model
    monkeypatch.setattr(
        Bundle, "open_model", lambda self, entry: really_open(self, entry, name="fake")
    )
    done = CliRunner().invoke(doctor_app, ["--json"])
    report = json.loads(done.output)
    assert (done.exit_code, report["exit_code"], report["problems"]) == (0, 0, [])
    assert [trial["role"] for trial in report["trials"]] == ["detector", "grader"]
    assert report["bundle"]["digest"] == Bundle.open(packaged).digest
    assert [backend["name"] for backend in report["backends"]] == list(BACKENDS)
    assert report["packages"]["numpy"]
    human = CliRunner().invoke(doctor_app, [])
    assert human.exit_code == 0
    assert "ready to run" in human.output


@pytest.mark.parametrize(
    "roles", [ALL_ROLES, ALL_ROLES[2:]], ids=["three", "whole study alone"]
)
def test_every_combination_of_models_is_verified_shown_and_tried(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_bundle: Callable[..., Manifest],
    roles: tuple[str, ...],
) -> None:
    folder = tmp_path / "bundle"
    make_bundle(folder, roles)
    verified = CliRunner().invoke(
        bundle_command.app, ["verify", str(folder), "--backend", "fake"]
    )
    assert verified.exit_code == 0, verified.output
    assert [line.split(":")[0] for line in verified.output.splitlines()[:-1]] == list(
        roles
    )
    shown = CliRunner().invoke(bundle_command.app, ["show", str(folder)])
    assert shown.exit_code == 0
    assert "8x6x4" in shown.output
    monkeypatch.setattr("spine_engine.bundle.bundle.packaged_folder", lambda: folder)
    really_open = Bundle.open_model
    monkeypatch.setattr(
        Bundle, "open_model", lambda self, entry: really_open(self, entry, name="fake")
    )
    done = CliRunner().invoke(doctor_app, ["--json"])
    assert [trial["role"] for trial in json.loads(done.output)["trials"]] == list(roles)


def test_heads_in_another_order_are_refused(
    tmp_path: Path, make_bundle: Callable[..., Manifest]
) -> None:
    with pytest.raises(ValueError, match="whole_study_grader must be in the order"):
        make_bundle(
            tmp_path,
            ALL_ROLES,
            heads=[f"{c}_{level}" for level in LEVELS for c in CONDITIONS],
        )


def test_doctor_says_when_the_bundle_is_damaged(packaged: Path) -> None:
    (packaged / "grader.onnx").write_bytes(b"x")
    done = CliRunner().invoke(doctor_app, [])
    assert done.exit_code == 3
    assert "grader.onnx has 1 bytes" in done.output


def test_doctor_says_when_no_backend_works(
    packaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Bundle, entry: object) -> None:
        raise BackendError("openvino is not installed: pip install openvino")

    monkeypatch.setattr(Bundle, "open_model", refuse)
    done = CliRunner().invoke(doctor_app, [])
    assert done.exit_code == 4
    assert "pip install openvino" in done.output
