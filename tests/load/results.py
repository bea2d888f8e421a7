"""The performance results: one JSON file that every benchmark adds to, and the page that is made from it."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.precision import cpu_dtype

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "performance.json"


@dataclass(frozen=True)
class Entry:
    """One figure. `ratio` compares it with `baseline` (an entry's name) round by round in the same run; `spread` is
    the ratio's smallest and largest (the value's, where there is no baseline).
    """

    name: str
    value: float
    unit: str
    baseline: str | None
    ratio: float | None
    runs: int
    spread: tuple[float, float]
    command: str
    target: float | None = None


def compared(
    name: str,
    unit: str,
    values: Sequence[float],
    command: str,
    *,
    baseline: str | None = None,
    against: Sequence[float] | None = None,
    target: float | None = None,
) -> Entry:
    """The median of `values`, and of its ratios to `against`, which was measured in the same rounds."""
    ratios = [mine / theirs for mine, theirs in zip(values, against, strict=True)] if against else None
    spread = ratios or values
    return Entry(
        name,
        statistics.median(values),
        unit,
        baseline,
        statistics.median(ratios) if ratios else None,
        len(values),
        (min(spread), max(spread)),
        command,
        target,
    )


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(models),
        "widest_instructions": next((f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in flags), "none"),
        "dtype": cpu_dtype("auto"),
    }


def save(section: str, entries: Sequence[Entry], path: Path = RESULTS) -> None:
    """Put a section's entries in place of what the file had of it, with the machine that made them."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known[section] = {"machine": machine(), "entries": [asdict(entry) for entry in entries]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1) + "\n")
