"""Graders of other families and wrappings: average pooling in float16, Lightning's names, the packaged detector."""

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("onnx", reason="needs the export extra")

from torch import nn  # noqa: E402

from spine_engine.bundle import Bundle  # noqa: E402
from spine_export.bundle import write_bundle  # noqa: E402
from spine_export.half import HalfArithmetic  # noqa: E402
from spine_export.pipelines import load_pipeline_grader  # noqa: E402
from spine_export.sources import BundleRecipe, PipelineConfig  # noqa: E402
from spine_training.grader.model import Grader, GraderConfig  # noqa: E402

SMALL = {"backbone": "narrow_conv_8", "shape": (8, 12, 16), "coordinates": False}


def test_average_pooling_without_a_kernel_in_float16_is_computed_in_float32_and_rounded():
    values = torch.rand(1, 2, 4, 4, 4).half()
    with HalfArithmetic():
        pooled = nn.AvgPool3d(2)(values)
    assert pooled.dtype is torch.float16
    assert torch.equal(pooled, nn.AvgPool3d(2)(values.float()).half())


@pytest.mark.parametrize("owner", ["model.", "net.", "model_ema.module."])
def test_the_network_of_a_lightning_module_is_found_beside_its_criterion(
    owner, tmp_path
):
    grader = Grader(GraderConfig(**SMALL))
    state = {f"{owner}{name}": tensor for name, tensor in grader.state_dict().items()}
    state["criterion.weight"] = torch.ones(3)
    if "ema" in owner:
        state |= {
            f"model.{name}": tensor + 1 for name, tensor in grader.state_dict().items()
        }
    torch.save({"state_dict": state, "epoch": 2}, tmp_path / "last.ckpt")
    described = PipelineConfig(shape=(8, 12, 16), backbone="narrow_conv_8")
    read = load_pipeline_grader(tmp_path / "last.ckpt", described).state_dict()
    assert all(
        torch.equal(tensor, read[name]) for name, tensor in grader.state_dict().items()
    )


@pytest.mark.slow
def test_a_level_grader_alone_makes_a_bundle_with_the_packaged_detector(tmp_path):
    torch.save(Grader(GraderConfig(**SMALL)).state_dict(), tmp_path / "g.pt")
    described = PipelineConfig(shape=(8, 12, 16), backbone="narrow_conv_8")
    recipe = BundleRecipe(
        name="g",
        version="1",
        grader=tmp_path / "g.pt",
        described={"grader": described},
        phantoms=1,
    )
    models = write_bundle(tmp_path / "bundle", recipe).manifest.models
    assert models.grader.recipe == "native"
    assert models.detector == Bundle.open().manifest.models.detector
