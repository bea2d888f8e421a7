"""`kl`: the window, with the previous version as the teacher of inactive users' predictions."""

from __future__ import annotations

from dataclasses import replace

from evolver.bench.by_recipe import by_recipe
from evolver.bench.strategies.finetune import WINDOW_ALONE
from evolver.bench.strategy import Strategy

KL = Strategy(
    "kl",
    "All layers of the previous LoRA train on the window, with EvoRec's consistency term.",
    by_recipe(replace(WINDOW_ALONE, consistency=True)),
)
