"""Compiled models kept between runs, in a folder that only its owner can read or write.

An entry is the SHA-256 of its content followed by the content. What does not match is deleted and built again. Where
the folder is not safe (a link, another owner, open to others) nothing is read or written and models are compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

_DIGEST_SIZE = 32


def cache_folder() -> Path | None:
    """Return ``$XDG_CACHE_HOME/spine-mri-engine`` (``~/.cache`` by default), created 0700; None when it is not safe."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "spine-mri-engine"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.lstat()
    except (OSError, RuntimeError):
        return None
    owned = not hasattr(os, "getuid") or state.st_uid == os.getuid()
    safe = stat.S_ISDIR(state.st_mode) and owned and not state.st_mode & 0o077 and os.access(folder, os.W_OK)
    return folder if safe else None


def cache_key(model: bytes, *parts: str) -> str:
    """Return the name of an entry: the digest of the model and of everything that shapes what is compiled from it."""
    text = "\n".join([hashlib.sha256(model).hexdigest(), *parts])
    return hashlib.sha256(text.encode()).hexdigest()


def load_compiled(key: str) -> bytes | None:
    """Return an entry's content, or None when there is none; a damaged entry is deleted."""
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / f"{key}.blob"
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb") as file:
            digest, content = file.read(_DIGEST_SIZE), file.read()
    except OSError:
        return None
    if hashlib.sha256(content).digest() == digest:
        return content
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
        with contextlib.suppress(OSError):
            (folder / f"{key}.blob").unlink()
