"""The walk over the elements of a file: what begins like DICOM, which encoding it has, where damage ends it."""

from __future__ import annotations

import io
import struct
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from raw_dicom import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    NATIVE,
    RLE,
    UNDEFINED,
    dataset,
    dicom,
    element,
    image,
    item,
    mr,
    sequence_end,
)

from spine_engine.dicom.elements import Elements, ParsedFile, parse
from spine_engine.dicom.header import (
    WANTED,
    check_is_image,
    read_image,
    series_uid,
    study_uid,
)
from spine_engine.errors import Reason, StudyError

ITEM_END = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
SERIES_UID = 0x0020000E


def reason_of(data: bytes) -> Reason | None:
    """Why a file is refused, None when its header is sound."""
    try:
        check_is_image(parse(data, WANTED))
    except StudyError as error:
        return error.reason
    return None


def whole(header: bytes, after: bytes = b"", syntax: str = EXPLICIT) -> bytes:
    """A file of a sound slice with ``header`` before its pixels and ``after`` behind them."""
    pixels = dataset({"PixelData": image(0)}, syntax)
    return (
        dicom({}, syntax)
        + dataset(mr(PixelData=None), syntax)
        + header
        + pixels
        + after
    )


# --- how a file begins ------------------------------------------------------------------------------------------------


def start(group: bytes, number: int, vr: bytes, length: int, order: str = "<") -> bytes:
    """The first element of a data set, and enough behind it."""
    head = group + struct.pack(order + "H", number)
    return (
        head
        + (
            vr + struct.pack(order + "H", length)
            if vr
            else struct.pack(order + "L", length)
        )
        + bytes(40)
    )


@pytest.mark.parametrize(
    ("data", "taken"),
    [
        (bytes(128) + b"DICM", True),
        (b"x" * 128 + b"DICM", True),
        (bytes(127) + b"DICM" + bytes(40), False),
        (start(b"\x02\x00", 0, b"UL", 4), True),
        (start(b"\x08\x00", 5, b"CS", 10), True),
        (start(b"\x00\x08", 5, b"CS", 10, ">"), True),
        (start(b"\x10\x00", 0x10, b"PN", 4), False),
        (start(b"\x00\x02", 0, b"UL", 4, ">"), False),
        (start(b"\x08\x00", 0x0100, b"SH", 4), True),
        (start(b"\x08\x00", 0x0101, b"SH", 4), False),
        (start(b"\x00\x08", 0x0100, b"SH", 4, ">"), True),
        (start(b"\x00\x08", 0x0101, b"SH", 4, ">"), False),
        (start(b"\x08\x00", 0x0100, b"", 1024), True),
        (start(b"\x08\x00", 0x0100, b"", 1025), False),
        (start(b"\x08\x00", 0x0101, b"", 10), False),
        (start(b"\x00\x08", 5, b"", 10, ">"), False),
        (start(b"\x08\x00", 5, b"", 10)[:16], True),
        (start(b"\x08\x00", 5, b"", 10)[:15], False),
        (b"", False),
        (b"II*\0" + bytes(60), False),
    ],
)
def test_what_begins_like_dicom(data: bytes, taken: bool) -> None:
    if taken:
        assert isinstance(parse(data, WANTED), ParsedFile)
        return
    with pytest.raises(StudyError) as caught:
        parse(data, WANTED)
    assert caught.value.reason is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize(
    ("syntax", "told"), [(EXPLICIT, EXPLICIT), (IMPLICIT, IMPLICIT), (BIG, BIG)]
)
def test_without_meta_information_the_first_element_tells_the_encoding(
    syntax: str, told: str
) -> None:
    walked = parse(dicom(mr(), syntax, meta=False), WANTED)
    assert walked.transfer_syntax == told
    assert read_image(walked).rows == 8
    assert read_image(walked).frames[0].echo_time_ms == 100


@pytest.mark.parametrize(
    ("said", "really"), [(EXPLICIT, IMPLICIT), (IMPLICIT, EXPLICIT), (RLE, IMPLICIT)]
)
def test_what_the_first_element_shows_outranks_the_meta_information(
    said: str, really: str
) -> None:
    walked = parse(dicom({}, said) + dataset(mr(), really), WANTED)
    assert walked.transfer_syntax == said
    assert study_uid(walked) == "1.2.3"
    assert read_image(walked).frames[0].position_mm == (10, -60, 80)


def test_padding_of_the_transfer_syntax_is_no_part_of_it() -> None:
    for pad in (b"\0", b" "):
        meta = element(0x00020010, "UI", b"1.2.840.10008.1.2.1" + pad)
        data = (
            bytes(128)
            + b"DICM"
            + element(0x00020000, "UL", struct.pack("<L", len(meta)))
            + meta
            + dataset(mr())
        )
        assert parse(data, WANTED).transfer_syntax == EXPLICIT


def test_implicit_meta_information_is_read() -> None:
    meta = element(0x00020010, "UI", EXPLICIT.encode(), explicit=False)
    walked = parse(bytes(128) + b"DICM" + meta + dataset(mr()), WANTED)
    assert (walked.transfer_syntax, study_uid(walked)) == (EXPLICIT, "1.2.3")


def test_meta_information_that_is_cut_short() -> None:
    data = dicom(mr())
    walked = parse(data[:160], WANTED)
    assert walked.meta.damaged
    assert walked.dataset.damaged
    assert reason_of(data[:160]) is Reason.CORRUPT_FILE


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", NATIVE)
def test_where_the_pixels_are(syntax: str) -> None:
    walked = parse(dicom(mr(3), syntax), WANTED)
    found = walked.pixel_data
    assert found is not None
    assert (found.length, found.encapsulated) == (96, False)
    value = bytes(found.buffer[found.start : found.start + found.length])
    assert value == image(3).astype(">u2" if syntax == BIG else "<u2").tobytes()
    assert found.vr == (b"" if syntax == IMPLICIT else b"OW")


def test_encapsulated_pixels_reach_to_the_end_of_the_file() -> None:
    fragments = item(b"") + item(b"frame!") + sequence_end()
    found = parse(dicom(mr(PixelData=fragments), RLE), WANTED).pixel_data
    assert found is not None
    assert found.encapsulated
    assert bytes(found.buffer[found.start : found.start + found.length]) == fragments


def test_pixels_of_an_icon_are_not_the_pixels() -> None:
    icon = {"Rows": 2, "Columns": 2, "PixelData": bytes(8)}
    walked = parse(dicom(mr(5, IconImageSequence=[icon])), WANTED)
    assert walked.pixel_data is not None
    assert walked.pixel_data.length == 96
    assert read_image(walked).rows == 8


def test_fragments_of_an_encapsulated_icon_are_stepped_over() -> None:
    fragments = item(b"") + item(b"\x28\x00\x10\x00US\x02\x00") + sequence_end()
    inner = item(element(0x7FE00010, "OB", fragments, undefined=True))
    icon = element(0x00880200, "SQ", inner + sequence_end(), undefined=True)
    walked = parse(whole(icon), WANTED)
    assert reason_of(whole(icon)) is None
    assert read_image(walked).rows == 8


@pytest.mark.parametrize("length", [b"\x06\0", b"??", b"zz", b"1A", b"A1", b"aB"])
def test_an_element_without_a_vr_among_others_has_a_long_length(length: bytes) -> None:
    """Some writers change to implicit VR in the middle (PS3.5 6.2.2): where the VR would be, the length begins."""
    data = whole(
        b"\x29\x00\x10\x10" + length + b"\0\0" + bytes(int.from_bytes(length, "little"))
    )
    assert reason_of(data) is None
    assert read_image(parse(data, WANTED)).columns == 6


def test_a_vr_that_is_not_known_has_a_short_length() -> None:
    data = whole(b"\x29\x00\x10\x10ZZ\x06\x00" + b"\xff" * 6)
    assert reason_of(data) is None
    assert read_image(parse(data, WANTED)).columns == 6


@pytest.mark.parametrize(
    "vr", ["OB", "OD", "OF", "OL", "OV", "OW", "SV", "UC", "UN", "UR", "UT", "UV"]
)
def test_long_vrs_have_long_lengths(vr: str) -> None:
    data = whole(element(0x00291010, vr, bytes(70_000)))
    assert reason_of(data) is None
    assert read_image(parse(data, WANTED)).columns == 6


SHORT = (
    *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO"),
    *("LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI", "UL", "US"),
)


@pytest.mark.parametrize("vr", SHORT)
def test_short_vrs_have_short_lengths(vr: str) -> None:
    data = whole(element(0x00291010, vr, b"1" * 60_000))
    assert reason_of(data) is None
    assert read_image(parse(data, WANTED)).columns == 6


def test_an_unknown_sequence_of_undefined_length_is_implicit_inside() -> None:
    """PS3.5 6.2.2 note 2: UN of undefined length holds implicit little endian items."""
    length_like_a_vr = int.from_bytes(b"DA", "little")
    inside = element(0x00080060, "CS", b"CT", explicit=False) + element(
        0x00291011, "LO", b"x" * 30, explicit=False
    )
    inside += element(0x00291012, "LO", b"x" * length_like_a_vr, explicit=False)
    data = whole(
        element(0x00291010, "UN", item(inside) + sequence_end(), undefined=True)
    )
    assert reason_of(data) is None
    assert read_image(parse(data, WANTED)).modality == "MR"


def test_a_wanted_sequence_may_be_unknown_and_of_defined_length_in_implicit_vr() -> (
    None
):
    shared = [{"MREchoSequence": [{"EffectiveEchoTime": 77.0}]}]
    walked = parse(dicom(mr(SharedFunctionalGroupsSequence=shared), IMPLICIT), WANTED)
    assert read_image(walked).frames[0].echo_time_ms == 77


def test_damage_inside_a_sequence_that_nobody_wants_costs_nothing() -> None:
    broken = element(0x00400275, "SQ", b"\xfe\xff\x00\xe0\xff\x00\x00\x00abcd")
    data = whole(broken)
    assert reason_of(data) is None
    assert read_image(parse(data, WANTED)).columns == 6


def test_damage_inside_a_sequence_that_is_wanted_is_damage() -> None:
    """Its positions would be missing."""
    broken = element(0x52009230, "SQ", b"\xfe\xff\x00\xe0\xff\x00\x00\x00abcd")
    assert reason_of(whole(broken)) is Reason.CORRUPT_FILE


@pytest.mark.parametrize(
    "broken",
    [
        b"\x40\x00\x75\x02SQ\0\0"
        + UNDEFINED
        + b"\x40\x00\x75\x02"
        + bytes(8),  # no item
        b"\x40\x00\x75\x02SQ\0\0"
        + UNDEFINED
        + b"\xfe\xff\x00\xe0"
        + struct.pack("<L", 90_000),  # longer than the file
        b"\x29\x00\x10\x10LO\xff\xff",
        b"\x29\x00\x10\x10OB\0\0" + struct.pack("<L", 90_000),
    ],
    ids=["no item", "item", "short", "long"],
)
def test_what_reaches_past_the_file_is_damage(broken: bytes) -> None:
    assert reason_of(whole(broken)) is Reason.CORRUPT_FILE


def test_a_sequence_without_its_end_is_damage() -> None:
    data = dicom({}) + dataset(mr(PixelData=None))
    data += b"\x40\x00\x75\x02SQ\0\0" + UNDEFINED + item(b"")
    assert parse(data, WANTED).dataset.damaged


def test_a_sequence_ends_where_it_says() -> None:
    """Items of defined and of undefined length, in sequences of either, with and without their own ends."""
    inner = element(0x00080060, "CS", b"CT")
    items = item(inner) + b"\xfe\xff\x00\xe0" + UNDEFINED + inner + ITEM_END
    for value in (
        element(0x00400275, "SQ", items),
        element(0x00400275, "SQ", items + sequence_end(), undefined=True),
        element(0x00400275, "SQ", items + sequence_end()),
    ):
        walked = parse(whole(value), WANTED)
        assert not walked.dataset.damaged
        assert read_image(walked).modality == "MR"


@pytest.mark.parametrize("cut", range(1, 12))
def test_bytes_too_few_for_an_element_are_damage(cut: int) -> None:
    """A header that ends in the middle of an element, at any of its bytes."""
    data = (
        dicom({}) + dataset(mr(PixelData=None)) + element(0x00291010, "OB", b"")[:cut]
    )
    assert parse(data, WANTED).dataset.damaged
    assert reason_of(data) is Reason.CORRUPT_FILE


def test_a_header_that_ends_between_elements_is_no_damage_but_has_no_pixels() -> None:
    walked = parse(dicom({}) + dataset(mr(PixelData=None)), WANTED)
    assert not walked.dataset.damaged
    assert walked.pixel_data is None


def test_what_was_read_before_the_damage_stands() -> None:
    walked = parse(dicom(mr())[:-100], WANTED)
    assert walked.dataset.damaged
    assert (study_uid(walked), series_uid(walked)) == ("1.2.3", "1.2.3.1")


def test_only_what_is_wanted_is_kept() -> None:
    walked = parse(dicom(mr()), {SERIES_UID: b"UI"})
    assert list(walked.dataset.values) == [SERIES_UID]
    assert walked.dataset.values[SERIES_UID] == (b"UI", b"1.2.3.1\0")


# --- against pydicom --------------------------------------------------------------------------------------------------

TEXT = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789", max_size=14).map(str.strip)
NUMBER = st.floats(-9999, 9999).map(lambda value: round(value, 3))
FLAT: dict[str, st.SearchStrategy[Any]] = {
    "SeriesDescription": TEXT,
    "PatientID": TEXT,
    "ImagePositionPatient": st.lists(NUMBER, min_size=3, max_size=3),
    "EchoTime": NUMBER,
    "InstanceNumber": st.integers(-9999, 9999),
    "Rows": st.integers(0, 65535),
    "BitsStored": st.integers(0, 65535),
    "SeriesInstanceUID": st.lists(st.integers(1, 99), min_size=1, max_size=8).map(
        lambda n: ".".join(map(str, n))
    ),
    "ImageComments": st.text("abc", max_size=300),
    "EffectiveEchoTime": st.floats(-1e6, 1e6),
    "TemporalPositionIndex": st.integers(0, 2**32 - 1),
}
SEQUENCES = (
    "SharedFunctionalGroupsSequence",
    "PlanePositionSequence",
    "ReferencedImageSequence",
    "MREchoSequence",
)


@st.composite
def headers(draw: st.DrawFn, depth: int = 2) -> Dataset:
    """A data set of any of these elements, with sequences inside one another."""
    made = Dataset()
    for keyword in draw(st.lists(st.sampled_from(sorted(FLAT)), unique=True)):
        setattr(made, keyword, draw(FLAT[keyword]))
    if depth:
        for keyword in draw(
            st.lists(st.sampled_from(SEQUENCES), unique=True, max_size=2)
        ):
            setattr(made, keyword, draw(st.lists(headers(depth - 1), max_size=2)))
            made[keyword].is_undefined_length = draw(st.booleans())
    return made


def as_read(elements: Elements, theirs: Dataset) -> None:
    """Compare what was kept with pydicom's data set, item by item."""
    wanted = {int(one.tag): one for one in theirs if int(one.tag) in WANTED}
    assert elements.values.keys() == wanted.keys()
    for tag, (vr, value) in elements.values.items():
        if isinstance(value, list):
            assert wanted[tag].VR == "SQ" == vr.decode()
            assert len(value) == len(wanted[tag].value)
            for one, other in zip(value, wanted[tag].value, strict=True):
                as_read(one, other)
        else:
            raw = Dataset()
            raw.add_new(
                tag,
                vr.decode(),
                pydicom.values.convert_value(
                    vr.decode(), as_raw(tag, vr, value, elements)
                ),
            )
            assert raw[tag].value == wanted[tag].value


def as_raw(tag: int, vr: bytes, value: bytes, elements: Elements) -> Any:
    from pydicom.dataelem import RawDataElement

    return RawDataElement(
        pydicom.tag.Tag(tag),
        vr.decode(),
        len(value),
        value,
        0,
        False,
        elements.little,
        True,
        True,
    )


@settings(max_examples=25, deadline=None)
@given(header=headers(), syntax=st.sampled_from([EXPLICIT, IMPLICIT, BIG, DEFLATED]))
def test_headers_are_read_as_pydicom_wrote_them(header: Dataset, syntax: str) -> None:
    header.ImageType = "ORIGINAL"
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    (
        header.file_meta.MediaStorageSOPClassUID,
        header.file_meta.MediaStorageSOPInstanceUID,
    ) = "1.2", "1.3"
    stream = io.BytesIO()
    dcmwrite(stream, header, enforce_file_format=True)
    walked = parse(stream.getvalue(), WANTED)
    assert walked.refusal is None
    assert not walked.dataset.damaged
    assert walked.transfer_syntax == syntax
    as_read(walked.dataset, pydicom.dcmread(io.BytesIO(stream.getvalue())))
