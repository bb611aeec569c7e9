"""Which series plays which role, by rules in a fixed order, each decision with its evidence.

1 an override, unless the geometry makes it impossible; 2 eligible at all; 3 the plane, from the slice normal;
4 the contrast, from echo, repetition and inversion times; 5 text where the numbers are missing or tie; 6 else abstain;
7 among equals the one that covers most. Evidence holds numbers and matched keywords, never text out of a header.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from spine_engine.dicom.geometry import BuiltStack, image_kind
from spine_engine.dicom.header import FrameHeader, ImageHeader
from spine_engine.study import Role, Stack

MIN_SLICES: Final = 5
"""A stack of fewer positions takes no role (localizers, single cuts), unless an override names its series."""
SAGITTAL_X: Final = 0.8
AXIAL_Z: Final = 0.7  # the L5/S1 block tilts past 40 degrees
CORONAL_Y: Final = 0.8
LUMBAR_MM: Final = 200.0
"""Five lumbar levels with the sacrum's edge are about this tall: a larger field of view covers no more of them."""
LEVEL_MM: Final = 35.0
"""Height of one lumbar level: coverage is compared in whole levels."""

_ELIGIBLE_KINDS: Final = ("slice", "water", "in phase")
_CONTRAST_NAMES: Final = {
    "t1": "T1",
    "t2": "T2",
    "stir": "STIR",
    "pd": "proton density",
}
_STIR: Final = re.compile(r"STIR|TIRM")
_T1: Final = re.compile(r"(?<!\d)T1(?!\d)")
_T2: Final = re.compile(r"(?<!\d)T2(?!\d|\s*\*|[\s_-]*STAR)")
_PLANES: Final = {
    "sagittal": re.compile(r"SAG"),
    "axial": re.compile(r"AXIAL|(?<![A-Z])(?:AX|TRA|TRANS)(?:$|[^A-Z]|T[12]|V)"),
    "coronal": re.compile(r"(?<![A-Z])COR"),
}
_ROLES: Final = {
    ("sagittal", "t1"): Role.SAGITTAL_T1,
    ("sagittal", "t2"): Role.SAGITTAL_T2,
    ("sagittal", "stir"): Role.SAGITTAL_T2,
    ("axial", "t2"): Role.AXIAL_T2,
}
_ROLE_NAMES: Final = {
    Role.SAGITTAL_T1: "sagittal T1",
    Role.SAGITTAL_T2: "sagittal T2/STIR",
    Role.AXIAL_T2: "axial T2",
}
_ROLE_PLANES: Final = {
    Role.SAGITTAL_T1: "sagittal",
    Role.SAGITTAL_T2: "sagittal",
    Role.AXIAL_T2: "axial",
}


@dataclass(frozen=True)
class Part:
    """The stacks of one series that share a contrast and a plane: what a role is given to.

    ``plane`` is None when neither the normal nor the text names one. ``stated`` is the override's role, if any.
    """

    path: str
    series_uid: str
    plane: str | None
    stacks: tuple[BuiltStack, ...]
    stated: Role | None = None

    @property
    def image(self) -> ImageHeader:
        """The header of the first slice."""
        return self.stacks[0].slices[0].image

    @property
    def frame(self) -> FrameHeader:
        """The frame attributes of the first slice."""
        return self.stacks[0].slices[0].frame

    @property
    def slices(self) -> int:
        """How many slices its stacks hold."""
        return sum(len(built.slices) for built in self.stacks)


@dataclass(frozen=True)
class Decision:
    """What a part plays and why; ``overridden`` when an override and the rules say different things."""

    role: Role | None
    contrast: str | None
    evidence: str
    overridden: bool = False


def plane_of(stack: Stack, texts: Sequence[str]) -> str | None:
    """Return ``"sagittal"``, ``"axial"`` or ``"coronal"``: from the normal, else from the text, else None."""
    x, y, z = np.abs(stack.axes[0]).tolist()
    if x >= SAGITTAL_X:
        return "sagittal"
    if z >= AXIAL_Z:
        return "axial"
    if y >= CORONAL_Y:
        return "coronal"
    return _first_match(
        texts,
        lambda text: {
            plane for plane, pattern in _PLANES.items() if pattern.search(text)
        },
    )


def contrast_of_numbers(frame: FrameHeader) -> str | None:
    """Return ``"t1"``, ``"t2"``, ``"stir"`` or ``"pd"`` from echo, repetition and inversion times in ms, else None.

    The limits are those of clinical spin-echo protocols: T1 TE <= 30 and TR <= 1200, T2 TE >= 60 and TR >= 1500,
    STIR TI 80-300, T1 FLAIR TI 600-1300.
    """
    te, tr, ti = frame.echo_time_ms, frame.repetition_time_ms, frame.inversion_time_ms
    if ti is not None and tr is not None and 80 <= ti <= 300 and tr > 1500:
        return "stir"
    if te is None or tr is None:
        return None
    if ti is not None and 600 <= ti <= 1300 and te <= 40:
        return "t1"
    if te <= 30 and tr <= 1200:
        return "t1"
    if te >= 60 and tr >= 1500:
        return "t2"
    return "pd" if 30 <= te < 60 and tr >= 1500 else None


def contrast_of_text(texts: Sequence[str]) -> str | None:
    """Return the contrast that the first unambiguous text names: STIR or TIRM, T1, or T2 (not T2*)."""

    def named(text: str) -> set[str]:
        if _STIR.search(text):
            return {"stir"}
        return {
            name for name, pattern in (("t1", _T1), ("t2", _T2)) if pattern.search(text)
        }

    return _first_match(texts, named)


def _first_match(texts: Sequence[str], named: Callable[[str], set[str]]) -> str | None:
    """Return the one name in the first text that holds exactly one."""
    for text in texts:
        names = named(text)
        if len(names) == 1:
            return next(iter(names))
    return None


def ineligible(image: ImageHeader, frame: FrameHeader) -> str | None:
    """Say why images of this kind take no role (rule 2, and gradient echoes of rule 4); None when they may."""
    kind = image_kind(frame.image_type)
    if image.modality not in ("", "MR"):
        return "not MR"
    if image.samples_per_pixel != 1:
        return "colour images"
    if kind not in _ELIGIBLE_KINDS or "DERIVED" in frame.image_type[:1]:
        return f"{kind} images" if kind != "derived" else "derived images"
    if frame.b_value:
        return f"diffusion images (b {frame.b_value:.0f})"
    if "GR" in image.scanning_sequence and "SE" not in image.scanning_sequence:
        return "gradient echo"
    return None


def decide(parts: Sequence[Part]) -> list[Decision]:
    """Give each part its decision. At most one part plays each sagittal role; every eligible axial T2 plays its own."""
    decisions = [_decide(part) for part in parts]
    for role in (Role.SAGITTAL_T1, Role.SAGITTAL_T2):
        rivals = [i for i, decision in enumerate(decisions) if decision.role is role]
        if len(rivals) < 2:
            continue
        best = max(rivals, key=lambda i: _preference(parts[i], decisions[i], role))
        for i in rivals:
            if i != best:
                why = f"; another series is the better {_ROLE_NAMES[role]}"
                old = decisions[i]
                decisions[i] = Decision(
                    None, old.contrast, old.evidence + why, old.overridden
                )
    return decisions


def _decide(part: Part) -> Decision:
    """Apply the rules to one part, whatever the others are."""
    by_rule = _by_rules(part)
    if part.stated is None:
        return by_rule
    wanted = _ROLE_PLANES[part.stated]
    name = _ROLE_NAMES[part.stated]
    if part.plane not in (None, wanted):
        why = f"override says {name}, but slices are {part.plane}; {by_rule.evidence}"
        scout = max(len(built.slices) for built in part.stacks) < MIN_SLICES
        return Decision(by_rule.role, by_rule.contrast, why, overridden=not scout)
    contrast = (
        "t1"
        if part.stated is Role.SAGITTAL_T1
        else "stir"
        if by_rule.contrast == "stir"
        else "t2"
    )
    contradicted = by_rule.role not in (None, part.stated)
    return Decision(part.stated, contrast, f"override says {name}", contradicted)


def _by_rules(part: Part) -> Decision:
    """Apply rules 2 to 6."""
    longest = max(len(built.slices) for built in part.stacks)
    if why := ineligible(part.image, part.frame):
        return Decision(None, None, why)
    if longest < MIN_SLICES:
        return Decision(
            None, None, f"{longest} slices a stack at most, {MIN_SLICES} are needed"
        )
    x, y, z = np.abs(part.stacks[0].stack.axes[0]).tolist()
    where = f"{part.plane or 'oblique'} (normal {x:.2f} {y:.2f} {z:.2f})"
    contrast, because = _contrast(part.frame, part.image.texts)
    role = _ROLES.get((part.plane or "", contrast or ""))
    outcome = _CONTRAST_NAMES[contrast] if contrast else "contrast unknown"
    return Decision(role, contrast, f"{where}, {because}: {outcome}")


def _contrast(frame: FrameHeader, texts: Sequence[str]) -> tuple[str | None, str]:
    """Return the contrast and what decided it: numbers first, then text."""
    numbers = [
        f"{name} {value:g} ms"
        for name, value in (
            ("TE", frame.echo_time_ms),
            ("TR", frame.repetition_time_ms),
            ("TI", frame.inversion_time_ms),
        )
        if value is not None
    ]
    said = ", ".join(numbers) or "no TE, TR or TI"
    by_text = contrast_of_text(texts)
    contrast = contrast_of_numbers(frame)
    if contrast == "pd" and by_text == "t2" and (frame.echo_time_ms or 0) >= 45:
        return "t2", f"{said}, text says T2"
    if contrast is not None:
        return contrast, said
    if by_text is not None:
        return by_text, f"{said}, text says {_CONTRAST_NAMES[by_text]}"
    return None, f"{said}, no telling text"


def _preference(
    part: Part, decision: Decision, role: Role
) -> tuple[float | str | bool, ...]:
    """Rank equals (rule 7): the greatest plays the role. T2 goes before STIR where both cover as many levels."""
    heights = [z for built in part.stacks for z in _height_range_mm(built.stack)]
    levels = math.floor(min(max(heights) - min(heights), LUMBAR_MM) / LEVEL_MM)
    image = part.image
    return (
        levels,
        decision.contrast != "stir",
        part.slices,
        -round(math.prod(part.stacks[0].stack.spacing_mm), 4),
        not (role is Role.SAGITTAL_T2 and image.fat_suppressed),
        not (role is Role.SAGITTAL_T1 and image.contrast_agent),
        part.frame.acquired,
        part.frame.temporal or 0,
        image.series_number,
        part.path,
        part.series_uid,
    )


def _height_range_mm(stack: Stack) -> tuple[float, float]:
    """Return the lowest and the highest z of a stack's first and last slices, LPS mm."""
    rows, columns = stack.pixels.shape[1:]
    down = stack.axes[1, 2] * stack.spacing_mm[0] * (rows - 1)
    right = stack.axes[2, 2] * stack.spacing_mm[1] * (columns - 1)
    corners = [
        z + a + b
        for z in stack.origins_mm[[0, -1], 2].tolist()
        for a in (0.0, down)
        for b in (0.0, right)
    ]
    return float(min(corners)), float(max(corners))
