"""The small things that a study's page says: headings over the right columns, places, outlines, who and how long."""

import re
from dataclasses import replace

import pytest
from made_up import (
    failed,
    graded,
    graded_as,
    identity,
    levels,
    picture,
    series,
    study_content,
)
from page_text import section, text_of

from spine_engine.anatomy import Level
from spine_engine.report.content import Outline
from spine_engine.report.overlay import overlay
from spine_engine.report.study_page import study_page
from spine_engine.results import SeriesResult

# -- a study -----------------------------------------------------------------------------------------------------------


def test_the_grades_stand_under_the_heading_of_their_condition_and_side():
    columns = {
        ("Spinal canal stenosis", None): "spinal_canal_stenosis_l1_l2",
        (
            "Neural foraminal narrowing",
            "Right",
        ): "right_neural_foraminal_narrowing_l1_l2",
        ("Neural foraminal narrowing", "Left"): "left_neural_foraminal_narrowing_l1_l2",
        ("Subarticular stenosis", "Right"): "right_subarticular_stenosis_l1_l2",
        ("Subarticular stenosis", "Left"): "left_subarticular_stenosis_l1_l2",
    }
    shares = [10_000 * (60 + k) for k in range(5)]
    result = graded_as(
        **{
            name: (1_000_000 - share, 0, share)
            for name, share in zip(columns.values(), shares, strict=True)
        }
    )
    table = section(study_page(study_content(result)), "grades").split(
        '<table class="matrix">'
    )[1]
    first, second = re.findall(r"<tr>(.*?)</tr>", table.split("</thead>")[0], re.DOTALL)
    heads = re.findall(
        r'<th scope="(\w+)"(?: (?:row|col)span="(\d)")+>(.*?)</th>', first
    )
    sides = re.findall(r'<th scope="col">(\w+)</th>', second)
    named, at = [], 0
    for scope, _, name in heads:
        if scope == "col":
            named.append((name, None))
            continue
        named += [(name, side) for side in sides[at : at + 2]]
        at += 2
    assert named == list(columns)
    cells = re.findall(
        r"<td.*?>(.*?)</td>", table.split("<tbody>")[1].split("</tr>")[0], re.DOTALL
    )
    assert [re.search(r"Severe (\d+) %", text_of(cell))[1] for cell in cells] == [
        "60",
        "61",
        "62",
        "63",
        "64",
    ]
    assert "Left and right are the patient's." in text_of(study_page(study_content()))


def test_a_bar_is_as_long_as_its_shares():
    result = graded_as(spinal_canal_stenosis_l1_l2=(123_456, 376_544, 500_000))
    table = section(study_page(study_content(result)), "grades").split("<tbody>")[1]
    bar = re.findall(r'<i class="(\w+)" style="width:([\d.]+)%">', table)[:3]
    assert bar == [("normal_mild", "12.3"), ("moderate", "37.7"), ("severe", "50.0")]


def test_each_level_says_how_it_was_found_and_where_its_disc_lies():
    found = levels(
        ("detector", "interpolated", "prior", "detector", "detector"), confidence=0.97
    )
    text = text_of(section(study_page(study_content(graded(levels=found))), "levels"))
    assert (
        "L1/L2 found in the images, confidence 97 %; disc centre at 1.0, −20.0, 60.0 mm (LPS)"
        in text
    )
    assert (
        "L2/L3 placed between its neighbours, confidence 92 %; disc centre at 1.0, −20.0, 25.0 mm"
        in text
    )
    third = text.split("L3/L4")[1]
    assert third.strip().startswith("not found; a guess from the field of view")
    assert "confidence" not in third.split("L4/L5")[0].split("Spinal")[0]
    assert "disc centre" not in third.split("Spinal")[0]
    assert "not looked for" in text_of(
        study_page(study_content(graded(levels={Level.L1_L2: found[Level.L1_L2]})))
    )


def test_a_level_that_no_series_covers_says_so():
    html = study_page(
        study_content(crops={Level.L1_L2: (picture("Sagittal T2, middle"),)})
    )
    text = text_of(section(html, "levels"))
    assert text.count("No picture: no series covers this level.") == 4


def test_crops_share_one_scale_that_of_the_widest():
    crops = {
        Level.L1_L2: (picture("a", width=40, pixel_mm=(1.0, 2.0)),),
        Level.L2_L3: (picture("b", width=100, pixel_mm=(3.0, 0.5)),),
    }
    assert 'style="--widest:80.0"' in study_page(study_content(crops=crops))


def test_the_line_styles_that_occur_are_explained_and_no_others():
    html = study_page(study_content(overview=(picture(sources=("prior", "detector")),)))
    key = html.split('<ul class="key lines">')[1].split("</ul>")[0]
    assert re.findall(r'<path class="(\w+)"', key) == ["detector", "prior"]
    assert "found in the images" in text_of(key)
    assert "placed between" not in text_of(key)


def test_series_are_listed_with_their_numbers_and_a_refusal_in_words():
    shown = (
        *series(),
        SeriesResult(path="x", role="axial_t2", evidence="why", stacks=3, slices=21),
        SeriesResult(path="y", role="from_the_future", evidence="", stacks=0, slices=7),
    )
    table = section(study_page(study_content(graded(series=shown))), "series").split(
        "<tbody>"
    )[1]
    rows = [
        [
            text_of(cell).strip()
            for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in table.split("</tr>")[:-1]
    ]
    assert [(row[0], *row[2:]) for row in rows] == [
        ("Sagittal T2/STIR", "1", "14"), ("No role", "0", "1"), ("Axial T2", "3", "21"), ("from_the_future", "0", "7"),
    ]  # fmt: skip
    assert rows[1][1].startswith("Not used: Not a volume. The series is a single slice")
    assert rows[2][1] == "why"


def test_a_person_s_empty_texts_take_no_line():
    named = replace(identity("Doe^Jane"), birth_date="", patient_id="")
    html = study_page(study_content(identity=named))
    person = html.split('<dl class="person">')[1].split("</dl>")[0]
    assert re.findall(r"<dt>(.*?)</dt>", person) == ["Patient", "Study date", "Study"]


def test_each_of_a_person_s_texts_stands_under_its_name():
    named = replace(
        identity(), patient_name="N^A", patient_id="ID7", birth_date="19700101", study_date="20240202",
        study_description="LUMBAR",
    )  # fmt: skip
    person = (
        study_page(study_content(identity=named))
        .split('<dl class="person">')[1]
        .split("</dl>")[0]
    )
    assert re.findall(r"<dt>(.*?)</dt><dd><bdi>(.*?)</bdi>", person) == [
        ("Patient", "N^A"), ("Patient ID", "ID7"), ("Born", "19700101"), ("Study date", "20240202"),
        ("Study", "LUMBAR"),
    ]  # fmt: skip


def test_stages_have_bars_of_the_longest_and_their_own_times():
    made = graded(timings_ms={"detect": 200.0, "read": 50.0, "other": 1250.0})
    html = study_page(study_content(made))
    table = html.split('<table class="stages">')[1].split("</table>")[0]
    assert "Time by stage: 1.5 s in all" in text_of(table)
    assert re.findall(r'<th scope="row">(.*?)</th>.*?width:([\d.]+)%.*?class="number">(.*?)</td>', table) == [
        ("Finding the discs", "16.0", "200 ms"), ("Reading the images", "4.0", "50 ms"), ("other", "100.0", "1.2 s"),
    ]  # fmt: skip
    assert 'class="stages"' not in study_page(study_content(graded(timings_ms={})))


def test_the_demonstration_is_not_said_where_nothing_was_graded():
    assert "Demonstration." in study_page(study_content())
    assert "Demonstration." not in study_page(study_content(failed()))


def test_a_page_without_a_run_has_no_way_back():
    assert "All studies of the run" in study_page(
        study_content(run_page="../index.html")
    )
    assert "All studies of the run" not in study_page(study_content(run_page=None))
    assert 'href="./../index.html"' in study_page(
        study_content(run_page="../index.html")
    )


# -- outlines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right_edge", "anchor", "x"), [(77.3, "start", 785.0), (77.4, "end", 608.0)]
)
def test_a_label_stands_behind_the_spine_while_there_is_room(right_edge, anchor, x):
    """A label is 215 thousandths of the picture wide and 12 away: the outline may end at 773 at most."""
    box = Outline(
        level=Level.L1_L2, points=((62.0, 10.0), (right_edge, 10.0), (right_edge, 20.0)), confidence=1.0,
        source="detector",
    )  # fmt: skip
    (shape,) = overlay(
        replace(picture(width=100, height=50, pixel_mm=(1.0, 1.0)), outlines=(box,))
    ).shapes
    assert (shape.anchor, shape.x, shape.y) == (anchor, x, 150.0)


def test_a_label_before_the_spine_never_leaves_the_picture():
    box = Outline(
        level=Level.L1_L2,
        points=((1.0, 10.0), (95.0, 10.0), (95.0, 20.0)),
        confidence=0.5,
        source="detector",
    )
    (shape,) = overlay(
        replace(picture(width=100, height=50, pixel_mm=(1.0, 1.0)), outlines=(box,))
    ).shapes
    assert (shape.anchor, shape.x) == ("end", 215.0)


def test_a_picture_says_its_edges_and_levels_in_words():
    shown = overlay(picture("Sagittal T1", sources=("detector", "prior")))
    assert shown.alt == (
        "Sagittal T1. anterior is on the left, posterior on the right, head at the top, feet at the bottom. "
        "Outlined: L1/L2, L2/L3."
    )
    assert overlay(picture("x")).alt.endswith("feet at the bottom.")


def test_the_letters_of_a_picture_stand_at_their_edges():
    html = study_page(
        study_content(
            overview=(replace(picture(), edges=("R", "L", "A", "P")),), crops={}
        )
    )
    assert re.findall(r'<b class="edge (\w+)" aria-hidden="true">(\w)</b>', html) == [
        ("left", "R"), ("right", "L"), ("top", "A"), ("bottom", "P"),
    ]  # fmt: skip
