"""The number format of the model's arithmetic, where `EVOREC_DTYPE` leaves the choice to the machine."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

Dtype = Literal["bfloat16", "float32", "float16"]

# Processors that multiply bfloat16 in hardware (x86: AVX-512 BF16 or AMX, Arm: BF16) say so in one of these words.
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def cpu_dtype(wanted: Dtype | Literal["auto"]) -> Dtype:
    """What a CPU computes in: `wanted`, and for "auto" bfloat16 where the processor multiplies it, else float32.

    Emulated bfloat16 is slow: with AVX2 alone, vLLM ranked 5.3 times fewer prompts per second than in float32.
    """
    if wanted != "auto":
        return wanted
    return "bfloat16" if _cpu_flags() & _BFLOAT16_FLAGS else "float32"


@lru_cache(maxsize=1)
def _cpu_flags() -> frozenset[str]:
    """The features that Linux lists of the first processor; none where it lists none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(listed, "").split())
