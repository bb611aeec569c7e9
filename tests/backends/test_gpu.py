"""The packaged models on a GPU say what they say on the processor, within 1e-3."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest

from spine_engine.backends import Backend, available_backends, open_backend
from spine_engine.bundle import Bundle, packaged_folder

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

TOLERANCES = {"f32": 1e-3, "f16": 5e-2}
"""On noise, of heat maps and logits up to about 10 as well as of probabilities."""

SHAPES = {
    "detector": [
        (1, 1, 160, 160),
        (1, 1, 320, 320),
        (1, 1, 32, 320),
        (1, 1, 160, 224),
        (1, 1, 160, 160),
    ],
    "grader": [(n, 3, 24, 40, 48) for n in (5, 1, 8, 3, 5, 1, 8)],
}
ENTRIES = {
    role: entry
    for role, entry in Bundle.open().manifest.models.by_role().items()
    if role in SHAPES
}
MODELS = {role: (ENTRIES[role].profile, shapes) for role, shapes in SHAPES.items()}

RUNNERS = [
    "tensorrt GPU",
    "tensorrt-rtx GPU",
    "onnxruntime CUDA",
    "onnxruntime TENSORRT",
    "onnxruntime NVTENSORRTRTX",
]


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest) -> tuple[str, str]:
    name, device = request.param.split()
    status = next(status for status in available_backends() if status.name == name)
    if not status.available:
        pytest.skip(status.reason)
    if not any(found.startswith(device) for found in status.devices):
        pytest.skip(
            f"{name} {status.version} has no device {device} here, only {', '.join(status.devices)}"
        )
    return name, device


def packaged(role: str, precision: str = "f32") -> bytes:
    entry = ENTRIES[role]
    return (
        packaged_folder()
        / (entry if precision == "f32" else entry.variants[precision]).file
    ).read_bytes()


def inputs(
    backend: Backend, shape: tuple[int, ...], seed: int
) -> dict[str, np.ndarray]:
    # what the models are trained on lies between 0 and about 1
    return {
        backend.inputs[0].name: np.random.default_rng(seed).random(shape, np.float32)
    }


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("role", MODELS)
def test_parity_with_the_processor(
    runner: tuple[str, str], role: str, precision: str
) -> None:
    (name, device), (profile, shapes) = runner, MODELS[role]
    reference = open_backend(packaged(role), name="openvino", precision="f32")
    begun = perf_counter()
    content = packaged(role, precision)
    backend = open_backend(
        content, name=name, device=device, precision=precision, profile=profile
    )  # type: ignore[arg-type]
    opened = perf_counter() - begun
    output, worst = backend.outputs[0].name, 0.0
    for seed, shape in enumerate(shapes):
        given = inputs(backend, shape, seed)
        want, got = reference.run(given)[output], backend.run(given)[output]
        assert got.shape == want.shape
        worst = max(worst, float(np.abs(got - want).max()))
    given, runs = inputs(backend, profile.usual, 0), 100
    backend.run(given)
    begun = perf_counter()
    for _ in range(runs):
        backend.run(given)
    each = (perf_counter() - begun) / runs
    print(
        f"{name} {device} {role} {precision}: worst {worst:.1e}, opened in {opened:.2f} s, {1e3 * each:.3f} ms a run"
    )
    backend.close()
    reference.close()
    assert worst <= TOLERANCES[precision]


@pytest.mark.parametrize("role", MODELS)
def test_the_same_input_gives_the_same_bytes_whatever_ran_before(
    runner: tuple[str, str], role: str
) -> None:
    (name, device), (profile, shapes) = runner, MODELS[role]
    backends = [
        open_backend(
            packaged(role), name=name, device=device, precision="f32", profile=profile
        )
        for _ in range(2)
    ]
    output = backends[0].outputs[0].name
    given = [inputs(backends[0], shape, seed) for seed, shape in enumerate(shapes)]
    forwards = [backends[0].run(one)[output] for one in given]
    backwards = [backends[1].run(one)[output] for one in reversed(given)][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert np.array_equal(one, other)
    for backend in backends:
        backend.close()


@pytest.mark.parametrize("role", MODELS)
def test_the_second_start_takes_what_the_first_built(
    runner: tuple[str, str], role: str
) -> None:
    (name, device), (profile, _) = runner, MODELS[role]
    seconds = []
    for _ in range(2):
        begun = perf_counter()
        open_backend(
            packaged(role), name=name, device=device, precision="f32", profile=profile
        ).close()
        seconds.append(perf_counter() - begun)
    print(f"{name} {device} {role}: first {seconds[0]:.2f} s, then {seconds[1]:.2f} s")
    if "tensorrt" in f"{name} {device}".lower():
        assert seconds[1] < seconds[0]
