"""Where a bundle's files may lie, how large they may be, and what its digest and its facts are."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from spine_engine.bundle import (
    Bundle,
    file_facts,
    packaged_folder,
    read_model,
    write_manifest,
)
from spine_engine.bundle import bundle as room
from spine_engine.bundle.manifest import ModelFile
from spine_engine.errors import BundleError

MANIFEST_LIMIT = 1 << 20


def test_facts_and_digest_are_those_of_the_manifest_on_disk(fake_bundle: Path):
    text = (fake_bundle / "bundle.json").read_bytes()
    bundle = Bundle.open(fake_bundle)
    assert bundle.digest == hashlib.sha256(text).hexdigest()
    assert bundle.facts == {
        "name": "fake",
        "version": "1.2.0",
        "digest": hashlib.sha256(text).hexdigest(),
        "path": str(fake_bundle.resolve()),
    }
    (fake_bundle / "bundle.json").write_bytes(
        text + b"\n"
    )  # the same content in other bytes
    assert Bundle.open(fake_bundle).digest == hashlib.sha256(text + b"\n").hexdigest()


def test_a_relative_path_is_told_in_full(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(fake_bundle.parent)
    assert Bundle.open(Path("fake")).facts["path"] == str(fake_bundle.resolve())


def test_every_role_has_its_entry_and_one_that_is_missing_is_named(fake_bundle: Path):
    bundle = Bundle.open(fake_bundle)
    assert bundle.entry("detector") is bundle.detector
    assert bundle.entry("grader") is bundle.grader
    for role in ("whole_study_grader", "vertebra_context", "nonsense"):
        with pytest.raises(BundleError, match=f"^this bundle has no {role}$"):
            bundle.entry(role)


def test_a_bundle_of_a_whole_study_grader_alone_says_what_it_lacks(
    tmp_path: Path, make_bundle
):
    make_bundle(tmp_path / "b", ("whole_study_grader",))
    bundle = Bundle.open(tmp_path / "b")
    with pytest.raises(BundleError, match="no detector"):
        _ = bundle.detector
    with pytest.raises(BundleError, match="no grader"):
        _ = bundle.grader


def test_the_packaged_bundle_is_the_one_that_opens_by_default(
    monkeypatch: pytest.MonkeyPatch,
):
    assert packaged_folder().name == "lumbar-small"
    assert Bundle.open().manifest.name == "lumbar-small"
    monkeypatch.setattr(room, "PACKAGED", "other")
    with pytest.raises(
        BundleError,
        match="has no bundle 'other': install the wheel again, or name a bundle",
    ):
        packaged_folder()


@pytest.mark.parametrize("over", [0, 1])
def test_a_manifest_may_have_a_mebibyte_and_no_more(fake_bundle: Path, over: int):
    path = fake_bundle / "bundle.json"
    text = path.read_bytes()
    path.write_bytes(text + b" " * (MANIFEST_LIMIT + over - len(text)))
    if over:
        with pytest.raises(
            BundleError,
            match=r"bundle.json is larger than 1048576 bytes: that is no manifest",
        ):
            Bundle.open(fake_bundle)
    else:
        assert Bundle.open(fake_bundle).manifest.name == "fake"


def test_no_manifest_and_an_unreadable_one_are_named_with_their_path(
    fake_bundle: Path, tmp_path: Path
):
    with pytest.raises(BundleError) as caught:
        Bundle.open(tmp_path / "none")
    assert str(caught.value) == (
        f"{tmp_path / 'none' / 'bundle.json'} cannot be read (No such file or directory): "
        "name a folder that holds a bundle"
    )
    (fake_bundle / "bundle.json").unlink()
    (fake_bundle / "bundle.json").mkdir()
    with pytest.raises(BundleError, match=r"bundle\.json is not a regular file"):
        Bundle.open(fake_bundle)


def entry(path: Path, file: str = "m.onnx") -> ModelFile:
    content = path.read_bytes()
    return ModelFile(
        file=file, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "m.onnx").write_bytes(b"weights")
    return tmp_path / "b"


def test_a_model_is_read_once_it_is_what_the_manifest_says(folder: Path):
    wanted = entry(folder / "m.onnx")
    assert wanted == ModelFile(**file_facts(folder / "m.onnx"))
    assert read_model(folder, wanted) == b"weights"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"weight", "m.onnx has 6 bytes, the manifest says 7: copy the bundle again"),
        (b"weights!", "m.onnx has 8 bytes, the manifest says 7: copy the bundle again"),
        (b"", "m.onnx has 0 bytes, the manifest says 7: copy the bundle again"),
        (
            b"Weights",
            "the SHA-256 of m.onnx is not the manifest's: it was changed; copy the bundle again",
        ),
    ],
)
def test_one_byte_more_less_or_other_is_refused(
    folder: Path, content: bytes, message: str
):
    wanted = entry(folder / "m.onnx")
    (folder / "m.onnx").write_bytes(content)
    with pytest.raises(BundleError) as caught:
        read_model(folder, wanted)
    assert str(caught.value) == message


def test_a_model_of_another_size_is_not_hashed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    wanted = entry(folder / "m.onnx")
    (folder / "m.onnx").write_bytes(b"far larger")
    monkeypatch.setattr(hashlib, "sha256", lambda content: pytest.fail("hashed"))
    with pytest.raises(BundleError, match="10 bytes"):
        read_model(folder, wanted)


@pytest.mark.parametrize(
    "trick", ["link out", "link to a folder out", "folder", "gone", "pipe"]
)
def test_what_is_no_file_in_the_folder_is_refused(folder: Path, trick: str):
    wanted, path = entry(folder / "m.onnx"), folder / "m.onnx"
    outside = folder.parent / "outside.onnx"
    path.rename(outside)
    if trick == "link out":
        path.symlink_to(outside)
    elif trick == "link to a folder out":
        shutil.rmtree(folder)
        folder.mkdir()
        path.symlink_to(folder.parent)
    elif trick == "folder":
        path.mkdir()
    elif trick == "pipe":
        os.mkfifo(path)
    with pytest.raises(
        BundleError,
        match=r"^m.onnx is not a file in the bundle's folder: copy the bundle again$",
    ):
        read_model(folder, wanted)


def test_a_link_inside_the_folder_and_a_linked_folder_are_allowed(folder: Path):
    wanted = entry(folder / "m.onnx")
    (folder / "m.onnx").rename(folder / "real.onnx")
    (folder / "m.onnx").symlink_to("real.onnx")
    (folder.parent / "link").symlink_to(folder)
    assert read_model(folder.parent / "link", wanted) == b"weights"


def test_an_error_of_the_disk_is_a_bundle_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    wanted = entry(folder / "m.onnx")

    def fail(path: Path, *given: object) -> int:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(
        BundleError, match=r"^m.onnx cannot be read: Input/output error$"
    ):
        read_model(folder, wanted)


def test_a_manifest_that_is_killed_half_written_leaves_the_old_one(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    bundle = Bundle.open(fake_bundle)
    before = (fake_bundle / "bundle.json").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_manifest(fake_bundle, bundle.manifest)
    assert (fake_bundle / "bundle.json").read_bytes() == before
    assert write_manifest(fake_bundle, bundle.manifest) == fake_bundle / "bundle.json"
    assert json.loads((fake_bundle / "bundle.json").read_text())["name"] == "fake"
    assert not list(fake_bundle.glob("*.partial"))


@pytest.mark.parametrize("kind", ["fifo", "folder", "endless"])
@pytest.mark.timeout(20)
def test_a_manifest_that_is_no_regular_file_is_refused_and_never_waited_for(
    tmp_path, kind
):
    path = tmp_path / "bundle.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="is not a regular file"):
        Bundle.open(tmp_path)
