"""Shows results to people: pages of a run and of its studies, point clouds and voxel grids."""
