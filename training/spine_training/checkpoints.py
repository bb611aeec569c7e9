"""Weights of any origin: files -> a state dict, the network it fills, and one line for a mismatch.

``fit.read_checkpoint`` reads this project's training checkpoints; this module reads all others: a plain state dict or
one in a wrapper, as ``torch.save`` or safetensors wrote it. No code in a file is ever run.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spine_engine.errors import UsageError

WRAPPERS: Final = (
    "model",
    "net",
    "state_dict",
    "model_state_dict",
    "model_weights",
    "weights",
    "network",
    "module",
)
"""Keys under which training scripts keep the weights; they decide where a file has several sets."""

Averaging = Literal["ema", "plain"]
"""Which weights of a file that has both: those averaged over training, or the last step's."""

PREFIXES: Final = ("module.", "_orig_mod.")
"""Prefixes that ``nn.DataParallel`` and ``torch.compile`` put before every key."""

_AVERAGED: Final = re.compile(
    r"(?i)(^|[^a-z])(ema|swa)([^a-z]|$|callback|model)|averag"
)
"""Matches names of weights that are averaged over training."""

_NOT_WEIGHTS: Final = re.compile(
    r"(?i)optim|sched|scaler|loops|hyper|hparam|args|config|criteri|loss|metric|history|rng"
)
"""Matches names of what lies beside the weights: mappings of tensors that are no network, and layers of a loss."""

_ATTRIBUTES: Final = ("model", "net", "network", "online_model", "student")
"""Names that a training script's own module gives its network: prefixes of every key."""

AVERAGING_COUNT: Final = "n_averaged"
"""The counter that ``torch.optim.swa_utils.AveragedModel`` keeps among its weights."""

Candidates = Mapping[str, Callable[[], nn.Module]]
"""Networks by name, each built when it is called."""

_WRAPPED_AT_MOST: Final = 3
"""Wrappers in wrappers that are opened; a pickle may hold a dict that holds itself."""

_MODULES_AT_MOST: Final = 64
"""Modules in modules that are opened."""

_LISTED_KEYS: Final = 6
"""Keys that an error names of each kind, so that it stays readable."""

_LISTED_LENGTH: Final = 100
"""Characters of a key that an error shows."""

_NOT_SAVED_BY_TORCH: Final = (
    "it is damaged, or not a file of torch.save; safetensors must be named .safetensors"
)

_NEAR: Final = 0.5
"""Share of keys that may differ while a network still counts as near."""

_NUMPY: Final[list[Any]] = [
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for function, name in (
            (np.float64(0).__reduce__()[0], "scalar"),
            (np.zeros(0).__reduce__()[0], "_reconstruct"),
        )
    ),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
]
"""Globals in the pickles of NumPy's numbers and arrays, before NumPy 2 and since: harmless."""

_RUNS_CODE: Final = re.compile(
    r"(ctypes|importlib|multiprocessing|pickle|pty|runpy|shutil|socket|subprocess|torch\.hub|webbrowser)\b"
)
"""Matches globals that no checkpoint has a use for, and an attack does."""

_TYPES: Final = frozenset(
    [
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int"),
        *("list", "object", "range", "set", "slice", "str", "tuple"),
    ]
)
"""Built-in types, which pickles name as what a mapping makes of missing values, for instance."""

_FOREIGN_AT_MOST: Final = 256
"""Kinds of objects beside the weights that are read past."""


class Foreign:
    """Stands for any class or function that a pickle names. What is made of it is an ordered dict, which does nothing:
    it takes the items of a mapping, and as attributes the state of an object."""

    def __new__(cls, *args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """Return an empty mapping, whatever the arguments."""
        return OrderedDict()


def read_weights(path: Path, weights: Averaging | None = None) -> dict[str, Tensor]:
    """Read the state dict of a file onto the CPU, out of its wrappers and without the prefixes of its keys.

    Args:
        path: a file of ``torch.save``, or ``.safetensors``: a state dict, a whole module, or any mapping around one.
        weights: which of them, where a file has both; averaged ones win if not given.

    Raises:
        UsageError: there is no such file, it cannot be read without running code, it holds no weights, none of that
            kind, or several sets of them.
    """
    if not path.is_file():
        raise UsageError(
            f"{path} is no file; give a file of torch.save or .safetensors"
        )
    if not path.stat().st_size:
        raise UsageError(f"{path.name} is no checkpoint: the file is empty")
    content = (
        _read_safetensors(path)
        if path.suffix.lower() == ".safetensors"
        else read_pickle(path)
    )
    place, state = _chosen_set(path, dict(_sets_of_weights(content)), weights)
    state, root = _of_the_network(path, state, weights)
    if weights == "ema" and not _AVERAGED.search(" ".join((*place, *root))):
        raise UsageError(f"{path.name} holds no averaged weights: leave ema out")
    state.pop(AVERAGING_COUNT, None)
    return state


def _sets_of_weights(
    content: object, place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every mapping of names to tensors alone, with the keys that lead to it."""
    if not isinstance(content, Mapping) or len(place) > _WRAPPED_AT_MOST:
        return
    if "_parameters" in _attributes(content):
        content = dict(_weights_of_module(content))
    state: dict[Any, Any] = {name: _as_tensor(value) for name, value in content.items()}
    if state and all(map(_is_plain, state.values())):
        yield place, {str(name): tensor for name, tensor in state.items()}
        return
    for name, value in content.items():
        if isinstance(name, str) and not _NOT_WEIGHTS.search(name):
            yield from _sets_of_weights(value, (*place, name))


def _weights_of_module(
    module: object, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Yield the weights of a module that was saved whole, by the names that its state dict would have."""
    facts = _attributes(module)
    for kind in ("_parameters", "_buffers"):
        for name, tensor in dict(facts.get(kind) or {}).items():
            if tensor is not None:
                yield f"{prefix}{name}", tensor
    for name, child in dict(facts.get("_modules") or {}).items():
        if depth < _MODULES_AT_MOST:
            yield from _weights_of_module(child, f"{prefix}{name}.", depth + 1)


def _attributes(value: object) -> dict[str, Any]:
    return vars(value) if isinstance(value, OrderedDict) else {}


def _chosen_set(
    path: Path,
    sets: Mapping[tuple[str, ...], dict[str, Tensor]],
    weights: Averaging | None,
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Return the one set of weights that is meant, and the keys that lead to it."""
    most = max(map(len, sets.values()), default=0)
    large = {place: state for place, state in sets.items() if 2 * len(state) >= most}
    if not large:
        raise UsageError(
            f"{path.name} holds no weights: want a state dict, or one under {', '.join(WRAPPERS)}"
        )
    averaged = {
        place: state
        for place, state in large.items()
        if _AVERAGED.search(" ".join(place))
    }
    plain = {place: state for place, state in large.items() if place not in averaged}
    if weights == "plain" and averaged and not plain:
        raise UsageError(f"{path.name} holds averaged weights alone: leave plain out")
    found = plain if weights == "plain" or not averaged else averaged
    if len(found) > 1:
        known = [
            place
            for wrapper in WRAPPERS
            for place in found
            if place and place[-1] == wrapper
        ]
        found = {place: found[place] for place in known[:1]} or found
    if len(found) > 1:
        places = _some(_shown(".".join(place)) for place in found)
        raise UsageError(
            f"{path.name} holds several sets of weights ({places}): save one alone"
        )
    return next(iter(found.items()))


def _of_the_network(
    path: Path, state: Mapping[str, Tensor], weights: Averaging | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return weights by the names that the network itself gives them, without layers of a loss beside it, and the
    prefixes that were taken off."""
    taken: list[str] = []
    while True:
        state = _without_prefixes(path, state)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            root, dot, rest = name.partition(".")
            if dot or tensor.numel() != 1:
                parts.setdefault(root, {})[rest] = tensor
        networks = {
            root: part for root, part in parts.items() if not _NOT_WEIGHTS.search(root)
        }
        averaged = [root for root in networks if _AVERAGED.search(root)]
        plain = [root for root in networks if root in _ATTRIBUTES]
        chosen = averaged if averaged and (weights != "plain" or not plain) else plain
        if len(chosen) != 1 or len(averaged) + len(plain) != len(networks):
            return dict(state), tuple(taken)
        taken += chosen
        state = networks[chosen[0]]


def _without_prefixes(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        bare = _bare(name)
        if bare in found:
            raise UsageError(
                f"{path.name} holds {_shown(bare)} twice, with and without {' or '.join(PREFIXES)}"
            )
        found[bare] = tensor
    return found


def _as_tensor(value: object) -> object:
    """Return NumPy's numbers as a tensor, and anything else as it is."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value))
    return value


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


def read_pickle(path: Path) -> Any:
    """Read a file of ``torch.save`` onto the CPU, whatever lies beside its tensors; no code in it is run.

    Objects of other classes are read as ordered dicts (``Foreign``).

    Raises:
        UsageError: it is compressed, damaged, or asks for something that only an attack needs.
    """
    foreign: set[str] = set()
    try:
        _refuse_compressed(path)
        while True:
            names = (name if "." in name else f"builtins.{name}" for name in foreign)
            allowed = [*_NUMPY, *((Foreign, name) for name in names)]
            try:
                with torch.serialization.safe_globals(allowed):
                    return torch.load(path, map_location="cpu", weights_only=True)
            except UnpicklingError as error:
                name = _asked_for(str(error))
                if (
                    name is None
                    or name in foreign
                    or not _is_harmless(name)
                    or len(foreign) > _FOREIGN_AT_MOST
                ):
                    raise
                foreign |= {name} | _others_asked_for(path)
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the unpickler raises on a file that is none of torch's
        asked = _asked_for(str(error))
        reason = (
            _NOT_SAVED_BY_TORCH
            if asked is None
            else f"it asks for {_shown(asked)}; save the state dict alone"
        )
        raise UsageError(
            f"{path.name} is no checkpoint that can be read safely: {reason}"
        ) from None


def _asked_for(message: str) -> str | None:
    """Return the class or function that the unpickler's message says a pickle names."""
    found = re.search(r"(?i)unsupported (?:global:? )+(\S{1,200})", message)
    return found and found[1]


def _others_asked_for(path: Path) -> set[str]:
    """Return all that a pickle names and that is not known, so that a large file is not read once for each."""
    try:
        with torch.serialization.safe_globals(_NUMPY):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - a file in torch's former format: they are met one by one
        return set()
    return set(filter(_is_harmless, names))


def _is_harmless(name: str) -> bool:
    """Whether what a pickle names may be read past; built-in names come without their module."""
    return not _RUNS_CODE.match(name) if "." in name else name in _TYPES


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
    return name.replace("._orig_mod.", ".")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = (
        [f"and {len(listed) - _LISTED_KEYS} more"] if len(listed) > _LISTED_KEYS else []
    )
    return ", ".join(listed[:_LISTED_KEYS] + more)


def _shown(text: str) -> str:
    """Return text from a file as an error may show it: short, one line, without control characters."""
    return (text if text.isprintable() else ascii(text))[:_LISTED_LENGTH]
