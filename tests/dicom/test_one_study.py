"""One study of a folder: which it is, what is said where there are none or several, and that it is read whole."""

import re
import shutil

import pytest

from spine_engine.dicom import RoleOverrides, read_study
from spine_engine.dicom.one_study import _listed
from spine_engine.errors import UsageError
from spine_engine.phantom import Protocol, write_studies

SMALL = Protocol(sagittal_slices=5, sagittal_matrix=96, axial_matrix=64)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A folder with two phantom studies and the table of their series."""
    folder = tmp_path_factory.mktemp("studies")
    for _ in write_studies(folder, 2, 12, protocol=SMALL):
        pass
    return folder


@pytest.fixture(scope="module")
def names(studies):
    return sorted(path.name for path in (studies / "train_images").iterdir())


def test_one_of_several_can_be_picked(studies, names):
    overrides = RoleOverrides.find(studies)
    assert read_study(studies, names[1], overrides=overrides).study_id == names[1]
    with pytest.raises(UsageError, match=f"no study '1.2'.* it has {names[0]}"):
        read_study(studies, "1.2", overrides=overrides)


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_several_are_an_error_that_lists_them(studies, names, kind):
    with pytest.raises(UsageError) as caught:
        read_study(kind(studies))
    assert str(caught.value) == (
        f"{str(studies)!r} holds 2 studies and one is wanted: give --study (study_id) with one of {', '.join(names)}"
    )
    folder = kind(studies / "train_images" / names[0])
    assert read_study(folder).study_id == names[0]


def test_the_table_beside_the_folder_states_the_roles_unless_others_are_given(
    studies, names
):
    read = read_study(studies, names[0])
    assert all(series.evidence.startswith("override says") for series in read.series)
    plain = read_study(studies, names[0], overrides=RoleOverrides())
    assert [series.role for series in plain.series] == [
        series.role for series in read.series
    ]
    assert not any("override" in series.evidence for series in plain.series)


def test_studies_mixed_in_one_folder_are_told_apart(studies, names, tmp_path):
    for number, path in enumerate(sorted((studies / "train_images").rglob("*.dcm"))):
        shutil.copy(path, tmp_path / f"{number}.dcm")
    with pytest.raises(
        UsageError,
        match=f"holds 2 studies .* with one of {re.escape(', '.join(names))}",
    ):
        read_study(tmp_path, overrides=RoleOverrides())
    for name in names:
        assert read_study(tmp_path, name, overrides=RoleOverrides()).study_id == name


def test_files_of_one_study_in_several_places_are_read_together(
    studies, names, tmp_path
):
    whole = read_study(studies / "train_images" / names[0])
    for number, folder in enumerate(
        sorted((studies / "train_images" / names[0]).iterdir())
    ):
        shutil.copytree(folder, tmp_path / f"disk{number}" / folder.name)
    read = read_study(tmp_path)
    assert [(series.role, series.slices) for series in read.series] == [
        (series.role, series.slices) for series in whole.series
    ]


def test_a_folder_without_a_study_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no MR study"):
        read_study(tmp_path, overrides=RoleOverrides())


@pytest.mark.parametrize(
    ("number", "more"), [(10, ""), (11, " and 1 more"), (200, " and 190 more")]
)
def test_at_most_ten_studies_are_named(number, more):
    ids = [f"1.{k:03}" for k in range(number)]
    assert _listed(ids) == ", ".join(ids[:10]) + more
