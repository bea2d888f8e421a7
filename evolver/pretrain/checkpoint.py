"""A run that was cut off goes on from its last checkpoint, to the same result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from evolver.pretrain.config import PretrainConfig
from evolver.pretrain.corpus import Corpus
from evolver.pretrain.loss import RankingLoss


def checkpoint_folder(out: Path, corpora: Sequence[Corpus], config: PretrainConfig) -> Path:
    """Of everything that the run depends on: what has seen other data is nothing to go on from."""
    digest = hashlib.sha256(json.dumps(asdict(replace(config, compile=False)), sort_keys=True).encode())
    for corpus in corpora:
        content = [[asdict(item) for item in corpus.items], list(corpus.sequences.items())]
        digest.update(json.dumps(content, sort_keys=True).encode())
    return out / "checkpoint" / digest.hexdigest()[:16]


def save_checkpoint(folder: Path, ranking: RankingLoss, optimizers: Sequence[torch.optim.Optimizer], step: int) -> None:
    """Weights, optimiser state and step in one safetensors file, replaced atomically."""
    tensors = {f"model.{name}": value for name, value in ranking.state_dict().items() if not _tied(name)}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{number}.{index}.{key}"] = torch.as_tensor(value)
    temporary = folder / "state.safetensors.new"
    save_file(
        {name: value.cpu().contiguous() for name, value in tensors.items()},
        temporary,
        {"step": str(step)},
    )
    temporary.replace(folder / "state.safetensors")


def load_checkpoint(folder: Path, ranking: RankingLoss, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Steps done so far; 0 where there is no checkpoint."""
    path = folder / "state.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    ranking.load_state_dict(weights, strict=False)
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        prefix = f"optimizer.{number}."
        for name, value in tensors.items():
            if name.startswith(prefix):
                index, key = name.removeprefix(prefix).split(".", 1)
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])


def _tied(name: str) -> bool:
    return name.endswith("lm_head.weight") or name.startswith("trunk.")
