"""Rendered phantoms: laterality, mirror, pose, determinism, contrast."""

import numpy as np
import pytest

from spine_engine.anatomy import CONDITIONS, LEVELS, Condition, Level
from spine_engine.phantom import PhantomStudy, Protocol, draw_spine, render
from spine_engine.phantom.profiles import field_of
from spine_engine.phantom.protocol import plan
from spine_engine.phantom.render import render_clean
from spine_engine.phantom.spine import PhantomSpine
from spine_engine.study import Stack

L4_L5 = LEVELS.index(Level.L4_L5)


def _clean(
    spine: PhantomSpine, protocol: Protocol
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Noise-free images and the canonical points of their voxels, series group by series group."""
    anatomy, out = field_of(spine), []
    for part in plan(spine, protocol, 1):
        signals = np.stack([s.signal() for s in part.sequences])
        for planes in part.planes:
            index = np.stack(
                np.meshgrid(*[np.arange(n) for n in planes.shape], indexing="ij"),
                axis=-1,
            )
            points = planes.origin_mm + (index * planes.step_mm) @ planes.axes
            out.append((render_clean(anatomy, planes, signals), points))
    return out


def _points(stack: Stack) -> np.ndarray:
    rows, columns = np.meshgrid(
        *[np.arange(n) for n in stack.pixels.shape[1:]], indexing="ij"
    )
    down = rows[..., None] * stack.spacing_mm[0] * stack.axes[1]
    return (
        stack.origins_mm[:, None, None]
        + down
        + columns[..., None] * stack.spacing_mm[1] * stack.axes[2]
    )


def _brightness(study: PhantomStudy, name: str, point_mm: np.ndarray) -> float:
    """Mean stored value of the pixels within 3 mm of a point in patient coordinates."""
    series = next(s for s in study.series if s.name == name)
    distances = [
        (np.linalg.norm(_points(t) - point_mm, axis=-1), t.pixels)
        for t in series.stacks
    ]
    return float(np.concatenate([pixels[d < 3.0] for d, pixels in distances]).mean())


@pytest.mark.parametrize(
    "condition", [c for c in Condition if c is not Condition.SPINAL_CANAL_STENOSIS]
)
def test_severity_changes_its_own_side_and_level_only(
    condition: Condition, small: Protocol
) -> None:
    healthy = np.full((5, 5), 0.1)
    narrow = healthy.copy()
    narrow[L4_L5, CONDITIONS.index(condition)] = 0.95
    spine = draw_spine(2, narrowing=healthy, scoliosis=False)
    disc = spine.disc_center_mm[L4_L5]
    changed = 0
    for (before, points), (after, _) in zip(
        _clean(spine, small), _clean(spine.with_narrowing(narrow), small), strict=True
    ):
        where = points[np.abs(before - after).max(axis=0) > 1e-6]
        changed += len(where)
        x = where[:, 0] if condition.value.startswith("left") else -where[:, 0]
        assert (x > 0).all(), "+x is the patient's left"
        assert (np.linalg.norm(where - disc, axis=1) < 60).all()
    assert changed > 50


def test_canal_narrowing_darkens_the_canal_and_nothing_far(small: Protocol) -> None:
    healthy = np.full((5, 5), 0.05)
    narrow = healthy.copy()
    narrow[L4_L5, CONDITIONS.index(Condition.SPINAL_CANAL_STENOSIS)] = 0.95
    spine = draw_spine(2, narrowing=healthy, scoliosis=False)
    canal = spine.disc_center_mm[L4_L5] + 24 * spine.disc_axes[L4_L5, 1]
    before, after = (
        render(s, seed=3, protocol=small) for s in (spine, spine.with_narrowing(narrow))
    )
    for name in ("sagittal_t2", "axial_t2"):
        assert _brightness(after, name, canal) < 0.8 * _brightness(before, name, canal)


def test_a_mirrored_patient_is_exactly_the_mirror_image(small: Protocol) -> None:
    quiet = Protocol(
        sagittal_slices=small.sagittal_slices, sagittal_matrix=small.sagittal_matrix, axial_matrix=small.axial_matrix,
        axial_slices=3, noise=0.0, coil_falloff=0.0,
    )  # fmt: skip
    spine = draw_spine(5)
    before, after = (
        render(spine, seed=1, protocol=quiet),
        render(spine.mirrored(), seed=1, protocol=quiet),
    )
    for one, other in zip(before.series, after.series, strict=True):
        for a, b in zip(one.stacks, other.stacks, strict=True):
            flip = 2 if one.name.startswith("axial") else 0
            np.testing.assert_allclose(
                np.flip(_points(b), axis=flip) * [-1, 1, 1], _points(a), atol=1e-6
            )
            difference = np.flip(b.pixels, axis=flip).astype(int) - a.pixels
            assert np.abs(difference).max() <= 1, (
                "equal up to the rounding of a blur run the other way"
            )


def test_pose_moves_planes_and_keeps_pixels(small: Protocol) -> None:
    spine = draw_spine(6)
    angle = np.radians(12)
    turn = np.array(
        [
            [np.cos(angle), 0, np.sin(angle)],
            [0, 1, 0],
            [-np.sin(angle), 0, np.cos(angle)],
        ]
    )
    shift = np.array([10.0, 20.0, -30.0])
    still, moved = (
        render(spine, seed=2, protocol=small),
        render(spine.posed(turn, shift), seed=2, protocol=small),
    )
    for a, b in zip(still.series, moved.series, strict=True):
        for s, t in zip(a.stacks, b.stacks, strict=True):
            np.testing.assert_allclose(
                _points(t), _points(s) @ turn.T + shift, atol=1e-6
            )
            assert (s.pixels == t.pixels).all()


def test_upright_planes_do_not_follow_the_pose(small: Protocol) -> None:
    upright = Protocol(
        sagittal_matrix=64, axial="none", tilt_deg=0.0, follow_patient=False
    )
    angle = np.radians(10)
    turn = np.array(
        [
            [np.cos(angle), -np.sin(angle), 0],
            [np.sin(angle), np.cos(angle), 0],
            [0, 0, 1.0],
        ]
    )
    spine = draw_spine(6)
    stack = (
        render(spine.posed(turn, np.zeros(3)), seed=2, protocol=upright)
        .series[0]
        .stacks[0]
    )
    assert abs(stack.axes[0][0]) == pytest.approx(1.0)
    plain = render(spine, seed=2, protocol=upright).series[0].stacks[0]
    assert (plain.pixels != stack.pixels).mean() > 0.2


def test_same_seed_same_bytes_other_seed_other_noise(small: Protocol) -> None:
    first, again, other = (
        render(draw_spine(7), seed=s, protocol=small) for s in (4, 4, 5)
    )
    assert first.study_id == again.study_id != other.study_id
    for a, b, c in zip(first.series, again.series, other.series, strict=True):
        assert (a.stacks[0].pixels == b.stacks[0].pixels).all()
        assert (a.stacks[0].pixels != c.stacks[0].pixels).any()


def test_contrasts_are_those_of_mr() -> None:
    protocol = Protocol(
        sagittal=("t1", "t2", "stir"),
        sagittal_matrix=160,
        axial="none",
        noise=0.005,
        coil_falloff=0.0,
        tilt_deg=0.0,
    )
    spine = draw_spine(8, narrowing=np.zeros((5, 5)), scoliosis=False)
    study = render(spine, seed=1, protocol=protocol)
    csf = spine.vertebra_center_mm[8] + np.array([0.0, 25.0, 0.0])
    body = spine.vertebra_center_mm[8]
    assert _brightness(study, "sagittal_t2", csf) > 1.5 * _brightness(
        study, "sagittal_t2", body
    )
    assert _brightness(study, "sagittal_t1", csf) < 0.7 * _brightness(
        study, "sagittal_t1", body
    )
    assert _brightness(study, "sagittal_stir", csf) > 2.5 * _brightness(
        study, "sagittal_stir", body
    )
    for series in study.series:
        assert series.stacks[0].pixels.max() <= 4095
        assert series.stacks[0].pixels.dtype == np.uint16


def test_protocols_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="sagittal"):
        Protocol(sagittal=("t3",))
    with pytest.raises(ValueError, match="positive"):
        Protocol(axial_matrix=0)
