"""Grade every study of a folder, all cores at work, and collect a table.

python examples/5_own_dataset.py [FOLDER [CSV]]

FOLDER holds any number of studies in any layout; without it two phantom studies are made first. A study that cannot be
graded is a row with its reason; it never ends the loop.
"""

import csv
import sys
import tempfile
from pathlib import Path

from spine_engine import Condition, Engine, Level
from spine_engine.phantom import write_studies

folder = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())
if not sys.argv[1:]:
    print("phantom studies", *write_studies(folder, count=2, seed=1), "in", folder)

table = []
for result in Engine.open().run(
    folder
):  # in the order in which studies end; run(folder, output) keeps the results
    severe = [
        result.probabilities(Condition.SPINAL_CANAL_STENOSIS, level)["severe"]
        for level in Level
    ]
    table.append((result.study_id, result.status, result.reason or "", *severe))

path = Path(sys.argv[2] if sys.argv[2:] else "severe_canal.csv")
with path.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(("study_id", "status", "reason", *Level))
    writer.writerows(sorted(table))
print(len(table), "studies in", path.resolve())
