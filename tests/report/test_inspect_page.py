"""The inspect page: stacks where they are, gaps and tilts in words, nothing of the input's text, readable anywhere."""

from __future__ import annotations

import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from made_up import HOSTILE
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from spine_engine.cli.inspect import inspect
from spine_engine.errors import OutputError, Reason, UsageError, Warn
from spine_engine.report import inspect_page as page_module
from spine_engine.report.content import Identity
from spine_engine.report.inspect_page import inspect_page, inspected
from spine_engine.report.projections import lettered, projections, slice_corners
from spine_engine.report.stack_words import gaps_of, tilt_of
from spine_engine.study import Role, Series, Stack, Study

sys.path.insert(0, str(Path(__file__).parent.parent / "dicom"))
from dicom_builder import AXIAL_T2, CORONAL, SAGITTAL, T1, T2, tilted, write_series

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def a_stack(
    orientation: tuple[float, ...] = SAGITTAL,
    positions: tuple[float, ...] = (0.0, 4.0, 8.0, 12.0),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    shape: tuple[int, int] = (30, 20),
) -> Stack:
    right, down = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(right, down)
    count = len(positions)
    return Stack(
        np.random.default_rng(0).integers(0, 4096, (count, *shape)).astype(np.uint16),
        np.ones(count, np.float32),
        np.zeros(count, np.float32),
        np.array(origin) + np.array(positions)[:, None] * normal,
        np.stack([normal, down, right]),
        (2.0, 1.5),
    )


def a_study(
    *stacks: Stack,
    role: Role | None = Role.SAGITTAL_T2,
    study_id: str = "1.2.3",
    **fields: Any,
) -> Study:
    series = Series(
        "SECRET/folder",
        role,
        "TE 100 ms: T2",
        stacks,
        sum(len(s.pixels) for s in stacks),
    )
    return Study(study_id, (series,), **fields)


# Gaps and tilts


@pytest.mark.parametrize(
    ("orientation", "words"),
    [
        (AXIAL, "none"),
        (tilted(12), "12°, front edge lower"),
        (tilted(-7), "7°, front edge higher"),
        ((np.cos(0.2), 0.0, np.sin(0.2), 0.0, 1.0, 0.0), "11°, left edge higher"),
        (SAGITTAL, "none"),
        ((0.0, 1.0, 0.0, np.sin(0.1), 0.0, -np.cos(0.1)), "6°, top edge to the right"),
        (
            (-np.sin(0.1), np.cos(0.1), 0.0, 0.0, 0.0, -1.0),
            "6°, front edge to the left",
        ),
        (CORONAL, "none"),
        ((1.0, 0.0, 0.0, 0.0, np.sin(0.3), -np.cos(0.3)), "17°, top edge forwards"),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_tilts_are_told_by_angle_and_edge(
    orientation: tuple[float, ...], words: str, reverse: bool
) -> None:
    if (
        reverse
    ):  # the same planes, stored with the rows the other way: the normal turns round
        orientation = (*orientation[:3], *(-value for value in orientation[3:]))
    tilt = tilt_of(a_stack(orientation))
    assert tilt.words == words
    assert tilt.degrees == pytest.approx(
        float(words.split("°")[0]) if "°" in words else 0.0, abs=0.51
    )


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ((0, 4, 8, 12), "none"),
        ((0,), "a single slice"),
        ((0, 4, 8.3, 12), "none"),
        ((0, 4, 9, 13), "uneven: 4.0 to 5.0 mm apart"),
        (
            (0, 4, 8, 12, 20, 24, 28),
            "1 gap: 8.0 mm between slices 3 and 4 from the right",
        ),
        (
            (0, 4, 12, 16, 20, 24, 36, 40, 44),
            "2 gaps, the largest 12.0 mm between slices 3 and 4 from the right",
        ),
    ],
)
def test_gaps_are_told_where_they_are(positions: tuple[float, ...], words: str) -> None:
    towards_right = a_stack(SAGITTAL, tuple(map(float, positions)))
    assert (
        towards_right.axes[0, 0] < 0
    )  # stored from left to right, counted from right to left
    assert gaps_of(towards_right) == words


def test_axial_slices_are_counted_from_the_top() -> None:
    assert (
        gaps_of(a_stack(AXIAL, (0.0, 9.0, 13.0, 17.0)))
        == "1 gap: 9.0 mm between slices 3 and 4 from the top"
    )
    assert gaps_of(a_stack(CORONAL, (0.0, 9.0, 13.0, 17.0))).endswith(
        "between slices 1 and 2 from the front"
    )


# Drawings


def path_points(path: str) -> list[NDArray[np.float64]]:
    """Corners of each shape of a path of M and l commands."""
    shapes = []
    for shape in path.split("M")[1:]:
        steps = [
            tuple(map(float, step.split())) for step in shape.rstrip("z").split("l")
        ]
        shapes.append(np.cumsum(np.array(steps), axis=0))
    return shapes


def test_slices_are_drawn_where_they_are() -> None:
    sagittal, axial = (
        a_stack(SAGITTAL, (0.0, 4.0, 12.0)),
        a_stack(tilted(20), (0.0, 5.0), (-20.0, 10.0, -30.0)),
    )
    side, front, feet = projections([("1", (sagittal,)), ("2", (axial,))])
    assert [drawing.edges for drawing in (side, front, feet)] == [
        ("A", "P", "H", "F"),
        ("R", "L", "H", "F"),
        ("R", "L", "A", "P"),
    ]
    corners = slice_corners(sagittal)
    drawn = path_points(
        side.lines[0].path
    )  # seen from the side: y to the right, -z down
    assert np.stack(drawn) == pytest.approx(
        np.stack([corners[..., 1], -corners[..., 2]], axis=-1), abs=0.11
    )
    lines = path_points(front.lines[0].path)  # edge-on: x of each slice, gap and all
    assert [line[:, 0].mean() for line in lines] == pytest.approx(
        sagittal.origins_mm[:, 0].tolist(), abs=0.06
    )
    assert all(np.ptp(line[:, 1]) == pytest.approx(60.0, abs=0.1) for line in lines)
    tilt = path_points(side.lines[1].path)[0]
    run, rise = tilt[1] - tilt[0]
    assert abs(rise / run) == pytest.approx(np.tan(np.deg2rad(20)), abs=0.01)
    seen = path_points(feet.lines[1].path)
    expected = slice_corners(axial)[..., :2]
    assert np.stack(seen) == pytest.approx(expected, abs=0.11)


def test_the_three_drawings_share_one_scale_and_hold_everything() -> None:
    stacks = (a_stack(SAGITTAL), a_stack(tilted(30), (0.0, 5.0), (-20.0, -60.0, 25.0)))
    drawings = projections([("1", stacks)])
    assert len({drawing.font for drawing in drawings}) == 1
    for drawing in drawings:
        left, top, width, height = drawing.box
        for line in drawing.lines:
            for shape in path_points(line.path):
                assert (shape >= (left, top)).all()
                assert (shape <= (left + width, top + height)).all()
    assert (
        drawings[0].box[1] == drawings[1].box[1]
    )  # heights of side and front lie side by side
    assert drawings[0].box[3] == drawings[1].box[3]


def test_names_do_not_cover_each_other_and_bear_the_tilt() -> None:
    sagittal = a_stack(SAGITTAL)
    block = tuple(
        a_stack(tilted(10 + i), (0.0, 4.0), (-10.0, -10.0, 2.0 * i)) for i in range(4)
    )
    side, front, feet = projections(
        [("1", (sagittal,)), ("2", (sagittal,)), ("3", block)]
    )
    assert {label.text for label in side.labels} == {
        "1",
        "2",
        "3a 10°",
        "3b 11°",
        "3c 12°",
        "3d 13°",
    }
    assert {label.text for label in front.labels} == {"1", "2", "3a", "3b", "3c", "3d"}
    assert {label.text for label in feet.labels} == {"1", "2", "3"}
    places = [(label.x, label.y) for label in side.labels]
    assert len(set(places)) == len(places)


def test_stacks_are_lettered_like_columns() -> None:
    assert [lettered(number) for number in (0, 1, 25, 26, 27, 701, 702)] == [
        "a",
        "b",
        "z",
        "aa",
        "ab",
        "zz",
        "aaa",
    ]


def test_a_study_without_stacks_has_no_drawings() -> None:
    assert projections([("1", ()), ("2", ())]) == ()


# The page


class Plain(HTMLParser):
    """Collects a page's elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.text += " " if tag in ("td", "th") else ""
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_roles_evidence_stacks_gaps_and_tilts() -> None:
    refused = Series("SECRET/scout", None, "1 image", (), 1, reason=Reason.NOT_A_VOLUME)
    axial = Series(
        "SECRET/ax",
        Role.AXIAL_T2,
        "TE 95 ms",
        (a_stack(AXIAL), a_stack(tilted(25), (0.0, 4.0))),
        6,
        "t2",
    )
    sagittal = Series(
        "SECRET/t2",
        Role.SAGITTAL_T2,
        "TI 160 ms: STIR",
        (a_stack(SAGITTAL, (0, 4, 12, 16)),),
        4,
        "stir",
    )
    study = Study("1.2.3", (refused, axial, sagittal), (Warn.GAP,), None)
    text = " ".join(
        Plain(inspect_page([(study, None)], {"not_an_image": 3})).text.split()
    )
    for words in (
        "1 study in this folder",
        "1 Sagittal T2 (STIR) TI 160 ms: STIR 1 stack, 4 slices",
        "1 sagittal stack of 30 × 20 pixels of 2.00 × 1.50 mm",
        "1 gap: 8.0 mm between slices 2 and 3 from the right",
        "2 Axial T2 TE 95 ms 2 stacks, 6 slices",
        "2b 2 4.00 none 25°, front edge lower",
        "3 No role Not used: Not a volume.",
        "Slices missing",
        "not_an_image 3",
    ):
        assert words in text
    assert "SECRET" not in text


def test_every_drawing_has_a_title_and_a_description_and_no_id_is_used_twice() -> None:
    html = inspect_page(
        [(a_study(a_stack(), study_id=str(i)), None) for i in range(3)], {}
    )
    plain = Plain(html)
    ids = [value for name, value in plain.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    described = [
        str(value) for name, value in plain.attributes if name == "aria-labelledby"
    ]
    assert {part for value in described for part in value.split()} <= set(ids)
    assert plain.elements["title"] == 1 + 9
    assert plain.elements["desc"] == 9


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_inert(text: str) -> None:
    def page_of(words: str) -> Plain:
        series = Series(words, Role.SAGITTAL_T2, words, (a_stack(),), 4)
        return Plain(inspect_page([(Study(words, (series,)), _person(words))], {}))

    plain, harmless = page_of(text), page_of("x")
    assert plain.elements == harmless.elements
    assert plain.elements["script"] == 0
    assert text in plain.text
    assert not [name for name, _ in plain.attributes if name.startswith("on")]


def _person(text: str) -> Identity:
    return Identity(
        patient_name=text,
        patient_id=text,
        birth_date=text,
        study_date=text,
        study_description=text,
        series={text: text},
    )


def test_paths_and_names_are_there_only_with_an_identity() -> None:
    study = a_study(a_stack())
    assert "SECRET" not in inspect_page([(study, None)], {})
    person = Identity(
        patient_name="DOE^JANE", patient_id="7", birth_date="", study_date="20200102", study_description="LSPINE",
        series={"SECRET/folder": "t2_tse_sag"},
    )  # fmt: skip
    html = inspect_page([(study, person)], {})
    for words in ("SECRET/folder", "DOE^JANE", "t2_tse_sag", "LSPINE", "20200102"):
        assert words in html


def test_a_page_of_many_studies_stays_small_and_says_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = a_stack(shape=(160, 160), positions=tuple(4.0 * i for i in range(15)))
    monkeypatch.setattr(page_module, "MAX_LISTED", 300)
    met = []

    def studies():
        for i in range(400):
            met.append(i)
            yield a_study(stack, study_id=f"1.2.{i}"), None

    html = inspect_page(studies(), {})
    assert len(met) == 400
    assert 900_000 < len(html.encode()) < 1_500_000
    shown = html.count('<section class="study"')
    assert 10 < shown < 300
    text = " ".join(Plain(html).text.split())
    assert (
        f"400 studies in this folder. Series and pictures are shown of the first {shown}"
        in text
    )
    assert "100 more studies are not listed" in text
    assert f'href="#study-{shown}"' in html
    assert f'href="#study-{shown + 1}"' not in html


def test_one_study_larger_than_the_page_is_shown_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page_module, "MAX_BYTES", 10)
    html = inspect_page(
        [(a_study(a_stack()), None), (a_study(a_stack(), study_id="2"), None)], {}
    )
    assert html.count('<section class="study"') == 1


def test_a_study_met_again_and_one_that_cannot_be_graded_say_so() -> None:
    studies = [
        (a_study(a_stack()), None),
        (a_study(role=None, reason=Reason.NO_SAGITTAL), None),
    ]
    text = " ".join(Plain(inspect_page(studies, {})).text.split())
    assert text.count("This study also has files in a folder shown above") == 1
    assert "No sagittal series" in text
    assert "No stack of parallel slices" in text


def test_the_size_of_a_study_is_about_what_it_takes() -> None:
    study = a_study(a_stack(shape=(160, 160)), a_stack(AXIAL, shape=(90, 90)))
    one, two = (len(inspect_page([(study, None)] * count, {})) for count in (2, 3))
    assert inspected(study).size == pytest.approx(two - one, rel=0.15)


# The command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    gap = (0.0, 4.0, 8.0, 20.0, 24.0, 28.0)
    for name, spec in (
        ("t1", T1),
        ("t2", T2.but(offsets_mm=gap)),
        ("axial [red]", AXIAL_T2.but(text=HOSTILE[0])),
    ):
        write_series(root / "SECRET" / name, spec)
    (root / "README").write_text("hello")
    return root


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(inspect)
    return CliRunner().invoke(
        app,
        list(arguments),
        env={"COLUMNS": "160", "TERM": "dumb"},
        catch_exceptions=False,
    )


def test_the_command_writes_the_page_beside_its_table(
    folder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "seen.html"
    result = run(str(folder), "--html", str(page))
    assert result.exit_code == 0
    assert "sagittal_t1" in result.stdout
    assert str(page) in result.stdout.replace("\n", "")
    html = page.read_text(encoding="utf-8")
    for words in ("SECRET", "JANE", "axial [red]", "window.hacked", str(tmp_path)):
        assert words not in html
    for words in (
        "1.2.3",
        "12.0 mm between slices 3 and 4",
        "TE 100 ms",
        "not_an_image",
    ):
        assert words in html
    assert run(str(folder), "--json", "--html", str(page)).stdout.count("\n") == 2
    assert page.read_text(encoding="utf-8") == html


def test_the_command_names_persons_only_when_asked(
    folder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "seen.html"
    run(str(folder), "--html", str(page), "--with-identity")
    plain = Plain(page.read_text(encoding="utf-8"))
    for words in ("DOE^JANE", "SECRET/t1", "SECRET/axial [red]", HOSTILE[0]):
        assert words in plain.text
    assert plain.elements["script"] == 0
    with pytest.raises(UsageError, match="--html"):
        run(str(folder), "--with-identity")


def test_a_folder_whose_name_is_no_text_is_written_with_escapes(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "SECRET").rename(folder / "caf\udce9")
    page = tmp_path / "seen.html"
    assert run(str(folder), "--html", str(page), "--with-identity").exit_code == 0
    assert "caf\\udce9/t1" in page.read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_is_said_before_anything_is_read(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*no/such/seen\.html"):
        run(str(folder), "--html", str(tmp_path / "no" / "such" / "seen.html"))


# In a browser


@pytest.mark.parametrize(
    "with_axe",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["alone", "axe"],
)
def test_the_page_opens_in_silence_and_fits(
    folder: Path, tmp_path: Path, chromium: Any, with_axe: bool
) -> None:
    page_file = tmp_path / "seen.html"
    run(str(folder), "--html", str(page_file), "--with-identity")
    context = chromium.new_context(
        viewport={"width": 390, "height": 800}, color_scheme="light"
    )
    page = context.new_page()
    said: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    assert page.evaluate("window.hacked") is None
    for width in (390, 1200):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        scale = page.evaluate(
            "[...document.querySelectorAll('.drawings svg')].map(s => s.clientWidth / s.viewBox.baseVal.width)"
        )
        assert max(scale) / min(scale) < 1.03
    backgrounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        backgrounds.add(
            page.evaluate("getComputedStyle(document.body).backgroundColor")
        )
        colours = page.evaluate(
            "[...new Set([...document.querySelectorAll('.drawings .stack')].map(e => {const s = getComputedStyle(e);"
            " return s.stroke + ' ' + s.strokeDasharray}))]"
        )
        assert (
            len(colours)
            == len({re.sub(r"^rgb\([^)]*\) ", "", colour) for colour in colours})
            == 3
        )
        if with_axe:
            axe = pytest.importorskip(
                "axe_playwright_python.sync_playwright",
                reason="axe-playwright-python is missing",
            )
            assert axe.Axe().run(page).response["violations"] == []
    assert len(backgrounds) == 2
    assert said == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    context.close()
