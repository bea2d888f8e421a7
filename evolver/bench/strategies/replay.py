"""`replay`: the window, and as much of the past beside it."""

from __future__ import annotations

from dataclasses import replace

from evolver.bench.by_recipe import by_recipe
from evolver.bench.strategies.finetune import WINDOW_ALONE
from evolver.bench.strategy import Strategy
from evolver.recipe import Targets

REPLAY = Strategy(
    "replay",
    "All layers of the previous LoRA train on the window and a seeded sample of the past, half and half; the "
    "retriever rehearses what some inactive users did.",
    by_recipe(replace(WINDOW_ALONE, targets=Targets.WINDOW_AND_PAST, rehearsing=1.0)),
)
