"""Six vertebral centres: a table that is right in every row or refused in one line, and what detection gives."""

import numpy as np
import pytest

from spine_engine.anatomy import LEVELS
from spine_engine.detection import Detection, DiscLevel
from spine_engine.detection.levels import Vertebra
from spine_engine.errors import UsageError
from spine_engine.pipeline.centers import CenterTable, detected_centers
from spine_engine.study import Source

NAMES = ("L1", "L2", "L3", "L4", "L5", "S1")
ROWS = [f"7,{name},1.5,{n},{-35 * n}" for n, name in enumerate(NAMES)]


def table(tmp_path, *rows, header="study_id,level,x,y,z"):
    path = tmp_path / "centres.csv"
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def test_a_table_gives_six_places_a_study(tmp_path):
    read = CenterTable.from_csv(
        table(tmp_path, *reversed(ROWS), *(row.replace("7,", "8,", 1) for row in ROWS))
    )
    centers = read.of_study("7")
    np.testing.assert_array_equal(
        centers.places_mm, [[1.5, n, -35 * n] for n in range(6)]
    )
    assert set(centers.sources) == {"given"}
    assert read.of_study("8") is not None
    assert read.of_study("9") is None


def test_the_digest_tells_of_the_places_and_not_of_their_order(tmp_path):
    first = CenterTable.from_csv(table(tmp_path, *ROWS)).digest
    assert CenterTable.from_csv(table(tmp_path, *reversed(ROWS))).digest == first
    assert (
        CenterTable.from_csv(table(tmp_path, *ROWS[:5], "7,S1,1.5,5,-175.5")).digest
        != first
    )
    assert CenterTable().digest == "none"


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (ROWS[:5], "lack S1 of study 7"),
        ([*ROWS, ROWS[0]], "line 8 .* second L1"),
        ([*ROWS[:5], "7,S2,1,2,3"], "line 7 .* 'S2'"),
        ([*ROWS[:5], "7,S1,1,2"], "line 7 .* 4 entries"),
        ([*ROWS[:5], "7,S1,1,2,three"], "line 7 .* no number"),
        ([*ROWS[:5], "7,S1,1,2,nan"], "line 7 .* beyond"),
        ([*ROWS[:5], "7,S1,1,2,1e9"], "line 7 .* beyond"),
        ([*ROWS[:5], '7,"S1,1,2,3'], "no CSV file"),
    ],
)
def test_a_wrong_row_is_refused_in_one_line(tmp_path, rows, why):
    with pytest.raises(UsageError, match=why) as caught:
        CenterTable.from_csv(table(tmp_path, *rows))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", ["study_id,level,z,y,x", "study_id;level;x;y;z", ""])
def test_another_header_is_refused(tmp_path, header):
    with pytest.raises(UsageError, match="want study_id,level,x,y,z"):
        CenterTable.from_csv(table(tmp_path, *ROWS, header=header))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read the centres"):
        CenterTable.from_csv(tmp_path / "none.csv")


def detection(*bodies):
    levels = {
        level: DiscLevel(
            level,
            np.array([0.0, 2.0 * n, -40.0 * n]),
            np.eye(3),
            np.ones(3),
            0.9,
            Source.DETECTOR,
        )
        for n, level in enumerate(LEVELS)
    }
    return Detection(
        levels,
        tuple(Vertebra(name, np.array(place), 0.8) for name, place in bodies),
        (),
    )


def test_bodies_that_were_found_go_before_the_middle_of_two_discs():
    centers = detected_centers(
        detection(("l3", (1.0, 3.5, -61.0)), ("t12", (9.0, 9.0, 9.0))), named=False
    )
    assert centers.places_mm.tolist() == [
        [0, -1, 20],
        [0, 1, -20],
        [1, 3.5, -61],
        [0, 5, -100],
        [0, 7, -140],
        [0, 9, -180],
    ]
    assert [str(source) for source in centers.sources] == [
        "beyond_disc", "between_discs", "body", "between_discs", "between_discs", "beyond_disc",
    ]  # fmt: skip


def test_a_detector_that_names_vertebrae_must_find_all_six():
    six = [(name.lower(), (1.0, 2.0, -30.0 * n)) for n, name in enumerate(NAMES)]
    centers = detected_centers(detection(*six), named=True)
    np.testing.assert_array_equal(centers.places_mm, [place for _, place in six])
    assert set(centers.sources) == {"body"}
    assert detected_centers(detection(*six[:5]), named=True) is None
