"""The small things that a run's page says: what sorts and filters, bounds of lists, time, memory and options."""

import re
from dataclasses import replace

import pytest
from made_up import (
    failed,
    graded,
    graded_as,
    identity,
    levels,
    run_content,
)
from page_text import section, text_of

from spine_engine.errors import Reason, Warn
from spine_engine.report.content import RunStudy
from spine_engine.report.page import write_page
from spine_engine.report.run_page import run_page
from spine_engine.report.timeline import timeline
from spine_engine.results import Status

# -- a run -------------------------------------------------------------------------------------------------------------


def rows_of(html):
    table = html.split('id="triage"')[1].split("</table>")[0]
    return re.findall(r"<tr (data-s=.*?)</tr>", table, re.DOTALL)


def test_rows_carry_what_the_table_sorts_and_filters_by():
    found = levels(
        ("detector", "interpolated", "prior", "detector", "detector"), confidence=0.9
    )
    made = [
        graded(
            "1",
            rows=((0, 0, 1_000_000),) * 25,
            levels=found,
            warnings=(Warn.GAP, Warn.UNEVEN),
        ),
        failed("2", Reason.TIMEOUT),
    ]
    first, second = rows_of(run_page(run_content(made)))
    assert first.startswith(
        f'data-s="graded" data-g="{"2" * 25}" data-c="0.0000" data-w="gap uneven"'
    )
    assert second.startswith(f'data-s="failed" data-g="{"-" * 25}">')
    assert "2 not found" in text_of(first), (
        "an interpolated level was not found in the images either"
    )
    assert "Slices missing, Uneven slice distances" in text_of(first)
    assert "0 %" in text_of(first)
    sure, unsure = levels(confidence=0.98), levels(("prior",) * 5)
    (row,) = rows_of(run_page(run_content([graded("1", levels=sure)])))
    assert 'data-c="0.7800"' in row
    assert "78 %" in text_of(row), "of the least sure level"
    assert "not found" not in text_of(row)
    (row,) = rows_of(run_page(run_content([graded("1", levels=unsure)])))
    assert text_of(row).count("not found") == 1


def test_studies_that_are_equally_bad_come_by_id_and_prior_ones_before_failed_ones():
    same = graded_as(spinal_canal_stenosis_l4_l5=(0, 0, 1_000_000))
    studies = [
        failed("a"), replace(same, study_id="c"), failed("z", Reason.NOT_LOCALIZED, Status.PRIOR),
        replace(same, study_id="b"), failed("9"), failed("y", Reason.NOT_LOCALIZED, Status.PRIOR),
    ]  # fmt: skip
    html = run_page(run_content(studies))
    assert re.findall(
        r"<bdi>(\w+)</bdi>", html.split('id="triage"')[1].split("</table>")[0]
    ) == list("bcyz9a")


def test_filters_offer_what_occurs_the_commonest_warning_first():
    made = [
        graded("1", warnings=(Warn.UNEVEN,)),
        graded("2", warnings=(Warn.UNEVEN, Warn.GAP)),
        failed("3", Reason.TIMEOUT),
    ]
    html = run_page(run_content(made))
    options = dict(re.findall(r'<select id="(\w+)">(.*?)</select>', html))
    assert re.findall(r'<option value="(\w*)">(.*?)</option>', options["status"]) == [
        ("", "any"), ("graded", "Graded"), ("failed", "Failed"),
    ]  # fmt: skip
    assert re.findall(r'<option value="(\w*)">(.*?)</option>', options["warning"]) == [
        ("", "any"), ("uneven", "Uneven slice distances (2)"), ("gap", "Slices missing (1)"),
    ]  # fmt: skip
    assert re.findall(r'<option value="(\d)">(.*?)</option>', options["condition"]) == [
        ("0", "Spinal canal stenosis"), ("1", "Right neural foraminal narrowing"),
        ("2", "Left neural foraminal narrowing"), ("3", "Right subarticular stenosis"),
        ("4", "Left subarticular stenosis"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "listed", "told"), [(100, 100, False), (101, 100, True)]
)
def test_a_reason_links_a_hundred_studies_and_counts_all(number, listed, told):
    html = section(
        run_page(
            run_content([failed(f"1.{i:03}", Reason.TIMEOUT) for i in range(number)])
        ),
        "failures",
    )
    assert html.count("<li>") == listed
    assert (f"The first 100 of {number}" in text_of(html)) is told
    assert f"{number} studies" in text_of(html)


@pytest.mark.parametrize(("number", "opened"), [(5, True), (6, False)])
def test_few_studies_of_a_reason_are_shown_at_once(number, opened):
    html = section(
        run_page(
            run_content([failed(f"1.{i}", Reason.TIMEOUT) for i in range(number)])
        ),
        "failures",
    )
    assert ("<details open>" in html) is opened


def sentence(studies, **record):
    return re.search(
        r'<p class="lead">(.*?)</p>', run_page(run_content(studies, **record))
    )[1]


def test_the_sentence_of_a_run():
    normal, severe = (
        graded_as(),
        graded_as(spinal_canal_stenosis_l4_l5=(0, 0, 1_000_000)),
    )
    assert sentence([normal]) == "1 study, all graded."
    assert sentence([normal, replace(severe, study_id="2")]) == (
        "2 studies, all graded; 1 with a place whose likeliest grade is severe."
    )
    assert sentence([normal, failed("3")], interrupted=True) == (
        "2 studies: 1 graded, 1 failed. The run was interrupted; the same command resumes it."
    )


def tiles(**record):
    html = (
        run_page(run_content(**record)).split('<dl class="tiles">')[1].split("</dl>")[0]
    )
    found = re.findall(r"<dt>(.*?)</dt><dd>(.*?) <small>(.*?)</small>", html)
    return {
        name: (text_of(value).strip(), text_of(remark).strip())
        for name, value, remark in found
    }


def test_the_tiles_tell_duration_speed_precision_and_bundle():
    devices = {
        "detector": {"backend": "openvino", "device": "CPU", "precision": "bf16"},
        "grader": {"backend": "tensorrt", "device": "cuda:0", "precision": "fp16"},
    }
    units = {"walked": 1, "resumed": 1200}
    assert tiles(devices=devices, units=units, wall_s=7260.0, studies_per_s=1.0) == {
        "Duration": ("2 h 01 min", "1 study in this run, 1,200 before"),
        "Speed": ("1.0", "studies a second"),
        "Precision": ("bf16, fp16", "openvino on CPU, tensorrt on cuda:0"),
        "Bundle": ("lumbar-small", "version 0.2.2"),
    }
    found = tiles(devices={}, studies_per_s=0.99)
    assert found["Speed"] == ("59.4", "studies a minute")
    assert found["Precision"] == ("none", "no model was needed")
    assert found["Duration"] == ("24.1 s", "3 studies in this run")


def facts(html):
    return {
        text_of(name).strip(): text_of(value).strip()
        for name, value in re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", html)
    }


def test_options_are_told_but_no_text_that_may_be_a_path():
    asked = {
        "workers": 1200, "timeout_s": 1.5, "detector": True, "recursive": False, "max_memory": None,
        "schedule": "batch", "backend": "openvino", "device": "cuda:0", "precision": "bf16", "bundle": "/home/PAT",
    }  # fmt: skip
    said = facts(section(run_page(run_content(options=asked)), "made"))
    assert {name: said[name] for name in asked} == {
        "workers": "1,200", "timeout_s": "1.5", "detector": "yes", "recursive": "no", "max_memory": "left open",
        "schedule": "batch", "backend": "openvino", "device": "cuda:0", "precision": "bf16", "bundle": "given",
    }  # fmt: skip
    content = run_content(options=asked)
    named = replace(
        content, studies=[replace(one, identity=identity()) for one in content.studies]
    )
    assert facts(section(run_page(named), "made"))["bundle"] == "/home/PAT"
    assert said["Detector"] == "backend openvino, device CPU, precision bf16"


def test_memory_is_told_process_by_process():
    def told(**record):
        table = (
            run_page(run_content(**record))
            .split('<table class="plain memory">')[1]
            .split("</table>")[0]
        )
        return re.findall(
            r'<th scope="row">(.*?)</th><td class="number">(.*?) MiB', table
        )

    mib = 1024 * 1024
    peak = {"main": 10 * mib, "workers": [20 * mib, 2000 * mib], "total": 2030 * mib}
    assert told(peak_memory_bytes=peak) == [
        ("Main process", "10"), ("Worker 1", "20"), ("Worker 2", "2,000"), ("Together", "2,030"),
    ]  # fmt: skip
    assert told(peak_memory_bytes=peak, options={"schedule": "batch"})[2] == (
        "Shared models",
        "2,000",
    )
    assert told(peak_memory_bytes={}, options={"schedule": "batch"}) == [
        ("Main process", "0"),
        ("Together", "0"),
    ]


def test_stages_come_in_the_order_of_a_study_with_their_time_a_study():
    seconds = {"grade": 10.0, "read": 30.0, "zeta": 40.0, "alpha": 20.0}
    html = run_page(run_content(stage_seconds=seconds, units={"walked": 40}))
    table = html.split('<table class="stages">')[1].split("</table>")[0]
    rows = re.findall(
        r'<th scope="row">(.*?)</th>.*?</i> (.*?)</td><td class="number">(.*?)</td><td class="number">(.*?)</td>',
        table,
    )
    assert [tuple(cell.replace("\u202f", " ") for cell in row) for row in rows] == [
        ("Reading the images", "30 %", "30 s", "750 ms"), ("Grading", "10 %", "10 s", "250 ms"),
        ("alpha", "20 %", "20 s", "500 ms"), ("zeta", "40 %", "40 s", "1 s"),
    ]  # fmt: skip


def test_files_not_used_come_commonest_first_and_their_paths_only_with_identities():
    counts = {"unreadable": 1, "not_an_image": 1200}
    examples = [
        {"path": "a.txt", "reason": "not_an_image"},
        {"path": "b", "reason": "unreadable"},
    ]
    content = run_content(
        refused_files={"total": 1201, "by_reason": counts}, refused_examples=examples
    )
    html = section(run_page(content), "files")
    assert re.findall(r"<code>(\w+)</code></th><td[^>]*>(.*?)</td>", html) == [
        ("not_an_image", "1,200"), ("unreadable", "1"),
    ]  # fmt: skip
    assert "a.txt" not in html
    named = replace(content, studies=[replace(content.studies[0], identity=identity())])
    assert re.findall(r"<bdi>(.*?)</bdi>", section(run_page(named), "files")) == [
        "a.txt",
        "b",
    ]


def test_one_named_study_is_enough_for_names_and_only_it_bears_one():
    content = run_content()
    studies = [
        content.studies[0],
        replace(content.studies[1], identity=identity("Roe^R")),
    ]
    html = run_page(replace(content, studies=studies))
    assert html.count("Roe^R") == 1
    assert html.count('class="who"') == 1


# -- when --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "step"),
    [
        (0, 1),
        (59, 1),
        (60, 2),
        (119, 2),
        (120, 5),
        (599, 10),
        (600, 15),
        (86_399, 1800),
        (86_400 * 59, 86_400),
    ],
)
def test_a_timeline_takes_the_shortest_step_with_at_most_sixty_of_them(span, step):
    shown = timeline([1.76e9, 1.76e9 + span])
    assert (shown.step_s, len(shown.counts)) == (step, span // step + 1)


def test_a_timeline_tells_the_busiest_step_and_the_longest_pause():
    shown = timeline([1000.0, None, 1000.4, 1000.9, 1025.0, 1031.5])
    assert shown.step_s == 1
    assert shown.counts[:2] == (3, 0)
    assert shown.most == 180.0
    assert shown.longest_pause_s == pytest.approx(24.1)
    slow = timeline([0.0, 1.0, 2.0, 300.0])
    assert (slow.step_s, slow.most) == (10, 18.0)  # three in ten seconds
    years = timeline([0.0, 86_400 * 365.0])
    assert len(years.counts) <= 60
    assert years.step_s == 525_601  # 31,536,001 s in sixty steps


def test_studies_without_a_time_are_counted_beside_the_timeline():
    studies = [
        RunStudy(
            result=graded(str(k)),
            page=None,
            finished=None if k == 0 else 1.76e9 + 9 * k,
        )
        for k in range(4)
    ]
    text = text_of(run_page(replace(run_content(), studies=studies)))
    assert (
        "Studies done in each 1 s. Busiest: 60.0 a minute; longest pause: 9 s. 3 of 4 studies have a time."
        in text
    )
    studies = studies[1:]
    assert "have a time" not in text_of(
        run_page(replace(run_content(), studies=studies))
    )


# -- a page is whole ---------------------------------------------------------------------------------------------------


def test_a_page_that_is_cut_off_while_it_is_written_leaves_the_earlier_one_whole(
    tmp_path, monkeypatch
):
    page = tmp_path / "index.html"
    write_page(page, "the earlier one")
    path_type, written = type(page), []
    write_text = path_type.write_text

    def full_disk(path, text, **more):
        written.append(path.name)
        write_text(path, text[:5], **more)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(path_type, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_page(page, "a new page")
    monkeypatch.undo()
    assert written != ["index.html"]
    assert page.read_text() == "the earlier one"
    write_page(page, "a new page")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "index.html": "a new page"
    }
