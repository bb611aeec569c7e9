"""The look of pictures: the same bytes whatever a user has set, text as text, matplotlib only when drawing."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from spine_engine.errors import OutputError
from spine_training.drawing import (
    WIDTH_IN,
    NoMatplotlibError,
    figure,
    panel_title,
    write_svg,
)


def drawn(title="A picture <of> $two$ lines"):
    with figure(2.0, title) as made:
        axes = made.subplots()
        axes.plot([0, 1, 2], [0.1234567, 1, 0.5], marker="o")
        axes.bar([0, 1], [1, 2], hatch="//")
        panel_title(axes, "Panel", "the value 0.1234567")
    return made


@pytest.fixture
def picture(tmp_path):
    pytest.importorskip("matplotlib")
    write_svg(drawn(), tmp_path / "picture.svg")
    return tmp_path / "picture.svg"


def test_text_stays_text_and_keeps_its_digits(picture):
    tree = ElementTree.parse(picture).getroot()
    texts = [
        "".join(each.itertext())
        for each in tree.iter("{http://www.w3.org/2000/svg}text")
    ]
    assert {"A picture <of> $two$ lines", "Panel", "the value 0.1234567"} <= set(texts)
    assert (
        tree.find("{http://www.w3.org/2000/svg}title").text
        == "A picture <of> $two$ lines"
    )
    assert tree.get("width") == f"{WIDTH_IN * 72:g}pt"


def test_nothing_unseen_is_written(picture):
    text = picture.read_text()
    shapes = re.sub(r"(?<=>)[^<]*", "", text.split("</defs>", 1)[1])
    assert not re.search(r"\d\.\d{3}", shapes), "coordinates beyond 0.01 points"
    assert "Matplotlib" not in text
    assert "dc:date" not in text
    assert text == "\n".join(line.strip() for line in text.splitlines()) + "\n"
    references = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    assert references
    assert references <= set(re.findall(r' id="([^"]+)"', text))


def test_the_same_input_gives_the_same_bytes_whatever_a_user_has_set(picture, tmp_path):
    import matplotlib

    with matplotlib.rc_context(
        {
            "font.size": 30,
            "svg.fonttype": "path",
            "axes.grid": True,
            "svg.hashsalt": None,
        }
    ):
        write_svg(drawn(), tmp_path / "again.svg")
        assert matplotlib.rcParams["font.size"] == 30, (
            "a user's settings are left as they were"
        )
    assert (tmp_path / "again.svg").read_bytes() == picture.read_bytes()


def test_another_process_writes_the_same_bytes(picture, tmp_path):
    code = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\nfrom test_drawing import *\n"
    code += "write_svg(drawn(), Path(sys.argv[2]))"
    command = [
        sys.executable,
        "-c",
        code,
        str(Path(__file__).parent),
        str(tmp_path / "other.svg"),
    ]
    subprocess.run(command, check=True, timeout=120)
    assert (tmp_path / "other.svg").read_bytes() == picture.read_bytes()


def test_a_missing_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        NoMatplotlibError,
        match=r"^no pictures: matplotlib is not installed; pip install .*\[train\]",
    ):
        drawn()


def test_a_folder_that_is_not_there_is_the_user_s(picture, tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write_svg(drawn(), tmp_path / "absent" / "picture.svg")


def test_matplotlib_is_loaded_when_something_is_drawn_and_not_before():
    modules = (
        "drawing",
        "curves",
        "evaluation.pictures",
        "evaluation.command",
        "detector.pictures",
    )
    code = f"import sys, {', '.join('spine_training.' + name for name in modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert not {"matplotlib", "torch"}.intersection(done.stdout.split())
