"""Scan protocols: what is refused, and how often drawn ones are of each kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spine_engine.phantom import Protocol
from spine_engine.phantom.protocol import role_of
from spine_engine.study import Role


@pytest.mark.parametrize(
    "name", ["sagittal_slices", "sagittal_matrix", "axial_slices", "axial_matrix"]
)
def test_counts_are_at_least_one(name: str) -> None:
    fields: dict[str, Any] = {name: 1}
    assert getattr(Protocol(**fields), name) == 1
    fields[name] = 0
    with pytest.raises(ValueError, match="slices and matrices must be positive"):
        Protocol(**fields)


@pytest.mark.parametrize(
    "name", ["sagittal_step_mm", "sagittal_fov_mm", "axial_step_mm", "axial_fov_mm"]
)
def test_lengths_are_positive(name: str) -> None:
    fields: dict[str, Any] = {name: 0.01}
    assert getattr(Protocol(**fields), name) == 0.01
    fields[name] = 0.0
    with pytest.raises(ValueError, match="steps and fields of view must be positive"):
        Protocol(**fields)


@pytest.mark.parametrize(
    "contrasts", [("t1",), ("t2",), ("stir",), (), ("t1", "t2", "stir")]
)
def test_sagittal_contrasts(contrasts: tuple[str, ...]) -> None:
    assert Protocol(sagittal=contrasts).sagittal == contrasts
    with pytest.raises(ValueError, match="sagittal must hold t1, t2, stir, got"):
        Protocol(sagittal=(*contrasts, "pd"))


@pytest.mark.parametrize(
    ("prefix", "contrast", "role"),
    [
        ("sagittal", "t1", Role.SAGITTAL_T1),
        ("sagittal", "t2", Role.SAGITTAL_T2),
        ("sagittal", "stir", Role.SAGITTAL_T2),
        ("axial", "t2", Role.AXIAL_T2),
    ],
)
def test_roles(prefix: str, contrast: str, role: Role) -> None:
    assert role_of(prefix, contrast) is role


@pytest.fixture(scope="module")
def drawn() -> list[Protocol]:
    return [Protocol.draw(seed) for seed in range(1500)]


def share(drawn: list[Protocol], name: str, value: object) -> float:
    return float(np.mean([getattr(protocol, name) == value for protocol in drawn]))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("sagittal", ("t1", "t2"), 0.82),
        ("sagittal", ("t1", "stir"), 0.10),
        ("sagittal", ("t1", "t2", "stir"), 0.08),
        ("axial", "disc_stacks", 0.85),
        ("axial", "block", 0.15),
        ("saturation", 1.0, 0.45),
        ("ghost", 0.0, 0.70),
        ("axial_slices", 5, 0.5),
        ("sagittal_slices", 13, 0.2),
        ("follow_patient", True, 1.0),
    ],
)
def test_how_often_scanners_do_what(
    drawn: list[Protocol], name: str, value: object, expected: float
) -> None:
    assert share(drawn, name, value) == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("sagittal_slices", 13, 17),
        ("sagittal_step_mm", 4.0, 5.0),
        ("sagittal_fov_mm", 220, 340),
        ("sagittal_matrix", 256, 448),
        ("axial_slices", 5, 6),
        ("axial_step_mm", 3.8, 4.6),
        ("axial_fov_mm", 150, 220),
        ("axial_matrix", 192, 320),
        ("noise", 0.008, 0.035),
        ("coil_falloff", 0.0, 1.0),
        ("saturation", 0.15, 1.0),
        ("ghost", 0.0, 0.05),
    ],
)
def test_the_ranges_of_scanners(
    drawn: list[Protocol], name: str, low: float, high: float
) -> None:
    values = np.array([getattr(protocol, name) for protocol in drawn], float)
    margin = 0.02 * (high - low)
    assert low <= values.min() <= low + margin
    assert high - margin <= values.max() <= high


def test_matrices_are_of_whole_32s(drawn: list[Protocol]) -> None:
    assert {protocol.sagittal_matrix % 32 for protocol in drawn} == {0}
    assert {protocol.axial_matrix % 32 for protocol in drawn} == {0}
    centers = np.array([protocol.sagittal_center_mm for protocol in drawn])
    assert (centers.mean(), centers.std()) == pytest.approx((8, 10), abs=0.8)
