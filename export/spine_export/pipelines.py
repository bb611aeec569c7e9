"""Graders of the two pipelines that this engine replaces: a file of weights alone -> a ``Grader``.

Such a file names its tensors by convention: ``backbone.*`` (or ``encoder.*``) a timm_3d model without its classifier,
``heads.N.0.weight|bias`` a linear layer to one number, ``heads.N.1.cutpoints`` two ascending numbers; N counts five
conditions in alphabetical order, or condition * 5 + level. It does not say which model the backbone is, so its user
does, and a wrong answer is met with the nearest one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import timm_3d
from timm_3d.models.maxxvit import MaxxVit
from timm_3d.models.maxxvit import model_cfgs as maxxvit_configs
from torch import Tensor, nn

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.errors import UsageError
from spine_engine.voxels.recipe import recipe_named
from spine_export.sources import PipelineConfig
from spine_training.backbones import NARROW_BACKBONES, Shape, build_backbone
from spine_training.checkpoints import (
    Averaging,
    Mismatch,
    differences,
    fill,
    nearest,
    read_weights,
)
from spine_training.grader.model import Grader, GraderConfig, load_grader

BACKBONE_PREFIXES: Final = ("backbone.", "encoder.")
"""Prefixes of a backbone's keys in the later and in the early files of these pipelines."""

_FIRST_HEAD: Final = "heads.0.0.weight"
"""A key that every grader of these pipelines has, after the name that a Lightning module gives the network."""

_CRITERIA: Final = (
    "criterion.",
    "loss.",
    "loss_fn.",
    "loss_func.",
    "train_loss.",
    "val_loss.",
    "metric.",
    "metrics.",
)
"""Prefixes of what a Lightning module keeps beside its network."""

_CLASSIFIER_NORM: Final = "classifier.0."
"""EfficientNets of these pipelines end in a layer norm over the features, in the place of the classifier."""

_POSITION_TABLE: Final = "relative_position_bias_table"
"""The one kind of weight in timm_3d whose shape follows the grid's."""

_CUBES: Final = range(32, 257, 32)
"""Sides of the grids that are tried when only the position tables do not fit, voxels: up to pipeline 1's."""

_FAMILY_MARKS: Final = {
    "maxxvit": "stem.conv1.weight",
    "efficientnet": "conv_stem.weight",
    "convnext": "stages.0.blocks.0.conv_dw.weight",
    "resnet": "layer1.0.conv1.weight",
    "densenet": "features.denseblock1.denselayer1.conv1.weight",
    "vgg": "features.0.weight",
}
"""A key that every model of a family in timm_3d has; the first that is found decides."""


def open_grader(
    checkpoint: Path,
    described: PipelineConfig | None,
    weights: Averaging | None = None,
) -> Grader:
    """Read a grader of ``train``, or one of the older pipelines as it is described; its cut-points ascend.

    Raises:
        UsageError: the file is no such grader.
    """
    if described is None:
        try:
            grader = load_grader(checkpoint)
        except UsageError as error:
            wanted = "weights of another origin need a description: --described, or --grader-described"
            raise UsageError(f"{error}; {wanted}") from None
        require_ascending(grader, checkpoint)
        return grader
    return load_pipeline_grader(checkpoint, described, weights)


def load_pipeline_grader(
    path: Path,
    described: PipelineConfig,
    weights: Averaging | None = None,
) -> Grader:
    """Read a grader of either pipeline: five heads make a level grader, 25 a whole-study grader.

    Args:
        path: any file that ``read_weights`` takes.
        described: facts that the file lacks; without a backbone the error names the nearest.
        weights: which weights of a file that has both; averaged ones if not given.

    Returns:
        A grader in evaluation mode that computes what the file's own model computes, no coordinates added.

    Raises:
        UsageError: the file cannot be read safely or holds something else; the message names the keys, the nearest
            architecture, or the cut-points that do not ascend.
    """
    state = read_weights(path, weights)
    backbone_weights = _backbone_weights(state, path)
    heads = {
        name.removeprefix("heads."): tensor
        for name, tensor in state.items()
        if name.startswith("heads.")
    }
    if unknown := len(state) - len(backbone_weights) - len(heads):
        raise UsageError(
            f"{path.name} has {unknown} tensors that belong to neither backbone nor heads: not a grader"
        )
    count = len({name.split(".")[0] for name in heads})
    tasks = {len(CONDITIONS): "level", len(CONDITIONS) * len(LEVELS): "whole_study"}
    if count not in tasks:
        raise UsageError(
            f"{path.name} has {count} heads; want one of {', '.join(map(str, tasks))}"
        )
    backbone, shape = described.backbone, described.shape
    if backbone is None:
        raise UsageError(
            f"{path.name} does not say what its backbone is: {_nearest(backbone_weights, shape)}; give the backbone"
        )
    recipe = recipe_named(described.recipe)
    if not recipe.is_native and recipe.of_levels != (tasks[count] == "level"):
        what = "one level" if recipe.of_levels else "a whole study"
        raise UsageError(
            f"{path.name} has {count} heads, and the recipe {recipe.name} makes grids of {what}"
        )
    config = GraderConfig(
        task="whole_study" if tasks[count] == "whole_study" else "level",
        channels=recipe.channels or GraderConfig().channels,
        backbone=backbone,
        pool=described.pool,
        shape=shape,
        spacing_mm=described.spacing_mm,
        offset_mm=described.offset_mm,
        coordinates=False,
    )
    grader = _build(config, path)
    if f"{_CLASSIFIER_NORM}weight" in backbone_weights:
        grader.backbone.classifier = nn.Sequential(
            nn.LayerNorm(grader.backbone.num_features)
        )
    fill(
        grader.backbone,
        backbone_weights,
        file=path,
        what=f"the backbone {' '.join(backbone.split())[:80]} for {_sides(shape)} voxels",
        advise=lambda mismatch: _advice(mismatch, backbone_weights, config),
    )
    fill(
        grader.heads,
        heads,
        file=path,
        what=f"{count} heads over {grader.backbone.num_features} features",
    )
    require_ascending(grader, path)
    return grader.eval()


def require_ascending(grader: Grader, file: Path) -> None:
    """Refuse cut-points that do not ascend: the middle grade would have no or a negative probability.

    Raises:
        UsageError: with the heads and their values.
    """
    pairs = [
        [round(cut, 4) for cut in link.cutpoints.tolist()] for link in grader.links()
    ]
    crossed = [
        f"head {n}: {low}, {high}"
        for n, (low, high) in enumerate(pairs)
        if not low < high
    ]
    if crossed:
        raise UsageError(
            f"{file.name} has cut-points that do not ascend ({'; '.join(crossed[:5])}): train it again"
        )


def _backbone_weights(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    for prefix in BACKBONE_PREFIXES:
        weights = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.items()
            if name.startswith(prefix)
        }
        if weights:
            return weights
    raise UsageError(
        f"{path.name} is no grader: no key begins with {' or '.join(BACKBONE_PREFIXES)}"
    )


def _build(config: GraderConfig, path: Path) -> Grader:
    try:
        return Grader(config)
    except ValueError as error:
        raise UsageError(
            f"cannot build a grader for {path.name}: {' '.join(str(error).split())}"
        ) from None


def _advice(
    mismatch: Mismatch,
    weights: Mapping[str, Tensor],
    config: GraderConfig,
) -> str:
    """Return a hint at what fits: another grid where only its position tables differ, else another architecture."""
    tables = all(_POSITION_TABLE in name for name in mismatch.misshaped)
    if tables and not mismatch.missing and not mismatch.unexpected:
        cubes = {
            _sides((n, n, n)): partial(_backbone, config, (n, n, n)) for n in _CUBES
        }
        fitting = [
            grid for grid, left in differences(weights, cubes).items() if not left.count
        ]
        return f"it was trained on another grid; {fitting[0] if fitting else 'no cube'} fits, give its shape"
    return _nearest(weights, config.shape)


def _nearest(weights: Mapping[str, Tensor], shape: Shape) -> str:
    plain = {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith(_CLASSIFIER_NORM)
    }
    family = next(
        (family for family, mark in _FAMILY_MARKS.items() if mark in plain),
        None,
    )
    if family is None:
        return "its keys are of no family of backbones that is known here"
    return nearest(plain, _candidates(family, plain, shape))


def _candidates(
    family: str, weights: Mapping[str, Tensor], shape: Shape
) -> dict[str, Callable[[], nn.Module]]:
    """Return every model of a family; TensorFlow's (``tf_``) have the keys and shapes of those without the prefix."""
    plain: dict[str, Any] = {"in_chans": len(GraderConfig().channels), "num_classes": 0}
    known: dict[str, Callable[[], nn.Module]]
    if family == "maxxvit":
        blocks = {
            match[1]
            for name in weights
            if (match := re.match(r"stages\.(\d+\.blocks\.\d+)\.", name))
        }
        stages = Counter(int(block.split(".")[0]) for block in blocks)
        depths = tuple(stages[stage] for stage in sorted(stages))
        alike = {
            name: config
            for name, config in maxxvit_configs.items()
            if config.depths == depths
        }
        configs = alike or maxxvit_configs  # building all of them takes 8 s
        known = {
            name: partial(
                MaxxVit,
                cfg=config,
                img_size=shape,
                **plain,
            )
            for name, config in configs.items()
        }
    else:
        names = [
            name
            for name in timm_3d.list_models(module=family)
            if not name.startswith("tf_")
        ]
        known = {name: partial(timm_3d.create_model, name, **plain) for name in names}
    if family == "efficientnet":
        known |= {
            name: partial(
                _backbone,
                GraderConfig(backbone=name),
                shape,
            )
            for name in NARROW_BACKBONES
        }
    return known


def _backbone(config: GraderConfig, shape: Shape) -> nn.Module:
    return build_backbone(
        config.backbone,
        in_chans=len(config.channels),
        shape=shape,
        pool=config.pool,
    )


def _sides(shape: Shape) -> str:
    return "x".join(map(str, shape))
