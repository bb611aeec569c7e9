"""A bounded walk over the elements of a DICOM file: structure only, nothing is decoded, nothing large is copied.

Written here because the limits have to act while the header is parsed: a general reader first builds every nested item
and only then can be asked how many there were. ``tests/dicom`` holds it equal to pydicom.
Encoding: DICOM PS3.5 section 7 (elements, sequences), PS3.10 section 7 (file meta information).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from spine_engine.dicom.limits import DEFAULT_LIMITS, Limits
from spine_engine.errors import Reason, StudyError

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_TRANSFER_SYNTAX: Final = 0x00020010
_META_WANTED: Final = {_TRANSFER_SYNTAX: b"UI", 0x00020002: b"UI"}
_PIXEL_DATA: Final = 0x7FE00010
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_UNDEFINED: Final = 0xFFFFFFFF
_META_OFFSET: Final = 132
_LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT_VRS: Final = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)
_VRS: Final = _LONG_VRS | _SHORT_VRS
_SHORT_LENGTHS: Final = 0x10000
"""An element of a short VR is shorter than this: its length has 16 bits (PS3.5 7.1.2)."""
# (group, number, VR, length), (group, number, length) and a length alone, by byte order.
_FORMATS: Final = {
    little: tuple(
        struct.Struct(order + code).unpack_from for code in ("HH2sH", "HHL", "L")
    )
    for little, order in ((True, "<"), (False, ">"))
}
_ITEM_BYTES: Final = {True: b"\xfe\xff\x00\xe0", False: b"\xff\xfe\xe0\x00"}

Value = bytes | list["Elements"]


@dataclass(slots=True)
class Elements:
    """The wanted elements of a data set, by tag: raw bytes, or the items of a sequence.

    ``damaged`` is True when the walk ended early because the bytes contradict themselves.
    """

    little: bool
    values: dict[int, tuple[bytes, Value]] = field(default_factory=dict)
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class PixelData:
    """Where the pixels are: ``buffer[start:start + length]``; ``encapsulated`` for fragments of undefined length."""

    buffer: memoryview
    vr: bytes
    start: int
    length: int
    encapsulated: bool


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """One file: its file meta elements, its data set, its transfer syntax and its pixel data, if any.

    ``refusal`` is the limit that ended the walk; what was read before it stands.
    """

    meta: Elements
    dataset: Elements
    transfer_syntax: str
    pixel_data: PixelData | None
    refusal: StudyError | None = None


class _DamagedError(Exception):
    """The bytes contradict themselves; what was read so far stands."""


@dataclass(slots=True)
class _Scope:
    """A data set or an item while it is parsed: where it ends, its encoding, how deep it lies, and what it fills."""

    end: int
    explicit: bool
    depth: int
    into: Elements | None

    def kept(
        self, wanted: Mapping[int, bytes]
    ) -> tuple[Mapping[int, bytes], dict[int, tuple[bytes, Value]]]:
        """Return the tags to keep, none where nothing is filled, and where their values go."""
        return ({}, {}) if self.into is None else (wanted, self.into.values)


class _Parser:
    """Parses one buffer with one byte order."""

    def __init__(
        self, buffer: bytes, little: bool, wanted: Mapping[int, bytes], limits: Limits
    ) -> None:
        self.buffer = buffer
        self.little = little
        self.wanted = wanted
        self.limits = limits
        self._explicit, self._implicit, self._length = _FORMATS[little]
        self._item_bytes = _ITEM_BYTES[little]
        self.pixel_data: PixelData | None = None

    def elements(self, at: int, scope: _Scope, stop_group: int | None = None) -> int:
        """Parse elements from ``at`` up to the end of ``scope`` or an item delimiter; return where that is."""
        buffer = self.buffer
        unpack = self._explicit
        end = scope.end
        explicit = scope.explicit
        top = scope.depth == 0
        wanted, values = scope.kept(self.wanted)
        # What ends before this, has a short VR and comes before the pixels needs no other look than this one.
        quick = (
            explicit
            and stop_group is None
            and self.limits.element_bytes >= _SHORT_LENGTHS
        )
        quick_end = (
            0 if not quick else min(end, self.limits.header_bytes) if top else end
        )
        while at + 8 <= end:
            group, number, vr, length = unpack(buffer, at)
            tag = group << 16 | number
            start = at + 8
            if (
                vr in _SHORT_VRS
                and (stop := start + length) <= quick_end
                and tag < _PIXEL_DATA
            ):
                if tag in wanted:
                    self._check_value(length)
                    values[tag] = (vr, buffer[start:stop])
                at = stop
                continue
            if tag == _ITEM_END:
                return start
            if stop_group is not None and group != stop_group:
                return at
            if explicit and vr in _LONG_VRS:
                start += 4
                length = self._long_length(at, end)
            elif not (
                explicit and _is_vr(vr)
            ):  # implicit VR, also inside explicit (PS3.5 6.2.2)
                length = self._implicit(buffer, at)[2]
                vr = self.wanted.get(tag, b"")
            if tag == _PIXEL_DATA and top:
                self._meet_pixels(vr, start, length, end)
                return end
            at = self._value(tag, vr, start, length, scope)
            self._check_header(at, top)
        if top and at < end:
            raise _DamagedError
        return at

    def _check_value(self, length: int) -> None:
        if length > self.limits.value_bytes:
            raise StudyError(
                Reason.TOO_LARGE,
                f"a value of {length} bytes, at most {self.limits.value_bytes} are read",
            )

    def _check_header(self, at: int, top: bool) -> None:
        if top and at > self.limits.header_bytes:
            raise StudyError(
                Reason.TOO_LARGE,
                f"a header of more than {self.limits.header_bytes} bytes",
            )

    def _long_length(self, at: int, end: int) -> int:
        """Return the length of an element at ``at`` whose VR has one of 32 bits."""
        if at + 12 > end:
            raise _DamagedError
        length: int = self._length(self.buffer, at + 8)[0]
        return length

    def _meet_pixels(self, vr: bytes, start: int, length: int, end: int) -> None:
        encapsulated = length == _UNDEFINED
        size = end - start if encapsulated else length
        self.pixel_data = PixelData(
            memoryview(self.buffer), vr, start, size, encapsulated
        )

    def _value(
        self, tag: int, vr: bytes, start: int, length: int, scope: _Scope
    ) -> int:
        """Keep the value when it is wanted, look inside when it is a sequence; return where it ends."""
        into = scope.into
        keep = into is not None and tag in self.wanted
        items: list[Elements] | None = [] if keep else None
        if length == _UNDEFINED:
            opaque = vr not in (
                b"SQ",
                b"UN",
                b"",
            )  # fragments, as in an encapsulated icon
            inside = _Scope(
                scope.end, scope.explicit and vr != b"UN", scope.depth + 1, None
            )
            stop = self.items(start, inside, items, closed=False, opaque=opaque)
        else:
            stop = start + length
            if length > self.limits.element_bytes:
                raise StudyError(
                    Reason.TOO_LARGE,
                    f"an element of {length} bytes, at most {self.limits.element_bytes}",
                )
            if stop > scope.end:
                raise _DamagedError
            if not (
                vr == b"SQ"
                or (not vr and self.buffer[start : start + 4] == self._item_bytes)
            ):
                if into is not None and keep:
                    self._check_value(length)
                    into.values[tag] = (vr, self.buffer[start:stop])
                return stop
            try:
                self.items(
                    start,
                    _Scope(stop, scope.explicit, scope.depth + 1, None),
                    items,
                    closed=True,
                )
            except _DamagedError:
                if keep:
                    raise
        if into is not None and items is not None:
            into.values[tag] = (b"SQ", items)
        return stop

    def items(
        self,
        at: int,
        scope: _Scope,
        into: list[Elements] | None,
        closed: bool,
        opaque: bool = False,
    ) -> int:
        """Parse the items of a sequence, ``closed`` when its length is known; return where it ends."""
        end = scope.end
        if scope.depth > self.limits.nesting:
            raise StudyError(
                Reason.TOO_LARGE,
                f"sequences nested more than {self.limits.nesting} deep",
            )
        while at + 8 <= end:
            group, number, length = self._implicit(self.buffer, at)
            tag = group << 16 | number
            at += 8
            if tag == _SEQUENCE_END:
                return at
            stop = end if length == _UNDEFINED else at + length
            if tag != _ITEM or stop > end:
                raise _DamagedError
            item = Elements(self.little) if into is not None else None
            if not opaque:
                at = self.elements(at, _Scope(stop, scope.explicit, scope.depth, item))
            at = at if length == _UNDEFINED else stop
            if into is not None and item is not None:
                into.append(item)
                if len(into) > self.limits.frames:
                    raise StudyError(
                        Reason.TOO_LARGE,
                        f"a sequence of more than {self.limits.frames} items",
                    )
        if not closed:
            raise _DamagedError
        return at


def parse(
    data: bytes, wanted: Mapping[int, bytes], limits: Limits = DEFAULT_LIMITS
) -> ParsedFile:
    """Walk a whole file, or its beginning, keeping the elements whose tags are in ``wanted`` (tag -> VR).

    A file without preamble is taken when it begins with a plausible element of group 2 or 8.

    Raises:
        StudyError: not DICOM, or its meta information or deflated data set is beyond a limit.
    """
    if data[128:132] == b"DICM":
        start = _META_OFFSET
    elif _plausible_start(data):
        start = 0
    else:
        raise StudyError(Reason.NOT_AN_IMAGE, "not a DICOM file")
    meta = Elements(little=True)
    meta_parser = _Parser(data, True, _META_WANTED, limits)
    if data[start : start + 2] == b"\x02\x00":
        try:
            explicit = data[start + 4 : start + 6] in _VRS
            start = meta_parser.elements(
                start, _Scope(len(data), explicit, 0, meta), stop_group=2
            )
        except _DamagedError:
            meta.damaged = True
            return ParsedFile(meta, Elements(True, damaged=True), "", None)
    syntax = meta.values.get(_TRANSFER_SYNTAX, (b"", b""))[1]
    transfer_syntax = (
        syntax.decode("ascii", "replace").rstrip("\0 ")
        if isinstance(syntax, bytes)
        else ""
    )
    if transfer_syntax == DEFLATED:
        data, start = _inflated(memoryview(data)[start:], limits), 0
    little, explicit = _encoding(data[start : start + 6], transfer_syntax)
    if not transfer_syntax:
        transfer_syntax = (
            (EXPLICIT_LITTLE if little else EXPLICIT_BIG)
            if explicit
            else IMPLICIT_LITTLE
        )
    dataset = Elements(little)
    dataset_parser = _Parser(data, little, wanted, limits)
    refusal: StudyError | None = None
    try:
        dataset_parser.elements(start, _Scope(len(data), explicit, 0, dataset))
    except _DamagedError:
        dataset.damaged = True
    except StudyError as error:
        refusal = error
    return ParsedFile(
        meta, dataset, transfer_syntax, dataset_parser.pixel_data, refusal
    )


def _is_vr(code: bytes) -> bool:
    return code in _VRS or (code.isalpha() and code.isupper())


def _plausible_start(data: bytes) -> bool:
    """Tell whether ``data`` begins with a first element of group 2 or 8, in any encoding."""
    if len(data) < 16 or data[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    little = data[1] == 0
    number, length = struct.unpack("<xxHL" if little else ">xxHL", data[:8])
    if data[4:6] in _VRS:
        return bool(number <= 0x0100)
    return bool(little and number <= 0x0100 and length <= 1024)


def _encoding(first: bytes, transfer_syntax: str) -> tuple[bool, bool]:
    """Return (little-endian, explicit VR); what the first element shows outranks what the meta information says."""
    explicit = first[4:6] in _VRS
    if transfer_syntax:
        return transfer_syntax != EXPLICIT_BIG, explicit
    return not (explicit and first[:1] == b"\0"), explicit


def _inflated(deflated: memoryview, limits: Limits) -> bytes:
    """Inflate a deflated data set (PS3.5 A.5) up to the limit."""
    most = min(len(deflated) * limits.inflate_ratio, limits.file_bytes)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(deflated, most)
    except zlib.error:
        raise StudyError(
            Reason.CORRUPT_FILE, "a deflated data set that does not inflate"
        ) from None
    if inflater.unconsumed_tail:
        raise StudyError(
            Reason.TOO_LARGE,
            f"a deflated data set that grows more than {limits.inflate_ratio} times",
        )
    return data
