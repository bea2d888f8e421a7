"""Where long runs compute: pretraining, and all of a benchmark."""

from __future__ import annotations

import torch


def device_of_run(wanted: str) -> str:
    """What `EVOREC_TRAIN_DEVICE` means for a whole run: left open, a GPU that torch sees.

    An evolution also asks whether it has room, each time it loads a model (`evolver.lora.train_device`); compared
    figures must be of one device, and whoever pretrains has no engine running.
    """
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
