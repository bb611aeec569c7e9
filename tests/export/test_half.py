"""Half arithmetic on a CPU: the numbers of float16 itself, overflow included, in float32's time."""

import pytest

torch = pytest.importorskip(
    "torch", reason="needs the export extra: no export is shown"
)
pytest.importorskip("timm_3d", reason="needs the export extra: no export is shown")

from torch import nn  # noqa: E402

from spine_export.half import HalfArithmetic  # noqa: E402
from spine_export.verify import TorchRunner  # noqa: E402


class Products(nn.Module):
    """Every kind of product, of the sizes that float16 kernels take in reasonable time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 4, 3, padding=1)
        self.flat = nn.Conv2d(4, 4, 3, padding=1)
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        y = torch.relu(self.conv(x))
        y = self.flat(y[:, :, 0]) + y[:, :, 1]
        y = self.linear(y)
        return torch.bmm(y[:, 0], y[:, 1].transpose(1, 2)) @ y[:, 2]


def test_products_are_rounded_as_in_float16():
    torch.manual_seed(0)
    net, x = Products().half().eval(), torch.rand(3, 2, 4, 5, 6).half()
    with torch.inference_mode():
        native = net(x)
        with HalfArithmetic():
            found = net(x)
        wide = net.float()(x.float())
    assert found.dtype is torch.float16
    step = float((native.abs().max() / 1024).float())  # float16 has eleven bits
    assert float((found - native).abs().max()) <= 2 * step
    assert float((found.float() - wide).abs().max()) > 0


def test_what_overflows_in_float16_overflows_here():
    runner = TorchRunner(nn.Conv2d(1, 1, 1), "y", half=True)
    image = torch.full((1, 1, 2, 2), 6e4).numpy()
    runner_of_ones = TorchRunner(_ones(), "y", half=True)
    assert torch.isfinite(torch.from_numpy(runner.run({"x": image * 0})["y"])).all()
    assert torch.isinf(torch.from_numpy(runner_of_ones.run({"x": image})["y"])).all()
    plain = TorchRunner(_ones(), "y").run({"x": image})["y"]
    assert torch.isfinite(torch.from_numpy(plain)).all()


def _ones() -> nn.Module:
    net = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(net.weight, 2.0)
    return net
