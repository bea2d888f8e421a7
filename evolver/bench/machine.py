"""What a run's seconds were measured on."""

from __future__ import annotations

import os
from typing import Any

import torch


def bench_device(wanted: str) -> str:
    """What `EVOREC_TRAIN_DEVICE` means for all of a benchmark: left open, a GPU that torch sees.

    An evolution also asks whether it has room, each time it loads a model; compared figures must be of one device.
    """
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def machine(device: str) -> dict[str, Any]:
    """Cores that this process may use, threads that torch does use, and the accelerator that did the work."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "accelerator": None if device == "cpu" else torch.cuda.get_device_name(device),
    }
