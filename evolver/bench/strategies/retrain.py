"""`retrain`: start again, from everything known by now."""

from __future__ import annotations

from dataclasses import replace

from evolver.bench.by_recipe import by_recipe
from evolver.bench.strategies.finetune import WINDOW_ALONE
from evolver.bench.strategy import Strategy
from evolver.recipe import Start, Targets

RETRAIN = Strategy(
    "retrain",
    "A fresh LoRA, and a fresh retriever, train on all data up to now (on a seeded sample where there is a cap).",
    by_recipe(replace(WINDOW_ALONE, start=Start.FRESH, targets=Targets.EVERYTHING)),
)
