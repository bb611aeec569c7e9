"""Made-up grids whose grades can be read off them: five places as bright as they are narrow."""

import numpy as np

from spine_engine.anatomy import CONDITIONS
from spine_engine.phantom.severity import read_grades
from spine_training.grader.grids import GridSet

SHAPE = (8, 8, 12)
LEFT, RIGHT, MIDDLE = slice(8, 12), slice(0, 4), slice(5, 7)
PLACES = {
    "left_neural_foraminal_narrowing": (slice(0, 4), LEFT),
    "right_neural_foraminal_narrowing": (slice(0, 4), RIGHT),
    "left_subarticular_stenosis": (slice(4, 8), LEFT),
    "right_subarticular_stenosis": (slice(4, 8), RIGHT),
    "spinal_canal_stenosis": (slice(2, 6), MIDDLE),
}


def bright_blobs(folder, studies, seed, *, exact=True):
    """A ``GridSet`` of one set of five level grids a study."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    narrowing = rng.random((studies, 5, len(CONDITIONS)))
    grids = rng.random((studies, 1, 5, 3, *SHAPE)) * 0.05 + 0.01
    for name, (rows, columns) in PLACES.items():
        value = narrowing[:, :, CONDITIONS.index(name)]
        grids[:, 0, :, :, rows, :, columns] += 0.8 * value[:, :, None, None, None, None]
    files = []
    for study, each in enumerate(grids):
        files.append(folder / f"{seed}-{study}.grids.npy")
        np.save(files[-1], each.astype(np.float16))
    grades = read_grades(narrowing, seed)
    return GridSet(
        tuple(files), grades, narrowing if exact else np.full_like(narrowing, np.nan), 1
    )
