"""What the RSNA 2024 pipelines feed their networks, slowly and point by point: NumPy and nothing of the engine.

Written from the description of their grids alone (docs/faithful.md); every point is an entry of an array here.
A slice is given as a dictionary: ``values`` as stored, ``position``, ``orientation``, ``spacing``, ``thickness``.
"""

import math

import numpy as np

SAGITTAL, AXIAL = 0, 2
"""The patient axis along which slices of a plane are thickened."""


def area_mean(image, side):
    """Return an image resized to ``side x side`` by area mean as OpenCV's INTER_AREA does it."""
    rows, columns = image.shape
    if (rows, columns) == (side, side):
        return image
    if rows % side == 0 and columns % side == 0:
        r, c = rows // side, columns // side
        totals = image.astype(np.int64).reshape(side, r, side, c).sum(axis=(1, 3))
        if (r, c) == (2, 2):
            return ((totals + 2) // 4).astype(image.dtype)
        means = totals.astype(np.float32) * (np.float32(1) / np.float32(r * c))
    else:
        lines = enlarged if rows < side or columns < side else shrunk
        along = weighted(image.astype(np.float32), lines(columns, side))
        means = weighted(along.T, lines(rows, side)).T
    limits = np.iinfo(image.dtype)
    return np.clip(np.rint(means), limits.min, limits.max).astype(image.dtype)


def weighted(lines, terms):
    """Return lines ``(L, N)`` whose pixels are sums of terms, one after the other, in float32."""
    total = np.zeros((len(lines), len(terms)), np.float32)
    for k in range(max(map(len, terms))):
        for n, own in enumerate(terms):
            if k < len(own):
                total[:, n] += lines[:, own[k][0]] * own[k][1]
    return total


def shrunk(size, side):
    """Return for each pixel of a shorter line the pixels it covers and their shares of it."""
    step = 1 / (side / size)
    terms = []
    for n in range(side):
        low, high = n * step, n * step + step
        width = min(step, size - low)
        own = []
        for place in range(math.floor(low), min(math.ceil(high), size)):
            overlap = min(place + 1, high) - max(place, low)
            if overlap > 1e-3:
                own.append((place, np.float32(overlap / width)))
        terms.append(own)
    return terms


def enlarged(size, side):
    """Return for each pixel of a line its two neighbours in one of which either side is shorter, and their shares."""
    factor = side / size
    terms = []
    for n in range(side):
        place = math.floor(n / factor)
        share = np.float32((n + 1) - (place + 1) * factor)
        share = np.float32(0) if share <= 0 else share - np.floor(share)
        if place >= size - 1:
            place, share = size - 1, np.float32(0)
        terms.append(
            [(place, np.float32(1) - share), (min(place + 1, size - 1), share)]
        )
    return terms


def points_of(one, axis, resize=None, more=0):
    """Return the points of a slice ``(N, 3)`` and their values ``(N,)``."""
    image = one["values"]
    rows, columns = image.shape
    if resize is not None:
        image = resize(image)
    kr, kc = rows / image.shape[0], columns / image.shape[1]
    right, down = np.array(one["orientation"][:3]), np.array(one["orientation"][3:])
    row, col = np.nonzero(image)
    place = (
        np.array(one["position"])
        + right * one["spacing"][0] * (col * kc)[:, None]
        + down * one["spacing"][1] * (row * kr)[:, None]
    )
    value = image[row, col].astype(np.float16).astype(np.float32)
    thickness = one["thickness"]
    copies = int(thickness) + more if thickness is not None else 1 + more
    places, values = [np.empty((0, 3))], [np.empty(0, np.float32)]
    for step in range(copies):
        moved = place.copy()
        moved[:, axis] += step
        places.append(moved)
        values.append(value)
    return np.concatenate(places), np.concatenate(values)


def cloud(study, **how):
    """Return the points and values of each channel: T1, axial T2, T2; ``study`` has the slices of each."""
    clouds = []
    for slices, axis in zip(study, (SAGITTAL, AXIAL, SAGITTAL), strict=True):
        parts = [points_of(one, axis, **how) for one in slices]
        places = np.concatenate([np.empty((0, 3)), *(part[0] for part in parts)])
        values = np.concatenate([np.empty(0, np.float32), *(part[1] for part in parts)])
        clouds.append((places, values))
    return clouds


def pooled(index, values, shape):
    """Return the largest value of each voxel, 0 where there is none."""
    grid = np.full(shape, -np.inf, np.float32)
    np.maximum.at(grid, tuple(index.T), values)
    return np.where(np.isneginf(grid), np.float32(0), grid)


def whole_values(clouds, side=256):
    """Return the grid of a whole study ``(3, x, y, z)`` before it is scaled."""
    everything = np.concatenate([places for places, _ in clouds])
    low, high = everything.min(axis=0), everything.max(axis=0)
    rate = (side - 1) / (high - low)
    return np.stack(
        [
            pooled(np.rint((places - low) * rate).astype(int), values, (side,) * 3)
            for places, values in clouds
        ]
    )


def level_bounds(a, b):
    """Return the box about two vertebral centres, smallest and largest coordinates."""
    d = math.dist(a, b)
    u = (a - b) / d
    o1 = np.array([1.0, 0.0, 0.0]) - u[0] * u
    o1 = o1 / np.linalg.norm(o1) * d
    o2 = np.cross(o1, u)
    ten = np.array(
        [a, b, a + o1, a - o1, a + o2, a - o2, b + o1, b - o1, b + o2, b - o2]
    )
    x_low, y_low, z_low = ten.min(axis=0)
    x_high, y_high, z_high = ten.max(axis=0)
    quarter = (x_high - x_low) / 4
    near, far = min(a[1], b[1]), max(a[1], b[1])
    return (
        np.array([x_low - quarter, near - (near - y_low) / 2, z_low]),
        np.array([x_high + quarter, far + 2 * (y_high - far), z_high]),
    )


def level_voxels(clouds, a, b):
    """Return the 1 mm voxels of a level ``(3, x, y, z)``."""
    low, high = level_bounds(a, b)
    inside = [
        (places >= low).all(axis=1) & (places <= high).all(axis=1)
        for places, _ in clouds
    ]
    cropped = [
        (places[keep], values[keep])
        for (places, values), keep in zip(clouds, inside, strict=True)
    ]
    origin = np.concatenate([places for places, _ in cropped]).min(axis=0) - 0.5
    index = [np.floor(places - origin).astype(int) for places, _ in cropped]
    shape = tuple(np.concatenate(index).max(axis=0) + 1)
    return np.stack(
        [
            pooled(where, values, shape)
            for where, (_, values) in zip(index, cropped, strict=True)
        ]
    )


def resized(grid, side=128):
    """Return a grid resized to ``side`` voxels an axis, trilinearly, one axis after the other in float64."""
    out = grid.astype(np.float64)
    for axis, n in enumerate(grid.shape):
        at = np.clip((np.arange(side) + 0.5) * n / side - 0.5, 0, n - 1)
        below = np.minimum(at.astype(int), max(n - 2, 0))
        share = (at - below).reshape([-1 if k == axis else 1 for k in range(3)])
        upper = np.minimum(below + 1, n - 1)
        out = (
            np.take(out, below, axis) * (1 - share) + np.take(out, upper, axis) * share
        )
    return out.astype(np.float32)


def level_values(clouds, a, b):
    """Return the grid of a level ``(3, 128, 128, 128)`` before it is scaled."""
    return np.stack([resized(channel) for channel in level_voxels(clouds, a, b)])


def scaled(values):
    """Return a grid scaled to 0..1 over its channels together, rounded to float16."""
    low, high = values.min(), values.max()
    return ((values - low) / (high - low)).astype(np.float16).astype(np.float32)
