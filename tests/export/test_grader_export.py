"""A tiny grader to ONNX and into a bundle: the same numbers in both runtimes, and the engine opens it."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra: no export is shown")
onnx = pytest.importorskip("onnx", reason="needs the export extra: no export is shown")
pytest.importorskip("onnxscript", reason="needs the export extra: no export is shown")
pytest.importorskip("timm_3d", reason="needs the train extra: no export is shown")

from spine_engine.anatomy import CONDITIONS  # noqa: E402
from spine_engine.backends import open_backend  # noqa: E402
from spine_engine.bundle import Bundle  # noqa: E402
from spine_engine.bundle.manifest import Calibration  # noqa: E402
from spine_engine.errors import BundleError, UsageError  # noqa: E402
from spine_export import bundle as bundle_room  # noqa: E402
from spine_export.parts import grader_part  # noqa: E402
from spine_export.sources import BundleRecipe, Card  # noqa: E402
from spine_training.detector.model import LevelHeatmapNet  # noqa: E402
from spine_training.grader.model import (  # noqa: E402
    MIRRORED_HEADS,
    WHOLE_STUDY,
    Grader,
    GraderConfig,
    save_grader,
)


def write_bundle(out, say=print, **given):
    return bundle_room.write_bundle(out, BundleRecipe(**given), say=say)


PARITY = 1e-4
TINY = GraderConfig(backbone="narrow_conv_8", shape=(8, 12, 16))
WHOLE = replace(WHOLE_STUDY, backbone="narrow_conv_8", shape=(16, 12, 8))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    grader = Grader(TINY)
    for head in grader.heads:  # fresh heads say nearly the same of everything
        torch.nn.init.normal_(head[0].weight, std=2.0)
    save_grader(grader, folder / "grader.pt")
    part = grader_part(folder / "grader.pt")
    return part.module, part.export(folder / "grader.onnx")


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_both_runtimes_agree_with_pytorch_for_any_batch(exported, runtime):
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    model, path = exported
    backend = open_backend(path.read_bytes(), name=runtime, precision="f32")
    for batch in (1, 3, 5):
        image = np.random.default_rng(batch).random(
            (batch, 3, *TINY.shape), dtype=np.float32
        )
        with torch.no_grad():
            wanted = model(torch.from_numpy(image)).numpy()
        found = backend.run({"image": image})["probabilities"]
        assert found.shape == (batch, len(CONDITIONS), 3)
        assert np.abs(found - wanted).max() <= PARITY
        mirrored = backend.run({"image": np.ascontiguousarray(image[..., ::-1])})[
            "probabilities"
        ]
        assert np.abs(mirrored[:, list(MIRRORED_HEADS)] - found).max() <= 1e-6
        assert (
            np.abs(mirrored - found).max() > 10 * PARITY
        )  # the model does tell the sides apart
    backend.close()


def test_the_file_says_nothing_of_the_machine_it_was_made_on(exported):
    content = exported[1].read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A detector, a level grader and a whole-study grader, untrained, as ``train`` writes them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    graders = {"grader": Grader(TINY), "whole_study": Grader(WHOLE)}
    for name, grader in graders.items():
        content = {"config": asdict(grader.config), "model": grader.state_dict()}
        content |= {
            "settings": {"data": f"{name} data"},
            "history": [{"metric": 0.5, "loss": 2.0}],
        }
        torch.save(content, folder / f"{name}.pt")
    net = LevelHeatmapNet().state_dict()
    torch.save({"config": {}, "model": net, "ema": net}, folder / "detector.pt")
    return {name: folder / f"{name}.pt" for name in (*graders, "detector")}


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore"
)  # torch and NNCF deprecate what they themselves use
def test_checkpoints_become_a_bundle_that_says_what_it_holds(checkpoints, tmp_path):
    out = tmp_path / "bundle"
    out.mkdir()
    table = tuple(tuple([1.5] * 5) for _ in CONDITIONS)
    calibration = Calibration(temperature=table, shift=table)
    lines = []
    bundle = write_bundle(
        out,
        name="tiny",
        version="0.1.0",
        calibration=calibration,
        phantoms=1,
        say=lines.append,
        **checkpoints,
    )
    again = Bundle.open(out)
    assert again.digest == bundle.digest
    halves = ["grader.f16.onnx", "whole_study_grader.f16.onnx"]
    kept = [
        "bundle.json",
        "detector.onnx",
        "grader.onnx",
        "whole_study_grader.onnx",
        *halves,
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted(kept)
    assert again.manifest.metrics == {
        "grader.metric": 0.5,
        "whole_study_grader.metric": 0.5,
    }
    assert again.manifest.training_data == (
        "grader: grader data",
        "whole_study_grader: whole_study data",
    )
    assert again.grader.grid.shape == TINY.shape
    assert again.grader.calibration == calibration
    whole = again.manifest.models.whole_study_grader
    assert whole.calibration is None
    assert whole.output_channels[5 * 4 + 2] == "spinal_canal_stenosis_l3_l4"
    for entry, heads in ((again.grader, 5), (whole, 25)):
        assert {"f32", "f16"} <= set(entry.precisions)
        assert 0 < entry.parity["f16"]["largest"] < 0.01
        assert entry.profile.smallest == (1, 3, *entry.grid.shape)
        image = {
            "image": np.random.default_rng(0).random(
                (1, 3, *entry.grid.shape), dtype=np.float32
            )
        }
        rows = {}
        for runtime, precision in (("openvino", "f32"), ("onnxruntime", "f16")):
            model = again.open_model(entry, name=runtime, precision=precision)
            rows[precision] = model.run(image)["probabilities"]
            model.close()
            assert rows[precision].shape == (1, heads, 3)
            assert np.allclose(rows[precision].sum(-1), 1, atol=1e-5)
        assert 0 < np.abs(rows["f32"] - rows["f16"]).max() < 0.01
    # an untrained detector finds nothing, and so proves nothing
    assert again.detector.precisions == ("f32",)
    assert again.detector.parity["f16"]["found"] == 0
    assert "  f16 refused: found no level" in lines
    path = out / "grader.f16.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256"):
        Bundle.open(out)


def test_what_makes_no_bundle_is_refused(checkpoints, tmp_path):
    tiny = {"name": "tiny", "version": "0.1.0", "phantoms": 1}
    with pytest.raises(UsageError, match="needs a grader"):
        write_bundle(tmp_path, detector=checkpoints["detector"], **tiny)
    with pytest.raises(UsageError, match="swap --grader and --whole-study"):
        write_bundle(tmp_path, whole_study=checkpoints["grader"], **tiny)


def test_a_card_is_read_with_its_figures_by_dotted_name(tmp_path):
    path = tmp_path / "card.json"
    path.write_text(
        json.dumps(
            {
                "licence": "CC0",
                "training_data": ["exams"],
                "metrics": {"fold_0": {"right": 0.9}},
            }
        )
    )
    card = Card.read(path)
    assert (card.licence, card.training_data, card.metrics) == (
        "CC0",
        ("exams",),
        {"fold_0.right": 0.9},
    )
    path.write_text(json.dumps({"license": "CC0"}))
    with pytest.raises(UsageError, match="unknown key 'license'; known are licence"):
        Card.read(path)
