"""What distinguishes one way of learning from another: where it starts, from which examples, in which layers.

The defaults are EvoRec; the evolver runs `EVOREC` and, where there is no version yet, `BOOTSTRAP`. The benchmark's
strategies are other recipes for the same learner (`evolver.learning`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
from torch import Tensor

from evolver.locate import Location, located_count, located_in_upper

Seed = int | tuple[int, ...]


class Start(Enum):
    """The LoRA that training starts from."""

    PARENT = auto()
    FRESH = auto()


class Targets(Enum):
    """The interactions that supply training targets, drawn with the seed and capped by `max_train_examples`.

    WINDOW: those of the window. EVERYTHING: all up to now. WINDOW_AND_PAST: half and half. With EVERYTHING the
    retriever is trained from scratch, otherwise the parent's is fine-tuned on the window.
    """

    WINDOW = auto()
    EVERYTHING = auto()
    WINDOW_AND_PAST = auto()


class Negatives(Enum):
    """What a target stands beside in training and validation prompts (ADR 0026).

    EVEN: items drawn evenly from those known by now. RENEWED: half of them are near ones, among the best of this
    version's retriever, which was fitted to the very targets. PARENT: half are among the best of the previous
    version's, which knows no more of the targets than a retriever knows of what is asked when it serves.
    """

    EVEN = auto()
    RENEWED = auto()
    PARENT = auto()


@dataclass(frozen=True, slots=True)
class Asked:
    """Layers by how they react: active users' similarities [U, L] -> `Location`."""

    choose: Callable[[Tensor], Location]


@dataclass(frozen=True, slots=True)
class Unasked:
    """Layers without a look at the data: (number of layers, seed of the round) -> indices, ascending."""

    choose: Callable[[int, Seed], tuple[int, ...]]


LayerRule = Asked | Unasked


def every_layer(n_layers: int, seed: Seed) -> tuple[int, ...]:
    """
    >>> every_layer(3, seed=0)
    (0, 1, 2)
    """
    return tuple(range(n_layers))


def top_layers(n_layers: int, seed: Seed) -> tuple[int, ...]:
    """The highest floor(0.3 L), nearest to the answer.

    >>> top_layers(10, seed=0)
    (7, 8, 9)
    """
    return tuple(range(n_layers))[-located_count(n_layers) :]


def random_layers(n_layers: int, seed: Seed) -> tuple[int, ...]:
    """floor(0.3 L) different layers, drawn with the seed."""
    drawn = np.random.default_rng(seed).choice(n_layers, size=located_count(n_layers), replace=False)
    return tuple(sorted(drawn.tolist()))


@dataclass(frozen=True, slots=True)
class Recipe:
    """`forget`: outdated interactions leave the sequences. `consistency`: the LLM's predictions for inactive users stay
    the parent's. `rehearsing`: where the parent's retriever is renewed, the share of its members (rounded up) that
    are fitted to some inactive users' interactions as well as to the window, lest it forget them (ADRs 0029, 0033).
    `negatives`: what a target stands beside.
    """

    start: Start = Start.PARENT
    targets: Targets = Targets.WINDOW
    layers: LayerRule = Asked(located_in_upper)
    forget: bool = True
    consistency: bool = True
    rehearsing: float = 0.5
    negatives: Negatives = Negatives.EVEN


EVOREC = Recipe()
BOOTSTRAP = Recipe(
    start=Start.FRESH,
    targets=Targets.EVERYTHING,
    layers=Unasked(every_layer),
    forget=False,
    consistency=False,
)
