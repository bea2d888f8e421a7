"""What a run's seconds were measured on, and by which clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch


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
