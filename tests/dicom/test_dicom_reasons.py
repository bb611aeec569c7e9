"""The page of reasons and the two closed lists agree."""

from __future__ import annotations

import re
from pathlib import Path

from spine_engine.errors import Reason, Warn

PAGE = Path(__file__).parents[2] / "docs" / "reasons.md"


def codes(title: str) -> list[str]:
    """The codes of the table rows under a heading."""
    section = (
        PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    )
    rows = re.findall(
        r"^\| `([a-z0-9_]+)` \| (.+?) \| (.+?) \|$", section, re.MULTILINE
    )
    assert all(meaning and advice for _, meaning, advice in rows)
    return [code for code, _, _ in rows]


def test_every_reason_is_documented() -> None:
    assert sorted(codes("Reasons")) == sorted(Reason)


def test_every_warning_is_documented() -> None:
    assert sorted(codes("Warnings")) == sorted(Warn)
