"""ONNX Runtime with an NVIDIA GPU's providers, pretended: sessions say they run there, and compute on the processor.

What is shown so is this project's own part: what a provider is told, which device is taken, what is bound and copied,
what is refused. What a GPU computes, and what the real providers make of their options, is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import onnxruntime

PLUGIN = "NvTensorRTRTXExecutionProvider"


class Options(onnxruntime.SessionOptions):
    """Session options that note what the real ones cannot be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[Any] = []
        self.device_options: dict[str, str] = {}

    def add_provider_for_devices(
        self, devices: Sequence[Any], options: dict[str, str]
    ) -> None:
        self.devices, self.device_options = list(devices), dict(options)


class PretendedOnnxRuntime:
    """Stands for the module ``onnxruntime``."""

    __version__ = "99.1"
    SessionOptions = Options
    GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel

    def __init__(self, *providers: str, plugin_gpus: int = 0) -> None:
        self.providers = [*providers, "CPUExecutionProvider"]
        self.plugin_gpus = plugin_gpus
        self.registered: list[tuple[str, str]] = []
        self.preloaded = 0
        self.opened: list[SimpleNamespace] = []
        self.gives_way = False
        self.left_behind: list[str] = []

    def get_available_providers(self) -> list[str]:
        return self.providers

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered.append((name, path))

    def get_ep_devices(self) -> list[SimpleNamespace]:
        gpus = [
            SimpleNamespace(ep_name=PLUGIN, number=n)
            for n in range(self.plugin_gpus if self.registered else 0)
        ]
        return [SimpleNamespace(ep_name="CPUExecutionProvider", number=0), *gpus]

    def preload_dlls(self) -> None:
        self.preloaded += 1
        print("cudnn64_9.dll: not found")

    def InferenceSession(
        self,
        model: bytes,
        options: Options,
        *,
        providers: Any = None,
        enable_fallback: int = 1,
    ) -> Any:
        session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        (first,) = providers or [(options.devices[0].ep_name, options.device_options)]
        name, told = (first, {}) if isinstance(first, str) else first
        self.opened.append(
            SimpleNamespace(
                provider=name,
                told=dict(told),
                options=options,
                fallback=enable_fallback,
                devices=options.devices,
            )
        )
        return Session(
            self, session, "CPUExecutionProvider" if self.gives_way else name
        )


class Session:
    """A session that says it runs on another provider."""

    def __init__(
        self, runtime: PretendedOnnxRuntime, session: Any, provider: str
    ) -> None:
        self._runtime, self._session, self._provider = runtime, session, provider

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return list(dict.fromkeys([self._provider, "CPUExecutionProvider"]))

    def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
        def part(provider: str, kinds: Sequence[str]) -> SimpleNamespace:
            return SimpleNamespace(
                ep_name=provider,
                get_nodes=lambda: [SimpleNamespace(op_type=k) for k in kinds],
            )

        return [
            part(self._provider, ["Conv", "Relu"]),
            part("CPUExecutionProvider", self._runtime.left_behind),
        ]
