"""The strategies that `evorec bench` compares, by name, in the order of the report."""

from __future__ import annotations

from evolver.bench.by_recipe import make_bootstrap
from evolver.bench.strategies.ablations import ABLATIONS
from evolver.bench.strategies.evorec import EVOREC
from evolver.bench.strategies.finetune import FINETUNE
from evolver.bench.strategies.finetune_rehearsal import FINETUNE_REHEARSAL
from evolver.bench.strategies.frozen import FROZEN
from evolver.bench.strategies.kl import KL
from evolver.bench.strategies.lsat import LSAT
from evolver.bench.strategies.replay import REPLAY
from evolver.bench.strategies.retrain import RETRAIN
from evolver.bench.strategy import Strategy

_MAIN = (FROZEN, RETRAIN, FINETUNE, REPLAY, KL, LSAT, EVOREC)
STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in (*_MAIN, FINETUNE_REHEARSAL, *ABLATIONS)}
MAIN = tuple(strategy.name for strategy in _MAIN)
"""EvoRec and what it is compared with; the others are a control and its ablations."""

__all__ = ["MAIN", "STRATEGIES", "make_bootstrap"]
