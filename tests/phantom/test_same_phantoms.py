"""A seed gives the same phantom in every version: models were trained on them and figures were measured on them.

``phantoms.json`` holds anatomy, planes and coarse pictures of a few seeds. Whoever means to change the phantoms writes
it anew with ``python tests/phantom/test_same_phantoms.py`` and says so in the change log.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from spine_engine.phantom import Protocol, draw_spine, render
from spine_engine.phantom.protocol import plan
from spine_engine.phantom.rsna import study_seeds, truth_of

KEPT = Path(__file__).with_name("phantoms.json")
TURN = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])

SMALL = {"sagittal_slices": 7, "sagittal_matrix": 64, "axial_matrix": 48}
SCANS: dict[str, tuple[int, Protocol]] = {
    "plain": (1, Protocol(**SMALL, axial_slices=3)),
    "everything": (
        2,
        Protocol(
            **SMALL, sagittal=("t1", "t2", "stir"), axial="block", sagittal_fov_mm=250, sagittal_center_mm=12,
            axial_step_mm=5.0, tilt_deg=3.0, noise=0.04, coil_falloff=0.9, saturation=0.4, ghost=0.05,
        ),
    ),
    "upright": (3, Protocol(**SMALL, sagittal=("t2",), axial_slices=2, follow_patient=False)),
}  # fmt: skip


def rounded(values: Any, digits: int = 3) -> Any:
    return (np.round(np.asarray(values, float), digits) + 0.0).tolist()


def anatomy(seed: int) -> dict[str, Any]:
    """One patient: where everything is, how narrow, how it is read."""
    spine = draw_spine(seed)
    straight = draw_spine(seed, scoliosis=False)
    shape = {
        name: rounded(value, 4)
        for name, value in vars(spine.shape).items()
        if name not in ("texture_seed", "center_mm")
    }
    return {
        "vertebrae": rounded(spine.vertebra_center_mm),
        "discs": rounded(spine.disc_center_mm),
        "axes": rounded(spine.disc_axes, 4),
        "straight": rounded(straight.disc_center_mm),
        "center": rounded(spine.shape.center_mm),
        "texture": spine.shape.texture_seed,
        "shape": shape,
        "narrowing": rounded(spine.narrowing, 5),
        "grades": spine.grades.tolist(),
        "truth": truth_of(spine),
    }


def blocks(image: NDArray[Any]) -> list[list[float]]:
    """Mean of each of 8 x 8 fields of a picture."""
    rows, columns = image.shape
    fields = image.reshape(8, rows // 8, 8, columns // 8)
    return rounded(fields.mean(axis=(1, 3)), 2)


def scan(name: str) -> dict[str, Any]:
    """One scan: planes, values and coarse pictures of each series."""
    seed, protocol = SCANS[name]
    spine = draw_spine(seed)
    if name == "upright":
        spine = spine.mirrored().posed(TURN, np.array([5.0, -3.0, 8.0]))
    study = render(spine, seed=seed, protocol=protocol)
    series = {}
    for one in study.series:
        first = one.stacks[0]
        series[one.name] = {
            "description": one.description,
            "role": str(one.role),
            "thickness": one.thickness_mm,
            "sequence": [
                one.sequence.contrast,
                one.sequence.tr_ms,
                one.sequence.te_ms,
                one.sequence.ti_ms,
            ],
            "shapes": [list(stack.pixels.shape) for stack in one.stacks],
            "origins": [rounded(stack.origins_mm[0]) for stack in one.stacks],
            "axes": [rounded(stack.axes, 5) for stack in one.stacks],
            "spacing": [rounded(stack.spacing_mm, 5) for stack in one.stacks],
            "slice_spacing": [round(stack.slice_spacing_mm, 4) for stack in one.stacks],
            "scale": [first.slope.tolist()[0], first.intercept.tolist()[0]],
            "spread": [round(float(stack.pixels.std()), 2) for stack in one.stacks],
            "pictures": [
                blocks(first.pixels[k]) for k in (0, len(first.pixels) // 2, -1)
            ],
            "last": blocks(one.stacks[-1].pixels[0]),
        }
    return {"study_id": study.study_id, "series": series}


def drawn(seed: int) -> dict[str, Any]:
    """What a scanner's protocol is drawn to be."""
    fields = asdict(Protocol.draw(seed))
    return {
        name: round(value, 5) if isinstance(value, float) else value
        for name, value in fields.items()
    }


def planes() -> list[list[Any]]:
    """Planes of drawn protocols, mm."""
    return [
        [rounded(p.center_mm), rounded(p.axes, 5), list(p.shape), rounded(p.step_mm, 5)]
        for seed in (4, 5)
        for part in plan(draw_spine(seed), Protocol.draw(seed), seed)
        for p in part.planes
    ]


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return json.loads(KEPT.read_text())


def as_kept(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value))


def compare(found: Any, expected: Any, where: str, tolerance: float) -> None:
    """Compare nested values: numbers within a tolerance, everything else exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            compare(found[key], value, f"{where}.{key}", tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, value in enumerate(expected):
            compare(found[i], value, f"{where}[{i}]", tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=tolerance, rel=tolerance), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("seed", ["1", "2", "7"])
def test_the_same_patient(kept: dict[str, Any], seed: str) -> None:
    compare(as_kept(anatomy(int(seed))), kept["anatomy"][seed], seed, 0.002)


@pytest.mark.parametrize("name", SCANS)
def test_the_same_scan(kept: dict[str, Any], name: str) -> None:
    compare(as_kept(scan(name)), kept["scans"][name], name, 0.002)


@pytest.mark.parametrize("seed", ["0", "1", "2", "3", "4", "5", "6", "7"])
def test_the_same_scanner(kept: dict[str, Any], seed: str) -> None:
    assert kept["protocols"][seed]
    compare(as_kept(drawn(int(seed))), kept["protocols"][seed], seed, 1e-4)


def test_the_same_planes(kept: dict[str, Any]) -> None:
    compare(as_kept(planes()), kept["planes"], "planes", 0.002)


def test_the_same_sets(kept: dict[str, Any]) -> None:
    assert study_seeds(4, 5) == kept["sets"]["5"]
    assert study_seeds(2, 6) == kept["sets"]["6"]
    assert study_seeds(2, 5) == study_seeds(4, 5)[:2]


def as_they_are() -> dict[str, Any]:
    """Everything that is kept, as the code makes it now."""
    return {
        "anatomy": {str(seed): anatomy(seed) for seed in (1, 2, 7)},
        "scans": {name: scan(name) for name in SCANS},
        "protocols": {str(seed): drawn(seed) for seed in range(8)},
        "planes": planes(),
        "sets": {"5": study_seeds(4, 5), "6": study_seeds(2, 6)},
    }


if __name__ == "__main__":
    KEPT.write_text(json.dumps(as_they_are(), separators=(",", ":")) + "\n")
