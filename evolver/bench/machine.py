"""What a run's seconds were measured on."""

from __future__ import annotations

import os
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Cores that this process may use, threads that torch does use, and the accelerator."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
