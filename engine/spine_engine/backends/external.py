"""An ONNX model may name other files for its weights; one that does is refused before a runtime sees it.

Such a name can lead anywhere, through ``..`` or a link, past every digest of a bundle. The model is walked as bytes:
no runtime and no parser is trusted with it. Field numbers are those of ``onnx.proto`` (ONNX IR version 3 and later),
the encoding is that of protocol buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from spine_engine.errors import BackendError

_CHILDREN: Final = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Messages inside messages, by field number."""

_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1
"""``TensorProto.external_data``, ``TensorProto.data_location`` and the value of it that means another file."""

_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
_FIXED_BYTES: Final = {_FIXED64: 8, _FIXED32: 4}
"""Wire types."""

_LONGEST_VARINT = 10

_32_BITS = 0xFFFF_FFFF
"""Parsers keep this much of a tag and of an enumeration, and so read more bits than these as something else."""


def refuse_external_data(model: bytes) -> None:
    """Raise unless all of ``model``'s weights are inside it.

    Raises:
        BackendError: a tensor lies in another file, or the bytes are no ONNX model.
    """
    view = memoryview(model)
    waiting = [("model", 0, len(view))]
    try:
        while waiting:
            kind, start, end = waiting.pop()
            for number, value in fields(view, start, end):
                if isinstance(value, int):
                    outside = (
                        kind == "tensor"
                        and number == _DATA_LOCATION
                        and value & _32_BITS == _EXTERNAL
                    )
                else:
                    outside = kind == "tensor" and number == _EXTERNAL_DATA
                    if number in _CHILDREN[kind]:
                        waiting.append((_CHILDREN[kind][number], *value))
                if outside:
                    raise BackendError(
                        "the model keeps weights in another file: save it with all its weights inside"
                    )
    except (IndexError, ValueError):
        raise BackendError(
            "the file is no ONNX model, or is cut short: export it again"
        ) from None


def fields(
    view: memoryview, start: int, end: int
) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """Yield number and value of each field of a message: a number, or where its bytes begin and end."""
    at = start
    depth = 0
    while at < end:
        key, at = _varint(view, at, end)
        if key > _32_BITS:
            raise ValueError("a tag of more than 32 bits")
        wire = key & 7
        if wire == _GROUP:
            depth += 1
        elif wire == _GROUP_END and depth:
            depth -= 1
        else:
            value, at = _value(view, wire, at, end)
            if not depth and value is not None:
                yield key >> 3, value
        if at > end:
            raise ValueError("a field runs past its message")
    if depth:
        raise ValueError("a group does not end")


def _value(
    view: memoryview, wire: int, at: int, end: int
) -> tuple[int | tuple[int, int] | None, int]:
    """Return a field's value, None where it is a fixed-size number, and where the next field begins."""
    if wire == _VARINT:
        return _varint(view, at, end)
    if wire == _BYTES:
        size, at = _varint(view, at, end)
        return (at, at + size), at + size
    if wire in _FIXED_BYTES:
        return None, at + _FIXED_BYTES[wire]
    raise ValueError(f"wire type {wire}")


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, low bits first, and where the next field begins."""
    value = 0
    for place in range(_LONGEST_VARINT):
        if at + place >= end:
            break
        byte = view[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + place + 1
    raise ValueError("a number does not end")
