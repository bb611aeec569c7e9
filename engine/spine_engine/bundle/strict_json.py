"""JSON texts as dataclasses, by their annotations: no key may be missing or unknown, no value of another type."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from enum import Enum
from typing import Any, Literal


def load_json(text: bytes | str) -> Any:
    """Parse JSON that has no key twice and no number that JSON does not know.

    Raises:
        ValueError: it is not such JSON.
    """
    return json.loads(
        text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates
    )


def _read(kind: Any, value: Any, where: str) -> Any:
    """Return ``value`` as an instance of the annotated type ``kind``; ``ValueError``s begin with ``where``."""
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return read_dataclass(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in args:
            return None
        options = [option for option in args if option is not types.NoneType]
        if (
            isinstance(value, str) and str in options
        ):  # a name, or the object that it stands for
            return value
        return _read(
            next((option for option in options if option is not str), str), value, where
        )
    if origin is tuple and isinstance(value, list):
        return _read_tuple(args, value, where)
    if origin is dict and isinstance(value, dict):
        return {
            key: _read(args[1], entry, f"{where}.{key}") for key, entry in value.items()
        }
    return _read_single(kind, value, where)


def _read_tuple(
    kinds: tuple[Any, ...], values: list[Any], where: str
) -> tuple[Any, ...]:
    wanted = [kinds[0]] * len(values) if kinds[-1] is Ellipsis else list(kinds)
    if len(wanted) != len(values):
        raise ValueError(f"{where}: want {len(wanted)} entries, got {len(values)}")
    pairs = enumerate(zip(wanted, values, strict=True))
    return tuple(_read(kind, value, f"{where}[{i}]") for i, (kind, value) in pairs)


def _read_single(kind: Any, value: Any, where: str) -> Any:
    """Return a text, a number, or one of a list of names."""
    names = typing.get_args(kind) if typing.get_origin(kind) is Literal else None
    if names is None and isinstance(kind, type) and issubclass(kind, Enum):
        names = tuple(member.value for member in kind)
    if names is not None and isinstance(value, str):
        if value not in names:
            raise ValueError(f"{where}: {value!r} is none of {', '.join(names)}")
        return kind(value) if isinstance(kind, type) else value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    raise ValueError(f"{where}: got {json.dumps(value)[:60]}, want {_name_of(kind)}")


def read_dataclass(kind: type, value: Any, where: str) -> Any:
    """Return a JSON object as an instance of a dataclass, by its annotations; ``where`` begins what a refusal says.

    Raises:
        ValueError: a key is missing or unknown, or a value is not of its type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where}: want an object, got {json.dumps(value)[:60]}")
    hints = typing.get_type_hints(kind)
    known = {entry.name: entry for entry in dataclasses.fields(kind)}
    unknown = sorted(value.keys() - known.keys())
    if unknown:
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r}; known are {', '.join(known)}"
        )
    for name, entry in known.items():
        required = (
            entry.default is dataclasses.MISSING
            and entry.default_factory is dataclasses.MISSING
        )
        if required and name not in value:
            raise ValueError(f"{where}: the key {name!r} is missing")
    read = {
        name: _read(hints[name], entry, f"{where}.{name}")
        for name, entry in value.items()
    }
    try:
        return kind(**read)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _name_of(kind: Any) -> str:
    names = {
        float: "a number",
        int: "a whole number",
        str: "a text",
        bool: "true or false",
    }
    return names.get(
        kind, "a list" if typing.get_origin(kind) is tuple else "another type"
    )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON knows")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key appears twice")
    return content
