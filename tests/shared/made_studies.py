"""A fake bundle, made-up stacks, and workers that grade studies and detections that are given."""

import dataclasses
import json

import numpy as np

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.backends import Device, TensorInfo
from spine_engine.bundle import Bundle, file_facts, write_manifest
from spine_engine.bundle.manifest import (
    SCHEMA,
    DetectorEntry,
    GraderEntry,
    GridEntry,
    Manifest,
    ModelEntry,
    Models,
    TensorEntry,
)
from spine_engine.detection import Detection, DetectorSpec, DiscLevel, finder
from spine_engine.dicom import InputFile, UnitReading, WorkUnit
from spine_engine.errors import Warn
from spine_engine.options import RunOptions
from spine_engine.pipeline import study_pipeline, unit_worker
from spine_engine.run.plan import plan_run
from spine_engine.study import Role, Series, Stack, Study

UNIT = WorkUnit("a", (InputFile("a/1", 1),), "1.2.3")
OPTIONS = RunOptions(backend="fake")


def model(path, inputs, outputs):
    listing = {
        "inputs": [dataclasses.asdict(inputs)],
        "outputs": [dataclasses.asdict(outputs)],
    }
    path.write_text(json.dumps(listing))
    return {**file_facts(path), "inputs": (inputs,), "outputs": (outputs,)}


TWO_STAGES = ("detector", "grader")
ALL_THREE = (*TWO_STAGES, "whole_study_grader")
WHOLE = ("whole_study_grader",)


def spinenet(folder):
    """The entries of SpineNet's three networks."""
    tensors = {
        "detector": ("patches", (None, 1, 224, 224), "maps", (None, 13, 224, 224)),
        "vertebra_appearance": (
            "volumes",
            (None, 1, 224, 224, 16),
            "scores",
            (None, 24),
        ),
        "vertebra_context": (
            "columns",
            (None, 1, None, 24),
            "scores",
            (None, 1, None, 24),
        ),
    }
    facts = {
        role: model(
            folder / f"{role}.onnx",
            TensorEntry(name=a, shape=b),
            TensorEntry(name=c, shape=d),
        )
        for role, (a, b, c, d) in tensors.items()
    }
    entries = {
        role: ModelEntry(**each) for role, each in facts.items() if role != "detector"
    }
    channels = tuple(f"map_{n}" for n in range(13))
    return {
        **entries,
        "detector": DetectorEntry(
            **facts["detector"], decoder="vfr", output_channels=channels
        ),
    }


def write_bundle(
    folder, decoder="level_heatmaps", roles=TWO_STAGES, channels=tuple(Role)
):
    folder.mkdir()
    spec, grid = DetectorSpec(), GridEntry(shape=(4, 6, 6), spacing_mm=(8.0, 8.0, 8.0))
    slices = TensorEntry(name="slices", shape=(None, 1, None, None))
    maps = TensorEntry(name="heatmaps", shape=(None, spec.channels, None, None))
    image = TensorEntry(name="image", shape=(None, 3, *grid.shape))
    grades = TensorEntry(name="probabilities", shape=(None, 5, 3))
    wide = GridEntry(shape=(7, 5, 6), spacing_mm=(30.0, 30.0, 30.0))
    image_of_all = TensorEntry(name="image", shape=(1, len(channels), *wide.shape))
    grades_of_all = TensorEntry(name="probabilities", shape=(1, 25, 3))
    detector = DetectorEntry(
        **model(folder / "detector.onnx", slices, maps),
        decoder="level_heatmaps",
        output_channels=("disc", "body", "row", "column", *spec.bins),
        spec=spec,
    )
    grader = GraderEntry(
        **model(folder / "grader.onnx", image, grades),
        channels=(Role.SAGITTAL_T1, Role.SAGITTAL_T2, Role.AXIAL_T2),
        grid=grid,
        output_channels=tuple(CONDITIONS),
    )
    whole = GraderEntry(
        **model(folder / "whole.onnx", image_of_all, grades_of_all),
        channels=channels,
        grid=wide,
        output_channels=tuple(
            f"{condition}_{level}" for condition in CONDITIONS for level in LEVELS
        ),
    )
    entries = {"detector": detector, "grader": grader, "whole_study_grader": whole}
    models = Models(
        **{role: entries[role] for role in roles}
        | (spinenet(folder) if decoder == "vfr" else {})
    )
    about = {
        "name": "fake",
        "version": "1",
        "licence": "-",
        "intended_use": "-",
        "training_data": (),
        "metrics": {},
    }
    write_manifest(folder, Manifest(schema=SCHEMA, models=models, **about))
    return Bundle.open(folder)


def write_bundles(folder):
    """Write a bundle of each kind."""
    kinds = {"two": TWO_STAGES, "all": ALL_THREE, "whole": WHOLE}
    made = {
        name: write_bundle(folder / name, roles=roles) for name, roles in kinds.items()
    }
    return made | {"vfr": write_bundle(folder / "vfr", "vfr")}


class FakeModel:
    """A backend that notes what it is asked and that it was closed."""

    inputs = (TensorInfo("x", (None, 2)),)
    outputs = (TensorInfo("y", (None, 2)),)

    def __init__(self, role="model", error=None):
        self.role, self.error, self.closed = role, error, 0
        self.device = Device(role, "CPU", "f32")

    def run(self, inputs):
        if self.error:
            raise self.error
        return {"y": inputs["x"] * 2}

    def close(self):
        self.closed += 1


def stack(axes, slices, spacing):
    rng = np.random.default_rng(slices)
    pixels = rng.integers(0, 900, (slices, 60, 60), np.uint16)
    normal = np.asarray(axes, float)[0]
    middle = sum(np.asarray(axes, float)[k] * 4.0 * 59 / 2 for k in (1, 2))
    origins = np.array(
        [(s - (slices - 1) / 2) * spacing * normal - middle for s in range(slices)]
    )
    ones = np.ones(slices, np.float32)
    return Stack(pixels, ones, ones * 0, origins, np.asarray(axes, float), (4.0, 4.0))


SAGITTAL = stack([[1, 0, 0], [0, 0, -1], [0, 1, 0]], 20, 5.0)
AXIAL = stack([[0, 0, 1], [0, 1, 0], [1, 0, 0]], 50, 4.0)


def study(*roles, reason=None):
    series = [
        Series(
            f"s{n}",
            role,
            "it says so",
            (AXIAL if role is Role.AXIAL_T2 else SAGITTAL,),
            20,
        )
        for n, role in enumerate(roles)
    ]
    return Study("1.2.3", tuple(series), (Warn.GAP,), reason)


def detection(source="detector"):
    axes = np.array([[0, 0, -1.0], [0, 1, 0], [1, 0, 0]])
    size = np.array([32.0, 48, 48])
    levels = {
        level: DiscLevel(
            level, np.array([0.0, 0, 60 - 30 * n]), axes, size, 0.9, source
        )
        for n, level in enumerate(LEVELS)
    }
    return Detection(levels, (), (Warn.LOW_CONFIDENCE,))


class Grading:
    """Grades studies that are given, with detections that are given, by workers that are made once a bundle.

    Attributes:
        worker: the worker that was used last.
    """

    def __init__(self, folder, monkeypatch):
        """Let every study through the gate: what is made up has no pictures to look at."""
        monkeypatch.setattr(study_pipeline, "refusal", lambda *_: None)
        self.folder, self.monkeypatch, self.made, self.worker = (
            folder,
            monkeypatch,
            {},
            None,
        )

    def __call__(
        self,
        given,
        found=None,
        *,
        roles=TWO_STAGES,
        detector=True,
        channels=tuple(Role),
    ):
        """Grade one study; an exception that is `given` is raised on reading, one that is `found` on detecting."""
        key = (roles, detector, channels)
        if key not in self.made:
            bundle = write_bundle(
                self.folder / ("bundle" + str(len(self.made) or "")),
                roles=roles,
                channels=channels,
            )
            options = dataclasses.replace(OPTIONS, detector=detector)
            self.made[key], _ = plan_run(self.folder, bundle, options).factory()
        self.worker = self.made[key]

        def read(*_):
            if isinstance(given, BaseException):
                raise given
            return UnitReading((given,), (), ())

        def detect(*_):
            assert detector
            assert "detector" in roles
            if isinstance(found, BaseException):
                raise found
            return found or detection()

        self.monkeypatch.setattr(unit_worker, "read_unit", read)
        self.monkeypatch.setattr(finder, "detect", detect)
        outcome, _ = self.worker.run(UNIT)
        (result,) = outcome.results
        return result


WHOLE_STUDY = study(Role.SAGITTAL_T1, Role.SAGITTAL_T2, Role.AXIAL_T2)
