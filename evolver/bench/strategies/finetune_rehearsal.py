"""`finetune-rehearsal`: `finetune` beside EvoRec's retriever, so that what lies between it and EvoRec is the LLM's."""

from __future__ import annotations

from dataclasses import replace

from evolver.bench.by_recipe import by_recipe
from evolver.bench.strategies.finetune import WINDOW_ALONE
from evolver.bench.strategy import Strategy
from evolver.recipe import EVOREC

FINETUNE_REHEARSAL = Strategy(
    "finetune-rehearsal",
    "All layers of the previous LoRA train on the window alone; the retriever rehearses as EvoRec's does.",
    by_recipe(replace(WINDOW_ALONE, rehearsing=EVOREC.rehearsing)),
)
