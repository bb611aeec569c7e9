"""Who a study is of, as headers say it: untrusted text, read within limits."""

import os
import zlib

import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from spine_engine.dicom import InputFile
from spine_engine.report.identity import MOST_TEXT, identity_of


def write(path, character_set="ISO_IR 192", syntax=ExplicitVRLittleEndian, **texts):
    header = pydicom.Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3.4"
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = (
        "1.2.840.10008.5.1.4.1.1.4"
    )
    header.SpecificCharacterSet = character_set
    for name, text in texts.items():
        setattr(header, name, text)
    path.parent.mkdir(exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return InputFile(path=f"{path.parent.name}/{path.name}", size=path.stat().st_size)


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 192", "Größe^Ünï"),
        ("ISO_IR 100", "Größe^Ünï"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 144", "Люкceмбypг"),
    ],
)
def test_names_are_read_in_their_character_set(tmp_path, character_set, name):
    entry = write(tmp_path / "a" / "1.dcm", character_set, PatientName=name)
    assert identity_of(tmp_path, [entry]).patient_name == name


def test_the_first_file_that_has_a_text_says_it_and_series_are_told_by_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.txt").write_text("no header")
    first = InputFile(path="a/0.txt", size=9)
    second = write(tmp_path / "a" / "1.dcm", SeriesDescription="T1")
    third = write(
        tmp_path / "b" / "1.dcm",
        PatientName="Doe^J",
        PatientID="7",
        SeriesDescription="T2",
    )
    found = identity_of(tmp_path, [first, second, third])
    assert (found.patient_name, found.patient_id, found.birth_date) == (
        "Doe^J",
        "7",
        "",
    )
    assert dict(found.series) == {"a": "T1", "b": "T2"}


@pytest.mark.filterwarnings("ignore:.*(exceeds the maximum length|Invalid value)")
def test_long_and_broken_texts_are_cut_and_never_raise(tmp_path):
    long = write(tmp_path / "a" / "1.dcm", StudyDescription="x" * 4_000)
    assert identity_of(tmp_path, [long]).study_description == "x" * MOST_TEXT
    strange = write(tmp_path / "b" / "1.dcm", "zip", PatientID=b"\xff\xfe\xed")
    assert len(identity_of(tmp_path, [strange]).patient_id) == 3


def test_what_a_run_would_not_read_is_not_read_for_its_names(tmp_path):
    """A FIFO that stands where a file was would be waited for; a deflated header may grow two hundred times."""
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "fifo")
    bomb = write(
        tmp_path / "a" / "bomb",
        syntax=DeflatedExplicitVRLittleEndian,
        PatientName="Doe^J",
    )
    header = (tmp_path / "a" / "bomb").read_bytes()
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    grown = (
        b"\x10\x00\x10\x00PN\x06\x00Doe^J "
        + b"\x11\x00\x10\x00UN\x00\x00"
        + b"\x00\x00\x10\x00"
        + b"\0" * 2**20
    )
    meta = header[: 144 + int.from_bytes(header[140:144], "little")]
    (tmp_path / "a" / "bomb").write_bytes(
        meta + packed.compress(grown) + packed.flush()
    )
    entries = [InputFile(path="a/fifo", size=1), bomb, InputFile(path="a/gone", size=1)]
    assert identity_of(tmp_path, entries).patient_name == ""


def test_every_text_is_that_of_its_own_element_and_the_first_file_s(tmp_path):
    texts = {
        "PatientName": "Doe^J", "PatientID": "ID7", "PatientBirthDate": "19700203", "PatientSex": "F",
        "StudyDate": "20240506", "SeriesDate": "20240507", "StudyDescription": "LUMBAR", "SeriesDescription": "T2",
    }  # fmt: skip
    first = write(tmp_path / "a" / "1.dcm", **texts)
    second = write(
        tmp_path / "a" / "2.dcm",
        PatientName="Roe^R",
        StudyDate="19990101",
        SeriesDescription="T1",
    )
    third = write(tmp_path / "a" / "3.dcm", SeriesDescription="T2")
    found = identity_of(tmp_path, [first, second, third])
    assert (found.patient_name, found.patient_id, found.birth_date) == (
        "Doe^J",
        "ID7",
        "19700203",
    )
    assert (found.study_date, found.study_description) == ("20240506", "LUMBAR")
    assert dict(found.series) == {"a": "T2, T1"}
