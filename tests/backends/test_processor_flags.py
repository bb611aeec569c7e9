"""What /proc/cpuinfo says of a processor, on x86 and on Arm, and which flags mean native bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest

from spine_engine.backends import processor

X86 = "processor\t: 0\nmodel name\t: flags of all sorts\nflags\t\t: fpu avx512f {}\nbugs\t: none\nflags\t: late\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50\nFeatures\t: fp asimd {}\n"


@pytest.fixture(autouse=True)
def fresh():
    processor.instruction_sets.cache_clear()
    yield
    processor.instruction_sets.cache_clear()


@pytest.mark.parametrize(
    ("text", "flags", "native"),
    [
        (X86.format("avx512_bf16"), {"fpu", "avx512f", "avx512_bf16"}, True),
        (X86.format("amx_bf16"), {"fpu", "avx512f", "amx_bf16"}, True),
        (X86.format("amx_int8"), {"fpu", "avx512f", "amx_int8"}, False),
        (X86.format("xbf16"), {"fpu", "avx512f", "xbf16"}, False),
        (ARM.format("bf16"), {"fp", "asimd", "bf16"}, True),
        (ARM.format("i8mm"), {"fp", "asimd", "i8mm"}, False),
        ("processor\t: 0\n", set(), False),
        ("", set(), False),
    ],
)
def test_the_flags_of_the_first_processor(
    tmp_path: Path, monkeypatch, text, flags, native
):
    (tmp_path / "cpuinfo").write_bytes(text.encode() + b"\xff")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert processor.instruction_sets() == flags
    assert processor.has_native_bf16() is native


def test_a_machine_that_does_not_say_has_no_flags(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    assert processor.instruction_sets() == frozenset()
    assert not processor.has_native_bf16()
