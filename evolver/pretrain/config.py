"""The recipe: what is trained for how long, and how fast."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace

from shared.errors import InvalidInput

MAX_WARMUP_SHARE = 0.2
WIDTH_STEP = 96  # a query head for each 48, two of which share a key head


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the schedule.

    `hard` is the share of negatives drawn from the categories of the history and the target; `matches` the share of
    prompts that are solvable by matching alone, the first thing to learn: the target, or another item of its category,
    is put into the history. `any_label` is the share of prompts whose candidates carry labels drawn from all there are
    instead of the first ones, so that short and easy prompts teach every label.
    """

    steps: int
    batch: int
    candidates: int
    history: int
    hard: float
    matches: float = 0.0
    any_label: float = 0.0


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """The recipe. The defaults are what making the shipped model taught; its own runs are in its `pretrain.json`."""

    stages: tuple[Stage, ...] = (
        Stage(steps=150, batch=64, candidates=4, history=2, hard=0.0, matches=1.0, any_label=0.5),
        Stage(steps=110, batch=48, candidates=10, history=2, hard=0.0, matches=1.0, any_label=0.5),
        Stage(steps=360, batch=32, candidates=20, history=2, hard=0.0, matches=0.8, any_label=0.3),
        Stage(steps=140, batch=48, candidates=10, history=6, hard=0.1, matches=0.1, any_label=0.2),
        Stage(steps=600, batch=32, candidates=20, history=10, hard=0.0, matches=0.1),
    )
    vocab_size: int = 4096
    hidden_size: int = 192
    n_layers: int = 10
    # The auxiliary head reads this layer's output; the layers above copy the best label to the answer position.
    auxiliary_layer: int = 6
    auxiliary_weight: float = 0.5
    # The answer also learns to say what the auxiliary head believes: purchases are noisy, that belief is not.
    distillation_weight: float = 1.0
    learning_rate: float = 2e-3
    muon_learning_rate: float = 0.02
    warmup: int = 50
    seed: int = 0
    title_tokens: int = 12
    # A base whose blocks, and whose embeddings of tokens that both vocabularies have, are the starting point.
    start_from: str | None = None
    checkpoint_every: int = 100
    compile: bool = field(default_factory=lambda: shutil.which("g++") is not None)

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


def scaled(config: PretrainConfig, scale: float) -> PretrainConfig:
    """The same schedule with a multiple of its steps; a short run warms up for less."""
    stages = tuple(replace(stage, steps=max(1, round(stage.steps * scale))) for stage in config.stages)
    longest = max(1, int(MAX_WARMUP_SHARE * sum(stage.steps for stage in stages)))
    return replace(config, stages=stages, warmup=min(config.warmup, longest))


def shaped(config: PretrainConfig, *, hidden_size: int, n_layers: int) -> PretrainConfig:
    """The same recipe for a base of another width and depth; the auxiliary head stays three fifths of the way up.

    Raises `InvalidInput` for a width that the attention heads cannot share.
    """
    if hidden_size % WIDTH_STEP:
        raise InvalidInput(f"A base's width is a multiple of {WIDTH_STEP}, not {hidden_size}.")
    return replace(config, hidden_size=hidden_size, n_layers=n_layers, auxiliary_layer=round(0.6 * n_layers))


def learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, constant, then linear decay to a twentieth over the last three fifths."""
    decay_from = config.total_steps * 2 // 5
    decay = max(0.05, 1 - (step - decay_from) / (config.total_steps - decay_from)) if step > decay_from else 1.0
    return min(1.0, (step + 1) / config.warmup) * decay
