"""What a run's seconds were measured on."""

from __future__ import annotations

import os
from typing import Any

import torch


def machine(device: str) -> dict[str, Any]:
    """Cores that this process may use, threads that torch does use, and the accelerator that did the work."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "accelerator": None if device == "cpu" else torch.cuda.get_device_name(device),
    }
