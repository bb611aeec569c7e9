"""Entries of the cache: their names, their form on disk, what a write that is cut short or refused leaves."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from spine_engine.backends import cache as room
from spine_engine.backends.cache import (
    build_lock,
    cache_folder,
    cache_key,
    compiled_once,
    drop_compiled,
    load_compiled,
    sealed_folder,
    store_compiled,
)


def test_a_name_is_the_digest_of_the_models_digest_and_of_every_part():
    text = hashlib.sha256(b"model").hexdigest() + "\nopenvino\n1 thread"
    assert (
        cache_key(b"model", "openvino", "1 thread")
        == hashlib.sha256(text.encode()).hexdigest()
    )
    names = {
        cache_key(b"model", "a", "b"),
        cache_key(b"model", "b", "a"),
        cache_key(b"model", "ab", ""),
        cache_key(b"model", "a"),
        cache_key(b"model"),
        cache_key(b"Model", "a", "b"),
        cache_key(b"", "a", "b"),
    }
    assert len(names) == 7


def test_an_entry_is_its_digest_and_its_content_and_its_owners_alone(cache: Path):
    store_compiled("k", b"engine")
    (entry,) = cache.iterdir()
    assert entry.name == "k.blob"
    assert entry.read_bytes() == hashlib.sha256(b"engine").digest() + b"engine"
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    store_compiled("k", b"other")
    assert load_compiled("k") == b"other"
    store_compiled("empty", b"")
    assert load_compiled("empty") == b""
    assert load_compiled("none") is None


@pytest.mark.parametrize("cut", [0, 1, 31, 32, 33, 37])
def test_an_entry_that_was_half_written_is_deleted_and_not_read(cache: Path, cut: int):
    store_compiled("k", b"engine")
    path = cache / "k.blob"
    path.write_bytes(path.read_bytes()[:cut])
    assert load_compiled("k") is None
    assert not path.exists()


def test_a_write_that_fails_leaves_the_former_entry_and_nothing_else(
    cache: Path, monkeypatch
):
    store_compiled("k", b"engine")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        store_compiled("k", b"other")  # nobody is told: it is compiled again next time
        store_compiled("new", b"other")
    assert [path.name for path in cache.iterdir()] == ["k.blob"]
    assert load_compiled("k") == b"engine"


def test_a_process_that_is_killed_while_it_writes_leaves_no_entry(
    cache: Path, monkeypatch
):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store_compiled("k", b"engine")
    assert load_compiled("k") is None
    (left,) = cache.iterdir()
    assert left.suffix == ".part", (
        "what was written lies under a name that nobody reads"
    )


@pytest.mark.parametrize("xdg", [None, ""])
def test_without_a_place_of_its_own_the_cache_lies_at_home(
    tmp_path: Path, monkeypatch, xdg
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if xdg is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert cache_folder() == tmp_path / "home" / ".cache" / "spine-mri-engine"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "spine-mri-engine"


@pytest.mark.parametrize(
    "obstacle", ["file", "parent is a file", "link", "read only", "homeless"]
)
def test_a_cache_that_is_not_safe_is_done_without(
    cache: Path, tmp_path: Path, monkeypatch, obstacle
):
    if obstacle == "file":
        cache.write_bytes(b"")
    elif obstacle == "parent is a file":
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    elif obstacle == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        cache.symlink_to(tmp_path / "elsewhere")
    elif obstacle == "read only":
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() is None
    store_compiled("k", b"engine")
    assert load_compiled("k") is None
    drop_compiled("k")
    with build_lock(), sealed_folder("k") as folder:
        assert folder is None
    assert compiled_once("k", lambda: b"built") == b"built"


@pytest.mark.parametrize("mode", [0o700, 0o600, 0o500])
def test_a_folder_of_the_owner_alone_is_safe(cache: Path, mode: int, monkeypatch):
    cache.mkdir()
    cache.chmod(mode)
    monkeypatch.setattr(os, "access", lambda path, wanted: True)
    assert cache_folder() == cache


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o702, 0o704, 0o720, 0o740])
def test_a_folder_with_any_right_for_others_is_not(cache: Path, mode: int):
    cache.mkdir()
    cache.chmod(mode)
    assert cache_folder() is None


def test_an_entry_is_dropped_whatever_it_is(cache: Path, tmp_path: Path):
    store_compiled("file", b"x")
    (cache / "folder.blob").mkdir()
    (cache / "folder.blob" / "inside").write_bytes(b"x")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "inside").write_bytes(b"x")
    (cache / "link.blob").symlink_to(tmp_path / "kept")
    for key in ("file", "folder", "link", "none"):
        drop_compiled(key)
    assert not list(cache.iterdir())
    assert (tmp_path / "kept" / "inside").exists()


def test_what_failed_to_build_is_not_kept_and_the_lock_is_free_again(cache: Path):
    def fail() -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compiled_once("k", fail)
    assert compiled_once("k", lambda: b"built") == b"built"
    assert load_compiled("k") == b"built"


def test_who_waited_for_the_lock_takes_what_was_built_meanwhile(
    cache: Path, monkeypatch
):
    answers = [None, b"built by another"]
    monkeypatch.setattr(room, "load_compiled", lambda key: answers.pop(0))
    assert compiled_once("k", lambda: pytest.fail("built")) == b"built by another"


def test_a_lent_folder_is_sealed_by_name_and_content(cache: Path):
    with sealed_folder("k") as folder:
        assert folder == cache / "k.folder"
        (folder / "b").write_bytes(b"2")
        (folder / "a").write_bytes(b"1")
    sealed = load_compiled("k")
    one, two = (hashlib.sha256(content).hexdigest() for content in (b"1", b"2"))
    assert sealed == f'{{"a": "{one}", "b": "{two}"}}'.encode()
    (folder / "a").rename(folder / "c")
    with sealed_folder("k") as folder:
        assert not list(folder.iterdir()), "the same content under another name"
    with sealed_folder("other") as folder:
        assert folder == cache / "other.folder"


def test_a_folder_in_which_something_strange_was_left_is_not_sealed(
    cache: Path, tmp_path: Path
):
    with sealed_folder("k") as folder:
        (folder / "a").write_bytes(b"1")
    before = load_compiled("k")
    with sealed_folder("k") as folder:
        (folder / "link").symlink_to(tmp_path)
    assert load_compiled("k") == before
    with sealed_folder("k") as folder:
        assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_emptied_is_not_lent(cache: Path, monkeypatch):
    with sealed_folder("k") as folder:
        (folder / "a").write_bytes(b"1")
    (folder / "a").write_bytes(b"2")

    def refuse(path: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(room.shutil, "rmtree", refuse)
    with sealed_folder("k") as folder:
        assert folder is None


def test_an_error_while_it_is_lent_seals_nothing_and_frees_the_lock(cache: Path):
    def spoil() -> None:
        with sealed_folder("k") as folder:
            (folder / "half").write_bytes(b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spoil()
    assert load_compiled("k") is None
    with sealed_folder("k") as folder:
        assert not list(folder.iterdir())
