"""Small graders with recipes, made by hand: mean pooling, a linear layer, softmax; and what they answer, in NumPy."""

import dataclasses
import shutil

import numpy as np

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.bundle import Bundle, file_facts, write_manifest
from spine_engine.bundle.manifest import (
    SCHEMA,
    GraderEntry,
    GridEntry,
    Manifest,
    Models,
    TensorEntry,
)
from spine_engine.voxels import recipe_named

BLOCKS = 8
"""Blocks along each axis of a grid that the graders take the mean of."""


def weights(heads, seed):
    """Return the linear layer of a grader ``(3 * BLOCKS^3, heads * 3)``."""
    return (
        np.random.default_rng(seed)
        .normal(0, 2, (3 * BLOCKS**3, heads * 3))
        .astype(np.float32)
    )


def answer(grids, heads, seed):
    """Return what the grader says of grids ``(N, 3, S, S, S)``: ``(N, heads, 3)``."""
    n, channels, side = grids.shape[:3]
    block = side // BLOCKS
    means = grids.reshape(
        n, channels, BLOCKS, block, BLOCKS, block, BLOCKS, block
    ).mean(axis=(3, 5, 7), dtype=float)
    scores = (means.reshape(n, -1) @ weights(heads, seed)).reshape(n, heads, 3)
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def write_grader(path, side, heads, seed):
    """Write the grader as ONNX."""
    from onnx import TensorProto, helper, numpy_helper, save

    block = [side // BLOCKS] * 3
    nodes = [
        helper.make_node(
            "AveragePool", ["image"], ["means"], kernel_shape=block, strides=block
        ),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        helper.make_node("Reshape", ["scores", "shape"], ["shaped"]),
        helper.make_node("Softmax", ["shaped"], ["probabilities"], axis=-1),
    ]
    image = helper.make_tensor_value_info(
        "image", TensorProto.FLOAT, ["N", 3, side, side, side]
    )
    probabilities = helper.make_tensor_value_info(
        "probabilities", TensorProto.FLOAT, ["N", heads, 3]
    )
    constants = [
        numpy_helper.from_array(weights(heads, seed), "weights"),
        numpy_helper.from_array(np.array([-1, heads, 3]), "shape"),
    ]
    graph = helper.make_graph(nodes, "grader", [image], [probabilities], constants)
    save(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
        ),
        path,
    )


def grader_entry(path, recipe, seed):
    """Write a grader for a recipe, by name, and return its entry."""
    made = recipe_named(recipe)
    side = made.shape[0]
    both = tuple(f"{condition}_{level}" for condition in CONDITIONS for level in LEVELS)
    channels = tuple(CONDITIONS) if made.of_levels else both
    write_grader(path, side, len(channels), seed)
    return GraderEntry(
        **file_facts(path),
        inputs=(TensorEntry(name="image", shape=(None, 3, side, side, side)),),
        outputs=(TensorEntry(name="probabilities", shape=(None, len(channels), 3)),),
        channels=made.channels,
        grid=GridEntry.of_recipe(made),
        normalisation="grid_range",
        output_channels=channels,
        recipe=recipe,
    )


def write_recipe_bundle(folder, *, level=None, whole=None):
    """Write a bundle of graders with these recipes, one of levels with the packaged detector."""
    folder.mkdir(parents=True)
    entries = {}
    if level is not None:
        packaged = Bundle.open()
        shutil.copy(packaged.path / packaged.detector.file, folder)
        entries["detector"] = dataclasses.replace(
            packaged.detector, variants={}, precisions=("f32",)
        )
        entries["grader"] = grader_entry(folder / "grader.onnx", level, 1)
    if whole is not None:
        entries["whole_study_grader"] = grader_entry(folder / "whole.onnx", whole, 2)
    manifest = Manifest(
        schema=SCHEMA,
        name="recipes",
        version="1",
        licence="CC0",
        intended_use="tests",
        training_data=("nothing",),
        metrics={},
        models=Models(**entries),
    )
    write_manifest(folder, manifest)
    return folder
