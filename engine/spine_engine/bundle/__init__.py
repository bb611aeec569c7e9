"""A bundle: a folder of ONNX models with the manifest that describes them."""

from spine_engine.bundle.bundle import (
    MANIFEST_FILE,
    PACKAGED,
    Bundle,
    file_facts,
    packaged_folder,
    read_model,
    write_manifest,
)

__all__ = [
    "MANIFEST_FILE",
    "PACKAGED",
    "Bundle",
    "file_facts",
    "packaged_folder",
    "read_model",
    "write_manifest",
]
