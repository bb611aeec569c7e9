"""``spine-engine tune``: which studies it walks, what it prints, and what it keeps. Nothing is measured here."""

import json
from dataclasses import astuple

import pytest

from spine_engine.bundle import Bundle
from spine_engine.cli.tune import studies_to_walk
from spine_engine.dicom import InputFile, RefusedFile, WorkUnit
from spine_engine.errors import BackendError, Reason
from spine_engine.options import RunOptions
from spine_engine.run.tuning import Measured, tuned


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Tuning with made-up rates over made-up units; returns what was asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("spine_engine.options.usable_cpus", lambda: 4)
    monkeypatch.setattr("spine_engine.run.tuning.usable_cpus", lambda: 4)
    asked = {
        "rates": {
            (4, "auto"): 2.0,
            (5, "auto"): 2.5,
            (2, "auto"): 1.0,
            (4, "f32"): None,
        },
        "units": 3,
    }

    def discover(folder):
        asked["discovered"] = folder
        yield RefusedFile("x", Reason.NOT_AN_IMAGE)
        yield WorkUnit("n", (InputFile("n/1", 1),), None)
        for number in range(asked["units"]):
            yield WorkUnit(f"u{number}", (InputFile(f"u{number}/1", 1),), str(number))

    def measure(workload, settings, *, rounds, done):
        asked.update(
            vars(workload),
            folder=workload.root,
            keys=[unit.key for unit in workload.units],
            rounds=rounds,
        )
        asked["units"] = len(workload.units)
        found = []
        for setting in settings:
            rate = asked["rates"][setting.workers, setting.precision]
            failure = None if rate else "no such precision"
            found.append(
                Measured(
                    setting=setting, rates=(rate,) if rate else (), failure=failure
                )
            )
            done(found[-1])
        return found

    monkeypatch.setattr("spine_engine.dicom.discover", discover)
    monkeypatch.setattr("spine_engine.run.tuning.measure", measure)
    return asked


LINES = [
    "4 workers with models of their own, 1 threads, auto:   2.00 studies/s",
    "5 workers with models of their own, 1 threads, auto:   2.50 studies/s",
    "2 workers with models of their own, 2 threads, auto:   1.00 studies/s",
    "4 workers with models of their own, 1 threads, f32: cannot run: no such precision",
]


def test_the_settings_are_told_as_they_are_measured_and_then_sorted_with_the_kept_one_marked(
    call, stage, tmp_path
):
    root = tmp_path / "exams"
    root.mkdir()
    done = call("tune", "--input", root, "--rounds", 2)
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == LINES
    assert done.stdout.splitlines() == [
        f"{LINES[1]:72} 1.25 x the default <- chosen",
        f"{LINES[0]:72} 1.00 x the default",
        f"{LINES[2]:72} 0.50 x the default",
        f"{LINES[3]:72} 0.00 x the default",
        "'spine-engine run' uses it from now on, with this bundle, backend and device.",
    ]
    assert (stage["folder"], stage["discovered"], stage["rounds"]) == (root, root, 2)
    assert stage["keys"] == ["u0", "u1", "u2"]
    assert stage["options"] == RunOptions()
    assert stage["bundle"].digest == Bundle.open().digest
    assert tuned(RunOptions(), Bundle.open()).workers == 5


def test_the_backend_and_device_named_are_measured_and_the_default_rounds_are_three(
    call, stage, tmp_path
):
    done = call(
        "tune",
        "--input",
        tmp_path,
        "--backend",
        "onnxruntime",
        "--device",
        "cpu",
        "--json",
    )
    assert stage["options"] == RunOptions(backend="onnxruntime", device="cpu")
    assert stage["rounds"] == 3
    record = json.loads(done.stdout)
    chosen = {"workers": 5, "threads": 1, "schedule": "study", "precision": "auto"}
    assert record["chosen"] == chosen
    assert record["measured"][1] == {"setting": chosen, "rates": [2.5], "failure": None}
    assert len(record["measured"]) == 4
    assert tuned(RunOptions(), Bundle.open()) == RunOptions()
    assert tuned(RunOptions(backend="onnxruntime"), Bundle.open()).workers == 5


def test_a_default_that_cannot_run_has_no_ratios(call, stage, tmp_path):
    stage["rates"][4, "auto"] = None
    done = call("tune", "--input", tmp_path)
    assert done.stdout.splitlines()[0] == f"{LINES[1]:72}  <- chosen"


def test_where_nothing_can_run_the_command_ends_with_its_code_and_keeps_nothing(
    call, stage, tmp_path
):
    stage["rates"] = dict.fromkeys(stage["rates"])
    done = call("tune", "--input", tmp_path)
    assert done.exit_code == BackendError.exit_code == 4
    assert done.stderr.splitlines()[-1] == "spine-engine: no such precision"
    assert tuned(RunOptions(), Bundle.open()) == RunOptions()


def test_a_cache_that_keeps_nothing_is_told(call, stage, tmp_path, monkeypatch):
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open" / "spine-mri-engine").mkdir(mode=0o777)
    (tmp_path / "open" / "spine-mri-engine").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "open"))
    done = call("tune", "--input", tmp_path)
    assert done.stdout.splitlines()[-1] == (
        "It could not be saved: there is no safe cache folder (see 'spine-engine doctor')."
    )


def test_at_most_64_studies_are_walked(call, stage, tmp_path):
    stage["units"] = 70
    call("tune", "--input", tmp_path)
    assert stage["keys"] == [f"u{number}" for number in range(64)]


def test_a_folder_without_a_study_is_wrong_usage(call, stage, tmp_path):
    stage["units"] = 0
    done = call("tune", "--input", tmp_path)
    assert done.exit_code == 2
    assert (
        f"{tmp_path} holds no DICOM study to tune with; name another, or none to use phantoms"
        in done.stderr
    )
    done = call("tune", "--input", tmp_path / "missing")
    assert done.exit_code == 2
    assert "does not exist" in done.stderr
    assert call("tune", "--rounds", 0).exit_code == 2


def test_without_a_folder_four_phantoms_are_made_and_taken_away_again(
    monkeypatch, tmp_path, capsys
):
    written = []

    def write_studies(folder, count, seed):
        written.append((folder, count, seed))
        yield folder

    monkeypatch.setattr("spine_engine.phantom.write_studies", write_studies)
    with studies_to_walk(None) as folder:
        assert folder.is_dir()
    assert written == [(folder, 4, 77)]
    assert not folder.exists()
    assert folder.name.startswith("spine-engine-tune-")
    assert capsys.readouterr() == ("", "making 4 phantom studies\n")
    with studies_to_walk(tmp_path) as given:
        assert given == tmp_path
    assert tmp_path.is_dir()


def test_settings_are_plain_values():
    from spine_engine.run.tuning import Setting

    assert astuple(
        Setting(workers=1, threads=2, schedule="study", precision="f32")
    ) == (1, 2, "study", "f32")
