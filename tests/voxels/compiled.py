"""Compiled kernels that numba keeps on disk, and those of them that are older than what they are made of."""

from __future__ import annotations

from pathlib import Path


def forget_outdated(cache: Path, module: Path, inlined: Path) -> list[str]:
    """Delete what is kept in ``cache`` of the kernels of ``module`` and is older than ``inlined``; return the names.

    numba compiles a kernel anew when the kernel's own file has changed. It does not know what the kernel inlines from
    another file: an edit there would not be seen, neither by tests nor by users, until the cache goes.
    """
    outdated = []
    for kept in sorted(cache.glob(f"{module.stem}.*.nb[ic]")):
        if kept.stat().st_mtime_ns < inlined.stat().st_mtime_ns:
            kept.unlink(missing_ok=True)
            outdated.append(kept.name)
    return outdated
