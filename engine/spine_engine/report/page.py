"""Renders templates into self-contained pages: all parts are inline, nothing is fetched, nothing of the input runs.

Text is escaped by Jinja; a content security policy forbids requests and any script but those shipped in ``assets``.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from spine_engine.report import words
from spine_engine.report.content import Picture
from spine_engine.report.overlay import overlay

_ASSETS: Final = files("spine_engine.report") / "assets"


def render(template: str, **context: Any) -> str:
    """Return the page rendered from ``templates/<template>`` with ``context``."""
    return _environment().get_template(template).render(policy=_policy(), **context)


def write_page(path: Path, text: str) -> None:
    """Replace ``path`` by a page in one step, so that no page is ever incomplete; lone surrogates are escaped."""
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    draft.replace(path)


def picture_uri(picture: Picture) -> str:
    """Return a picture as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(picture.png).decode("ascii")


def with_code(text: str) -> Markup:
    """Return a text with its parts in backticks marked as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else part
        for index, part in enumerate(parts)
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("spine_engine.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        style=partial(_element, "style"),
        script=partial(_element, "script"),
        words=words,
    )
    environment.filters.update(uri=picture_uri, code=with_code, overlay=overlay)
    environment.filters.update(
        percent=words.percent, points=words.points, duration=words.duration
    )
    return environment


def _text(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


@cache
def _element(tag: str, name: str) -> Markup:
    """Return a file of ``assets`` as an HTML element."""
    return Markup(f"<{tag}>{_text(name)}</{tag}>")


@cache
def _policy() -> str:
    """Return the content security policy: no request, no script but ours (by digest; ``blob:`` for the 3-D viewer)."""
    scripts = sorted(
        Path(str(file)).name for file in _ASSETS.iterdir() if file.name.endswith(".js")
    )
    allowed = " ".join(f"'sha256-{_digest(_text(name))}'" for name in scripts)
    return (
        f"default-src 'none'; script-src blob: {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
