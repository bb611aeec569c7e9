"""The curves of a training as it draws them: after every epoch, going on when resumed, and never in the way."""

import csv
import re
import sys
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from toy_task import OPTIONS, Toy, train  # noqa: E402

from spine_training import curves  # noqa: E402
from spine_training.fit import read_checkpoint  # noqa: E402


def drawn_epochs(svg):
    return int(re.search(r"Training, (\d+) epochs?", svg.read_text())[1])


def test_curves_are_drawn_after_every_epoch_and_go_on_when_resumed(tmp_path):
    pytest.importorskip("matplotlib")
    options, folder, seen, task = (
        replace(OPTIONS, epochs=3),
        tmp_path / "run",
        [],
        Toy(),
    )

    def watch(epoch):
        if (folder / "curves.svg").exists():
            seen.append(drawn_epochs(folder / "curves.svg"))
        if seen == [1, 2]:
            raise KeyboardInterrupt
        return {"metric": 1.0}

    task.watch = watch
    with pytest.raises(KeyboardInterrupt):
        train(task, folder, options)
    assert seen == [1, 2]
    again = Toy()
    again.watch = lambda epoch: {"metric": 1.0}
    train(again, folder, options, resume=True)
    assert drawn_epochs(folder / "curves.svg") == 3
    with (folder / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["metric"] for row in rows] == ["1", "1", "1"]
    rates = [float(row["learning_rate"]) for row in rows]
    assert 0 < rates[2] < rates[1] < options.learning_rate


def test_a_drawing_that_fails_is_said_once_and_stops_nothing(
    tmp_path, monkeypatch, capsys
):
    asked = []

    def fails(path, history):
        asked.append(path.name)
        raise ValueError("no [such] font")

    monkeypatch.setattr(curves, "write_picture", fails)
    train(Toy(), tmp_path / "failed", replace(OPTIONS, epochs=2))
    assert capsys.readouterr().err.count("no picture: ValueError: no [such] font") == 1
    assert asked == ["curves.svg"], "what has failed is not tried again"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    train(Toy(), tmp_path / "without", replace(OPTIONS, epochs=2))
    assert capsys.readouterr().err.count("matplotlib is not installed") == 1
    for folder in ("failed", "without"):
        assert read_checkpoint(tmp_path / folder / "last.pt")["epoch"] == 2
        assert (tmp_path / folder / "curves.csv").exists()
        assert not (tmp_path / folder / "curves.svg").exists()
