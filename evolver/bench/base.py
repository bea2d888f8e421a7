"""The base of a benchmark's runs: one that has seen the past alone, without the panel, made once for all seeds.

Making one is the longest step of all on a CPU. Seeds differ in all that is learned from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from evolver.bench.locks import alone_in
from evolver.bench.timeline import Timeline
from evolver.inputs import EvolutionInputs
from evolver.pretrain.config import PretrainConfig, scaled
from evolver.pretrain.corpus import corpus_of
from evolver.pretrain.run import FINISHED, pretrain
from shared.base_model import base_model_folder, base_model_hash, base_model_info
from shared.config import SHIPPED_BASE_MODEL
from shared.errors import InvalidInput


def recipe(scale: float) -> PretrainConfig:
    """The shipped base's blocks as the starting point, and a share of its steps."""
    return scaled(PretrainConfig(start_from=str(SHIPPED_BASE_MODEL)), scale)


def ensure_base(
    timeline: Timeline, state_dir: Path, *, scale: float, device: str, on_step: Callable[[float, str], None]
) -> tuple[Path, PretrainConfig]:
    """The base of what lies before all windows and this recipe, from the cache or made now.

    Seeds share it where each gives the timeline of one and the same seed. `on_step(share, what it says)` is called
    after each step. Raises `InvalidInput` where nothing lies before the first window's first moment.
    """
    config = recipe(scale)
    past = timeline.before_windows
    if not past.histories:
        raise InvalidInput(
            "Everything before the first window has one and the same timestamp, so no base can be made that has seen "
            "nothing of a window. Name one with --base."
        )
    folder = state_dir / "bench" / "bases" / _key(past, config)

    def report(step: int, total: int, parts: dict[str, float]) -> None:
        on_step((step + 1) / total, f"step {step + 1}/{total}, loss {parts['loss']:.2f}")

    with alone_in(folder):
        if not (folder / FINISHED).is_file():
            events = [event for user, events in past.histories.items() if user not in past.panel for event in events]
            pretrain([corpus_of(past.items, events)], folder, config, report, device=device)
    return folder, config


def _key(past: EvolutionInputs, config: PretrainConfig) -> str:
    """Of everything that the base depends on, and of no folder's name."""
    about = asdict(replace(config, compile=False, start_from=base_model_hash(str(SHIPPED_BASE_MODEL))))
    content = [about, sorted(past.panel), data_hash(past)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def data_hash(inputs: EvolutionInputs) -> str:
    """Of items and histories, in their order."""
    digest = hashlib.sha256()
    for item in inputs.items:
        digest.update(json.dumps(asdict(item), sort_keys=True).encode())
    for user, events in inputs.histories.items():
        digest.update(json.dumps([user, [(e.item_id, e.timestamp, e.event_type) for e in events]]).encode())
    return digest.hexdigest()


def about_base(base_model: str, config: PretrainConfig | None) -> dict[str, Any]:
    """What a reader has to know of a base; `config` where it was made for this run."""
    folder, shape = base_model_folder(base_model), base_model_info(base_model)
    return {
        "name": base_model if config is None and not Path(base_model).is_dir() else folder.name,
        "parameters": sum(_parameters(path) for path in sorted(folder.glob("*.safetensors"))),
        "layers": shape.n_layers,
        "hidden_size": shape.hidden_size,
        "vocabulary": shape.vocab_size,
        "pretrained_on_the_past": config is not None,
        "pretraining_steps": None if config is None else config.total_steps,
        "hash": base_model_hash(base_model),
    }


def _parameters(path: Path) -> int:
    """Of one file of weights, from its header; tied matrices are stored once."""
    total = 0
    with safe_open(path, "np") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            size = 1
            for side in file.get_slice(name).get_shape():
                size *= side
            total += size
    return total
