"""Engines of a bundle built ahead of time, so that a run, or a container image, starts without building."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from spine_engine.backends.cache import cache_folder
from spine_engine.backends.engines import build_engine, reopen_engine
from spine_engine.bundle import Bundle, read_model
from spine_engine.errors import BackendError


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """One engine, in the user's cache.

    Attributes:
        role: role of the model in the bundle.
        precision: precision of the file that was built.
        seconds: time that building took; next to nothing when the cache had it.
        size_bytes: size of the engine.
        opened: the engine opened here; false without a GPU, where only its form is checked.
    """

    role: str
    precision: str
    seconds: float
    size_bytes: int
    opened: bool

    def __str__(self) -> str:
        """Return a line to print."""
        state = "opened" if self.opened else "in order, not opened: that takes the GPU"
        return f"{self.role} {self.precision}: {self.size_bytes / 1e6:.1f} MB in {self.seconds:.1f} s, {state}"


def build_engines(
    bundle: Bundle,
    capability: str,
    *,
    runtime: str = "tensorrt-rtx",
    say: Callable[[str], None] = print,
) -> tuple[BuiltEngine, ...]:
    """Build the engines that a GPU may ask for, of every model in every precision it passed parity in.

    They go into the user's cache, ``$XDG_CACHE_HOME/spine-mri-engine``, where the backend looks for them.

    Args:
        bundle: opened, and with that verified.
        capability: the compute capability to build for, such as ``sm89``.
        runtime: ``tensorrt-rtx``, which needs no GPU, or ``tensorrt``, which needs that one.
        say: takes a line about each engine.

    Raises:
        BackendError: the runtime is missing or cannot build a model, or there is no safe place to keep engines.
        BundleError: a model was changed since the bundle was opened.
    """
    if cache_folder() is None:
        raise BackendError(
            "no safe cache folder to keep engines in: set XDG_CACHE_HOME to one of your own"
        )
    built = []
    for role, entry in bundle.manifest.models.by_role().items():
        files = {
            "f32": entry,
            **{
                name: file
                for name, file in entry.variants.items()
                if name in entry.precisions
            },
        }
        for precision, file in files.items():
            model = read_model(bundle.path, file)
            begun = perf_counter()
            try:
                engine = build_engine(
                    model,
                    runtime=runtime,
                    capability=capability,
                    profile=entry.profile,
                )
                seconds = perf_counter() - begun
                opened = reopen_engine(engine, runtime=runtime)
            except BackendError as error:
                raise BackendError(f"{file.file}: {error}") from None
            built_engine = BuiltEngine(
                role=role,
                precision=precision,
                seconds=seconds,
                size_bytes=len(engine),
                opened=opened,
            )
            say(str(built_engine))
            built.append(built_engine)
    return tuple(built)
