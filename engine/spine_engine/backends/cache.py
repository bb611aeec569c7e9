"""Compiled models kept between runs, in a folder that only its owner can read or write.

An entry is the SHA-256 of its content followed by the content. What does not match is deleted and built again, and so
is a link of either kind and what another user owns. Where the folder itself is not safe (a link, another owner, open to
others) nothing is read or written and models are compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_DIGEST_SIZE = 32
_LOCK = "build.lock"


def cache_folder() -> Path | None:
    """Return ``$XDG_CACHE_HOME/spine-mri-engine`` (``~/.cache`` by default), created 0700; None when it is not safe."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "spine-mri-engine"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.lstat()
    except (OSError, RuntimeError):
        return None
    safe = (
        stat.S_ISDIR(state.st_mode)
        and _ours(state)
        and not state.st_mode & 0o077
        and os.access(folder, os.W_OK)
    )
    return folder if safe else None


def cache_key(model: bytes, *parts: str) -> str:
    """Return the name of an entry: the digest of the model and of everything that shapes what is compiled from it."""
    text = "\n".join([hashlib.sha256(model).hexdigest(), *parts])
    return hashlib.sha256(text.encode()).hexdigest()


def load_compiled(key: str) -> bytes | None:
    """Return an entry's content, or None when there is none; one that is damaged or not ours alone is deleted."""
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / f"{key}.blob"
    try:
        content = _read_own_file(path)
    except FileNotFoundError:
        return None
    except OSError:  # a link, or what is no file
        content = None
    if (
        content is not None
        and hashlib.sha256(content[_DIGEST_SIZE:]).digest() == content[:_DIGEST_SIZE]
    ):
        return content[_DIGEST_SIZE:]
    drop_compiled(key)
    return None


def store_compiled(key: str, content: bytes) -> None:
    """Keep ``content``; a full disk or a missing folder only means that it is compiled again next time."""
    folder = cache_folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        descriptor, name = tempfile.mkstemp(dir=folder, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(name, folder / f"{key}.blob")
        except OSError:
            os.unlink(name)
            raise


def drop_compiled(key: str) -> None:
    """Delete an entry that turned out to be unusable."""
    folder = cache_folder()
    if folder is not None:
        entry = folder / f"{key}.blob"
        with contextlib.suppress(OSError):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def compiled_once(key: str, build: Callable[[], bytes]) -> bytes:
    """Return the entry, built first where there is none: by one process, while the others that want it wait."""
    content = load_compiled(key)
    if content is None:
        with build_lock():
            content = load_compiled(key)
            if content is None:
                content = build()
                store_compiled(key, content)
    return content


@contextlib.contextmanager
def build_lock() -> Iterator[None]:
    """Hold the one lock of the cache: builds of many workers at once would repeat each other on the same GPU.

    The kernel frees it when its holder dies. Where there is no safe folder or no ``flock`` everyone builds at once.
    """
    folder = cache_folder()
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError, ImportError):
            if folder is not None:
                import fcntl

                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(folder / _LOCK, flags, 0o600)
                held.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def sealed_folder(key: str) -> Iterator[Path | None]:
    """Lend a folder to a runtime that keeps compiled models by itself; None where the cache is not safe.

    The digests of what it leaves there are an entry of the cache, compared before the folder is lent again: if anything
    differs the folder is emptied first. One process at a time has it.
    """
    with build_lock():
        root = cache_folder()
        folder = root / f"{key}.folder" if root is not None else None
        if folder is None or not _unseal(folder, load_compiled(key)):
            yield None
            return
        yield folder
        listing = _listing(folder)
        if listing is not None:
            store_compiled(key, listing)


def _unseal(folder: Path, seal: bytes | None) -> bool:
    """Make sure that a folder holds what was sealed, or nothing; return whether it can be used."""
    try:
        if seal is None or _listing(folder) != seal:
            if folder.is_symlink() or folder.is_file():
                folder.unlink()
            elif folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
    except OSError:
        return False
    return True


def _listing(folder: Path) -> bytes | None:
    """Return name and SHA-256 of the files in a folder; None when it holds, or is, anything but our own plain ones."""
    try:
        if folder.is_symlink():
            return None
        contents = {
            path.name: _read_own_file(path) for path in sorted(folder.iterdir())
        }
    except OSError:
        return None
    found = {
        name: hashlib.sha256(content).hexdigest()
        for name, content in contents.items()
        if content is not None
    }
    return json.dumps(found).encode() if len(found) == len(contents) else None


def _read_own_file(path: Path) -> bytes | None:
    """Return the content of a plain file that is ours alone, None when it is not. Raises ``OSError`` for a link."""
    flags = (
        os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    )  # a pipe must not block
    with os.fdopen(os.open(path, flags), "rb") as file:
        state = os.fstat(file.fileno())
        return (
            file.read()
            if stat.S_ISREG(state.st_mode) and state.st_nlink == 1 and _ours(state)
            else None
        )


def _ours(state: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or state.st_uid == os.getuid()
