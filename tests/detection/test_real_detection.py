"""The shipped detector on the real DICOM exams (training exams: a check of the way, not a held-out figure)."""

from __future__ import annotations

import json

import numpy as np
import pytest

from spine_engine.anatomy import Level
from spine_engine.bundle import Bundle
from spine_engine.detection import detect
from spine_engine.dicom import WorkUnit, discover, read_unit
from spine_engine.study import Role


@pytest.fixture(scope="module")
def detections(real_data):
    """Detection of every study by folder name, with f32 and with the backend's own choice of precision."""
    bundle = Bundle.open()
    models = {
        p: bundle.open_model(bundle.detector, name="openvino", precision=p)
        for p in ("f32", "auto")
    }
    found = {}
    for unit in discover(real_data / "studies"):
        if not isinstance(unit, WorkUnit):
            continue
        for study in read_unit(real_data / "studies", unit).studies:
            sagittal = [
                s.stacks
                for role in (Role.SAGITTAL_T1, Role.SAGITTAL_T2)
                for s in study.with_role(role)
            ]
            name = study.series[0].path.split("/")[0]
            found[name] = {
                p: detect(sagittal, model, bundle.detector.spec)
                for p, model in models.items()
            }
    return found


def test_discs_lie_within_8_mm_at_the_right_level(real_data, detections):
    truth = json.loads((real_data / "studies" / "truth.json").read_text())
    errors = [
        float(
            np.linalg.norm(
                detections[study]["auto"].levels[Level(level)].center_mm
                - np.array(center)
            )
        )
        for study, levels in truth.items()
        for level, center in levels.items()
    ]
    assert len(errors) >= 20
    assert np.mean(np.array(errors) <= 8.0) >= 0.95
    assert np.median(errors) <= 3.0


def test_precisions_give_the_same_levels(detections):
    assert len(detections) >= 5
    for both in detections.values():
        for level in Level:
            a, b = both["f32"].levels[level], both["auto"].levels[level]
            assert a.source == b.source
            assert np.linalg.norm(a.center_mm - b.center_mm) < 1.5
