"""Weights of any origin: files -> a state dict, the network it fills, and one line for a mismatch.

``fit.read_checkpoint`` reads this project's training checkpoints; this module reads all others: a plain state dict or
one in a wrapper, as ``torch.save`` or safetensors wrote it. No code in a file is ever run.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spine_engine.errors import UsageError

WRAPPERS: Final = ("ema", "model", "net", "state_dict", "model_state_dict")
"""Keys under which training scripts keep the weights; the first that a file has is taken, so averaged ones win."""

PREFIXES: Final = ("module.", "_orig_mod.")
"""Prefixes that ``nn.DataParallel`` and ``torch.compile`` put before every key."""

AVERAGING_COUNT: Final = "n_averaged"
"""The counter that ``torch.optim.swa_utils.AveragedModel`` keeps among its weights."""

Candidates = Mapping[str, Callable[[], nn.Module]]
"""Networks by name, each built when it is called."""

_WRAPPED_AT_MOST: Final = 3
"""Wrappers in wrappers that are opened; a pickle may hold a dict that holds itself."""

_LISTED_KEYS: Final = 6
"""Keys that an error names of each kind, so that it stays readable."""

_LISTED_LENGTH: Final = 100
"""Characters of a key that an error shows."""

_NOT_SAVED_BY_TORCH: Final = (
    "it is damaged, or not a file of torch.save; safetensors must be named .safetensors"
)

_NEAR: Final = 0.5
"""Share of keys that may differ while a network still counts as near."""

_NUMPY_SCALAR: Final[list[Any]] = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
]
"""Globals in the pickle of a NumPy number (the loss beside the weights), before NumPy 2 and since: harmless."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a file onto the CPU, out of its wrappers and without the prefixes of its keys.

    Args:
        path: a file of ``torch.save``, or ``.safetensors``; wrapped under one of ``WRAPPERS`` or plain.

    Raises:
        UsageError: there is no such file, it cannot be read without running code, or it holds no weights.
    """
    if not path.is_file():
        raise UsageError(
            f"{path} is no file; give a file of torch.save or .safetensors"
        )
    if not path.stat().st_size:
        raise UsageError(f"{path.name} is no checkpoint: the file is empty")
    content = _weights_in(
        _read_safetensors(path)
        if path.suffix.lower() == ".safetensors"
        else _read_pickle(path)
    )
    if content is None:
        raise UsageError(
            f"{path.name} holds no weights: want a state dict, or one under {', '.join(WRAPPERS)}"
        )
    state: dict[str, Tensor] = {}
    for name, tensor in content.items():
        bare = _bare(str(name))
        if bare in state:
            raise UsageError(
                f"{path.name} holds {_shown(bare)} twice, with and without {' or '.join(PREFIXES)}"
            )
        state[bare] = tensor
    state.pop(AVERAGING_COUNT, None)
    return state


def _weights_in(content: object, depth: int = 0) -> Mapping[str, Tensor] | None:
    """Return the first mapping of tensors alone: what it is given, or what lies under one of ``WRAPPERS``."""
    if not isinstance(content, Mapping) or depth > _WRAPPED_AT_MOST:
        return None
    if content and all(map(_is_plain, content.values())):
        return content
    inside = (
        _weights_in(content[key], depth + 1) for key in WRAPPERS if key in content
    )
    return next(
        (found for found in inside if found is not None),
        None,
    )


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """The difference of a state dict from the one that a network wants.

    Attributes:
        missing, unexpected: keys.
        misshaped: description of the difference, by key.
        keys: number of keys in either.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: dict[str, str]
    keys: int

    @property
    def count(self) -> int:
        """Number of keys that differ."""
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)

    def __str__(self) -> str:
        """Return the first keys of every kind, and their number."""
        shapes = [f"{_shown(name)} {what}" for name, what in self.misshaped.items()]
        kinds = {
            "missing": list(map(_shown, self.missing)),
            "unexpected": list(map(_shown, self.unexpected)),
            "of another shape": shapes,
        }
        return "; ".join(
            f"{len(names)} {kind} ({_some(names)})"
            for kind, names in kinds.items()
            if names
        )


def compare(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> Mismatch:
    """Compare names, shapes and kinds of numbers; values are not looked at, so ``wanted`` may lie on ``meta``."""
    shared = [name for name in wanted if name in got]
    misshaped = {
        name: f"{list(got[name].shape)} instead of {list(wanted[name].shape)}"
        for name in shared
        if got[name].shape != wanted[name].shape
    }
    misshaped |= {
        name: f"{got[name].dtype} instead of {wanted[name].dtype}"
        for name in shared
        if name not in misshaped
        and got[name].is_floating_point() != wanted[name].is_floating_point()
    }
    return Mismatch(
        missing=tuple(name for name in wanted if name not in got),
        unexpected=tuple(name for name in got if name not in wanted),
        misshaped=misshaped,
        keys=len(wanted.keys() | got.keys()),
    )


def differences(
    got: Mapping[str, Tensor], candidates: Candidates
) -> dict[str, Mismatch]:
    """Compare weights with several networks, each built without memory on ``meta``; those that fail are left out."""
    mismatches: dict[str, Mismatch] = {}
    with torch.device("meta"), _ReadableRamps(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.meshgrid"
        )  # timm_3d's relative positions call it so
        for name, build in candidates.items():
            try:
                mismatches[name] = compare(build().state_dict(), got)
            except (
                AssertionError,
                AttributeError,
                LookupError,
                OSError,
                RuntimeError,
                TypeError,
                ValueError,
            ):
                continue  # some names of timm_3d do not build, others not for every grid
    return mismatches


def nearest(got: Mapping[str, Tensor], candidates: Candidates) -> str:
    """Say which of some networks the weights come nearest to."""
    mismatches = differences(got, candidates)
    least = min((mismatch.count for mismatch in mismatches.values()), default=0)
    names = [name for name, mismatch in mismatches.items() if mismatch.count == least]
    if not names or least > _NEAR * mismatches[names[0]].keys:
        return f"none of {len(mismatches)} known networks is near"
    return f"the nearest is {' or '.join(names[:3])}: {least} of {mismatches[names[0]].keys} keys differ"


def fill(
    net: nn.Module,
    state: object,
    *,
    file: Path,
    what: str,
    advise: Callable[[Mismatch], str] | None = None,
) -> None:
    """Give ``net`` the weights of ``state``, in float32 and without a copy of those that are float32 already.

    Args:
        net: the network to fill; may lie on ``meta``.
        state: a state dict, as ``read_weights`` returns.
        file, what: names for errors: the weights' file, and the network in words.
        advise: returns a hint for the error from the mismatch.

    Raises:
        UsageError: keys are missing, unexpected or of another shape, or a number is not finite.
    """
    if not isinstance(state, Mapping) or not all(map(_is_plain, state.values())):
        raise UsageError(f"{file.name} holds no weights of {what}")
    mismatch = compare(net.state_dict(), state)
    if mismatch.count:
        advice = "" if advise is None else f"; {advise(mismatch)}"
        raise UsageError(
            f"the weights in {file.name} are not those of {what}: {mismatch}{advice}"
        )
    wide = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    if broken := [_shown(name) for name, tensor in wide.items() if not _finite(tensor)]:
        raise UsageError(
            f"{len(broken)} tensors in {file.name} are not finite ({_some(broken)}): give sound weights"
        )
    net.load_state_dict(
        wide,
        strict=True,
        assign=True,
    )


class _ReadableRamps(TorchFunctionMode):
    """Keeps ``torch.linspace`` on the CPU: timm_3d reads its numbers (the rates of dropped paths) while it builds."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        extra = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **{**(kwargs or {}), **extra})


def _read_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # noqa: BLE001 - whatever the library raises on a damaged file
        raise UsageError(
            f"{path.name} is no checkpoint that can be read safely: {_first_line(error)}"
        ) from None


def _read_pickle(path: Path) -> object:
    try:
        _refuse_compressed(path)
        with torch.serialization.safe_globals(_NUMPY_SCALAR):
            return torch.load(
                path,
                map_location="cpu",
                weights_only=True,
            )
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the unpickler raises on a file that is none of torch's
        wants = re.search(r"(?i)unsupported (?:global:? )+(\S{1,80})", str(error))
        reason = (
            f"it asks for {_shown(wants[1])}; save the state dict alone"
            if wants
            else _NOT_SAVED_BY_TORCH
        )
        raise UsageError(
            f"{path.name} is no checkpoint that can be read safely: {reason}"
        ) from None


def _refuse_compressed(path: Path) -> None:
    """Refuse an archive with compressed entries: a kilobyte may hold a megabyte, and torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(
                entry.compress_type != zipfile.ZIP_STORED
                for entry in archive.infolist()
            ):
                raise UsageError(
                    f"{path.name} is compressed, which torch.save never does: save it with torch.save"
                )


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return _shown(text) or type(error).__name__


def _is_plain(tensor: object) -> bool:
    """Return whether this is a dense tensor of plain numbers, in memory."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
    )


def _finite(tensor: Tensor) -> bool:
    """Return whether a tensor has no NaN or infinity, without a second tensor of the same size."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.stack(tensor.detach().aminmax()).isfinite().all())


def _bare(name: str) -> str:
    while name.startswith(PREFIXES):
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
    return name


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = (
        [f"and {len(listed) - _LISTED_KEYS} more"] if len(listed) > _LISTED_KEYS else []
    )
    return ", ".join(listed[:_LISTED_KEYS] + more)


def _shown(text: str) -> str:
    """Return text from a file as an error may show it: short, one line, without control characters."""
    return (text if text.isprintable() else ascii(text))[:_LISTED_LENGTH]
