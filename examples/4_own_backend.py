"""Run an ONNX file of your own on the level grids of a study.

python examples/4_own_backend.py [FOLDER [MODEL]]

FOLDER holds the DICOM files of one study; without it a phantom study is made first. MODEL is an ONNX file with one
input (levels, channels, D, H, W) of float32; without it a small one is made, which needs the package onnx.
"""

import sys
import tempfile
from pathlib import Path

from spine_engine import StudyPipeline, open_backend, read_study
from spine_engine.phantom import write_studies

folder = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())
if not sys.argv[1:]:
    print("phantom study", *write_studies(folder, count=1, seed=1), "in", folder)


def mean_of_each_channel() -> bytes:
    """Return a model (N, C, D, H, W) -> (N, C, 1, 1, 1)."""
    import onnx

    node = onnx.helper.make_node("GlobalAveragePool", ["grids"], ["means"])
    source = onnx.helper.make_tensor_value_info(
        "grids", onnx.TensorProto.FLOAT, ["n", 3, 24, 40, 48]
    )
    target = onnx.helper.make_tensor_value_info(
        "means", onnx.TensorProto.FLOAT, ["n", 3, 1, 1, 1]
    )
    graph = onnx.helper.make_graph([node], "means", [source], [target])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9
    )
    return bytes(model.SerializeToString())


study = read_study(folder)
with StudyPipeline.open() as pipeline:
    grids = pipeline.grids(study, pipeline.locate(study))

model = open_backend(
    Path(sys.argv[2]) if sys.argv[2:] else mean_of_each_channel(),
    name="openvino",
    precision="f32",
)
print(model.device, *model.inputs, *model.outputs)
for name, values in model.run({model.inputs[0].name: grids}).items():
    print(
        name, values.shape, values.reshape(len(values), -1).round(3).tolist(), sep="\n"
    )
model.close()
