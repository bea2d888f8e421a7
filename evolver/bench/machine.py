"""What a run's seconds were measured on, by which clock, and of which code."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

import evolver
import shared


def machine(device: str) -> dict[str, Any]:
    """Cores that this process may use, threads that torch does use, and the accelerator that did the work."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "accelerator": None if device == "cpu" else torch.cuda.get_device_name(device),
    }


def clock(device: str) -> Callable[[], float]:
    """On a CPU the processor's seconds in this process, all threads together: what else the machine does, or a pause,
    does not count. With an accelerator, which works while the processor waits, seconds that pass.
    """
    return time.process_time if device == "cpu" else time.monotonic


@cache
def code() -> str:
    """A hash of the code that learns: all of `evolver` but the benchmark itself, and `shared`. Strategies may run days
    apart, and seconds of unlike code are not to be compared.
    """
    digest = hashlib.sha256()
    for package in (evolver, shared):
        folder = Path(package.__path__[0])
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder)
            if name.parts[0] != "bench":
                digest.update(f"{package.__name__}/{name.as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
