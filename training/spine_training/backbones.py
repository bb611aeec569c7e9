"""Backbones by name or by configuration: grids ``(N, C, D, H, W)`` -> features ``(N, num_features)``.

``build_backbone`` takes any of

- a key of ``NARROW_BACKBONES``, the small ones of this project;
- a name registered in timm_3d (``timm_3d.list_models()``: ConvNeXt, DenseNet, EfficientNet, CoAtNet and MaxViT, ResNet,
  VGG);
- a key of timm_3d's own table of MaxxVit configurations that is no registered name, such as ``coatnet_rmlp_3_rw``;
- a configuration, as JSON text or as the path of a ``.json`` file, whole or as changes to one of the tables above::

    {"family": "convnext", "config": {"depths": [2, 2, 6, 2], "dims": [40, 80, 160, 320], "patch_size": 1}}
    {"family": "maxxvit", "base": "coatnet_rmlp_3_rw", "overrides": {
        "embed_dim": [96, 384, 768, 1536], "depths": [2, 16, 32, 2], "stem_width": [48, 96],
        "transformer_cfg": {"rel_pos_dim": 2048}}}

  ``maxxvit`` has the fields of timm_3d's ``MaxxVitCfg`` (``conv_cfg`` and ``transformer_cfg`` nested), ``efficientnet``
  those of ``NarrowBackbone``, ``convnext`` those of ``ConvNextBackbone``. ``canonical_backbone`` turns it into the one
  text that a checkpoint stores.

What comes back is timm_3d's own model without its classifier, so the names of its state dict are timm_3d's, and
``pool`` changes none. Of the MaxxVit family ``head.fc`` is an identity and pooling stays in ``head.global_pool``,
neither with weights (a configuration with ``head_hidden_size`` keeps ``head.norm`` and ``head.pre_logits.fc``); of
ConvNeXt ``head.norm`` stays; of EfficientNet ``classifier`` is an identity. A checkpoint whose EfficientNet has
``classifier.0``, a layer norm over the F features, loads once ``classifier`` is ``nn.Sequential(nn.LayerNorm(F))``.
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import timm_3d
import torch
from timm_3d.models import is_model_in_modules
from timm_3d.models._efficientnet_builder import decode_arch_def
from timm_3d.models.convnext import ConvNeXt
from timm_3d.models.efficientnet import EfficientNet
from timm_3d.models.maxxvit import MaxxVit, MaxxVitCfg
from timm_3d.models.maxxvit import model_cfgs as maxxvit_configs
from torch import nn
from torch.func import functional_call

from spine_engine.bundle.strict_json import load_json

Pool = Literal["avg", "max"]
Shape = tuple[int, int, int]

_STRIDE: Final = 32
"""Every model of timm_3d halves its grid five times (measured: all of its families take sides of 32 and 64)."""

_BUILD_ERRORS: Final = (
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that timm_3d and PyTorch raise on a configuration or a grid that does not work."""


@dataclass(frozen=True, kw_only=True)
class NarrowBackbone:
    """Blocks in the words of timm_3d's EfficientNet builder (``cn``: plain 3x3x3 convolutions), SiLU.

    Attributes:
        stem: channels of the first convolution, which halves the grid.
        stages: block strings, such as ``cn_r2_k3_s1_e1_c48_skip``.
        features: channels that are pooled.
    """

    stem: int
    stages: tuple[tuple[str, ...], ...]
    features: int


@dataclass(frozen=True, kw_only=True)
class ConvNextBackbone:
    """A ConvNeXt of four stages; the defaults are timm_3d's ``convnext_atto``, with linear layers in its blocks.

    Attributes:
        depths: blocks a stage.
        dims: channels a stage.
        patch_size: side of the stem's patches, voxels; with 2 or 4 the last maps have a stride of 32, with 1 of 8.
        use_grn: response normalisation in place of layer scale, as in ConvNeXt V2.
    """

    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    dims: tuple[int, int, int, int] = (40, 80, 160, 320)
    patch_size: int = 4
    use_grn: bool = False


NARROW_BACKBONES: Final[dict[str, NarrowBackbone]] = {
    # Chosen by measurement (docs/decisions/0007-grader.md): 0.8 M parameters.
    "narrow_conv_24": NarrowBackbone(
        stem=24,
        stages=(
            ("cn_r1_k3_s1_e1_c24_skip",),
            ("cn_r1_k3_s2_e1_c48", "cn_r2_k3_s1_e1_c48_skip"),
            ("cn_r1_k3_s2_e1_c96", "cn_r2_k3_s1_e1_c96_skip"),
        ),
        features=256,
    ),
    # For tests: trains in seconds.
    "narrow_conv_8": NarrowBackbone(
        stem=8,
        stages=(("cn_r1_k3_s2_e1_c8",), ("cn_r1_k3_s2_e1_c16",)),
        features=32,
    ),
}
"""The backbones of this project."""


def build_backbone(
    name: str,
    *,
    in_chans: int,
    shape: Shape,
    pool: Pool = "avg",
) -> nn.Module:
    """Build a backbone with fresh weights, in training mode.

    Args:
        name: see the module's description.
        in_chans: channels C of the grid.
        shape: ``(D, H, W)``, voxels; the MaxxVit family is built for this shape alone.
        pool: pooling of the last feature maps into one vector.

    Returns:
        A module from ``(N, C, D, H, W)`` to ``(N, num_features)``, with the attribute ``num_features``.

    Raises:
        ValueError: there is no such backbone, its configuration does not work, or the grid does not fit it.
    """
    if pool not in get_args(Pool):
        raise ValueError(
            f"unknown pooling {pool!r}: choose one of {', '.join(get_args(Pool))}"
        )
    make = _maker(canonical_backbone(name))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="torch.meshgrid"
            )  # timm_3d's relative positions call it so
            model = make(in_chans, shape, pool)
            _pass_once(model, (1, in_chans, *shape))
    except _BUILD_ERRORS as error:
        raise ValueError(_refusal(name, shape, error)) from error
    return model


def canonical_backbone(name: str) -> str:
    """Return the text that a checkpoint stores: a plain name as it is, a configuration whole, on one line, keys sorted.

    ``build_backbone`` takes the text without any file or table, and equal configurations give equal texts.

    Raises:
        ValueError: the file cannot be read, or is no configuration of a known family.
    """
    if name.endswith(".json"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"cannot read the backbone configuration {name}: {error}"
            ) from error
    elif name.lstrip().startswith("{"):
        text = name
    else:
        return name
    family, config = _parse(text)
    return json.dumps(
        {"family": family, "config": asdict(config)},
        sort_keys=True,
        separators=(",", ":"),
    )


Maker = Callable[[int, Shape, Pool], nn.Module]


@dataclass(frozen=True, kw_only=True)
class _Family:
    config: type[Any]
    table: Mapping[str, Any]
    build: Callable[[Any, int, Shape, Pool], nn.Module]


def _build_maxxvit(
    config: MaxxVitCfg,
    in_chans: int,
    shape: Shape,
    pool: Pool,
) -> Any:
    return MaxxVit(
        cfg=config,
        img_size=shape,
        in_chans=in_chans,
        num_classes=0,
        global_pool=pool,
    )


def _build_efficientnet(
    config: NarrowBackbone,
    in_chans: int,
    shape: Shape,
    pool: Pool,
) -> Any:
    return EfficientNet(
        block_args=decode_arch_def([list(stage) for stage in config.stages]),
        num_classes=0,
        num_features=config.features,
        in_chans=in_chans,
        stem_size=config.stem,
        fix_stem=True,
        act_layer=nn.SiLU,
        global_pool=pool,
    )


def _build_convnext(
    config: ConvNextBackbone,
    in_chans: int,
    shape: Shape,
    pool: Pool,
) -> Any:
    scale = {"ls_init_value": None} if config.use_grn else {}
    return ConvNeXt(
        in_chans=in_chans,
        num_classes=0,
        global_pool=pool,
        **asdict(config),
        **scale,
    )


_FAMILIES: Final[dict[str, _Family]] = {
    "maxxvit": _Family(
        config=MaxxVitCfg,
        table=maxxvit_configs,
        build=_build_maxxvit,
    ),
    "efficientnet": _Family(
        config=NarrowBackbone,
        table=NARROW_BACKBONES,
        build=_build_efficientnet,
    ),
    "convnext": _Family(
        config=ConvNextBackbone,
        table={},
        build=_build_convnext,
    ),
}


def _maker(name: str) -> Maker:
    """Return the function that builds ``name``, a plain name or canonical JSON."""
    if name.startswith("{"):
        family_name, config = _parse(name)
        family = _FAMILIES[family_name]
        return lambda in_chans, shape, pool: family.build(config, in_chans, shape, pool)
    for family in _FAMILIES.values():
        if name in family.table:
            return lambda in_chans, shape, pool: family.build(
                family.table[name],
                in_chans,
                shape,
                pool,
            )
    registered = timm_3d.list_models()
    if name not in registered:
        known = [
            *registered,
            *(key for family in _FAMILIES.values() for key in family.table),
        ]
        raise ValueError(f"there is no backbone {name!r}; {_nearest(name, known)}")
    sized = is_model_in_modules(name, ["maxxvit"])
    return lambda in_chans, shape, pool: timm_3d.create_model(
        name,
        in_chans=in_chans,
        num_classes=0,
        global_pool=pool,
        img_size=shape if sized else None,  # None is not handed on
    )


def _pass_once(model: Any, shape: tuple[int, ...]) -> None:
    """Pass a grid of ``shape`` through ``model`` and set its ``num_features`` to the number that comes out.

    Too small a grid shows in the forward pass alone. On the meta device, which computes shapes: 0.1 s and no memory.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    with torch.no_grad():
        features = functional_call(
            model.eval(),
            state,
            (torch.empty(shape, device="meta"),),
        )
    model.train()
    model.num_features = features.shape[1]


def _refusal(name: str, shape: Shape, error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
    fitting = tuple(-(-side // _STRIDE) * _STRIDE for side in shape)
    grid, wider = ("x".join(map(str, sides)) for sides in (shape, fitting))
    advice = (
        ""
        if fitting == shape
        else f"; sides that are multiples of {_STRIDE} fit, such as {wider}"
    )
    return (
        f"backbone {name} does not work on a grid of {grid} voxels ({reason}){advice}"
    )


def _parse(text: str) -> tuple[str, Any]:
    """Read ``{"family", "config"}`` or ``{"family", "base", "overrides"}`` into the family's name and dataclass."""
    try:
        content = load_json(text)
    except ValueError as error:
        raise ValueError(f"the backbone configuration is not JSON: {error}") from error
    if not isinstance(content, dict) or set(content) not in (
        {"family", "config"},
        {"family", "base", "overrides"},
    ):
        raise ValueError(
            "a backbone configuration has 'family' and 'config', or 'family', 'base' and 'overrides'"
        )
    name = str(content["family"])
    if name not in _FAMILIES:
        raise ValueError(
            f"there is no backbone family {name!r}; choose one of {', '.join(_FAMILIES)}"
        )
    family = _FAMILIES[name]
    if "config" in content:
        return name, _construct(
            family.config,
            content["config"],
            name,
        )
    base = str(content["base"])
    if base not in family.table:
        raise ValueError(f"{name} has no base {base!r}; {_nearest(base, family.table)}")
    return name, _construct(
        family.config,
        _merged(
            asdict(family.table[base]),
            content["overrides"],
        ),
        name,
    )


def _construct(kind: type[Any], values: object, where: str) -> Any:
    """Make the dataclass ``kind``, and those nested in it, from JSON values; lists become tuples."""
    if not isinstance(values, dict):
        raise ValueError(
            f"{where}: expected an object with named fields, got {json.dumps(values)[:80]}"
        )
    known = {field.name: field for field in fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"{where} has no field {name!r}; {_nearest(name, known)}")
    given: dict[str, Any] = {}
    for name, value in values.items():
        nested = known[name].default_factory
        if isinstance(nested, type) and is_dataclass(nested):
            given[name] = _construct(nested, value, f"{where}.{name}")
        else:
            given[name] = _tupled(value)
    try:
        return kind(**given)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{where} is no working configuration: {error}") from error


def _merged(base: dict[str, Any], changes: object) -> object:
    if not isinstance(changes, dict):
        return changes
    nested = {
        name: _merged(base[name], value)
        for name, value in changes.items()
        if isinstance(base.get(name), dict)
    }
    return {**base, **changes, **nested}


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = (
        difflib.get_close_matches(
            name,
            names,
            n=4,
            cutoff=0.5,
        )
        or sorted(names)[:4]
    )
    return (
        f"the nearest of {len(names)} are {', '.join(close)}"
        if names
        else "it has no table"
    )
