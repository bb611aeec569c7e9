"""How fast studies are read: the engine against pydicom and, where it is installed, dicomsdl, over the same files.

Run ``python -m spine_bench.decode``: two phantom studies, explicit little endian and RLE; ``--input`` reads a folder
instead. Times are processor time of one thread for a file, the files in memory already, the best of several rounds in
which the contestants take turns, so that a busy machine slows all alike; trust the ratios, not the milliseconds. Every
contestant's pixels are first held equal to pydicom's.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from spine_engine.dicom import WorkUnit, discover, read_unit
from spine_engine.dicom import pixels as engine_pixels
from spine_engine.dicom.elements import walk
from spine_engine.dicom.files import read_file
from spine_engine.dicom.header import WANTED, Image, check_is_image, read_image
from spine_engine.phantom import write_studies

ROUNDS = 7
STUDIES = 2
SEED = 5
REFERENCE_ROUNDS = 2
"""pydicom takes ten times as long as the others: fewer rounds will do."""
USED = (
    *("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "Rows", "Columns", "BitsStored", "PixelRepresentation", "PhotometricInterpretation"),
    *("InstanceNumber", "EchoTime", "RepetitionTime", "ImageType", "SeriesDescription"),
)
"""What a reader of studies needs of a classic image at the very least; the engine looks for 47."""

Decode = Callable[[Path], NDArray[Any]]


def engine_header(path: Path) -> Image:
    """Read a file and its header."""
    walked = walk(read_file(path), WANTED)
    check_is_image(walked)
    return read_image(walked)


def engine_decode(path: Path) -> NDArray[Any]:
    """Read a file, its header and its first frame with the engine."""
    walked = walk(read_file(path), WANTED)
    check_is_image(walked)
    image = read_image(walked)
    assert walked.pixel_data is not None
    values = next(engine_pixels.frames(image, walked.pixel_data))
    assert isinstance(values, np.ndarray)
    return values


def pydicom_decode(path: Path) -> NDArray[Any]:
    """Read a file as most people do."""
    pixels: NDArray[Any] = pydicom.dcmread(path).pixel_array
    return pixels


def dicomsdl_contestants() -> dict[str, Decode]:
    """Return dicomsdl's two ways, pixels alone and with the attributes; nothing when it is not installed."""
    if importlib.util.find_spec("dicomsdl") is None:
        return {}
    dicomsdl = importlib.import_module("dicomsdl")

    def pixels(path: Path, attributes: Sequence[str] = ()) -> NDArray[Any]:
        dataset = dicomsdl.open(str(path))
        for name in attributes:
            getattr(dataset, name)
        info = dataset.getPixelDataInfo()
        out = np.empty((info["Rows"], info["Cols"]), info["dtype"])
        dataset.copyFrameData(0, out)
        return out

    return {"dicomsdl, pixels": pixels, "dicomsdl, 16 attributes": lambda path: pixels(path, USED)}


def compare(root: Path) -> dict[str, float]:
    """Return the best time of each contestant over the studies under ``root``, ms of processor time a file.

    Raises:
        ValueError: there is no study, or a contestant's pixels are not pydicom's.
    """
    units = [found for found in discover(root) if isinstance(found, WorkUnit) and found.study_id]
    paths = [root / file.path for unit in units for file in unit.files]
    if not paths:
        raise ValueError(f"no DICOM study under {root}; give a folder that holds some")
    decoders: dict[str, Decode] = {"engine, decode": engine_decode, **dicomsdl_contestants()}
    for path in paths[:: max(1, len(paths) // 20)]:
        for name, decode in decoders.items():
            if not np.array_equal(decode(path), pydicom_decode(path)):
                raise ValueError(f"{name} reads other pixels than pydicom")

    def each(run: Callable[[Path], object]) -> Callable[[], None]:
        def over_all() -> None:
            for path in paths:
                run(path)

        return over_all

    def studies() -> None:
        for unit in units:
            read_unit(root, unit)

    contestants = {
        "the file's bytes": each(read_file),
        "engine, header": each(engine_header),
        **{name: each(decode) for name, decode in decoders.items()},
        "engine, read_unit": studies,
        "pydicom": each(pydicom_decode),
    }
    best = dict.fromkeys(contestants, float("inf"))
    for turn in range(ROUNDS):
        for name, run in contestants.items():
            if name != "pydicom" or turn < REFERENCE_ROUNDS:
                begun = time.thread_time()
                run()
                best[name] = min(best[name], 1e3 * (time.thread_time() - begun) / len(paths))
    return best


def report(title: str, best: dict[str, float]) -> None:
    """Print one table."""
    yard = next(name for name in ("dicomsdl, pixels", "pydicom") if name in best)
    print(f"{title}, ms a file")
    for name, ms in best.items():
        print(f"  {name:26} {ms:7.3f}   {ms / best[yard]:6.2f} x {yard}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, help="a folder of studies; without it phantoms are written and read")
    given = parser.parse_args().input
    if given is not None:
        report(os.fspath(given), compare(given))
        return
    with tempfile.TemporaryDirectory() as work:
        for title, rle in (("explicit little endian", False), ("RLE", True)):
            root = Path(work) / title
            deque(write_studies(root, STUDIES, SEED, rle=rle), maxlen=0)
            report(title, compare(root))


if __name__ == "__main__":
    main()
