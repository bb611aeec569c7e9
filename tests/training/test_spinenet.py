"""The three networks of SpineNet V2: the published names and shapes, and checkpoints in their published form."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("torchvision", reason="needs the train extra")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from spine_engine.errors import UsageError  # noqa: E402
from spine_training.spinenet import SPINENETS, ConvBlock, UpBlock, load_spinenet  # noqa: E402

# Per network: parameters, number of tensors, an input and its output.
SIZES = {
    "vfr": (139_421_581, 414, (1, 1, 224, 224), (1, 13, 224, 224)),
    "appearance": (1_937_096, 39, (2, 1, 224, 224, 16), (2, 24)),
    "context": (510_337, 58, (2, 1, 256, 24), (2, 1, 256, 24)),
}
# A sample of the published names and shapes: every joint, and both ends.
SAMPLE = {
    "vfr": {
        "input_block.0.weight": (64, 1, 7, 7),
        "input_block.1.num_batches_tracked": (),
        "down_blocks.0.0.conv1.weight": (64, 64, 1, 1),
        "down_blocks.0.0.downsample.0.weight": (256, 64, 1, 1),
        "down_blocks.1.3.bn3.running_var": (512,),
        "down_blocks.2.5.conv2.weight": (256, 256, 3, 3),
        "down_blocks.3.0.downsample.1.running_mean": (2048,),
        "down_blocks.3.2.conv3.weight": (2048, 512, 1, 1),
        "bridge.bridge.0.conv.bias": (2048,),
        "bridge.bridge.1.conv.weight": (2048, 2048, 3, 3),
        "up_blocks.0.upsample.1.weight": (1024, 2048, 1, 1),
        "up_blocks.0.conv_block_1.conv.weight": (1024, 2048, 3, 3),
        "up_blocks.2.conv_block_2.bn.bias": (256,),
        "up_blocks.3.conv_block_1.conv.weight": (128, 192, 3, 3),
        "up_blocks.4.upsample.1.bias": (64,),
        "up_blocks.4.conv_block_1.conv.weight": (64, 65, 3, 3),
        "out.weight": (13, 64, 1, 1),
        "out.bias": (13,),
    },
    "appearance": {
        "conv1.weight": (8, 1, 3, 3, 1),
        "bnrm1.running_mean": (8,),
        "conv2.weight": (16, 8, 3, 3, 1),
        "conv3.weight": (32, 16, 3, 3, 3),
        "bnrm5.num_batches_tracked": (),
        "fc1.weight": (256, 6400),
        "fc2.weight": (24, 256),
    },
    "context": {
        "conv1.weight": (16, 1, 5, 3),
        "conv_mid.weight": (128, 128, 3, 3),
        "bnrm_mid.weight": (128,),
        "conv5.weight": (64, 128, 5, 3),
        "conv6.weight": (32, 128, 5, 3),
        "conv7.weight": (16, 64, 5, 3),
        "bnrm7.bias": (16,),
        "conv8.weight": (1, 16, 5, 3),
    },
}


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine a second thread only waits: five times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def on_meta(kind: str) -> "torch.nn.Module":
    with torch.device("meta"):
        return SPINENETS[kind]().eval()


def shapes(net: "torch.nn.Module") -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def network(kind: str) -> "torch.nn.Module":
    torch.manual_seed(0)
    return SPINENETS[kind]().eval()


@pytest.mark.parametrize("kind", SIZES)
def test_parameters_names_and_shapes(kind):
    parameters, tensors, given, wanted = SIZES[kind]
    net = on_meta(kind)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert len(net.state_dict()) == tensors
    assert SAMPLE[kind].items() <= shapes(net).items()
    assert net(torch.empty(given, device="meta")).shape == wanted


@pytest.mark.parametrize("kind", SIZES)
def test_every_published_tensor(kind, real_data):
    published = json.loads((real_data / "spinenet_state_dicts.json").read_text())[kind]
    assert shapes(on_meta(kind)) == {
        name: tuple(shape) for name, shape in published.items()
    }


def test_a_patch_costs_what_was_published():
    with FlopCounterMode(display=False) as counter:
        on_meta("vfr")(torch.empty(1, 1, 224, 224, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(69.6, abs=0.05)


@pytest.mark.parametrize("kind", SIZES)
def test_every_parameter_takes_part_in_the_output(kind):
    """A layer that the forward pass forgets would load all the same."""
    net = on_meta(kind).requires_grad_()
    net(torch.empty(SIZES[kind][2], device="meta")).sum().backward()
    assert [
        name for name, parameter in net.named_parameters() if parameter.grad is None
    ] == []


def test_a_block_ends_in_its_relu():
    block = ConvBlock(2, 8).eval()
    torch.nn.init.constant_(block.bn.bias, -0.5)
    with torch.no_grad():
        y = block(torch.rand(1, 2, 16, 16))
    assert float(y.min()) == 0
    assert float(y.max()) > 0


def test_the_skip_stands_after_the_channels_from_below():
    block = UpBlock(8, 3, 4).eval()
    x, skip = torch.rand(1, 8, 6, 6), torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        assert not torch.allclose(block(x, skip), block(x, skip + 1))
        block.conv_block_1.conv.weight[:, 4:] = 0
        assert torch.equal(block(x, skip), block(x, skip + 1))


def test_the_context_reaches_far_up_and_down_the_column():
    net = network("context")
    column = torch.rand(1, 1, 256, 24, generator=torch.Generator().manual_seed(1))
    touched = column.clone()
    touched[:, :, 128] += 1
    with torch.no_grad():
        rows = torch.nonzero(
            (net(touched) - net(column)).abs().amax(dim=(0, 1, 3)) > 0
        )[:, 0]
    assert int(rows.min()) < 128 - 60
    assert int(rows.max()) > 128 + 60


def test_a_vfr_checkpoint_loads_key_for_key_from_its_published_form(tmp_path):
    """Each tensor is one number of its own, repeated without being stored: 139 M of them in a small file."""
    state = {
        f"module.{name}": torch.tensor(number, dtype=tensor.dtype).expand(tensor.shape)
        for number, (name, tensor) in enumerate(on_meta("vfr").state_dict().items())
    }
    torch.save({"net": state, "loss": np.float64(0.1), "epoch": 3}, tmp_path / "vfr.pt")
    net = load_spinenet(tmp_path / "vfr.pt", "vfr")
    assert [
        float(tensor.reshape(-1)[-1]) for tensor in net.state_dict().values()
    ] == list(range(414))
    assert not net.training
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.slow
def test_a_vfr_that_was_saved_gives_the_same_maps(tmp_path):
    net = network("vfr")
    torch.save({"net": net.state_dict(), "loss": 0.1, "epoch": 3}, tmp_path / "vfr.pt")
    again = load_spinenet(tmp_path / "vfr.pt", "vfr")
    (tmp_path / "vfr.pt").unlink()
    patch = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        maps = net(patch)
        assert maps.shape == (1, 13, 64, 64)
        assert torch.equal(again(patch), maps)


@pytest.mark.parametrize("kind", ["appearance", "context"])
def test_a_plain_half_precision_state_dict_loads_as_float32(kind, tmp_path):
    net = network(kind)
    torch.save(net.half().state_dict(), tmp_path / "net.pt")
    again = load_spinenet(tmp_path / "net.pt", kind)
    assert all(
        torch.equal(tensor, net.float().state_dict()[name])
        for name, tensor in again.state_dict().items()
    )
    assert {tensor.dtype for tensor in again.state_dict().values()} == {
        torch.float32,
        torch.int64,
    }


def test_what_does_not_fit_is_named(tmp_path):
    state = network("context").state_dict()
    del state["conv_mid.weight"]
    state["conv9.weight"] = torch.zeros(1)
    state["conv8.bias"] = torch.zeros(2)
    torch.save({"net": state}, tmp_path / "net.pt")
    with pytest.raises(UsageError) as error:
        load_spinenet(tmp_path / "net.pt", "context")
    assert str(error.value) == (
        "the weights in net.pt are not those of the context network: 1 missing (conv_mid.weight); "
        "1 unexpected (conv9.weight); 1 of another shape (conv8.bias [2] instead of [1]); "
        "the nearest is context: 3 of 59 keys differ"
    )


def test_the_weights_of_another_network_give_a_short_message(tmp_path):
    torch.save(network("context").state_dict(), tmp_path / "net.pt")
    with pytest.raises(
        UsageError,
        match=r"414 missing \(input_block\.0\.weight, .* and 408 more\).* the nearest is context: 0 of",
    ) as error:
        load_spinenet(tmp_path / "net.pt", "vfr")
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("content", [{"config": {"shape": [1, 2]}}, [1.0], {"net": 3}])
def test_a_file_without_weights_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UsageError, match=r"other\.pt holds no weights"):
        load_spinenet(tmp_path / "other.pt", "vfr")


def test_a_file_that_would_run_code_or_is_damaged_is_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return exec, ("raise SystemExit",)

    torch.save({"net": {}, "extra": Runs()}, tmp_path / "code.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "empty.pt").touch()
    for name in ("code.pt", "text.pt", "empty.pt"):
        with pytest.raises(UsageError, match=f"{name} is no checkpoint"):
            load_spinenet(tmp_path / name, "vfr")
