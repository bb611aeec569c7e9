"""TensorRT's builder, pretended: a network of one input whose engine is what it was told, as text."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from pretended_gpu import PretendedCuda, PretendedTensorRt, Type


class Capability:
    __members__ = {"NONE": 0, "CURRENT": 1, "SM120": 5, "SM75": 2, "SM89": 3}  # noqa: RUF012
    SM75, SM89, SM120 = "SM75", "SM89", "SM120"


class Attention:
    """What the binding gives for a layer of attention: the base class."""

    type = "attention"

    def __init__(self) -> None:
        self.attention = SimpleNamespace(decomposable=False)


class PretendedBuilderLibrary(PretendedTensorRt):
    """Stands for the module ``tensorrt`` or ``tensorrt_rtx``, with what builds engines."""

    ComputeCapability = Capability
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=3)
    BuilderFlag = SimpleNamespace(TF32="tf32", REQUIRE_USER_ALLOCATION="user")
    HardwareCompatibilityLevel = SimpleNamespace(
        SAME_COMPUTE_CAPABILITY="same", NONE="none"
    )
    LayerType = SimpleNamespace(ATTENTION_INPUT="attention")

    class IAttentionInputLayer(Attention):
        pass

    def __init__(self) -> None:
        super().__init__(PretendedCuda())
        self.shape: tuple[int, ...] = (-1, 2, -1, -1)
        self.inputs, self.input_type, self.result_type = 1, Type.FLOAT, Type.FLOAT
        self.parse_errors: list[tuple[str, str, str]] = []
        self.refuses: str = ""
        self.says: list[tuple[str, str]] = []
        self.layers: list[Any] = [SimpleNamespace(type="conv"), Attention()]
        self.networks: list[int] = []
        self.parsed: list[bytes] = []
        self.configs: list[Config] = []
        self.takes_timings = True

    def Builder(self, logger: Any) -> Any:
        self.logger = logger
        return self

    def create_network(self, flags: int) -> Any:
        self.networks.append(flags)

        def tensor(name: str, kind: Type) -> SimpleNamespace:
            return SimpleNamespace(name=name, dtype=kind, shape=self.shape)

        return SimpleNamespace(
            num_inputs=self.inputs,
            num_outputs=1,
            get_input=lambda n: tensor("image", self.input_type),
            get_output=lambda n: tensor("maps", self.result_type),
            num_layers=len(self.layers),
            get_layer=self.layers.__getitem__,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        def parse(model: bytes) -> bool:
            self.parsed.append(model)
            return not self.parse_errors

        def error(n: int) -> SimpleNamespace:
            operator, node, said = self.parse_errors[n]
            return SimpleNamespace(
                node_operator=lambda: operator,
                node_name=lambda: node,
                desc=lambda: said,
            )

        return SimpleNamespace(
            parse=parse, num_errors=len(self.parse_errors), get_error=error
        )

    def create_builder_config(self) -> Config:
        self.configs.append(Config(self))
        return self.configs[-1]

    def create_optimization_profile(self) -> Any:
        profile = SimpleNamespace(shapes={})
        profile.set_shape = lambda name, *shapes: profile.shapes.__setitem__(
            name, shapes
        )
        return profile

    def build_serialized_network(self, network: Any, config: Config) -> Any:
        for severity, message in self.says:
            self.logger.log(SimpleNamespace(name=severity), message)
        if self.refuses == "build":
            return None
        (shapes,) = config.profiles
        return memoryview(b"plan" + json.dumps(list(shapes["image"])).encode())


class Config:
    """A builder's configuration: notes what it is told."""

    def __init__(self, library: PretendedBuilderLibrary) -> None:
        self._library = library
        self.flags = {"tf32"}  # as TensorRT begins
        self.profiles: list[Any] = []
        self.num_compute_capabilities = 0
        self.capabilities: list[Any] = []
        self.hardware_compatibility_level = "none"
        self.timings: list[bytes] = []

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return -1 if self._library.refuses == "profile" else 0

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        self.capabilities.append((capability, index))
        return self._library.refuses != "capability"

    def create_timing_cache(self, content: bytes) -> Any:
        if content and not self._library.takes_timings:
            return None
        return SimpleNamespace(content=content)

    def set_timing_cache(self, kept: Any, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self.timings.append(kept.content)
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"timings" + self.timings[-1][-1:])
