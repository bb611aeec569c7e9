"""An edit of ``vectors`` is seen: kernels that inline it and were compiled before it are not used again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from compiled import forget_outdated

from spine_engine.voxels import aligned, kernels, vectors


@pytest.mark.parametrize(
    "kernel",
    [kernels.resample_stack, kernels.scatter_stack, aligned.resample_aligned],
    ids=lambda k: k.__name__,
)
def test_no_kernel_is_kept_that_is_older_than_the_vectors_it_inlines(kernel) -> None:
    cache, source = Path(kernel.stats.cache_path), Path(vectors.__file__)
    kept = list(
        cache.glob(
            f"{Path(kernel.py_func.__code__.co_filename).stem}.{kernel.__name__}-*.nb[ic]"
        )
    )
    # nothing is kept where nothing was compiled yet, or where the folder cannot be written: both are sound
    old = [
        file.name
        for file in kept
        if file.stat().st_mtime_ns < source.stat().st_mtime_ns
    ]
    assert old == [], (
        f"compiled before the last edit of {source.name}: touch {kernel.py_func.__module__}"
    )


def test_what_is_older_than_what_it_inlines_is_forgotten_and_nothing_else(
    tmp_path: Path,
) -> None:
    inlined = tmp_path / "vectors.py"
    inlined.touch()
    now = inlined.stat().st_mtime_ns
    names = {
        "kernels.one-7.py311.nbi": -1,
        "kernels.one-7.py311.1.nbc": -1,
        "kernels.two-9.py311.nbi": 1,
        "other.one-7.py311.nbi": -1,
        "kernels.cpython-311.pyc": -1,
    }
    for name, age in names.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(now + age * 10**9, now + age * 10**9))
    forgotten = forget_outdated(tmp_path, Path("kernels.py"), inlined)
    assert forgotten == ["kernels.one-7.py311.1.nbc", "kernels.one-7.py311.nbi"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "kernels.cpython-311.pyc",
        "kernels.two-9.py311.nbi",
        "other.one-7.py311.nbi",
        "vectors.py",
    ]
