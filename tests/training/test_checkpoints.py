"""Weights of any origin: wrappers, prefixes, safetensors; hostile files; what a misfit is told."""

import json
import os
import struct
import zipfile
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
safetensors_torch = pytest.importorskip(
    "safetensors.torch", reason="needs the export extra"
)

from torch import nn  # noqa: E402

from spine_engine.errors import UsageError  # noqa: E402
from spine_training.checkpoints import compare, differences, fill, nearest, read_weights  # noqa: E402
from spine_training.detector.model import LevelHeatmapNet, load_detector  # noqa: E402
from spine_training.grader.model import Grader, GraderConfig, load_grader, save_grader  # noqa: E402

STATE = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.ones(2)}
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def prefixed(prefix: str) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in STATE.items()}


def test_a_compressed_archive_is_refused_before_it_grows(tmp_path):
    torch.save({"w": torch.zeros(1_000_000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "net.pt", "w") as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "net.pt").stat().st_size < 100_000
    with pytest.raises(UsageError, match=r"net\.pt is compressed"):
        read_weights(tmp_path / "net.pt")


def test_safetensors_of_another_name_are_told_apart(tmp_path):
    safetensors_torch.save_file(STATE, tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"safetensors must be named \.safetensors"):
        read_weights(tmp_path / "net.pt")
    safetensors_torch.save_file(STATE, tmp_path / "net.SAFETENSORS")
    assert same(read_weights(tmp_path / "net.SAFETENSORS"), STATE)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE, "epoch": 3, "optimizer": {"state": {}}},
        {"net": STATE, "loss": 0.1},
        {"state_dict": STATE},
        {"ema": STATE, "model": OTHER},
        {"ema": 0.999, "model": STATE},
        {"ema": {}, "model": STATE},
        {"ema": {"module": "x", "decay": 0.99}, "net": STATE},
        {"model_state_dict": STATE, "epoch": 3},
        {"model": {"state_dict": STATE}},
        {"ema": {"n_averaged": torch.tensor(7), **prefixed("module.")}, "model": OTHER},
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod.module."),
        {"net": prefixed("_orig_mod.module.")},
    ],
)
def test_wrappers_and_prefixes_are_taken_off(content, tmp_path):
    torch.save(content, tmp_path / "net.pt")
    assert same(read_weights(tmp_path / "net.pt"), STATE)


class Settings(dict):
    """Like Lightning's AttributeDict: a mapping of a class that a reader does not have."""


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


LIGHTNING = {
    "epoch": 3,
    "pytorch-lightning_version": "2.4.0",
    "state_dict": {
        **prefixed("model."),
        "criterion.weight": torch.ones(3),
        "val_metric.total": torch.zeros(()),
    },
    "loops": {"fit_loop": {"state_dict": {}}},
    "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.4)}},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
    "lr_schedulers": [{"last_epoch": 3}],
    "hparams_name": "kwargs",
    "hyper_parameters": Settings(root=Path("/data"), args=Namespace(lr=1e-3)),
}
TIMM = {
    "epoch": 1,
    "arch": "x",
    "args": Namespace(model="x", lr=0.1),
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(2), "step": torch.ones(())}}},
    "state_dict": OTHER,
    "state_dict_ema": STATE,
    "metric": np.float64(0.4),
}


@pytest.mark.parametrize(
    "content",
    [
        LIGHTNING,
        TIMM,
        {"state_dict": OTHER, "ema_state_dict": STATE},
        {"model": OTHER, "model_ema": prefixed("module.")},
        {"model": OTHER, "ema": {"module": STATE, "decay": 0.99, "updates": 7}},
        {"model_weights": STATE, "best": np.float32(0.4), "folds": np.arange(5)},
        {"model_state_dict": STATE, "optimizer_state_dict": {"a": torch.zeros(9)}},
        {name: tensor.numpy() for name, tensor in STATE.items()},
        {"weights": {name: tensor.numpy() for name, tensor in STATE.items()}},
        defaultdict(dict, {"net": STATE}),
        {"model": defaultdict(list, STATE)},
        {"anything": {"at_all": STATE}, "epoch": 1},
        {"experiment": {"x": 3, "w": prefixed("module.")}},
        prefixed("model._orig_mod."),
        {"state_dict": prefixed("_orig_mod.model.")},
        {**prefixed("model."), "criterion.cuts": torch.zeros(2)},
        {
            "online_model.0.weight": OTHER["0.weight"],
            "online_model.0.bias": OTHER["0.bias"],
            **prefixed("ema_model."),
            "initted": torch.tensor(True),
            "step": torch.tensor(3),
        },
        {"where": Path("/a/b"), "args": SimpleNamespace(a=1), "model": STATE},
        {"model": STATE, "rng": np.random.default_rng(0).bit_generator.state},
        {"model": STATE, "metrics": {"loss": torch.tensor(0.1)}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "former format"])
def test_weights_are_found_in_whatever_people_wrap_them_in(content, zipped, tmp_path):
    torch.save(content, tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
    assert same(read_weights(tmp_path / "net.pt"), STATE)


def test_averaged_weights_win_unless_plain_ones_are_asked_for(tmp_path):
    torch.save(TIMM, tmp_path / "net.pt")
    assert same(read_weights(tmp_path / "net.pt"), STATE)
    assert same(read_weights(tmp_path / "net.pt", "ema"), STATE)
    assert same(read_weights(tmp_path / "net.pt", "plain"), OTHER)
    torch.save({"model": STATE}, tmp_path / "plain.pt")
    assert same(read_weights(tmp_path / "plain.pt", "plain"), STATE)
    with pytest.raises(UsageError, match=r"plain\.pt holds no averaged weights"):
        read_weights(tmp_path / "plain.pt", "ema")
    torch.save({"ema": STATE}, tmp_path / "ema.pt")
    with pytest.raises(UsageError, match=r"ema\.pt holds averaged weights alone"):
        read_weights(tmp_path / "ema.pt", "plain")


def test_several_sets_of_weights_are_not_chosen_from(tmp_path):
    torch.save({"fold0": STATE, "fold1": OTHER}, tmp_path / "net.pt")
    with pytest.raises(
        UsageError,
        match=r"several sets of weights \(fold0, fold1\): save one alone",
    ):
        read_weights(tmp_path / "net.pt")


def test_hyperparameters_may_hold_whole_modules(tmp_path):
    content = {**LIGHTNING, "hyper_parameters": {"criterion": nn.CrossEntropyLoss()}}
    torch.save(content, tmp_path / "net.pt")
    assert same(read_weights(tmp_path / "net.pt"), STATE)


def test_a_module_that_was_saved_whole_is_read_without_its_class(tmp_path):
    module = Small()
    torch.save(module, tmp_path / "net.pt")
    assert same(read_weights(tmp_path / "net.pt"), module.state_dict())


def test_safetensors_and_the_old_format_of_torch_are_read(tmp_path):
    safetensors_torch.save_file(prefixed("module."), tmp_path / "net.safetensors")
    assert same(read_weights(tmp_path / "net.safetensors"), STATE)
    torch.save(
        {"model": STATE}, tmp_path / "net.pth", _use_new_zipfile_serialization=False
    )
    assert same(read_weights(tmp_path / "net.pth"), STATE)


class Intruder:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_code_in_a_pickle_does_not_run(name, zipped, tmp_path):
    content = {"model": STATE, "extra": Intruder(tmp_path / "ran")}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        UsageError, match=f"{name} is no checkpoint that can be read safely: "
    ) as error:
        read_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(error.value)
    if name == "net.pt":
        assert "system" in str(error.value)
    with open(tmp_path / name, "rb") as file:
        torch.load(file, weights_only=False)  # the trap does work
    assert (tmp_path / "ran").exists()


def header(content: dict) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    {
        "garbage": b"\x80garbage" * 100,
        "short": b"abc",
        "huge header": struct.pack("<Q", 2**62) + b"{}" + bytes(64),
        "long header": struct.pack("<Q", 200) + b"{}",
        "truncated": header({"a": TENSOR}) + bytes(4),
        "huge tensor": header(
            {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
        )
        + bytes(64),
        "overflow": header(
            {"a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 8]}}
        )
        + bytes(8),
        "outside": header({"a": {**TENSOR, "data_offsets": [-8, 0]}}) + bytes(8),
        "overlap": header({"a": TENSOR, "b": TENSOR}) + bytes(8),
        "unknown type": header({"a": {**TENSOR, "dtype": "Q7"}}) + bytes(8),
        "no object": struct.pack("<Q", 2) + b"[]",
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_damaged_file_is_refused_in_one_line(content, suffix, tmp_path):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content[1])
    with pytest.raises(UsageError, match=f"net{suffix} is no checkpoint") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_truncated_checkpoint_is_refused(tmp_path):
    torch.save(STATE, tmp_path / "net.pt")
    content = (tmp_path / "net.pt").read_bytes()
    (tmp_path / "net.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        UsageError, match=r"net\.pt is no checkpoint that can be read safely"
    ):
        read_weights(tmp_path / "net.pt")


def test_what_is_no_file_or_empty_is_refused(tmp_path):
    (tmp_path / "empty.pt").touch()
    os.mkfifo(tmp_path / "pipe.pt")  # reading it would wait for ever
    for name, message in (
        ("missing.pt", "is no file"),
        ("", "is no file"),
        ("pipe.pt", "is no file"),
    ):
        with pytest.raises(UsageError, match=message):
            read_weights(tmp_path / name)
    with pytest.raises(
        UsageError, match=r"empty\.pt is no checkpoint: the file is empty"
    ):
        read_weights(tmp_path / "empty.pt")


def endless() -> dict:
    content = {"epoch": 1}
    content["model"] = content
    return content


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": {}},
        [1.0],
        torch.zeros(3),
        {"net": 3},
        {"model": {"a": torch.zeros(1), "b": "text"}},
        {"a": torch.empty(2**20, 2**20, device="meta")},
        endless(),
    ],
)
def test_a_file_without_plain_weights_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"net\.pt holds no weights"):
        read_weights(tmp_path / "net.pt")


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1), "module.a": torch.ones(1)}, tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"net\.pt holds a twice"):
        read_weights(tmp_path / "net.pt")


def test_a_mismatch_lists_the_first_keys_of_every_kind():
    wanted = {**{f"w{n}": torch.zeros(2) for n in range(9)}, "count": torch.tensor(1)}
    got = {
        "w0": torch.zeros(2),
        "w1": torch.zeros(3),
        "bad\n\x1b[2J": torch.zeros(1),
        "count": torch.tensor(1.0),
    }
    mismatch = compare(wanted, got)
    assert mismatch.count == 7 + 1 + 2
    assert mismatch.keys == 11
    assert str(mismatch) == (
        r"7 missing (w2, w3, w4, w5, w6, w7, and 1 more); 1 unexpected ('bad\n\x1b[2J'); "
        "2 of another shape (w1 [3] instead of [2], count torch.float32 instead of torch.int64)"
    )
    assert not compare(wanted, wanted).count
    assert str(compare(wanted, wanted)) == ""


def test_the_nearest_network_is_named_and_one_that_does_not_build_is_left_out():
    def broken() -> nn.Module:
        raise TypeError("no such layer")

    known = {
        "broken": broken,
        "two": lambda: nn.Linear(3, 2),
        "deep": lambda: nn.Sequential(*[nn.Linear(2, 2)] * 3),
    }
    got = {
        "0.weight": torch.zeros(2, 2),
        "0.bias": torch.zeros(2),
        "1.weight": torch.zeros(2, 3),
    }
    assert differences(got, known).keys() == {"two", "deep"}
    got |= {f"{n}.bias": torch.zeros(2) for n in (1, 2)}
    assert nearest(got, known) == "the nearest is deep: 2 of 6 keys differ"
    assert (
        nearest({"else": torch.zeros(1)}, known) == "none of 2 known networks is near"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(bad, tmp_path):
    state = {"weight": torch.tensor([[1.0, bad, 0.0]]), "bias": torch.zeros(1)}
    with pytest.raises(
        UsageError, match=r"1 tensors in net\.pt are not finite \(weight\)"
    ):
        fill(nn.Linear(3, 1), state, file=tmp_path / "net.pt", what="a line")


def test_half_precision_is_filled_as_float32_and_nothing_is_copied_that_is_float32(
    tmp_path,
):
    net = nn.Linear(3, 1)
    weight = torch.ones(1, 3)
    fill(
        net,
        {"weight": weight, "bias": torch.zeros(1, dtype=torch.bfloat16)},
        file=tmp_path,
        what="a line",
    )
    assert net.weight.data_ptr() == weight.data_ptr()
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert net.weight.requires_grad


def test_our_own_checkpoints_name_what_does_not_fit(tmp_path):
    path = tmp_path / "net.pt"
    grader = Grader(GraderConfig(backbone="narrow_conv_8", shape=(8, 12, 16)))
    save_grader(grader, path)
    content = torch.load(path)
    del content["model"]["heads.4.1.cutpoints"]
    torch.save(content, path)
    with pytest.raises(
        UsageError, match=r"net\.pt .* grader .*: 1 missing \(heads\.4\.1\.cutpoints\)$"
    ):
        load_grader(path)
    torch.save({"config": {"backbone": 3}, "model": {}}, path)
    with pytest.raises(UsageError, match=r"net\.pt holds no grader"):
        load_grader(path)
    state = LevelHeatmapNet().state_dict()
    state["more"] = torch.zeros(1)
    torch.save({"config": {}, "model": state}, path)
    with pytest.raises(
        UsageError, match=r"net\.pt .* detector: 1 unexpected \(more\)$"
    ):
        load_detector(path)
    torch.save({"config": {}, "model": 3}, path)
    with pytest.raises(
        UsageError, match="holds no weights of the level heat-map detector"
    ):
        load_detector(path)
