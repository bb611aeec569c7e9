"""Copies of the working tree in which faults are planted and tests run."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psutil

PACKAGES = ("engine", "training", "export", "benchmarks")
# Dash, which comes with Open3D, brings a plugin for pytest that takes 1.5 s to load.
_PYTEST = ("-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:dash")
_FAST = "not slow and not gpu"
_MARK = "SPINE_TREE_UNDER_TEST"  # in the environment of every process that a tree's tests start
# The exit codes of pytest, and of `timeout`, which kills itself too; every other means that something was noticed.
_VERDICTS = {0: "passed", 5: "no tests", -9: "timeout"}
_stamps = count(1_000_000_000)


@dataclass(frozen=True)
class Outcome:
    """What a run of tests showed: ``passed``, ``failed``, ``timeout`` or ``no tests``, and what failed first."""

    verdict: str
    seconds: float = 0.0
    failure: str = ""


@dataclass(frozen=True)
class Tree:
    """A copy of the working tree, whose bytecode and compiled kernels are kept from run to run."""

    root: Path

    def take(self, source: Path) -> None:
        """Copy the files that git knows or would add, and kernels that are compiled already."""
        listed = subprocess.check_output(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=source, text=True
        )
        kernels = [
            str(file.relative_to(source))
            for file in (source / "engine").rglob("*.nb[ci]")
        ]
        for name in listed.splitlines() + kernels:
            if (source / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source / name, self.root / name)

    def read(self, path: str) -> str:
        """Return the text of a file."""
        return (self.root / path).read_text(encoding="utf-8")

    @contextmanager
    def changed(self, texts: dict[str, str]) -> Iterator[None]:
        """Write other texts into files for a while.

        Each text gets a time of its own, so that neither bytecode nor a compiled kernel of another text passes for it.
        """
        files = {self.root / path: text for path, text in texts.items()}
        before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
        try:
            for file, text in files.items():
                stamp = next(_stamps)
                file.write_text(text, encoding="utf-8")
                os.utime(file, (stamp, stamp))
            yield
        finally:
            for file, (content, time_ns) in before.items():
                file.write_bytes(content)
                os.utime(file, ns=(time_ns, time_ns))

    def test(
        self,
        tests: list[str],
        *,
        limit_s: float,
        more: tuple[str, ...] = ("-x",),
        env: dict[str, str] | None = None,
        cold: bool = False,
    ) -> Outcome:
        """Run tests and end every process that they leave; ``cold`` compiles all kernels anew."""
        scratch = self.root.with_name(f"{self.root.name}-scratch")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        paths = [str(self.root / name) for name in (*PACKAGES, "tests/mutants")]
        full = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "TMPDIR": str(scratch),
            _MARK: str(self.root),
        }
        full |= env or {}
        full |= {"NUMBA_CACHE_DIR": str(scratch / "kernels")} if cold else {}
        full.pop("PYTHONDONTWRITEBYTECODE", None)
        limit = ["timeout", "--signal=KILL", f"{limit_s:.0f}", sys.executable]
        where = ["-m", _FAST, "--basetemp", str(scratch / "pytest")]
        started = time.monotonic()
        with (scratch / "log").open("w") as log:
            try:
                code = subprocess.run(
                    [*limit, *_PYTEST, *where, *more, *tests],
                    cwd=self.root,
                    env=full,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                ).returncode
            finally:
                self.end_processes()
        lines = (scratch / "log").read_text(errors="replace").splitlines()
        failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))] + [
            f"exit code {code}"
        ]
        return Outcome(
            _VERDICTS.get(code, "failed"),
            time.monotonic() - started,
            failures[0] if code else "",
        )

    def end_processes(self) -> None:
        """Kill what tests of this tree have started, in whatever process group it is."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get(_MARK) == str(
                    self.root
                ):
                    process.kill()
