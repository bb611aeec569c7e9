"""A bundle: a folder of ONNX models and the manifest that describes them. Nothing runs before it is verified.

``bundle.json`` is checked against its schema and every model against its digest when a bundle is opened; a model's real
inputs and outputs are compared with the manifest once it is loaded, before it runs. A model is read and hashed in one
go, so what was verified is what runs.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

from spine_engine.backends import AskedPrecision, Backend, TensorInfo, open_backend
from spine_engine.bundle.manifest import (
    DetectorEntry,
    GraderEntry,
    Manifest,
    ModelEntry,
    ModelFile,
    manifest_text,
    parse_manifest,
)
from spine_engine.bundle.operators import refuse_operators
from spine_engine.bundle.strict_json import load_json
from spine_engine.errors import BackendError, BundleError

Entry = TypeVar("Entry", bound=ModelEntry)

MANIFEST_FILE = "bundle.json"
PACKAGED = "lumbar-small"
"""The bundle inside the package."""

MAX_MANIFEST_BYTES = 1 << 20
"""A manifest is a few kilobytes; a megabyte is no manifest."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: its folder.
        manifest: what ``bundle.json`` says.
        digest: SHA-256 of ``bundle.json``; since that holds every model's digest, it stands for the whole bundle.
    """

    path: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, path: Path | None = None, *, trust: bool = False) -> Bundle:
        """Verify the schema and every digest of the bundle in ``path``, by default the packaged one.

        Args:
            path: its folder.
            trust: take models of any operators; otherwise only those of ``operators.OPERATORS``.

        Raises:
            BundleError: the manifest or a model is missing, damaged, not what the manifest says, or not allowed.
        """
        folder = packaged_folder() if path is None else path
        text = _read_manifest(folder)
        bundle = cls(folder, parse_manifest(text), hashlib.sha256(text).hexdigest())
        for entry in bundle.manifest.models.by_role().values():
            for file in entry.files:
                content = read_model(folder, file)
                if not trust and not _is_json(content):
                    refuse_operators(content, file.file)
        return bundle

    @property
    def facts(self) -> dict[str, str]:
        """Name, version and digest, which identify the bundle in results, and its path, empty for the packaged one."""
        path = "" if self.path == packaged_folder() else str(self.path.resolve())
        return {
            "name": self.manifest.name,
            "version": self.manifest.version,
            "digest": self.digest,
            "path": path,
        }

    @property
    def detector(self) -> DetectorEntry:
        """The model that finds the levels. Raises ``BundleError`` when there is none."""
        return _present(self.manifest.models.detector, "detector")

    @property
    def grader(self) -> GraderEntry:
        """The model that grades a level. Raises ``BundleError`` when there is none."""
        return _present(self.manifest.models.grader, "grader")

    def entry(self, role: str) -> ModelEntry:
        """Return what the manifest says of the model of ``role``. Raises ``BundleError`` when there is none."""
        return _present(self.manifest.models.by_role().get(role), role)

    def open_model(
        self,
        entry: ModelEntry,
        *,
        name: str = "openvino",
        device: str = "CPU",
        precision: AskedPrecision = "auto",
        threads: int = 1,
    ) -> Backend:
        """Load one of this bundle's models and compare its real tensors with the manifest.

        Args:
            entry: the model, e.g. ``bundle.grader``.
            name, device, threads: see ``backends.open_backend``.
            precision: ``auto`` is the fastest of this machine's that the model passed parity in. ``int8`` is for
                graders: another model then runs as in ``auto``.

        Raises:
            BackendError: the runtime, device or precision is not to be had.
            BundleError: the model is damaged, or not what the manifest says.
        """
        if precision == "auto" or (
            precision == "int8" and not isinstance(entry, GraderEntry)
        ):
            wanted = _precision(entry, name, device)
        else:
            wanted = precision
        content = read_model(self.path, _file_of(entry, name, wanted))
        backend = open_backend(
            content,
            name=name,
            device=device,
            precision=wanted,
            threads=threads,
            profile=entry.profile,
        )
        for side, real, said in (
            ("inputs", backend.inputs, entry.inputs),
            ("outputs", backend.outputs, entry.outputs),
        ):
            if real != tuple(TensorInfo(tensor.name, tensor.shape) for tensor in said):
                backend.close()
                shown = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in real)
                raise BundleError(
                    f"{entry.file} has the {side} {shown}; the manifest says otherwise"
                )
        return backend


def _precision(entry: ModelEntry, name: str, device: str) -> AskedPrecision:
    """Return the fastest precision that a model passed parity in, of those the runtime has on the device.

    int8 is never taken by itself: it is for those who measured that it pays.
    """
    if name == "openvino" and device.upper() == "CPU":
        return "auto" if "bf16" in entry.precisions else "f32"
    half = "f16" in entry.precisions and (name == "openvino" or "f16" in entry.variants)
    return "f16" if half and device.upper() != "CPU" else "f32"


def _file_of(entry: ModelEntry, name: str, precision: AskedPrecision) -> ModelFile:
    """Return the file to load for a precision: OpenVINO computes in what it is told, the others in what the file is.

    Raises:
        BackendError: the model may not run in it, or the bundle has no such file.
    """
    if precision != "auto" and precision not in entry.precisions:
        raise BackendError(
            f"{entry.file} passed parity in {' and '.join(entry.precisions)}, not in {precision}"
        )
    if precision == "int8" or (precision == "f16" and name != "openvino"):
        if precision not in entry.variants:
            raise BackendError(
                f"{name} needs an {precision} file of {entry.file}, and there is none: ask for f32"
            )
        return entry.variants[precision]
    return entry


def packaged_folder() -> Path:
    """Return the folder of the bundle inside the package.

    Raises:
        BundleError: this installation has none.
    """
    folder = resources.files("spine_engine.bundle") / "packaged" / PACKAGED
    if not isinstance(folder, Path) or not folder.is_dir():
        raise BundleError(
            f"this installation has no bundle {PACKAGED!r}: install the wheel again, or name a bundle"
        )
    return folder


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write ``bundle.json`` into ``folder``, through a temporary file, and return its path."""
    path = folder / MANIFEST_FILE
    partial = path.with_suffix(".partial")
    partial.write_text(manifest_text(manifest), encoding="utf-8")
    os.replace(partial, path)
    return path


def file_facts(path: Path) -> dict[str, str | int]:
    """Return ``file``, ``sha256`` and ``size_bytes`` of a model, as its manifest entry wants them."""
    content = path.read_bytes()
    return {
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
    }


def read_model(folder: Path, entry: ModelFile) -> bytes:
    """Return a model's content once its place, size and digest are found to be the manifest's.

    Raises:
        BundleError: one of them is not.
    """
    path = folder / entry.file
    try:
        if path.resolve().parent != folder.resolve():
            raise BundleError(
                f"{entry.file} is not a file in the bundle's folder: copy the bundle again"
            )
        content = _read_regular(path, entry.size_bytes)
    except (FileNotFoundError, _NotRegularError):
        raise BundleError(
            f"{entry.file} is not a file in the bundle's folder: copy the bundle again"
        ) from None
    except OSError as error:
        raise BundleError(f"{entry.file} cannot be read: {error.strerror}") from None
    if len(content) != entry.size_bytes:
        size = path.stat().st_size
        raise BundleError(
            f"{entry.file} has {size} bytes, the manifest says {entry.size_bytes}: copy the bundle again"
        )
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise BundleError(
            f"the SHA-256 of {entry.file} is not the manifest's: it was changed; copy the bundle again"
        )
    return content


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST_FILE
    try:
        text = _read_regular(path, MAX_MANIFEST_BYTES)
    except _NotRegularError:
        raise BundleError(
            f"{path} is not a regular file: name a folder that holds a bundle"
        ) from None
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}): name a folder that holds a bundle"
        ) from None
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{MANIFEST_FILE} is larger than {MAX_MANIFEST_BYTES} bytes: that is no manifest"
        )
    return text


class _NotRegularError(Exception):
    """A path is a folder, a device, a pipe."""


def _read_regular(path: Path, most: int) -> bytes:
    """Return the content of a regular file, or its first ``most + 1`` bytes; a pipe is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _NotRegularError
    with open(descriptor, "rb") as file:
        return file.read(most + 1)


def _is_json(content: bytes) -> bool:
    """Whether a model is one of the fake backend's, which no runtime reads."""
    if len(content) > MAX_MANIFEST_BYTES or not content.startswith(b"{"):
        return False
    try:
        load_json(content)
    except (ValueError, RecursionError):
        return False
    return True


def _present(entry: Entry | None, role: str) -> Entry:
    if entry is None:
        raise BundleError(f"this bundle has no {role}")
    return entry
