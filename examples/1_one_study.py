"""Grade one study in Python.

python examples/1_one_study.py [FOLDER]

FOLDER holds the DICOM files of one study, in any layout; without it a phantom study is made first.
"""

import sys
import tempfile
from pathlib import Path

from spine_engine import Condition, StudyPipeline, read_study
from spine_engine.phantom import write_studies

folder = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())
if not sys.argv[1:]:
    print("phantom study", *write_studies(folder, count=1, seed=1), "in", folder)

study = read_study(folder)
with StudyPipeline.open() as pipeline:  # the packaged bundle
    result = pipeline.grade(study)

print(result.status, result.reason or "", *result.warnings)
for level, disc in result.levels.items():
    severe = result.probabilities(Condition.SPINAL_CANAL_STENOSIS, level)["severe"]
    print(f"{level}: disc at {disc.center_mm} mm (LPS), canal severe {severe:.0%}")
