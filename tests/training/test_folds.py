"""One patient never lies on both sides of a training, whatever data it comes from."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from spine_training.folds import fold_of_study


def test_a_fold_is_the_beginning_of_the_sha_256_of_the_id():
    for study in ("100206310", "1012284084", "", "é", "1.2.840.113619"):
        first = hashlib.sha256(study.encode()).hexdigest()[:16]
        assert fold_of_study(study) == int(first, 16) % 5
        assert fold_of_study(study, 7) == int(first, 16) % 7
    assert [fold_of_study(x) for x in ("100206310", "1012284084", "a")] == [4, 4, 0]
    assert fold_of_study("anything", 1) == 0


def test_an_id_that_is_no_text_has_a_fold_and_no_fold_is_none():
    assert 0 <= fold_of_study("caf\udce9") < 5
    for folds in (0, -1):
        with pytest.raises(ValueError, match=f"folds must be at least 1, got {folds}"):
            fold_of_study("1", folds)


@pytest.fixture
def exam():
    pytest.importorskip("nibabel", reason="the training extra is not installed")
    from spine_training.detector.exam import Exam
    from spine_training.detector.truth import Column

    def make(name, source, patient):
        return Exam(
            name,
            source,
            patient,
            np.zeros((1, 1, 1), np.uint8),
            (1, 1, 1),
            Column((), ()),
        )

    return make


def test_exams_of_one_patient_share_a_fold_and_patients_are_dealt_out(exam):
    from spine_training.detector.data import fold_of

    names = {
        "VB1-02": "p",
        "VB1-03": "p",
        "VB1-06": "q",
        "VB1-07": "q",
        "VB1-08": "q",
        "VB1-16": "r",
    }
    exams = [exam(name, "VB1", patient) for name, patient in names.items()]
    exams += [exam(f"VB2-{k}", "VB2", f"VB2-{k}") for k in range(7)]
    fold = fold_of(exams[::-1])
    assert [fold[name] for name in names] == [0, 0, 1, 1, 1, 2]
    assert [fold[f"VB2-{k}"] for k in range(7)] == [0, 1, 2, 3, 4, 0, 1], (
        "each source is dealt from the first fold on"
    )


def test_rsna_s_exams_have_the_fold_of_their_study_whatever_its_name_or_contrast(exam):
    from spine_training.detector.data import fold_of

    exams = [
        exam(f"RSNA-{study}-{c}", "RSNA", study)
        for study in ("100206310", "a", "b")
        for c in ("t1", "t2")
    ]
    fold = fold_of(exams)
    assert fold["RSNA-100206310-t1"] == fold["RSNA-100206310-t2"] == 4
    assert fold["RSNA-a-t1"] == fold["RSNA-a-t2"] == 0


def test_training_and_held_out_exams_share_no_patient(exam):
    pytest.importorskip("torch", reason="the training extra is not installed")
    from spine_training.detector import train as training

    exams = [
        exam(name, "VB1", patient)
        for name, patient in (("a", "p"), ("b", "p"), ("c", "q"), ("d", "q"))
    ]
    marked = {id(one.volume): one.patient for one in exams}
    for fold, held in ((0, "p"), (1, "q")):
        chosen = training.TrainingExams.of(exams, fold)
        assert [marked[id(one.volume)] for one in chosen.held_out["VB1"]] == [held] * 2
        assert held not in [marked[id(one.volume)] for one in chosen.groups["VB1"]]
        assert chosen.data == f"2 VB1 exams, fold {fold} of 5 held out"
    everything = training.TrainingExams.of(exams, -1)
    assert (len(everything.groups["VB1"]), dict(everything.held_out)) == (4, {})
    assert everything.data == "4 VB1 exams"


def test_the_public_exams_of_one_patient_are_known_as_such():
    """Label volumes of these overlap (README of the data): 02 and 03, and 06, 07 and 08."""
    pytest.importorskip("nibabel", reason="the training extra is not installed")
    from spine_training.detector.data import SAME_PATIENT

    assert {(name, SAME_PATIENT.get(name, name)) for name in ("VB1-02", "VB1-03")} == {
        ("VB1-02", "VB1-02"),
        ("VB1-03", "VB1-02"),
    }
    assert (
        len({SAME_PATIENT.get(name, name) for name in ("VB1-06", "VB1-07", "VB1-08")})
        == 1
    )
    assert SAME_PATIENT.get("VB1-16", "VB1-16") == "VB1-16"


def test_a_grader_s_folds_hold_out_exactly_the_studies_of_that_fold():
    pytest.importorskip("torch", reason="the training extra is not installed")
    pytest.importorskip("pandas", reason="the training extra is not installed")
    from spine_training.grader.rsna_grids import RsnaSource

    every = tuple(str(n) for n in range(40))
    source = RsnaSource(Path("/set"), every, Path("net.onnx"))
    for fold in range(5):
        training, held_out = source.split(fold)
        assert [fold_of_study(name) for name in held_out.names] == [fold] * len(
            held_out.names
        )
        assert held_out.names
        assert fold not in [fold_of_study(name) for name in training.names]
        assert sorted([*training.names, *held_out.names]) == sorted(every)
        for part in (training, held_out):
            assert (part.root, part.detector) == (Path("/set"), Path("net.onnx"))
