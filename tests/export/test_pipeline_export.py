"""Checkpoints of the two older pipelines, made here from their description alone, through import, export and runtimes.

Nothing of this project builds these models: plain PyTorch, timm_3d and spacecutter, named as the pipelines name them.
"""

from copy import deepcopy

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="needs the export extra: no export is shown"
)
onnx = pytest.importorskip("onnx", reason="needs the export extra: no export is shown")
pytest.importorskip("onnxscript", reason="needs the export extra: no export is shown")
timm_3d = pytest.importorskip(
    "timm_3d", reason="needs the export extra: no export is shown"
)
pytest.importorskip(
    "onnxruntime",
    reason="onnxruntime is not installed: exported files are not shown to run in it",
)

from spacecutter.models import LogisticCumulativeLink  # noqa: E402
from timm_3d.models.maxxvit import model_cfgs  # noqa: E402
from torch import nn  # noqa: E402

from spine_engine.anatomy import CONDITIONS  # noqa: E402
from spine_engine.backends import open_backend  # noqa: E402
from spine_engine.errors import UsageError  # noqa: E402
from spine_export import pipelines  # noqa: E402
from spine_export.onnx import export_module, grader_face  # noqa: E402
from spine_export.pipelines import load_pipeline_grader, open_grader  # noqa: E402
from spine_export.sources import PipelineConfig  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.meshgrid"
)  # timm_3d's relative positions call it so

PARITY = 1e-4

COATNET = """{"family": "maxxvit", "base": "coatnet_rmlp_3_rw", "overrides": {"embed_dim": [32, 32, 32, 64],
"depths": [1, 1, 2, 1], "stem_width": [8, 16], "transformer_cfg": {"rel_pos_dim": 16}}}"""


class Pipeline(nn.Module):
    """What both pipelines train; early files say ``encoder`` for ``backbone``."""

    def __init__(
        self, backbone: nn.Module, features: int, heads: int, name: str = "backbone"
    ) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, backbone)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(features, 1), LogisticCumulativeLink(3))
            for _ in range(heads)
        )

    def forward(self, x):
        features = getattr(self, self.name)(x)
        return torch.stack([head(features) for head in self.heads], dim=1)


def coatnet() -> Pipeline:
    config = deepcopy(model_cfgs["coatnet_rmlp_3_rw"])
    config.embed_dim, config.depths, config.stem_width = (
        (32, 32, 32, 64),
        (1, 1, 2, 1),
        (8, 16),
    )
    config.transformer_cfg.rel_pos_dim = 16
    backbone = timm_3d.models.MaxxVit(img_size=(32, 32, 32), cfg=config)
    backbone.head.fc = nn.Identity()
    return Pipeline(backbone, 64, 5)


def maxvit() -> Pipeline:
    backbone = timm_3d.create_model(
        "maxvit_rmlp_pico_rw_256", img_size=(64, 32, 32), global_pool="max"
    )
    backbone.head.fc = nn.Identity()
    return Pipeline(backbone, 256, 25)


def efficientnet() -> Pipeline:
    backbone = timm_3d.create_model("tinynet_e", global_pool="max")
    backbone.classifier = nn.Sequential(nn.LayerNorm(1280))
    return Pipeline(backbone, 1280, 25, "encoder")


def trained(net: Pipeline, shape) -> Pipeline:
    """Give it the statistics, heads and cut-points that a training leaves, so that every grade is met."""
    given = grids(12, shape)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.momentum = None  # one pass gives the statistics of its inputs
            if isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
        net.train()(given)
        features = getattr(net.eval(), net.name)(given)
        for head in net.heads:
            head[0].weight.normal_()
            latents = head[0](features)
            head[0].weight /= latents.std()
            head[0].bias[:] = -(features @ head[0].weight.T).mean()
            head[1].cutpoints[:] = torch.tensor([-0.5, 0.5]) + 0.2 * torch.randn(1)
    return net


def grids(count: int, shape) -> "torch.Tensor":
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, 3, 4, 4, 4, generator=generator) * torch.rand(
        count, 3, 1, 1, 1, generator=generator
    )
    return nn.functional.interpolate(coarse, shape)


CASES = {
    "coatnet": (coatnet, COATNET, "avg", (32, 32, 32)),
    "efficientnet": (efficientnet, "tinynet_e", "max", (32, 32, 64)),
    "maxvit": (maxvit, "maxvit_rmlp_pico_rw_256", "max", (64, 32, 32)),
}


def test_a_checkpoint_gives_its_own_answers_in_pytorch(tmp_path):
    make, backbone, pool, shape = CASES["coatnet"]
    torch.manual_seed(1)
    theirs = trained(make(), shape)
    torch.save(theirs.state_dict(), tmp_path / "net.pt")
    ours = open_grader(
        tmp_path / "net.pt", PipelineConfig(backbone=backbone, pool=pool, shape=shape)
    )
    assert ours.config.task == "level"
    assert not ours.training
    given = grids(3, shape)
    with torch.no_grad():
        wanted, found = theirs(given).numpy(), ours(given).numpy()
    assert found.shape == (3, 5, 3)
    assert np.abs(found - wanted).max() <= 1e-6
    assert wanted.std(axis=0).mean() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_either_pipeline_gives_its_own_answers_in_both_runtimes(
    case, tmp_path
):
    make, backbone, pool, shape = CASES[case]
    torch.manual_seed(1)
    theirs = trained(make(), shape)
    torch.save(theirs.state_dict(), tmp_path / "net.pt")
    ours = open_grader(
        tmp_path / "net.pt", PipelineConfig(backbone=backbone, pool=pool, shape=shape)
    )
    assert ours.config.task == (
        "level" if len(theirs.heads) == len(CONDITIONS) else "whole_study"
    )
    export_module(ours, tmp_path / "net.onnx", grader_face(ours))
    assert all(
        module.fused_attn for module in ours.modules() if hasattr(module, "fused_attn")
    )  # as it was
    for count in (1, 3):
        given = grids(count, shape)
        with torch.no_grad():
            wanted = theirs(given).numpy()
        assert wanted.shape == (count, len(theirs.heads), 3)
        for runtime in ("onnxruntime", "openvino"):
            backend = open_backend(tmp_path / "net.onnx", name=runtime, precision="f32")
            found = backend.run({"image": given.numpy()})["probabilities"]
            assert np.abs(found - wanted).max() <= PARITY, runtime
            backend.close()
    assert wanted.std(axis=0).mean() > 100 * PARITY  # the model does tell images apart


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("pipeline") / "net.pt"
    torch.save(coatnet().state_dict(), path)
    return path


def changed(checkpoint, tmp_path, **tensors):
    state = torch.load(checkpoint)
    state |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    torch.save(
        {name: tensor for name, tensor in state.items() if tensor is not None},
        tmp_path / "net.pt",
    )
    return tmp_path / "net.pt"


def test_cutpoints_that_do_not_ascend_are_refused(checkpoint, tmp_path):
    crossed = {
        "heads__1__1__cutpoints": torch.tensor([0.5, -0.25]),
        "heads__3__1__cutpoints": torch.tensor([1.0, 1.0]),
    }
    path = changed(checkpoint, tmp_path, **crossed)
    with pytest.raises(
        UsageError, match=r"not ascend \(head 1: 0\.5, -0\.25; head 3: 1\.0, 1\.0\)"
    ):
        load_pipeline_grader(path, PipelineConfig(backbone=COATNET, shape=(32, 32, 32)))
    path = changed(
        checkpoint, tmp_path, heads__1__1__cutpoints=torch.tensor([0.5, float("nan")])
    )
    with pytest.raises(UsageError, match=r"not finite \(1\.1\.cutpoints\)"):
        load_pipeline_grader(path, PipelineConfig(backbone=COATNET, shape=(32, 32, 32)))


def test_heads_that_are_not_5_or_25_and_foreign_tensors_are_refused(
    checkpoint, tmp_path
):
    gone = {
        f"heads__4__{name}": None for name in ("0__weight", "0__bias", "1__cutpoints")
    }
    with pytest.raises(UsageError, match="has 4 heads; want one of 5, 25"):
        load_pipeline_grader(
            changed(checkpoint, tmp_path, **gone),
            PipelineConfig(backbone=COATNET, shape=(32, 32, 32)),
        )
    path = changed(checkpoint, tmp_path, decoder__weight=torch.zeros(2))
    with pytest.raises(
        UsageError, match="1 tensors that belong to neither backbone nor heads"
    ):
        load_pipeline_grader(path, PipelineConfig(backbone=COATNET, shape=(32, 32, 32)))
    torch.save({"a.weight": torch.zeros(2)}, path)
    with pytest.raises(UsageError, match=r"no key begins with backbone\. or encoder\."):
        load_pipeline_grader(path, PipelineConfig(backbone=COATNET, shape=(32, 32, 32)))
    path = changed(checkpoint, tmp_path, heads__2__0__weight=torch.zeros(1, 63))
    with pytest.raises(
        UsageError,
        match=r"5 heads over 64 features: 1 of another shape \(2\.0\.weight \[1, 63\]",
    ):
        load_pipeline_grader(path, PipelineConfig(backbone=COATNET, shape=(32, 32, 32)))


def registered(name: str, path, heads: int = 5, **options):
    backbone = timm_3d.create_model(name, num_classes=0, **options)
    torch.save(Pipeline(backbone, backbone.num_features, heads).state_dict(), path)
    return path


@pytest.fixture
def few_models(monkeypatch):
    """Let each family have four models: building all of them takes half a minute."""
    really = timm_3d.list_models
    few = (
        "convnext_atto",
        "convnext_femto",
        "convnext_pico",
        "convnextv2_atto",
        "resnet10t",
        "resnet18",
    )
    monkeypatch.setattr(
        timm_3d,
        "list_models",
        lambda *args, **options: [n for n in really(*args, **options) if n in few],
    )


@pytest.mark.usefixtures("few_models")
def test_without_a_backbone_or_with_a_wrong_one_the_nearest_is_named(tmp_path):
    path = registered("convnext_atto", tmp_path / "net.pt")
    with pytest.raises(
        UsageError,
        match="does not say what its backbone is: the nearest is convnext_atto: 0 of 126",
    ):
        load_pipeline_grader(path, PipelineConfig(backbone=None, shape=(32, 32, 32)))
    with pytest.raises(
        UsageError,
        match=r"not those of the backbone resnet10t.*missing.*the nearest is convnext_atto",
    ):
        load_pipeline_grader(
            path, PipelineConfig(backbone="resnet10t", shape=(32, 32, 32))
        )
    with pytest.raises(
        UsageError,
        match=r"there is no backbone 'convnext_ato'; the nearest of .* convnext_atto",
    ):
        load_pipeline_grader(
            path, PipelineConfig(backbone="convnext_ato", shape=(32, 32, 32))
        )
    path = registered("coatnet_pico_rw_224", tmp_path / "net.pt", img_size=(32, 32, 32))
    state = torch.load(path)
    del state["backbone.norm.weight"]
    torch.save(state, path)
    with pytest.raises(
        UsageError,
        match=r"the nearest is coatnet_pico_rw: 1 of [0-9]+ keys differ; give the backbone",
    ):
        load_pipeline_grader(path, PipelineConfig(backbone=None, shape=(32, 32, 32)))


def test_another_grid_shows_in_the_position_tables_and_is_said(tmp_path, monkeypatch):
    assert list(pipelines._CUBES) == [32, 64, 96, 128, 160, 192, 224, 256]
    monkeypatch.setattr(pipelines, "_CUBES", (32, 64))  # each is a model to build
    path = registered("coatnet_pico_rw_224", tmp_path / "net.pt", img_size=(64, 64, 64))
    with pytest.raises(
        UsageError, match=r"for 32x32x32 voxels.*trained on another grid; 64x64x64 fits"
    ):
        load_pipeline_grader(
            path, PipelineConfig(backbone="coatnet_pico_rw_224", shape=(32, 32, 32))
        )
