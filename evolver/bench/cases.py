"""Who is asked what in a round: two targets per user, each with two drawn candidate sets.

`memory`, the form in which the paper's claim can be tested: a panel user's last interaction by the window's end, with
an item not had before (ADR 0031), the history all before it. For inactive users that is an old interaction: this is
where forgetting shows.
`next`, what a shop earns from: the first interaction after the window with an item not had before (no other is ever
recommended), of every user with a history by then, where its item is known by then; the history is everything by the
window's end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evolver.bench.bad_input import require_cases
from evolver.bench.timeline import Window
from evolver.evaluate import Case
from evolver.inputs import EvolutionInputs
from evolver.scoring import UNIFORM, WEIGHTED, judged_candidates, make_cases
from evolver.splits import Split, Target, decayed_popularity, split
from shared.config import Settings
from shared.types import Interaction, ItemId, UserId

MEMORY, NEXT = "memory", "next"
KINDS = (MEMORY, NEXT)
UNIFORM_SET, WEIGHTED_SET, CATALOG_SET = "uniform", "weighted", "catalog"
DRAWN_SETS = (UNIFORM_SET, WEIGHTED_SET)
_NAMES = {UNIFORM: UNIFORM_SET, WEIGHTED: WEIGHTED_SET}

Events = Mapping[UserId, Sequence[Interaction]]
Cases = Sequence[tuple[Target, Case]]


@dataclass(frozen=True, slots=True)
class Question:
    """One kind of target: `targets` are drawn from as many active and inactive users as `population` says, `events` are
    what may be counted for it (popularity and its shares), `cases` per drawn candidate set.
    """

    targets: tuple[Target, ...]
    population: tuple[int, int]
    events: Events
    popularity: Mapping[ItemId, float]
    cases: Mapping[str, Cases]


@dataclass(frozen=True, slots=True)
class Round:
    """What strategies learn from (`inputs`, `split`), and what they are then asked, the same for all."""

    number: int
    inputs: EvolutionInputs
    split: Split
    questions: Mapping[str, Question]

    @property
    def window_until(self) -> float:
        """When the window's last interaction happened, in unix seconds."""
        inputs = self.inputs
        return max(e.timestamp for events in inputs.histories.values() for e in events if inputs.in_window(e))


def split_of(inputs: EvolutionInputs, settings: Settings) -> Split:
    """The evolver's split, with every panel user as a target; a round draws from them per group."""
    return split(inputs, max_panel=len(inputs.histories), max_validation=settings.max_validation_users)


def targets_of(window: Window, learned: Split) -> dict[str, tuple[Target, ...]]:
    """Everybody who could be asked, of each kind.

    Raises `InvalidInput` where a kind has no target, or nobody may be learned from.
    """
    targets = {MEMORY: learned.panel, NEXT: next_targets(window, learned.active)}
    require_cases(
        window.number,
        {
            "panel user with two different items": len(targets[MEMORY]),
            "user whose next new item is a known one": len(targets[NEXT]),
            "active user to learn from": len(learned.trainable & learned.active),
        },
    )
    return targets


def make_round(window: Window, settings: Settings, *, max_evaluated: int) -> Round:
    """At most `max_evaluated` users of each kind in U_A, and as many in U_I, drawn with the inputs' seed. Raises as
    `targets_of` does.
    """
    inputs = window.inputs
    learned = split_of(inputs, settings)
    targets = targets_of(window, learned)
    counted: Mapping[str, Events] = {MEMORY: learned.visible, NEXT: inputs.histories}
    questions = {
        kind: _question(targets[kind], counted[kind], settings, max_evaluated=max_evaluated, seed=inputs.seed)
        for kind in KINDS
    }
    return Round(window.number, inputs, learned, questions)


def next_targets(window: Window, active: frozenset[UserId]) -> tuple[Target, ...]:
    """Each user's first new item after the window, if the user has a history and the item is known by then."""
    known = {item.item_id for item in window.inputs.items}
    histories = window.inputs.histories
    return tuple(
        Target(event.user_id, event.item_id, histories[event.user_id], event.user_id in active)
        for event in window.future
        if event.user_id in histories and event.item_id in known
    )


def drawn(targets: Sequence[Target], limit: int, seed: int) -> tuple[Target, ...]:
    """At most `limit` active and `limit` inactive users, in an order that does not depend on how they came."""
    rng = np.random.default_rng(seed)
    chosen: list[Target] = []
    for wanted in (True, False):
        group = sorted((t for t in targets if t.active is wanted), key=lambda target: target.user_id)
        chosen += [group[i] for i in rng.permutation(len(group))[:limit]]
    return tuple(chosen)


def _question(
    everybody: Sequence[Target], events: Events, settings: Settings, *, max_evaluated: int, seed: int
) -> Question:
    targets = drawn(everybody, max_evaluated, seed)
    n_active = sum(target.active for target in everybody)
    popularity = decayed_popularity(events, settings.popularity_half_life_days)
    cases = make_cases(targets, popularity, seed=seed, n=judged_candidates(settings))
    return Question(
        targets,
        (n_active, len(everybody) - n_active),
        events,
        popularity,
        {_NAMES[name]: chosen for name, chosen in cases.items()},
    )
