"""How fast studies are read: the engine against pydicom and, where it is installed, dicomsdl, over the same files.

Times are processor time of one thread for a file, the files in memory already, the best of several rounds in which the
contestants take turns, so that a busy machine slows all alike; trust the ratios, not the milliseconds. Every
contestant's pixels are first held equal to pydicom's.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import thread_time
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray

from spine_bench.findings import Findings, Input, Table
from spine_bench.harness.interfaces import folder_library
from spine_bench.harness.turns import take_turns
from spine_engine.dicom import pixels, read_unit
from spine_engine.dicom.elements import parse
from spine_engine.dicom.files import read_file
from spine_engine.dicom.header import WANTED, ImageHeader, check_is_image, read_image
from spine_engine.errors import UsageError
from spine_engine.phantom import write_studies

ROUNDS: Final = 7
STUDIES: Final = 2
SEED: Final = 5
# pydicom takes ten times as long as the others: fewer rounds will do.
REFERENCE_ROUNDS: Final = 2
# Files whose pixels are compared.
CHECKED: Final = 20
# What a reader of studies needs of a classic image at the very least; the engine looks for 47.
USED: Final = (
    *(
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "PatientID",
        "ImagePositionPatient",
        "ImageOrientationPatient",
    ),
    *(
        "PixelSpacing",
        "Rows",
        "Columns",
        "BitsStored",
        "PixelRepresentation",
        "PhotometricInterpretation",
    ),
    *("InstanceNumber", "EchoTime", "RepetitionTime", "ImageType", "SeriesDescription"),
)

Decode = Callable[[Path], NDArray[Any]]


def measure(folder: Input = None) -> Findings:
    """Compare how fast the engine, pydicom and dicomsdl read the same files."""
    if folder is not None:
        return _found({folder.name: compare(folder)})
    with tempfile.TemporaryDirectory() as work:
        best = {}
        for title, rle in (("explicit little endian", False), ("RLE", True)):
            root = Path(work) / title
            deque(write_studies(root, STUDIES, SEED, rle=rle), maxlen=0)
            best[title] = compare(root)
        return _found(best)


def compare(root: Path) -> dict[str, float]:
    """Return the best time of each contestant over the studies under ``root``, ms of processor time a file.

    Raises:
        UsageError: there is no study, or a contestant's pixels are not pydicom's.
    """
    library = folder_library(root)
    paths = [library.root / file.path for unit in library.units for file in unit.files]
    decoders: dict[str, Decode] = {
        "engine, decode": engine_decode,
        **dicomsdl_contestants(),
    }
    for name, decode in decoders.items():
        for path in paths[:: max(1, len(paths) // CHECKED)]:
            if not np.array_equal(decode(path), pydicom_decode(path)):
                raise UsageError(
                    f"{name} reads other pixels than pydicom, of {path.name}"
                )
    contestants: dict[str, Callable[[], object]] = {
        "the file's bytes": partial(_each, read_file, paths),
        "engine, header": partial(_each, engine_header, paths),
        **{name: partial(_each, decode, paths) for name, decode in decoders.items()},
        "engine, read_unit": partial(
            _each, partial(read_unit, library.root), library.units
        ),
        "pydicom": partial(_each, pydicom_decode, paths),
    }
    times = take_turns(
        contestants, ROUNDS, thread_time, spared={"pydicom": REFERENCE_ROUNDS}
    )
    return {name: 1e3 * min(seconds) / len(paths) for name, seconds in times.items()}


def _each(run: Callable[[Any], object], items: Sequence[Any]) -> None:
    for item in items:
        run(item)


def engine_header(path: Path) -> ImageHeader:
    """Read a file and its header."""
    parsed = parse(read_file(path), WANTED)
    check_is_image(parsed)
    return read_image(parsed)


def engine_decode(path: Path) -> NDArray[Any]:
    """Read a file, its header and its first frame with the engine."""
    parsed = parse(read_file(path), WANTED)
    check_is_image(parsed)
    assert parsed.pixel_data is not None
    values = next(pixels.frames(read_image(parsed), parsed.pixel_data))
    assert isinstance(values, np.ndarray)
    return values


def pydicom_decode(path: Path) -> NDArray[Any]:
    """Read a file as most people do."""
    values: NDArray[Any] = pydicom.dcmread(path).pixel_array
    return values


def dicomsdl_contestants() -> dict[str, Decode]:
    """Return dicomsdl's two ways, pixels alone and with the attributes; nothing when it is not installed."""
    if importlib.util.find_spec("dicomsdl") is None:
        return {}
    return {
        "dicomsdl, pixels": _dicomsdl_decode,
        "dicomsdl, 16 attributes": partial(_dicomsdl_decode, attributes=USED),
    }


def _dicomsdl_decode(path: Path, attributes: Sequence[str] = ()) -> NDArray[Any]:
    dataset = importlib.import_module("dicomsdl").open(str(path))
    for name in attributes:
        getattr(dataset, name)
    info = dataset.getPixelDataInfo()
    out = np.empty((info["Rows"], info["Cols"]), info["dtype"])
    dataset.copyFrameData(0, out)
    return out


def _found(best: dict[str, dict[str, float]]) -> Findings:
    tables = []
    for title, times in best.items():
        yard = next(name for name in ("dicomsdl, pixels", "pydicom") if name in times)
        tables.append(
            Table(
                title=title,
                columns=("reader", "ms a file", f"x {yard}"),
                rows=[
                    (name, f"{ms:.3f}", f"{ms / times[yard]:.2f}")
                    for name, ms in times.items()
                ],
            )
        )
    return Findings(tables=tables, record=best)
