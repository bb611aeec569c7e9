"""Backbones by name and by configuration: features of every family, and what a wrong wish is told."""

import json
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("timm_3d", reason="needs the train extra")

from spine_training.backbones import (  # noqa: E402
    NARROW_BACKBONES,
    build_backbone,
    canonical_backbone,
)

TINY_COATNET = {
    "family": "maxxvit",
    "base": "coatnet_rmlp_3_rw",
    "overrides": {
        "embed_dim": [32, 32, 32, 64],
        "depths": [1, 1, 1, 1],
        "stem_width": [8, 16],
        "transformer_cfg": {"rel_pos_dim": 16},
    },
}
TINY_CONVNEXT = {
    "family": "convnext",
    "config": {
        "depths": [1, 1, 1, 1],
        "dims": [8, 16, 24, 32],
        "patch_size": 1,
        "use_grn": True,
    },
}
TINY_EFFICIENTNET = {
    "family": "efficientnet",
    "base": "narrow_conv_8",
    "overrides": {"stages": [["ir_r1_k3_s2_e4_c16_se0.25"]], "features": 48},
}

# The smallest of every family; features; in_chans; a small grid that its pooling has more than one place in.
FAMILIES = {
    "coatnet_pico_rw_224": (512, 3, (64, 32, 32)),
    "maxvit_rmlp_pico_rw_256": (256, 1, (64, 32, 32)),
    "tinynet_e": (1280, 6, (40, 24, 24)),
    "convnext_atto": (320, 3, (64, 32, 32)),
    "resnet10t": (512, 1, (40, 24, 24)),
    "narrow_conv_24": (256, 6, (12, 16, 20)),
    "narrow_conv_8": (32, 3, (8, 12, 16)),
    json.dumps(TINY_COATNET): (64, 1, (64, 32, 32)),
    json.dumps(TINY_CONVNEXT): (32, 6, (24, 8, 8)),
    json.dumps(TINY_EFFICIENTNET): (48, 3, (12, 16, 20)),
}


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine a second thread only waits: five times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def grid(channels: int, shape: tuple[int, int, int], count: int = 2) -> "torch.Tensor":
    return torch.rand(
        count, channels, *shape, generator=torch.Generator().manual_seed(0)
    )


LARGE = ("coatnet_pico_rw_224", "maxvit_rmlp_pico_rw_256")
"""Of a family that a smaller configuration stands for in the quick tests."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, id=name, marks=pytest.mark.slow) if name in LARGE else pytest.param(name, id=kind)
     for name, kind in zip(FAMILIES, (*list(FAMILIES)[:7], "tiny coatnet", "tiny convnext", "tiny efficientnet"),
                           strict=True)],
)  # fmt: skip
def test_features_gradients_and_both_poolings(name):
    features, channels, shape = FAMILIES[name]
    torch.manual_seed(0)
    backbone = build_backbone(name, in_chans=channels, shape=shape)
    peaks = build_backbone(name, in_chans=channels, shape=shape, pool="max")
    assert backbone.training
    assert backbone.num_features == peaks.num_features == features
    peaks.load_state_dict(backbone.state_dict(), strict=True)
    given = grid(channels, shape)
    out = backbone(given)
    assert out.shape == (2, features)
    out.square().sum().backward()
    gradients = [parameter.grad for parameter in backbone.parameters()]
    assert all(
        gradient is not None and bool(gradient.isfinite().all())
        for gradient in gradients
    )
    assert any(bool(gradient.any()) for gradient in gradients)
    with torch.no_grad():
        assert not torch.allclose(
            backbone.eval()(given), peaks.eval()(given), atol=1e-3
        )


def test_an_unregistered_configuration_of_timm_3d(monkeypatch):
    """Counted on the meta device, on which its 164 million weights take no memory."""
    monkeypatch.setattr(
        torch, "linspace", partial(torch.linspace, device="cpu")
    )  # read while the model is built
    with torch.device("meta"):
        backbone = build_backbone(
            "coatnet_rmlp_3_rw", in_chans=3, shape=(128, 128, 128)
        )
    assert backbone.num_features == 1536
    assert sum(
        parameter.numel() for parameter in backbone.parameters()
    ) / 1e6 == pytest.approx(164, abs=1)
    assert not any(name.startswith("head.") for name in backbone.state_dict())


@pytest.mark.parametrize(
    ("name", "shape", "some"),
    [
        (
            "coatnet_pico_rw_224",
            (32, 32, 32),
            [
                "stem.conv1.weight",
                "stages.3.blocks.0.attn.rel_pos.relative_position_bias_table",
                "norm.weight",
            ],
        ),
        (
            "tinynet_e",
            (16, 16, 16),
            [
                "conv_stem.weight",
                "blocks.0.0.conv_dw.weight",
                "conv_head.weight",
                "bn2.bias",
            ],
        ),
        (
            "narrow_conv_8",
            (16, 16, 16),
            ["conv_stem.weight", "blocks.1.0.conv.weight", "conv_head.weight"],
        ),
        (
            "convnext_atto",
            (32, 32, 32),
            ["stem.0.weight", "stages.0.blocks.0.conv_dw.weight", "head.norm.weight"],
        ),
    ],
)
def test_the_state_dict_keeps_the_names_of_timm_3d_without_a_classifier(
    name, shape, some
):
    keys = build_backbone(name, in_chans=3, shape=shape).state_dict().keys()
    assert set(some) <= keys
    assert not any(key.startswith(("classifier", "head.fc")) for key in keys)


def test_the_features_of_a_hidden_layer_are_counted():
    wider = {
        **TINY_COATNET,
        "overrides": {**TINY_COATNET["overrides"], "head_hidden_size": 24},
    }
    backbone = build_backbone(json.dumps(wider), in_chans=1, shape=(32, 32, 32))
    assert backbone.num_features == 24
    assert backbone(grid(1, (32, 32, 32))).shape == (2, 24)


def test_a_configuration_has_one_canonical_text(tmp_path):
    (tmp_path / "coatnet.json").write_text(json.dumps(TINY_COATNET, indent=4))
    text = canonical_backbone(str(tmp_path / "coatnet.json"))
    assert (
        text == canonical_backbone(json.dumps(TINY_COATNET)) == canonical_backbone(text)
    )
    assert "\n" not in text
    config = json.loads(text)["config"]
    assert config["depths"] == [1, 1, 1, 1]
    assert config["transformer_cfg"]["rel_pos_dim"] == 16
    assert config["transformer_cfg"]["rel_pos_type"] == "mlp"  # of the base
    assert config["conv_cfg"]["attn_act_layer"] == "silu"
    again = build_backbone(text, in_chans=1, shape=(32, 32, 32)).state_dict()
    first = build_backbone(
        json.dumps(TINY_COATNET), in_chans=1, shape=(32, 32, 32)
    ).state_dict()
    assert {key: tensor.shape for key, tensor in again.items()} == {
        key: t.shape for key, t in first.items()
    }


def test_the_blocks_of_a_configuration_have_their_own_defaults():
    config = {"family": "maxxvit", "config": {"conv_cfg": {"block_type": "convnext"}}}
    assert (
        json.loads(canonical_backbone(json.dumps(config)))["config"]["conv_cfg"][
            "norm_layer"
        ]
        == "layernorm3d"
    )


def test_a_plain_name_is_its_own_canonical_text():
    assert canonical_backbone("convnext_atto") == "convnext_atto"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("convnext_ato", "convnext_atto"),
        ("coatnet_rmlp_3", "coatnet_rmlp_3_rw"),
        ("narrow_conv_25", "narrow_conv_24"),
        ("efficientnet_b9", "efficientnet_b8"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(name, nearest):
    with pytest.raises(
        ValueError,
        match=f"there is no backbone '{name}'; the nearest of [0-9]+ are .*{nearest}",
    ):
        build_backbone(name, in_chans=3, shape=(32, 32, 32))


@pytest.mark.parametrize("name", ["hf-hub:timm/coatnet_0_rw_224", "zzz"])
def test_nothing_is_fetched_for_a_name_that_is_not_registered(name):
    with pytest.raises(ValueError, match="there is no backbone"):
        build_backbone(name, in_chans=3, shape=(32, 32, 32))


@pytest.mark.parametrize(
    "name",
    [
        "convnext_atto",
        "coatnet_pico_rw_224",
        pytest.param("densenet121", marks=pytest.mark.slow),
        pytest.param("maxvit_pico_rw_256", marks=pytest.mark.slow),
    ],
)
def test_a_grid_that_is_too_small_is_told_one_that_fits(name):
    with pytest.raises(
        ValueError,
        match=rf"backbone {name} does not work on a grid of 24x40x48 .* 32x64x64",
    ):
        build_backbone(name, in_chans=3, shape=(24, 40, 48))
    if name != "densenet121":  # the slowest to build
        build_backbone(name, in_chans=3, shape=(32, 64, 64))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        (
            '{"depths": [1]}',
            "has 'family' and 'config', or 'family', 'base' and 'overrides'",
        ),
        (
            '{"family": "coatnet", "config": {}}',
            "no backbone family 'coatnet'; choose one of maxxvit, ",
        ),
        (
            '{"family": "maxxvit", "base": "coatnet_9", "overrides": {}}',
            "no base 'coatnet_9'; the nearest of 41 are coa",
        ),
        (
            '{"family": "convnext", "base": "atto", "overrides": {}}',
            "no base 'atto'; it has no table",
        ),
        (
            '{"family": "maxxvit", "config": {"depth": [2]}}',
            "maxxvit has no field 'depth'; the nearest of .* are depths",
        ),
        (
            '{"family": "maxxvit", "config": {"conv_cfg": {"kernel": 3}}}',
            "maxxvit.conv_cfg has no field 'kernel'",
        ),
        (
            '{"family": "maxxvit", "config": {"conv_cfg": 3}}',
            "maxxvit.conv_cfg: expected an object",
        ),
        (
            '{"family": "maxxvit", "base": "coatnet_0_rw", "overrides": [1]}',
            "maxxvit: expected an object",
        ),
        (
            '{"family": "efficientnet", "config": {"stem": 8}}',
            "efficientnet is no working configuration: .*stages",
        ),
    ],
)
def test_a_wrong_configuration_is_explained(content, message):
    with pytest.raises(ValueError, match=message):
        canonical_backbone(content)


def test_a_configuration_that_cannot_be_built_is_explained():
    wrong = {**TINY_CONVNEXT, "config": {"dims": [8, 16]}}
    with pytest.raises(
        ValueError, match=r"does not work on a grid of 32x32x32 voxels \(.+\)$"
    ):
        build_backbone(json.dumps(wrong), in_chans=1, shape=(32, 32, 32))


def test_a_missing_file_and_an_unknown_pooling(tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot read the backbone configuration .*none\.json"
    ):
        build_backbone(str(tmp_path / "none.json"), in_chans=1, shape=(32, 32, 32))
    with pytest.raises(
        ValueError, match="unknown pooling 'sum': choose one of avg, max"
    ):
        build_backbone("narrow_conv_8", in_chans=1, shape=(8, 8, 8), pool="sum")


def test_the_narrow_ones_take_the_grids_of_a_level():
    for name in NARROW_BACKBONES:
        build_backbone(name, in_chans=6, shape=(24, 40, 48))
