"""EvoRec with one part taken out or replaced: what each of them adds."""

from __future__ import annotations

from dataclasses import replace

from evolver.bench.by_recipe import by_recipe
from evolver.bench.strategy import Strategy
from evolver.locate import least_similar, located, most_similar
from evolver.recipe import (
    EVOREC,
    Asked,
    LayerRule,
    Negatives,
    Unasked,
    every_layer,
    random_layers,
    top_layers,
)


def _in_layers(name: str, what: str, rule: LayerRule) -> Strategy:
    return Strategy(f"evorec-{name}", f"EvoRec, training {what}.", by_recipe(replace(EVOREC, layers=rule)))


ABLATIONS = (
    _in_layers("all-layers", "all layers", Unasked(every_layer)),
    _in_layers(
        "random-layers", "as many layers of all as it would locate, drawn with the seed", Unasked(random_layers)
    ),
    _in_layers("mean-similarity", "the layers of lowest mean similarity, of all", Asked(least_similar)),
    _in_layers("most-similar", "the layers that react least (highest mean similarity), of all", Asked(most_similar)),
    _in_layers("any-layers", "the layers with most votes of all, as the paper does", Asked(located)),
    _in_layers("top-layers", "as many of the highest layers as it would locate", Unasked(top_layers)),
    Strategy(
        "evorec-without-forget",
        "EvoRec, with nothing forgotten.",
        by_recipe(replace(EVOREC, forget=False)),
    ),
    Strategy(
        "evorec-without-consistency",
        "EvoRec, without the consistency term.",
        by_recipe(replace(EVOREC, consistency=False)),
    ),
    Strategy(
        "evorec-without-rehearsal",
        "EvoRec, with a retriever that is fitted to the window and nothing else.",
        by_recipe(replace(EVOREC, rehearsing=0.0)),
    ),
    Strategy(
        "evorec-all-rehearse",
        "EvoRec, with a retriever all of whose members rehearse what inactive users did.",
        by_recipe(replace(EVOREC, rehearsing=1.0)),
    ),
    Strategy(
        "evorec-near-negatives",
        "EvoRec, with half of the negatives from the retriever that was fitted to the window.",
        by_recipe(replace(EVOREC, negatives=Negatives.RENEWED)),
    ),
    Strategy(
        "evorec-parent-negatives",
        "EvoRec, with half of the negatives from its parent's retriever, which has not seen the window.",
        by_recipe(replace(EVOREC, negatives=Negatives.PARENT)),
    ),
)
