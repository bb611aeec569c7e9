"""One study graded in a program of one's own: ``read_study`` and ``StudyPipeline`` with the packaged bundle."""

import numpy as np
import pytest
from made_studies import ALL_THREE, OPTIONS, WHOLE, detection, write_bundle
from made_studies import WHOLE_STUDY as MADE_UP

from spine_engine import Engine, RunOptions, StudyPipeline, read_study
from spine_engine.anatomy import LEVELS, SEVERITIES, Condition, Level
from spine_engine.bundle import Bundle
from spine_engine.errors import BundleError, StudyError, UsageError
from spine_engine.phantom import Protocol, write_studies
from spine_engine.study import Source, Study

SMALL = Protocol(sagittal_slices=9, sagittal_matrix=192, axial_matrix=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of one phantom study."""
    root = tmp_path_factory.mktemp("phantom")
    (name,) = write_studies(root, 1, 5, protocol=SMALL)
    return root / "train_images" / name


@pytest.fixture(scope="module")
def study(folder):
    return read_study(folder)


@pytest.fixture(scope="module")
def pipeline():
    with StudyPipeline.open() as opened:
        yield opened


@pytest.fixture(scope="module")
def located(pipeline, study):
    return pipeline.locate(study)


@pytest.fixture(scope="module")
def graded(pipeline, study):
    return pipeline.grade(study)


@pytest.fixture
def closings(monkeypatch):
    """How often the models of each pipeline that is opened meanwhile were closed."""
    from spine_engine.pipeline.models import PipelineModels

    counted = []
    close = PipelineModels.close
    monkeypatch.setattr(
        PipelineModels, "close", lambda models: counted.append(models) or close(models)
    )
    return counted


def test_a_study_is_graded_as_a_run_over_its_folder_grades_it(
    folder, graded, in_process
):
    (wanted,) = Engine.open(options=RunOptions(workers=1)).run(folder)
    assert graded.status == wanted.status == "graded"
    for name in (
        "study_id",
        "rows",
        "reason",
        "warnings",
        "levels",
        "alternative",
        "not_assessed",
    ):
        assert getattr(graded, name) == getattr(wanted, name), name
    assert [series.role for series in graded.series] == [
        series.role for series in wanted.series
    ]
    assert set(graded.timings_ms) == set(wanted.timings_ms) - {"read"}


def test_the_levels_that_are_located_are_those_of_the_grades(located, graded):
    assert list(located.levels) == list(LEVELS)
    for level, disc in located.levels.items():
        assert graded.levels[level].center_mm == tuple(disc.center_mm.tolist())
        assert graded.levels[level].source == disc.source


def test_the_grids_are_those_that_the_grader_sees_and_an_array_of_ones_own(
    pipeline, study, located, graded, monkeypatch
):
    seen = []

    def watched(inputs):
        seen.extend(array.copy() for array in inputs.values())
        return run(inputs)

    run = pipeline.models.grader.run
    monkeypatch.setattr(pipeline.models.grader, "run", watched)
    first, again = pipeline.grids(study, located), pipeline.grids(study, located.levels)
    entry = Bundle.open().grader
    assert first.shape == (len(LEVELS), len(entry.channels), *entry.grid.shape)
    assert first.dtype == np.float32
    assert 0 <= first.min() < first.max() <= 1
    assert first is not again
    np.testing.assert_array_equal(first, again)
    assert pipeline.grade(study).rows == graded.rows
    (given,) = seen
    np.testing.assert_array_equal(given, first)
    assert not np.shares_memory(first, pipeline._grids)


def test_conditions_and_levels_are_named_by_strings_too(graded):
    told = graded.probabilities("spinal_canal_stenosis", "l4_l5")
    assert told == graded.probabilities(Condition.SPINAL_CANAL_STENOSIS, Level.L4_L5)
    assert list(told) == list(SEVERITIES)
    assert sum(told.values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="'l6_l7'"):
        graded.probabilities("spinal_canal_stenosis", "l6_l7")
    with pytest.raises(ValueError, match="'stenosis'"):
        graded.probabilities("stenosis", "l4_l5")


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_folders_are_named_by_strings_or_paths(folder, tmp_path, kind):
    assert read_study(kind(folder)).study_id == folder.name
    bundle = write_bundle(tmp_path / "bundle")
    with StudyPipeline.open(kind(bundle.path), OPTIONS) as opened:
        assert opened.grade(MADE_UP).status in ("graded", "prior")
    with StudyPipeline.open(bundle, OPTIONS) as opened:
        assert set(opened.models.devices) == {"detector", "grader"}
    with pytest.raises(BundleError):
        StudyPipeline.open(kind(tmp_path / "missing"))


def test_several_studies_in_a_folder_are_an_error_that_lists_them(tmp_path):
    tiny = Protocol(sagittal_slices=5, sagittal_matrix=96, axial_matrix=64)
    names = sorted(write_studies(tmp_path, 2, 7, protocol=tiny))
    with pytest.raises(UsageError, match=f"holds 2 studies .*{names[0]}, {names[1]}"):
        read_study(tmp_path)
    assert read_study(tmp_path, names[1]).study_id == names[1]


def test_models_are_closed_at_the_end_of_the_block_whatever_happens_in_it(
    tmp_path, closings
):
    bundle = write_bundle(tmp_path / "bundle")
    with StudyPipeline.open(bundle, OPTIONS) as opened:
        assert closings == []
    assert closings == [opened.models]
    with (
        pytest.raises(ZeroDivisionError),
        StudyPipeline.open(bundle, OPTIONS) as opened,
    ):
        raise ZeroDivisionError
    assert closings[1:] == [opened.models]


def test_a_study_without_sagittal_series_has_no_levels_and_is_a_result_without_grades(
    pipeline,
):
    blind = Study("1", ())
    with pytest.raises(StudyError) as caught:
        pipeline.locate(blind)
    assert caught.value.reason == "no_sagittal"
    assert (pipeline.grade(blind).status, pipeline.grade(blind).reason) == (
        "prior",
        "no_sagittal",
    )


def test_a_level_without_a_place_has_an_empty_grid(pipeline, study, located):
    levels = dict(located.levels)
    unknown = detection(Source.PRIOR).levels[LEVELS[1]]
    grids = pipeline.grids(study, {**levels, LEVELS[1]: unknown})
    assert not grids[1].any()
    assert grids[0].any()


@pytest.mark.parametrize(("roles", "detector"), [(WHOLE, True), (ALL_THREE, False)])
def test_without_a_detector_there_are_no_levels_and_no_grids_of_levels(
    tmp_path, roles, detector
):
    bundle = write_bundle(tmp_path / "bundle", roles=roles)
    options = RunOptions(backend="fake", detector=detector)
    with StudyPipeline.open(bundle, options) as opened:
        with pytest.raises(UsageError, match="open a bundle with a detector"):
            opened.locate(MADE_UP)
        with pytest.raises(UsageError, match="open a bundle with a grader of levels"):
            opened.grids(MADE_UP, detection())
        assert opened.grade(MADE_UP).status == "graded"
