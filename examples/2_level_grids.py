"""Look at what the grader sees: a voxel grid for each disc level.

python examples/2_level_grids.py [FOLDER [PNG]]

FOLDER holds the DICOM files of one study; without it a phantom study is made first. PNG is written where Pillow is
installed: a row for each level, a column for each channel, the middle sagittal plane of each grid.
"""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from spine_engine import StudyPipeline, read_study
from spine_engine.phantom import write_studies

folder = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())
if not sys.argv[1:]:
    print("phantom study", *write_studies(folder, count=1, seed=1), "in", folder)

study = read_study(folder)
with StudyPipeline.open() as pipeline:
    grids = pipeline.grids(
        study, pipeline.locate(study)
    )  # (level, channel, D, H, W), 0..1

print(
    "levels, channels, superior-inferior, anterior-posterior, right-left:", grids.shape
)
if find_spec("PIL"):
    from PIL import Image

    planes = grids[..., grids.shape[-1] // 2].transpose(0, 2, 1, 3)
    montage = planes.reshape(planes.shape[0] * planes.shape[1], -1)
    png = Path(sys.argv[2] if sys.argv[2:] else "level_grids.png")
    Image.fromarray((montage * 255).astype("uint8")).save(png)
    print("picture:", png.resolve())
