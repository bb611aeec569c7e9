import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up import (
    HOSTILE,
    alternative,
    failed,
    graded,
    graded_as,
    identity,
    levels,
    many_studies,
    picture,
    run_content,
    run_record,
    series,
    study_content,
)

from spine_engine.anatomy import LEVELS, SEVERITIES, Condition, Level, prior
from spine_engine.errors import Reason, Warn
from spine_engine.report import words
from spine_engine.report.content import Outline, RunContent, RunStudy
from spine_engine.report.overlay import overlay
from spine_engine.report.run_page import run_page
from spine_engine.report.study_page import study_page
from spine_engine.report.timeline import MOST_STEPS, timeline
from spine_engine.results import ALL_ROW_NAMES, ROW_ORDER, Status

SECRET = "PAT_DOE"
"""In every path of the made-up contents."""


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes in order, and its text."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.attributes = [], [], []
        self._raw = 0
        self.feed(html)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.texts)).replace("\u202f", " ")

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._raw += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._raw -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._raw:
            self.texts.append(data)


def plain(html):
    return Page(html).text


# -- the page of a study -----------------------------------------------------------------------------------------------


def test_the_matrix_holds_every_grade_in_words_and_numbers():
    result = graded(lost=["left_subarticular_stenosis_l5_s1"], seed=5)
    html = study_page(study_content(result))
    matrix = html.split('<table class="matrix">')[1].split("</table>")[0]
    rows = re.findall(
        r"<tr><th scope=\"row\"><a[^>]*>(\S+)</a></th>(.*?)</tr>", matrix, re.DOTALL
    )
    assert [name for name, _ in rows] == ["L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"]
    for level, (_, row) in zip(LEVELS, rows, strict=True):
        cells = re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL)
        for condition, cell in zip(words.SHOWN_CONDITIONS, cells, strict=True):
            if (condition, level) == (
                Condition.LEFT_SUBARTICULAR_STENOSIS,
                Level.L5_S1,
            ):
                assert plain(cell).strip() == "Not graded (prior)"
                continue
            shares = result.probabilities(condition, level)
            likeliest = max(shares, key=lambda severity: shares[severity])
            told = ", ".join(
                f"{words.SEVERITY_NAMES[severity]} {words.percent(shares[severity])}"
                for severity in SEVERITIES
            ).replace("\u202f", " ")
            assert (
                plain(cell)
                .replace("Normal/ mild", "Normal/mild")
                .strip()
                .startswith(words.SEVERITY_NAMES[likeliest])
            )
            assert told in plain(cell)


def test_a_study_page_shows_everything_that_is_known():
    result = graded(
        warnings=(Warn.GAP, Warn.LOW_CONFIDENCE),
        levels=levels(("interpolated", *["detector"] * 4)),
    )
    page = Page(study_page(study_content(result)))
    for said in ("1.2.840.1", "Graded", "Demonstration.", "Slices missing", "gap", words.WARNINGS[Warn.GAP].advice,
                 "placed between its neighbours, confidence 97 %", "1.0, −20.0, 60.0 mm (LPS)", "Sagittal T2/STIR",
                 "Not used: Not a volume.", "TE 100 ms", "lumbar-small 0.2.2", "Finding the discs", "350 ms",
                 "519 ms in all", "All studies of the run"):  # fmt: skip
        assert said in page.text, said
    pictures = [
        value for tag, name, value in page.attributes if (tag, name) == ("img", "src")
    ]
    assert len(pictures) == 2 + 5 * 2
    assert all(address.startswith("data:image/png;base64,") for address in pictures)
    alts = [
        value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")
    ]
    assert alts[0].startswith(
        "Sagittal T2, slice 8 of 15. anterior is on the left, posterior on the right"
    )
    drawn = [
        value
        for tag, name, value in page.attributes
        if (tag, name) == ("polygon", "class") and value != "halo"
    ]
    assert drawn == ["detector", "detector", "interpolated", "prior", "detector"]


def test_the_demonstration_is_said_of_the_packaged_bundle_only():
    other = (("bundle", "lumbar-smaller 1.0"),)
    assert "Demonstration." in plain(study_page(study_content()))
    assert "Demonstration." not in plain(study_page(study_content(provenance=other)))
    assert "Demonstration." in plain(run_page(run_content()))
    bundle = {"name": "mine", "version": "1", "digest": "00"}
    assert "Demonstration." not in plain(run_page(run_content(bundle=bundle)))


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("status", [Status.PRIOR, Status.FAILED])
def test_a_study_without_grades_says_why_and_what_to_do(status, reason):
    result = failed(
        reason=reason,
        status=status,
        warnings=(Warn.NO_AXIAL_T2,),
        detail="KeyError at walk.py:7",
    )
    content = study_content(
        result,
        overview=(),
        crops={},
        no_pictures="There are no pictures: the files are gone.",
    )
    page = Page(study_page(content))
    said = words.REASONS[reason]
    for text in (words.STATUS_NAMES[status], said.title, str(reason), said.meaning.replace("`", " "),
                 said.advice.replace("`", " "), "the files are gone", "walk.py:7", "No axial T2"):  # fmt: skip
        assert re.sub(r"\s+", "", text) in re.sub(r"\s+", "", page.text), text
    assert not any(tag in ("img", "svg") for tag, _ in page.elements)
    assert 'class="matrix"' not in study_page(
        content
    )  # the prior is no finding of this study


def test_pictures_are_said_to_be_what_the_grader_saw_only_where_it_graded():
    said = "the grader saw, voxel for voxel"
    assert said in plain(study_page(study_content()))
    gap = failed(reason=Reason.GAP_AT_LEVEL, status=Status.PRIOR)
    assert said not in plain(study_page(study_content(gap)))


def test_levels_are_listed_where_there_are_no_pictures():
    content = study_content(overview=(), crops={}, no_pictures="Gone.")
    text = plain(study_page(content))
    assert "Gone." in text
    assert "1.0, −20.0, 60.0" in text
    assert "Spinal canal stenosis" in text


def test_outlines_are_drawn_in_the_patients_proportions():
    box = Outline(
        level=Level.L4_L5,
        points=((10.0, 20.0), (30.0, 20.0), (30.0, 40.0)),
        confidence=0.5,
        source="detector",
    )
    shown = overlay(
        replace(picture(width=100, height=50, pixel_mm=(2.0, 1.0)), outlines=(box,))
    )
    assert (shown.width, shown.height) == (1000.0, 1000.0)  # 100 x 100 mm
    assert shown.shapes[0].points == "100.0,400.0 300.0,400.0 300.0,800.0"
    assert (shown.shapes[0].anchor, shown.shapes[0].y) == ("start", 600.0)
    assert shown.shapes[0].x > 300
    assert shown.shapes[0].label.replace("\u202f", " ") == "L4/L5 50 %"
    right = Outline(
        level=Level.L4_L5,
        points=((70.0, 2.0), (99.0, 2.0), (99.0, 9.0)),
        confidence=1,
        source="prior",
    )
    moved = overlay(
        replace(picture(width=100, height=50, pixel_mm=(1.0, 1.0)), outlines=(right,))
    ).shapes[0]
    assert (moved.anchor, moved.x < 700) == ("end", True)


@pytest.mark.parametrize(("shift", "said"), [
    (1, "one level higher: what is called L5/S1 here would be L4/L5"),
    (-1, "one level lower: what is called L1/L2 here would be L2/L3"),
    (2, "2 levels higher: what is called L5/S1 here would be L3/L4"),
    (-6, "6 levels lower. The"),
])  # fmt: skip
def test_another_numbering_is_told_in_words_with_its_probability(shift, said):
    text = plain(study_page(study_content(graded(alternative=alternative(shift)))))
    assert said in text
    assert "31 %" in text


# -- untrusted text ----------------------------------------------------------------------------------------------------


def hostile_study(text):
    result = graded(text, series=series(evidence=text, path=text), warnings=(Warn.GAP,))
    return study_content(
        result,
        identity=replace(identity(text), series={text: text}),
        provenance=((text, text),),
        no_pictures=text,
    )


def hostile_run(text):
    studies = [
        RunStudy(result=result, page=text, finished=None, identity=identity(text))
        for result in (
            graded(text),
            failed(text + " ", Reason.INTERNAL_ERROR, detail=text),
        )
    ]
    run = run_record(
        bundle={"name": text, "version": text, "digest": text},
        devices={text: {text: text}},
        options={text: text},
        stage_seconds={text: 1.0},
        refused_files={"total": 1, "by_reason": {text: 1}},
        refused_examples=[{"path": text, "reason": text}],
        engine_version=text,
    )
    return RunContent(run=run, studies=studies, title=text)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    ("render", "content"), [(study_page, hostile_study), (run_page, hostile_run)]
)
def test_untrusted_text_stays_text(render, content, text):
    page, harmless = Page(render(content(text))), Page(render(content("harmless")))
    assert page.elements == harmless.elements  # no element and no attribute more
    assert page.text.count(re.sub(r"\s+", " ", text)) >= 8
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "src"):
            assert value.startswith(("./", "#", "data:image/png;base64,")), (tag, value)


def test_without_identity_there_is_no_path_and_no_person():
    pages = [study_page(study_content()), run_page(run_content())]
    assert not any(SECRET in html or "Doe^Jane" in html for html in pages)
    assert "given" in plain(pages[1])  # a series table was named
    text = plain(study_page(study_content(identity=identity())))
    assert text.count("Doe^Jane") == 5 + 1
    assert f"{SECRET}/t2" in text
    named = [replace(study, identity=identity()) for study in run_content().studies]
    text = plain(run_page(replace(run_content(), studies=named)))
    assert f"{SECRET}/notes.txt" in text
    assert "/s.csv" in text
    assert text.count("Doe^Jane") == 3


def test_pages_ask_for_nothing_outside_themselves():
    for html in (study_page(study_content()), run_page(run_content())):
        assert "http" not in re.sub(r"http-equiv", "", html)
        assert "@import" not in html
        assert "url(" not in html
        policy = next(
            value for _, name, value in Page(html).attributes if name == "content"
        )
        assert policy.startswith("default-src 'none'; script-src blob: 'sha256-")
        assert "connect-src" not in policy


# -- the page of a run -------------------------------------------------------------------------------------------------


def ids(html):
    table = html.split('id="triage"')[1].split("</table>")[0]
    return re.findall(r'<th scope="row">(?:<a [^>]*>)?<bdi>(.*?)</bdi>', table)


def test_studies_come_worst_first_and_those_without_grades_last():
    canal = "spinal_canal_stenosis_l4_l5"
    studies = [
        failed("a"), failed("b", Reason.NO_SAGITTAL, Status.PRIOR),
        replace(graded_as(**{canal: (300_000, 400_000, 300_000)}), study_id="c"),
        replace(graded_as(**{canal: (100_000, 200_000, 700_000)}), study_id="d"),
        replace(graded_as(**{canal: (300_000, 400_001, 299_999)}), study_id="e"),
        replace(graded_as(**{canal: (200_000, 500_000, 300_000)}), study_id="f"),
        replace(graded_as(**{canal: (0, 0, 1_000_000)}), study_id="g", not_assessed=(canal,)),
    ]  # fmt: skip
    html = run_page(run_content(studies))
    assert ids(html) == ["d", "f", "c", "e", "g", "b", "a"]
    text = plain(html)
    assert "70 % severe, canal L4/L5" in text
    assert "30 % severe, canal L4/L5 (likeliest moderate, 50 %)" in text
    assert "Damaged pixels corrupt_pixels" in text
    assert (
        "7 studies: 5 graded, 1 not gradable, 1 failed; 1 with a place whose likeliest grade is severe."
        in text
    )


def test_the_small_drawing_says_the_same_as_its_words():
    result = graded_as(
        spinal_canal_stenosis_l1_l2=(0, 0, 1_000_000),
        left_subarticular_stenosis_l5_s1=(0, 1_000_000, 0),
    )
    html = run_page(
        run_content(
            [replace(result, not_assessed=("right_neural_foraminal_narrowing_l3_l4",))]
        )
    )
    assert 'data-g="20000' + "00000" + "0-000" + "00000" + "00001" in html
    assert '<path class="severe" d="M0.5 0.5h0"/>' in html
    assert '<path class="moderate" d="M4.5 4.5h0"/>' in html
    assert '<path class="lost" d="M1.3 2.5h.4"/>' in html
    assert (
        "Severe: canal L1/L2. Moderate: left recess L5/S1. Normal or mild: 22. Not graded: 1."
        in html
    )


def test_severities_are_compared_with_the_priors_of_the_same_levels():
    lost = [
        name
        for name in ALL_ROW_NAMES
        if name.startswith("spinal") and not name.endswith("l4_l5")
    ]
    studies = [graded(str(i), i, lost) for i in range(4)]
    html = run_page(run_content(studies))
    table = html.split('<table class="spread">')[1].split("</table>")[0]
    numbers = [
        int(n.replace("&lt;", ""))
        for n in re.findall(r'class="number">(&lt;?;?\d+|\d+)\u202f%', table)
    ]
    numbers = np.array(numbers).reshape(5, 2, 3)
    row = ROW_ORDER.index((Condition.SPINAL_CANAL_STENOSIS, Level.L4_L5))
    assert numbers[0, 0] == pytest.approx(
        np.mean([study.rows[row] for study in studies], axis=0) / 1e4, abs=0.51
    )
    assert numbers[0, 1] == pytest.approx(
        100 * np.array(prior(*ROW_ORDER[row])), abs=0.51
    )
    left = [
        ROW_ORDER.index((Condition.LEFT_SUBARTICULAR_STENOSIS, level))
        for level in LEVELS
    ]
    assert numbers[4, 0] == pytest.approx(
        np.mean([study.rows[i] for study in studies for i in left], axis=0) / 1e4,
        abs=0.51,
    )
    assert numbers[4, 1] == pytest.approx(
        100 * np.mean([prior(*ROW_ORDER[i]) for i in left], axis=0), abs=0.51
    )
    assert "4 places" in plain(table)
    assert "20 places" in plain(table)


def test_failures_are_counted_explained_and_linked():
    studies = [failed(f"1.2.{i}", Reason.TIMEOUT) for i in range(120)] + [
        failed("9.9", Reason.UNREADABLE)
    ]
    html = run_page(run_content(studies))
    section = html.split('id="failures"')[1].split("</section>")[0]
    assert plain(section).index("Took too long") < plain(section).index("Not readable")
    assert "120 studies" in plain(section)
    assert words.REASONS[Reason.TIMEOUT].advice in plain(section)
    assert section.count("<li>") == 100 + 1
    assert "The first 100 of 120" in plain(section)
    assert 'href="./studies/120.html"' in section


def test_files_that_were_not_used_are_explained_even_by_codes_of_other_versions():
    counts = {"not_an_image": 2, "from_the_future": 7}
    html = run_page(run_content(refused_files={"total": 9, "by_reason": counts}))
    text = plain(html.split('id="files"')[1].split("</section>")[0])
    assert text.index("from_the_future") < text.index("Not an image")
    assert words.REASONS[Reason.NOT_AN_IMAGE].meaning in text


def test_the_memory_of_shared_models_is_no_workers():
    batched = run_page(run_content(options={"schedule": "batch"}))
    assert "Shared models 349 MiB" in plain(batched)
    assert "Worker 2" not in plain(batched)


def test_the_page_tells_what_the_run_did():
    text = plain(
        run_page(run_content(interrupted=True, units={"walked": 1200, "resumed": 3}))
    )
    for said in ("Interrupted.", "24.1 s", "1,200 studies in this run, 3 before", "2.5 studies a second", "bf16",
                 "openvino on CPU", "version 0.2.2", "Finding the discs", "79 %", "35.2 s", "29 ms", "66 MiB",
                 "762 MiB", "Worker 2", "schedule", "ab" * 32):  # fmt: skip
        assert said in text, said
    assert "9.0 studies a minute" in plain(run_page(run_content(studies_per_s=0.15)))


def test_a_run_that_holds_next_to_nothing_has_a_page_too():
    text = plain(run_page(RunContent(run={}, studies=[])))
    assert "The run found no study." in text
    assert "did not record when" in text


def test_the_timeline_counts_every_study_once():
    rng = np.random.default_rng(0)
    for span in (0.0, 0.4, 30.0, 3600.0, 40_000.0, 3e7):
        times = (1.76e9 + rng.uniform(0, span, 200)).tolist()
        shown = timeline([*times, None])
        assert sum(shown.counts) == 200
        assert len(shown.counts) <= MOST_STEPS
        assert shown.counts[0] > 0
        assert shown.counts[-1] > 0
        assert (
            len(shown.counts) - 1
            <= (max(times) - min(times)) / shown.step_s
            < len(shown.counts)
        )
        assert shown.longest_pause_s == pytest.approx(max(np.diff(np.sort(times))))
    assert timeline([None, None]) is None
    assert timeline([]) is None
    day = timeline([1.76e9, 1.76e9 + 90.0, 1.76e9 + 86_400.0])
    assert (day.first, day.last) == ("2025-10-09 08:53:20", "2025-10-10 08:53:20")
    assert timeline([1.76e9, 1.76e9 + 90.0]).last == "08:54:50"


def test_a_run_within_a_second_is_told_in_words():
    studies = [
        RunStudy(result=graded(), page=None, finished=1.76e9 + i / 100)
        for i in range(3)
    ]
    text = plain(run_page(replace(run_content(), studies=studies)))
    assert "3 studies done within 1 s, at 2025-10-09 08:53:20 UTC." in text


def test_a_thousand_studies_fit_into_the_page():
    html = run_page(run_content(list(many_studies(1000))))
    assert len(html.encode()) <= 1.5e6
    assert len(ids(html)) == 1000
