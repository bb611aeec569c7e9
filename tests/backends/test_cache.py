"""What lies in the cache is ours, whole and unchanged, or it is built again; it is never loaded as it is."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spine_engine.backends import cache as room
from spine_engine.backends.cache import (
    build_lock,
    cache_folder,
    compiled_once,
    load_compiled,
    sealed_folder,
    store_compiled,
)

KEY = "k"


def flipped(path: Path, outside: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncated(path: Path, outside: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def emptied(path: Path, outside: Path) -> None:
    path.write_bytes(b"")


def symbolic_link(path: Path, outside: Path) -> None:
    path.rename(outside)
    path.symlink_to(outside)


def hard_link(path: Path, outside: Path) -> None:
    path.rename(outside)
    path.hardlink_to(outside)


def a_folder(path: Path, outside: Path) -> None:
    path.rename(outside)
    path.mkdir()


def a_pipe(path: Path, outside: Path) -> None:
    path.rename(outside)
    os.mkfifo(path)


HOSTILE = [flipped, truncated, emptied, symbolic_link, hard_link, a_folder, a_pipe]


@pytest.mark.parametrize("spoil", HOSTILE)
def test_a_spoilt_entry_is_built_again(cache: Path, tmp_path: Path, spoil) -> None:
    assert compiled_once(KEY, lambda: b"good engine") == b"good engine"
    assert compiled_once(KEY, lambda: b"not needed") == b"good engine"
    spoil(cache / f"{KEY}.blob", tmp_path / "outside")
    outside = (
        (tmp_path / "outside").read_bytes() if (tmp_path / "outside").exists() else None
    )
    assert load_compiled(KEY) is None
    assert compiled_once(KEY, lambda: b"built again") == b"built again"
    if spoil is not a_folder:  # which nothing replaces, so that it is built each time
        assert load_compiled(KEY) == b"built again"
    if outside is not None:
        assert (tmp_path / "outside").read_bytes() == outside, (
            "what a link leads to is left alone"
        )


@pytest.mark.parametrize("mode", [0o770, 0o750, 0o707, 0o755])
def test_a_folder_that_others_may_enter_is_bypassed(cache: Path, mode: int) -> None:
    store_compiled(KEY, b"planted")
    cache.chmod(mode)
    assert compiled_once(KEY, lambda: b"built") == b"built"
    with sealed_folder(KEY) as folder:
        assert folder is None
    cache.chmod(0o700)
    assert load_compiled(KEY) == b"planted"


def test_a_folder_or_an_entry_of_another_user_is_bypassed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_compiled(KEY, b"planted")
    if os.getuid() == 0:
        os.chown(cache / f"{KEY}.blob", 12345, 12345)
        assert load_compiled(KEY) is None
        store_compiled(KEY, b"planted")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert cache_folder() is None
    assert compiled_once(KEY, lambda: b"built") == b"built"


def test_who_comes_while_another_builds_waits_and_takes_what_was_built(
    cache: Path, monkeypatch
) -> None:
    looked, built = threading.Semaphore(0), []

    def look(key: str) -> bytes | None:
        looked.release()
        return load_compiled(key)

    def build() -> bytes:
        for _ in range(
            4
        ):  # the others have looked and found nothing, and this one for a second time
            assert looked.acquire(timeout=20)
        built.append(threading.get_ident())
        return b"engine"

    monkeypatch.setattr(room, "load_compiled", look)
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(compiled_once, KEY, build) for _ in range(3)]
        assert [future.result(20) for future in asked] == [b"engine"] * 3
    assert len(built) == 1


def test_the_lock_is_the_kernels_so_that_one_who_dies_holds_nobody_up(
    cache: Path,
) -> None:
    with build_lock():
        descriptor = os.open(cache / "build.lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
    assert (cache / "build.lock").stat().st_mode & 0o777 == 0o600
    assert (cache / "build.lock").stat().st_size == 0


@pytest.mark.slow
def test_a_builder_that_dies_does_not_hold_the_others_up(cache: Path) -> None:
    code = "from spine_engine.backends.cache import build_lock\nwith build_lock(): print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    holder.stdout.readline()
    holder.kill()
    holder.wait(timeout=20)
    with build_lock():
        pass
    holder.stdin.close()
    holder.stdout.close()


def test_a_lock_that_is_a_link_is_not_followed(cache: Path, tmp_path: Path) -> None:
    assert cache_folder() == cache
    (cache / "build.lock").symlink_to(tmp_path / "outside")
    assert compiled_once(KEY, lambda: b"built") == b"built"
    assert not (tmp_path / "outside").exists()


def test_a_lent_folder_is_lent_again_only_as_it_was_left(
    cache: Path, tmp_path: Path
) -> None:
    def lend() -> list[str]:
        with sealed_folder(KEY) as folder:
            assert folder is not None
            assert folder.stat().st_mode & 0o777 == 0o700
            found = sorted(path.name for path in folder.iterdir())
            (folder / "engine").write_bytes(b"engine")
            return found

    engine = cache / f"{KEY}.folder" / "engine"
    assert lend() == []
    assert lend() == ["engine"]
    spoils = [
        lambda: engine.write_bytes(b"changed"),
        lambda: (engine.parent / "planted").write_bytes(b"x"),
        engine.unlink,
        lambda: hard_link(engine, tmp_path / "hard"),
        lambda: symbolic_link(engine, tmp_path / "soft"),
        lambda: (engine.parent / "more").mkdir(),
        lambda: flipped(cache / f"{KEY}.blob", tmp_path),
        lambda: symbolic_link(engine.parent, tmp_path / "elsewhere"),
    ]
    for spoil in spoils:
        spoil()
        assert lend() == []
        assert lend() == ["engine"]
    assert (tmp_path / "elsewhere" / "engine").read_bytes() == b"engine", (
        "what a link leads to is left alone"
    )
