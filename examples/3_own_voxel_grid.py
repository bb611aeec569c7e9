"""Put an array of your own into a voxel grid of any place, pose and size.

python examples/3_own_voxel_grid.py [NPY]

NPY is an array (slices, rows, columns) of uint16 or int16; without it a bright ball is made. The array is taken as
axial: slices from inferior to superior, rows from anterior to posterior, columns from the patient's right to left.
"""

import sys

import numpy as np

from spine_engine import GridPose, GridSpec, Stack, scatter, voxelize

if sys.argv[1:]:
    pixels = np.load(sys.argv[1])
else:
    z, y, x = np.ogrid[-29:30:3, -32:32, -32:32]  # 20 slices 3 mm apart, pixels of 1 mm
    pixels = (1000 * (z**2 + y**2 + x**2 < 25**2)).astype(np.uint16)

count = len(pixels)
origins_mm = np.array(
    [[0.0, 0.0, 3.0 * s] for s in range(count)]
)  # centre of pixel [s, 0, 0]: left, posterior, up
axes = np.array(
    [[0.0, 0, 1], [0, 1, 0], [1, 0, 0]]
)  # across slices, down the rows, along the columns
stack = Stack(
    pixels,
    np.ones(count, np.float32),
    np.zeros(count, np.float32),
    origins_mm,
    axes,
    spacing_mm=(1.0, 1.0),
)

spec = GridSpec(shape=(30, 32, 32), spacing_mm=(2.0, 2.0, 2.0))
down_back_left = np.array(
    [[0.0, 0, -1], [0, 1, 0], [1, 0, 0]]
)  # where D, H and W grow; any rotation does
pose = GridPose(stack.center_mm, down_back_left)
sampled = voxelize([[stack]], spec, pose)  # one channel of one stack; trilinear
pooled = scatter([[stack]], spec, pose, pool="mean")  # each pixel into its voxel

for name, grid in (("voxelize", sampled), ("scatter", pooled)):
    volume_mm3 = grid.values.mean() / pixels.max() * np.prod(spec.size_mm)
    print(
        f"{name}: {grid.values.shape}, {grid.coverage[0]:.0%} covered, bright volume {volume_mm3 / 1000:.1f} ml"
    )
