"""The slow reference beside the libraries that the pipelines call: Open3D's voxels, TorchIO's resize and rescale."""

import numpy as np
import pytest
import recipe_plainly as plain
from test_recipe_grids import LEVEL, as_plain, centers, random_study

from spine_engine.voxels.recipe_grids import level_grid, study_points


def open3d_voxels(clouds, low, high):
    """Return the 1 mm voxels ``(3, x, y, z)`` of the points in a box, pooled by Open3D: a channel is a colour."""
    open3d = pytest.importorskip("open3d")
    places, colours = [], []
    for channel, (points, values) in enumerate(clouds):
        inside = ((points >= low) & (points <= high)).all(axis=1)
        places.append(points[inside])
        colours.append(np.zeros((inside.sum(), 3)))
        colours[-1][:, channel] = values[inside]
    cloud = open3d.geometry.PointCloud(
        open3d.utility.Vector3dVector(np.concatenate(places))
    )
    cloud.colors = open3d.utility.Vector3dVector(np.concatenate(colours))
    pooling = open3d.geometry.VoxelGrid.VoxelPoolingMode.MAX
    grid = open3d.geometry.VoxelGrid.create_from_point_cloud(cloud, 1.0, pooling)
    voxels = grid.get_voxels()
    index = np.array([voxel.grid_index for voxel in voxels])
    out = np.zeros((3, *(index.max(axis=0) + 1)), np.float32)
    out[:, index[:, 0], index[:, 1], index[:, 2]] = np.array(
        [voxel.color for voxel in voxels]
    ).T
    return out


@pytest.mark.parametrize("seed", [31, 32])
def test_a_level_is_open3ds_and_torchios(seed):
    pytest.importorskip("open3d")
    torchio = pytest.importorskip("torchio")
    torch = pytest.importorskip("torch")
    study = random_study(seed)
    above, below = centers(study)[2:4]
    clouds = plain.cloud(as_plain(study))
    voxels = open3d_voxels(clouds, *plain.level_bounds(above, below))
    np.testing.assert_array_equal(voxels, plain.level_voxels(clouds, above, below))
    image = torchio.Resize((128, 128, 128))(
        torchio.ScalarImage(tensor=torch.from_numpy(voxels))
    )
    np.testing.assert_array_equal(
        image.data.numpy(), plain.level_values(clouds, above, below)
    )
    scaled = (
        torchio.RescaleIntensity((0, 1))(image)
        .data.numpy()
        .astype(np.float16)
        .astype(np.float32)
    )
    np.testing.assert_array_equal(
        level_grid(study_points(study, LEVEL), above, below), scaled
    )
