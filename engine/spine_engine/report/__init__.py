"""Pictures of results: pages of a run and of its studies, point clouds and voxel grids for people to look at."""
