"""``spine-engine phantom``: what it asks for and what it refuses. Nothing is rendered here."""

import pytest


@pytest.fixture
def written(monkeypatch):
    """What was asked of the phantom; nothing is written."""
    asked = []

    def write_studies(folder, count, seed, *, shuffled, rle):
        asked.append((folder, count, seed, shuffled, rle))
        yield from range(count)

    monkeypatch.setattr("spine_engine.phantom.write_studies", write_studies)
    return asked


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ([], (3, 0, False, False)),
        (["--studies", 5, "--seed", 7], (5, 7, False, False)),
        (["--shuffled"], (3, 0, True, False)),
        (["--rle"], (3, 0, False, True)),
    ],
)
def test_phantoms_are_made_as_asked(call, written, tmp_path, words, asked):
    done = call("phantom", "--output", tmp_path / "new", *words)
    assert done.exit_code == 0, done.output
    assert written == [(tmp_path / "new", *asked)]
    assert done.stdout.splitlines()[-1] == f"{asked[0]} studies in {tmp_path / 'new'}"


def test_a_folder_must_be_new_or_empty(call, written, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name in (".", "file"):
        done = call("phantom", "--output", tmp_path / name)
        assert done.exit_code == 2
        assert (
            "is not empty; phantoms need a new or an empty folder: name another one"
            in done.stderr
        )
    assert written == []
    assert call("phantom", "--output", tmp_path / "empty").exit_code == 0


@pytest.mark.parametrize("words", [["--studies", 0], ["--seed", -1]])
def test_numbers_out_of_range_are_wrong_usage(call, written, tmp_path, words):
    assert call("phantom", "--output", tmp_path / "new", *words).exit_code == 2
    assert written == []


def test_a_folder_that_cannot_be_written_is_told_with_its_code(
    call, tmp_path, monkeypatch
):
    def full(*asked, **how):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr("spine_engine.phantom.write_studies", full)
    done = call("phantom", "--output", tmp_path / "new")
    assert done.exit_code == 6
    assert (
        f"cannot write to {tmp_path / 'new'}: No space left on device; free space or name another"
        in done.stderr
    )
