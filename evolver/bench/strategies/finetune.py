"""`finetune`: what most would do with a window."""

from __future__ import annotations

from evolver.bench.by_recipe import by_recipe
from evolver.bench.strategy import Strategy
from evolver.recipe import Recipe, Unasked, every_layer

WINDOW_ALONE = Recipe(layers=Unasked(every_layer), forget=False, consistency=False, rehearsing=0.0)
FINETUNE = Strategy("finetune", "All layers of the previous LoRA train on the window alone.", by_recipe(WINDOW_ALONE))
