"""What the machine cannot read for a moment is never left out in silence, and never booked on a study for good."""

import errno
import os
import shutil

import pytest

from spine_engine.dicom import WorkUnit, discover, files, read_unit
from spine_engine.errors import MachineError, Reason, StudyError, Warn
from spine_engine.phantom import write_studies


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    for _ in write_studies(folder, 2, 40):
        pass
    return folder / "train_images"


@pytest.fixture
def studies(phantoms, tmp_path):
    return shutil.copytree(phantoms, tmp_path / "in")


@pytest.fixture
def failing(monkeypatch):
    """Make calls of ``os`` fail for some paths: ``failing(name, error number, times, suffix)``."""

    def fail(name, number, times, suffix):
        call = getattr(os, name)
        left = {"times": times}

        def replaced(path, *args, **kwargs):
            if str(path).endswith(suffix) and left["times"]:
                left["times"] -= 1
                raise OSError(number, os.strerror(number))
            return call(path, *args, **kwargs)

        monkeypatch.setattr(os, name, replaced)

    monkeypatch.setattr(files, "RETRY_DELAYS_S", (0, 0))
    return fail


def unit_of(folder):
    (unit,) = [found for found in discover(folder) if isinstance(found, WorkUnit)]
    return unit


def one_study(studies):
    return sorted(studies.iterdir())[0]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_that_opens_at_the_third_try_is_read(studies, failing, number):
    folder = one_study(studies)
    whole = read_unit(folder, unit_of(folder)).studies[0]
    failing("open", number, 2, unit_of(folder).files[3].path)
    study = read_unit(folder, unit_of(folder)).studies[0]
    assert study.warnings == whole.warnings
    assert [series.slices for series in study.series] == [
        series.slices for series in whole.series
    ]


def test_a_file_that_reads_at_the_second_try_is_opened_again(studies, monkeypatch):
    monkeypatch.setattr(files, "RETRY_DELAYS_S", (0, 0))
    folder = one_study(studies)
    path = folder / unit_of(folder).files[0].path
    wanted = path.read_bytes()
    read = os.read
    errors = [OSError(errno.EIO, "")]
    monkeypatch.setattr(
        os,
        "read",
        lambda *args: (
            read(*args) if not errors else (_ for _ in ()).throw(errors.pop())
        ),
    )
    assert files.read_file(path) == wanted


def test_a_file_that_is_cut_while_it_is_read_is_unreadable(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"12345678")
    read = os.read
    monkeypatch.setattr(
        os, "read", lambda descriptor, size: read(descriptor, min(size, 3))
    )
    assert files.read_file(path) == b"12345678"
    shorter = iter([b"123", b""])
    monkeypatch.setattr(os, "read", lambda descriptor, size: next(shorter))
    with pytest.raises(StudyError) as refused:
        files.read_file(path)
    assert refused.value.reason is Reason.UNREADABLE


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_are_the_machines_trouble(studies, failing, number):
    folder = one_study(studies)
    unit = unit_of(folder)
    failing("open", number, 99, ".dcm")
    with pytest.raises(MachineError, match="ulimit -n"):
        read_unit(folder, unit)


def test_no_memory_for_a_file_is_want_of_memory(studies, failing):
    folder = one_study(studies)
    unit = unit_of(folder)
    failing("open", errno.ENOMEM, 99, unit.files[5].path)
    with pytest.raises(MemoryError):
        files.read_file(folder / unit.files[5].path)


def test_a_folder_that_cannot_be_listed_leaves_its_study_incomplete(studies, failing):
    folder = one_study(studies)
    series = sorted(path.name for path in folder.iterdir())[0]
    failing("scandir", errno.EIO, 99, series)
    found = list(discover(studies))
    refused = [one.path for one in found if not isinstance(one, WorkUnit)]
    assert refused == [f"{folder.name}/{series}"]
    units = {unit.study_id: unit for unit in found if isinstance(unit, WorkUnit)}
    warnings = {
        name: read_unit(studies, unit).studies[0].warnings
        for name, unit in units.items()
    }
    assert Warn.FILE_UNREADABLE in warnings[folder.name]
    assert all(
        Warn.FILE_UNREADABLE not in said
        for name, said in warnings.items()
        if name != folder.name
    )
