"""The baselines: the same weights, the same studies, and answers that the engine would give."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import psutil
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra")
pytest.importorskip("timm_3d", reason="needs the export extra")
pytest.importorskip("onnx", reason="needs the export extra")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


from spine_bench.baselines import limit, weights  # noqa: E402
from spine_bench.baselines.grading import finder  # noqa: E402
from spine_bench.baselines.models import GFLOP, Row, Subject, rows_of  # noqa: E402
from spine_bench.baselines.pool import PooledSystem  # noqa: E402
from spine_bench.baselines.reading import read_study  # noqa: E402
from spine_bench.baselines.steering import (  # noqa: E402
    S1_SCORE,
    VERTEBRAE,
    Steered,
    column_of_vertebrae,
)
from spine_bench.baselines.tuned import BatchedStack  # noqa: E402
from spine_bench.harness.interfaces import (  # noqa: E402
    CLOSED,
    Answer,
    Sample,
    StudyLibrary,
)
from spine_bench.harness.systems import make_system  # noqa: E402
from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES  # noqa: E402
from spine_engine.backends import Device, TensorInfo  # noqa: E402
from spine_engine.bundle import Bundle  # noqa: E402
from spine_engine.detection.detect import detect  # noqa: E402
from spine_engine.detection.spinenet import detect_vertebra_field  # noqa: E402
from spine_engine.detection.spinenet.decode import polygons_from_maps  # noqa: E402
from spine_engine.dicom import RoleOverrides, WorkUnit, discover, read_unit  # noqa: E402
from spine_engine.errors import BackendError, UsageError  # noqa: E402
from spine_engine.phantom import Protocol, write_studies  # noqa: E402
from spine_engine.phantom.samples import phantom_samples  # noqa: E402
from spine_engine.pipeline.grading import grade  # noqa: E402
from spine_engine.study import Role  # noqa: E402

SHAPE = (len(LEVELS), len(CONDITIONS), len(SEVERITIES))
SMALL = Protocol(sagittal_slices=7, sagittal_matrix=160, axial_matrix=128)
ANSWER_S = 300

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # torch and timm_3d deprecate what they themselves use


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine more threads only wait for each other."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bundle():
    return Bundle.open()


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    list(write_studies(folder, 1, 5, protocol=SMALL, rle=True))
    root = folder / "train_images"
    (unit,) = (found for found in discover(root) if isinstance(found, WorkUnit))
    return Sample(root=root, unit=unit)


@pytest.fixture(scope="module")
def engines_answer(bundle, sample):
    """What the engine's own stages say of the sample in float32, when they look at every slice."""
    return engines_own_answer(bundle, sample, every_slice=True)


def engines_own_answer(bundle, sample, *, every_slice):
    (study,) = read_unit(
        sample.root, sample.unit, RoleOverrides.find(sample.root)
    ).studies
    models = bundle.manifest.models.by_role()
    networks = {
        role: bundle.open_model(entry, precision="f32")
        for role, entry in models.items()
    }
    levels = finder(bundle, networks, every_slice=every_slice)(
        study.sagittal_stacks
    ).levels
    assert {disc.source for disc in levels.values()} <= {"detector", "interpolated"}
    return grade(study, levels, networks["grader"], bundle.grader).probabilities


def open_system(name, sample):
    library = StudyLibrary(name="one", root=sample.root, units=(sample.unit,))
    return make_system(name, library, None)


def answer_of(system, sample) -> Answer:
    found, arrived = [], threading.Event()
    system.open()
    try:
        system.submit(sample, lambda answer: (found.append(answer), arrived.set()))
        assert arrived.wait(ANSWER_S)
        assert system.facts()
    finally:
        system.close()
    (answer,) = found
    assert answer.failure is None
    assert answer.probabilities.shape == SHAPE
    np.testing.assert_allclose(answer.probabilities.sum(axis=-1), 1.0, atol=1e-6)
    assert sum(answer.stage_seconds.values()) > 0
    return answer


@pytest.mark.parametrize("role", ["detector", "grader"])
def test_the_weights_in_pytorch_answer_as_the_onnx_file(bundle, role):
    entry = bundle.manifest.models.by_role()[role]
    module = weights.torch_model(bundle, role)
    with torch.no_grad():
        first = next(iter(module.parameters()))
        first += 0.05 * first.abs().mean()
    with pytest.raises(
        BackendError,
        match=r"moves the outputs of \w+\.onnx by .*not the weights of the bundle",
    ):
        weights.check_same(bundle, entry, module)


def test_pydicom_reads_the_stacks_that_the_engine_reads(sample):
    ours = read_unit(sample.root, sample.unit, RoleOverrides.find(sample.root)).studies[
        0
    ]
    theirs = read_study(sample)
    for role in Role:
        mine = [stack for series in ours.with_role(role) for stack in series.stacks]
        read = [stack for series in theirs.with_role(role) for stack in series.stacks]
        assert len(mine) == len(read) > 0
        for stack in mine:
            (same,) = (
                s
                for s in read
                if np.allclose(s.origins_mm[0], stack.origins_mm[0], atol=1e-6)
            )
            np.testing.assert_array_equal(same.pixels, stack.pixels)
            np.testing.assert_allclose(same.axes, stack.axes, atol=1e-6)
            assert same.spacing_mm == pytest.approx(stack.spacing_mm)


@pytest.mark.slow
def test_onnxruntime_answers_as_the_engine(sample, engines_answer):
    answer = answer_of(open_system("onnxruntime", sample), sample)
    np.testing.assert_allclose(answer.probabilities, engines_answer, atol=1e-3)


@pytest.mark.slow
def test_the_limit_gives_the_answers_of_the_calls_it_makes(bundle, sample):
    system = open_system("limit", sample)
    answer = answer_of(system, sample)
    wanted = engines_own_answer(bundle, sample, every_slice=False)
    assert (
        np.abs(answer.probabilities - wanted).mean() < 0.005
    )  # in bf16 where the machine has it
    assert set(answer.stage_seconds) <= {"detect", "grade", "record"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "every_slice"), [("tuned-torch", True), ("tuned-torch-lean", False)]
)
def test_tuned_torch_answers_as_the_engine(bundle, sample, name, every_slice):
    answer = answer_of(open_system(name, sample), sample)
    wanted = engines_own_answer(bundle, sample, every_slice=every_slice)
    assert np.abs(answer.probabilities - wanted).mean() < 0.005


@pytest.mark.slow
@pytest.mark.parametrize("name", ["notebook", "notebook-lean"])
def test_the_notebook_answers(sample, name):
    pytest.importorskip("torchio", reason="torchio is not installed")
    try:
        system = open_system(name, sample)
    except BackendError as error:
        pytest.skip(str(error))
    answer = answer_of(system, sample)
    assert {"point cloud", "voxel grids", "resize and rescale"} <= set(
        answer.stage_seconds
    )


@pytest.mark.slow
def test_the_notebooks_grid_holds_what_the_slices_show(bundle):
    """The middle of a disc's grid must show the same anatomy as the engine's grid: they correlate."""
    pytest.importorskip("torchio", reason="torchio is not installed")
    try:
        from spine_bench.baselines.notebook import Notebook, open3d

        open3d()
    except BackendError as error:
        pytest.skip(str(error))
    from spine_engine.pipeline.level_grids import level_grids

    notebook = Notebook(bundle)
    sample = phantom_samples(1)[0]
    wanted = level_grids(sample.study, sample.levels, bundle.grader.layout)[0][2]
    cloud = notebook._cloud(sample.study)
    grid = notebook._scaled(notebook._grid(cloud, sample.levels[LEVELS[2]]))
    assert grid.shape == wanted.shape
    assert (grid.min(), grid.max()) == pytest.approx((0, 1))
    for channel in range(len(grid)):
        assert np.corrcoef(grid[channel].ravel(), wanted[channel].ravel())[0, 1] > 0.6


def test_without_open3d_one_line_says_what_to_install(monkeypatch, sample):
    pytest.importorskip("torchio", reason="torchio is not installed")
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(
        BackendError, match=r"apt-get install libusb-1\.0-0 libgl1 libgomp1"
    ) as caught:
        open_system("notebook", sample)
    assert "\n" not in str(caught.value)


def test_an_unknown_system_is_a_mistake_of_the_user(sample):
    with pytest.raises(
        UsageError,
        match="no system 'fast': choose from engine, onnxruntime, notebook, ",
    ):
        open_system("fast", sample)


class Waiting:
    """Waits until it is let go; its second study fails."""

    facts = MappingProxyType({})

    def __init__(self):
        self.free = threading.Event()

    def answer(self, sample, clock):
        self.free.wait(10)
        if sample == "bad":
            raise ValueError("no such study\nand more")
        return np.zeros(SHAPE)


def test_a_failure_is_an_answer_and_closing_answers_what_still_waits():
    grader, answers = Waiting(), []
    system = PooledSystem("waiting", None, lambda bundle: grader)
    system.open()
    for sample in ("good", "bad"):
        system.submit(sample, answers.append)
    grader.free.set()
    while len(answers) < 2:
        pass
    assert answers[0].probabilities is not None
    assert answers[1].failure == "ValueError: no such study"
    grader.free.clear()
    for sample in ("good", "good"):
        system.submit(sample, answers.append)
    threading.Timer(0.2, grader.free.set).start()
    system.close()
    assert sum(answer.failure == CLOSED for answer in answers) == 1
    assert len(answers) == 4


class Doubling:
    """A network that doubles, keeping the shapes that it was given."""

    inputs = (TensorInfo("slices", (None, 1, None, None)),)
    outputs = (TensorInfo("heatmaps", (None, 1, None, None)),)
    device = Device("fake", "CPU", "f32")

    def __init__(self):
        self.shapes = []

    def run(self, inputs):
        self.shapes.append(inputs["slices"].shape)
        return {"heatmaps": inputs["slices"] * 2}


class Counting:
    """A network of which it is known what it was given."""

    def __init__(self, network):
        self.network, self.shapes = network, []
        self.inputs, self.outputs, self.device = (
            network.inputs,
            network.outputs,
            network.device,
        )

    def run(self, inputs):
        self.shapes.append(inputs["slices"].shape)
        return self.network.run(inputs)


@pytest.mark.slow
@pytest.mark.parametrize("count", [7, 13])
def test_every_slice_of_a_stack_is_looked_at_once_in_one_call(bundle, count):
    stacks = [
        middle_of(stack, count)
        for series in phantom_samples(1)[0].study.sagittal_stacks
        for stack in series
    ]
    network = bundle.open_model(bundle.detector, precision="f32")
    plain, whole = Counting(network), Counting(network)
    wanted = detect([stacks], plain)
    found = detect([stacks], BatchedStack(whole))
    assert len(plain.shapes) > len(stacks)  # detection calls with parts of a stack
    assert [shape[0] for shape in whole.shapes] == [count] * len(stacks)
    for level, disc in wanted.levels.items():
        assert disc.source == "detector"
        np.testing.assert_allclose(
            found.levels[level].center_mm, disc.center_mm, atol=1e-2
        )


def middle_of(stack, count):
    first = (len(stack.pixels) - count) // 2
    assert first >= 0
    kept = slice(first, first + count)
    parts = {
        name: getattr(stack, name)[kept]
        for name in ("pixels", "origins_mm", "slope", "intercept")
    }
    return replace(stack, **parts)


def test_what_is_no_part_of_a_stack_goes_to_the_network_as_it_is():
    network = Doubling()
    batched = BatchedStack(network)
    for shape in ((1, 1, 32, 32), (3, 1, 32, 32)):
        alone = np.ones(shape, np.float32)
        np.testing.assert_array_equal(
            batched.run({"slices": alone})["heatmaps"], 2 * alone
        )
    assert network.shapes == [(1, 1, 32, 32), (3, 1, 32, 32)]


def test_who_records_a_study_second_leaves_the_first_recording_alone(
    bundle, sample, tmp_path
):
    models = limit.BareModels(bundle, tmp_path)
    calls, _ = models.calls_of(sample)
    assert {len(part) for part in calls["detector"]} == {1}
    assert [len(part) for part in calls["grader"]] == [len(LEVELS)]
    ways = models.ways(sample)
    assert set(ways) == set(calls)
    models.record(sample, ways)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    assert len(before) > len(ways)
    models.record(sample, ways)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before
    recorded, _ = models.recorded(sample)
    assert {role: sum(map(len, parts)) for role, parts in recorded.items()} == {
        role: sum(map(len, parts)) for role, parts in calls.items()
    }


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("name", ["limit", "tuned-torch"])
def test_no_worker_outlives_a_system_that_is_killed(name, sample):
    code = f"""
import psutil, time
from pathlib import Path
from spine_bench.harness.interfaces import folder_library
from spine_bench.harness.systems import make_system
if __name__ == "__main__":
    system = make_system({name!r}, folder_library(Path({str(sample.root)!r})), None)
    system.open()
    print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
    time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        children = [
            psutil.Process(int(pid)) for pid in process.stdout.readline().split()
        ]
        process.kill()
    assert children
    deadline = time.monotonic() + 20
    while (
        alive := [child for child in children if lives(child)]
    ) and time.monotonic() < deadline:
        time.sleep(0.1)
    for child in alive:
        child.kill()
    assert not alive


def lives(process):
    try:
        return (
            process.status() != psutil.STATUS_ZOMBIE
        )  # whoever inherits it may not have asked for its end yet
    except psutil.NoSuchProcess:
        return False


class Shown:
    """A network that says one thing."""

    def __init__(self, name, said):
        self.name, self.said = name, said

    def run(self, inputs):
        (given,) = inputs.values()
        return {self.name: self.said(given)}


def test_steered_networks_let_every_later_stage_run():
    maps = column_of_vertebrae().numpy()
    (polygons,) = polygons_from_maps(maps)
    assert len(polygons.corners) == VERTEBRAE
    volumes, favoured = [], np.zeros((1, 1, 1, 24), np.float32)
    favoured[..., 0] = S1_SCORE

    def appearance(given):
        volumes.append(given.shape)
        return np.zeros((1, 24), np.float32)

    middle = [
        [middle_of(stack, 3) for stack in series]
        for series in phantom_samples(1)[0].study.sagittal_stacks[:1]
    ]
    found = detect_vertebra_field(
        middle,
        Shown("maps", lambda given: maps),
        Shown("scores", appearance),
        Shown("scores", lambda given: np.broadcast_to(favoured, given.shape).copy()),
    )
    assert [disc.source for disc in found.levels.values()] == ["detector"] * len(LEVELS)
    assert len(volumes) >= VERTEBRAE
    heights = [disc.center_mm[2] for disc in found.levels.values()]
    assert heights == sorted(heights, reverse=True)


def test_a_steered_network_does_its_work_and_says_what_is_shown():
    net = Steered(torch.nn.Conv2d(1, 2, 1), torch.ones(1, 2, 1, 1), 1e-3)
    x = torch.rand(1, 1, 4, 4)
    np.testing.assert_allclose(net(x).detach(), (net.net(x) * 1e-3 + 1).detach())


def test_ratios_and_shares_are_taken_round_by_round(tmp_path):
    subject = Subject(bundle=tmp_path, role="grader", batch=5, gflop=GFLOP / 10)
    turns = {
        "openvino bf16": [
            (0.2, 0.4),
            (0.4, 0.8),
            (0.2, 0.4),
        ],  # the machine was slower in the second round
        "onnxruntime f32": [(0.6, 1.2), (1.2, 2.4), (0.6, 1.2)],
        "roof torch bf16": [(1.0, 2.0), (2.0, 4.0), (1.0, 2.0)],
        "roof openvino bf16": [(2.0, 4.0), (4.0, 8.0), (2.0, 4.0)],
    }
    rows: dict[str, Row] = {row.way: row for row in rows_of(subject, turns)}
    assert rows["onnxruntime f32"].wall_ratio == pytest.approx(3)
    assert rows["onnxruntime f32"].wall_roof == 0  # no product in float32 was measured
    assert rows["openvino bf16"].processor_roof == pytest.approx(
        0.5
    )  # a tenth of the work in a fifth of the time
    assert rows["openvino bf16"].wall_ms == pytest.approx(200)
    assert rows["roof torch bf16"].wall_roof == 0
