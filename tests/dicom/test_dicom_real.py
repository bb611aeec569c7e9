"""The five real studies: roles, stacks and geometry, where ``SPINE_REAL_DATA`` holds them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from dicom_builder import read_all

from spine_engine.dicom import RoleOverrides
from spine_engine.errors import Warn
from spine_engine.study import Role, Study


def test_roles_and_stacks(real_data: Path) -> None:
    root = real_data / "studies"
    studies, _ = read_all(root, RoleOverrides.find(root))
    by_folder = {study.series[0].path.split("/")[0]: study for study in studies}
    assert set(by_folder) == {"AKs", "VB1-16", "VB2-02", "VB2-14", "VB3-21"}
    assert _stacks(by_folder.pop("AKs")) == {
        Role.SAGITTAL_T1: [14],
        Role.SAGITTAL_T2: [14],
    }
    sagittal = {"VB1-16": 14, "VB2-02": 19, "VB2-14": 19, "VB3-21": 19}
    axial = {"VB1-16": [5] * 5, "VB2-02": [5] * 4, "VB2-14": [5] * 4, "VB3-21": [5] * 4}
    for name, study in by_folder.items():
        assert _stacks(study) == {
            Role.SAGITTAL_T2: [sagittal[name]],
            Role.AXIAL_T2: axial[name],
        }
        assert study.reason is None
        assert study.warnings == (Warn.NO_SAGITTAL_T1,)


def _stacks(study: Study) -> dict[Role | None, list[int]]:
    return {
        series.role: [len(stack.pixels) for stack in series.stacks]
        for series in study.series
    }


def test_every_disc_lies_inside_the_sagittal_stack_and_an_axial_one(
    real_data: Path,
) -> None:
    root = real_data / "studies"
    truth = json.loads((root / "truth.json").read_text())
    for study in read_all(root)[0]:
        name = study.series[0].path.split("/")[0]
        for center in truth[name].values():
            for role in (Role.SAGITTAL_T2, Role.AXIAL_T2):
                stacks = [
                    stack for series in study.with_role(role) for stack in series.stacks
                ]
                assert not stacks or any(
                    _holds(stack, np.array(center)) for stack in stacks
                ), (name, role, center)


def _holds(stack: object, point: np.ndarray) -> bool:
    from spine_engine.study import Stack

    assert isinstance(stack, Stack)
    count, rows, columns = stack.pixels.shape
    s, r, c = stack.axes @ (point - stack.origins_mm[0])
    deep = stack.positions_mm[-1] - stack.positions_mm[0]
    return bool(
        -4 <= s <= deep + 4
        and 0 <= r <= rows * stack.spacing_mm[0]
        and 0 <= c <= columns * stack.spacing_mm[1]
        and count
    )
