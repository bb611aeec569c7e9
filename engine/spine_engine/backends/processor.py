"""What this machine's processor can do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
NATIVE_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags of processors that multiply in bfloat16 (x86 AVX-512 and AMX, Arm); elsewhere it is emulated and slower."""


@cache
def instruction_sets() -> frozenset[str]:
    """Return the processor's flags as Linux names them; empty where they cannot be read."""
    try:
        lines = CPUINFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def has_native_bf16() -> bool:
    """Return whether bfloat16 products run in hardware."""
    return not NATIVE_BF16.isdisjoint(instruction_sets())
