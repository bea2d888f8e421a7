"""`evorec`: what the evolver runs."""

from __future__ import annotations

from evolver.bench.by_recipe import by_recipe
from evolver.bench.strategy import Strategy
from evolver.recipe import EVOREC as RECIPE

EVOREC = Strategy(
    "evorec",
    "Locate, Forget, Update: the located layers of the previous LoRA train on the window's filtered sequences, with "
    "the consistency term; half of the retriever's members rehearse what inactive users did.",
    by_recipe(RECIPE),
)
