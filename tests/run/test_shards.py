"""Runs over shards of a folder, and their results put together."""

import json

import pytest
from fakes import opened, start, write_exam

from spine_engine.dicom.discovery import WorkUnit
from spine_engine.errors import OutputError, UsageError
from spine_engine.run.shards import WHOLE, Shard, missing_shards

pytestmark = pytest.mark.usefixtures("in_process")


def nothing(root):
    return iter(())


def predictions(out):
    return (out / "predictions.csv").read_bytes()


def lines(out):
    found = [
        json.loads(line) for line in (out / "studies.jsonl").read_text().splitlines()
    ]
    return [{**line, "timings_ms": None} for line in found]


def record(out):
    return json.loads((out / "run.json").read_text())


def in_shards(root, tmp_path, count, **options):
    outs = [tmp_path / f"shard-{index}" for index in range(1, count + 1)]
    for index, out in enumerate(outs, 1):
        start(root, out, shard=Shard(index, count), **options).finish()
    return outs


@pytest.fixture
def exams(root):
    for index in range(40):
        write_exam(root, f"f{index}", f"1.{index}", "prior" if index == 7 else "grade")
    (root / "README").write_text("no exam")
    return root


@pytest.mark.parametrize("count", [1, 4, 16])
def test_merged_shards_give_the_files_of_one_run(exams, tmp_path, count):
    start(exams, tmp_path / "one").finish()
    outs = in_shards(exams, tmp_path, count)
    assert len(opened(exams)) == 80, "each exam once by the run, once by its shard"
    merged = start(exams, tmp_path / "all", discover=nothing, shards=outs)
    assert merged.finish().exit_code == 8, "one is a prior"
    assert predictions(tmp_path / "all") == predictions(tmp_path / "one")
    assert lines(tmp_path / "all") == lines(tmp_path / "one")
    for name in ("studies", "reasons", "refused_files", "refused_examples", "devices"):
        assert record(tmp_path / "all")[name] == record(tmp_path / "one")[name]
    assert len(opened(exams)) == 80, "nothing was graded again"


def test_a_study_spread_over_shards_is_graded_once_more_from_all_its_files(
    root, tmp_path
):
    write_exam(root, "a", "1.1", "part 1", "x")
    write_exam(root, "nameless", "1.1", "part 2", "y")
    for index in range(8):
        write_exam(root, f"f{index}", f"2.{index}")
    start(root, tmp_path / "one").finish()
    for count in range(2, 9):
        shards = [
            next(
                index
                for index in range(1, count + 1)
                if Shard(index, count).holds(WorkUnit(key, (), study_id))
            )
            for key, study_id in (("a", "1.1"), ("nameless", None))
        ]
        if shards[0] != shards[1]:
            break
    outs = in_shards(root, tmp_path, count)
    merged = start(root, tmp_path / "all", discover=nothing, shards=outs)
    assert [result.study_id for result in merged] == ["1.1"]
    assert predictions(tmp_path / "all") == predictions(tmp_path / "one")


def test_a_merged_folder_is_one_that_a_run_goes_on_with(exams, tmp_path):
    outs = in_shards(exams, tmp_path, 3)
    start(exams, tmp_path / "all", discover=nothing, shards=outs).finish()
    write_exam(exams, "new", "3.1")
    begun = len(opened(exams))
    start(exams, tmp_path / "all").finish()
    assert opened(exams)[begun:] == ["new"]


def test_merging_again_forgets_what_its_shard_no_longer_holds(exams, tmp_path):
    outs = in_shards(exams, tmp_path, 3)
    start(exams, tmp_path / "all", discover=nothing, shards=outs).finish()
    (exams / "f5" / "exam").unlink()
    outs = in_shards(exams, tmp_path, 3)
    start(exams, tmp_path / "all", discover=nothing, shards=outs).finish()
    start(exams, tmp_path / "one").finish()
    assert predictions(tmp_path / "all") == predictions(tmp_path / "one")


def test_a_missing_shard_is_told_and_ends_with_8(root, tmp_path):
    for index in range(12):
        write_exam(root, f"f{index}", f"1.{index}")
    outs = in_shards(root, tmp_path, 3)
    summary = start(
        root, tmp_path / "all", discover=nothing, shards=[outs[0], outs[2]]
    ).finish()
    assert summary.exit_code == 8
    assert record(tmp_path / "all")["missing_shards"] == ["2/3 was not given"]


def test_a_shard_that_was_stopped_is_told_and_ends_with_8(root, tmp_path):
    for index in range(12):
        write_exam(root, f"f{index}", f"1.{index}")
    outs = [tmp_path / "1", tmp_path / "2"]
    stopped = start(root, outs[0], shard=Shard(1, 2))
    for _ in stopped:
        stopped.stop()
    start(root, outs[1], shard=Shard(2, 2)).finish()
    merged = start(root, tmp_path / "all", discover=nothing, shards=outs)
    assert merged.finish().exit_code == 8
    assert merged.summary.missing_shards == [
        f"1/2 in {outs[0]} has not ended: resume its run"
    ]
    start(root, outs[0], shard=Shard(1, 2)).finish()
    start(root, tmp_path / "one").finish()
    merged = start(root, tmp_path / "all", discover=nothing, shards=outs)
    assert merged.finish().exit_code == 0
    assert predictions(tmp_path / "all") == predictions(tmp_path / "one")


def test_a_shard_without_studies_ends_with_0(root, tmp_path):
    write_exam(root, "f", "1.1")
    codes = [
        start(root, tmp_path / str(i), shard=Shard(i, 8)).finish().exit_code
        for i in range(1, 9)
    ]
    assert codes == [0] * 8


def test_shards_of_other_facts_are_refused(exams, tmp_path):
    outs = in_shards(exams, tmp_path, 2)
    start(exams, tmp_path / "other", shard=Shard(2, 2), precision="f32").finish()
    merged = start(
        exams, tmp_path / "all", discover=nothing, shards=[outs[0], tmp_path / "other"]
    )
    with pytest.raises(OutputError, match="made with precision f32, the others have"):
        merged.finish()


def test_two_shards_do_not_mix_in_one_folder(exams, out):
    start(exams, out, shard=Shard(1, 2)).finish()
    for other in (Shard(2, 2), Shard(1, 3), WHOLE):
        with pytest.raises(OutputError, match="made with shard 1/2"):
            start(exams, out, shard=other).finish()


def test_a_folder_without_results_is_no_shard(exams, tmp_path):
    merged = start(exams, tmp_path / "all", discover=nothing, shards=[tmp_path / "no"])
    with pytest.raises(OutputError, match="name the output folder of a run"):
        merged.finish()


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_every_unit_is_in_one_shard_and_they_are_about_equal(count):
    units = [WorkUnit(f"f{index}", (), f"1.2.{index}") for index in range(2000)]
    shards = [Shard(index, count) for index in range(1, count + 1)]
    sizes = [sum(shard.holds(unit) for unit in units) for shard in shards]
    assert sum(sizes) == 2000
    assert all(any(shard.holds(unit) for shard in shards) for unit in units)
    assert max(sizes) < 2000 / count + 6 * (2000 / count) ** 0.5


def test_the_study_decides_and_not_where_it_lies():
    shard = Shard(2, 5)
    for name in map(str, range(50)):
        here, there = WorkUnit("a/b", (), name), WorkUnit("elsewhere", (), name)
        assert shard.holds(here) == shard.holds(there)


def test_a_file_name_that_is_not_utf_8_has_a_shard():
    assert WHOLE.holds(WorkUnit("bad\udcff", (), None))


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1/100001"])
def test_a_shard_outside_its_set_is_refused(text):
    with pytest.raises(UsageError, match="with I from 1 to N"):
        Shard.parse(text)


@pytest.mark.parametrize("text", ["", "3", "a/b", "-1/4", "1/4/2", "1.0/4"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UsageError, match="takes I/N"):
        Shard.parse(text)


SLURM = {
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_ARRAY_TASK_MIN": "5",
    "SLURM_ARRAY_TASK_COUNT": "3",
}


@pytest.mark.parametrize(
    ("environment", "count", "shard"),
    [
        (SLURM, None, Shard(3, 3)),
        (SLURM, 3, Shard(3, 3)),
        ({"JOB_COMPLETION_INDEX": "0"}, 4, Shard(1, 4)),
        ({"JOB_COMPLETION_INDEX": "3"}, 4, Shard(4, 4)),
    ],
)
def test_the_environment_of_a_job_gives_its_shard(environment, count, shard):
    assert Shard.from_environment(count, environment) == shard


@pytest.mark.parametrize(
    ("environment", "count", "message"),
    [
        ({}, None, "give --shard I/N instead"),
        ({}, 4, "give --shard I/N instead"),
        (SLURM, 4, "the Slurm array has 3 tasks"),
        ({"JOB_COMPLETION_INDEX": "1"}, None, "needs --shards N"),
        ({"JOB_COMPLETION_INDEX": "4"}, 4, "with I from 1 to N"),
        ({"JOB_COMPLETION_INDEX": "x"}, 4, "must be a whole number, got 'x'"),
        ({**SLURM, "SLURM_ARRAY_TASK_ID": "9"}, None, "with I from 1 to N"),
    ],
)
def test_an_environment_without_a_shard_is_refused(environment, count, message):
    with pytest.raises(UsageError, match=message):
        Shard.from_environment(count, environment)


def test_what_is_missing_of_a_set():
    assert missing_shards([Shard(3, 4), Shard(1, 4)]) == [2, 4]
    assert missing_shards([WHOLE]) == []
    with pytest.raises(UsageError, match="shards of 3 and of 4"):
        missing_shards([Shard(1, 4), Shard(2, 3)])
    with pytest.raises(UsageError, match="shard 2/4 is given twice"):
        missing_shards([Shard(2, 4), Shard(1, 4), Shard(2, 4)])
