"""A dataset over global time: the past, and rounds whose windows follow each other.

Interactions in order of time are cut by count: the first 70 % are the past, then come four parts of 7.5 %. Part k is
the window of round k = 1..3, and part k + 1 the future that round k is scored on; the evaluation alone sees that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from evolver.bench.bad_input import require_dates, require_enough
from evolver.inputs import EvolutionInputs, event_key
from shared.config import Settings
from shared.interaction_codec import event_id_of
from shared.panel import in_panel
from shared.types import DomainId, Interaction, Item, ItemId, UserId

PAST_SHARE = 0.70
PART_SHARE = 0.075
MAX_ROUNDS = 3
FOLDS = 5
PANEL_SHARE = 1 / FOLDS
BENCH = DomainId("bench")


@dataclass(frozen=True, slots=True)
class Window:
    """One round: what is known by the window's end, and each user's first interaction with a new item in the part after
    it.
    """

    number: int
    inputs: EvolutionInputs
    future: tuple[Interaction, ...]


@dataclass(frozen=True)
class Timeline:
    """`events` are positive ones on items of the catalog, oldest first, each once; the panel is by hash of the user,
    another fifth of them with each `fold`, 0..4.
    """

    items: tuple[Item, ...]
    events: tuple[Interaction, ...]
    seed: int
    fold: int = 0

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Where the past ends, then where each of the four parts ends, as numbers of events."""
        return tuple(round((PAST_SHARE + PART_SHARE * part) * len(self.events)) for part in range(MAX_ROUNDS + 2))

    @property
    def past_until(self) -> float:
        """When the first window begins, in unix seconds."""
        return self.events[self.cuts[0]].timestamp

    @property
    def past(self) -> EvolutionInputs:
        """What the bootstrap is made from; without a parent, all of it is the window."""
        return self.known_by(self.cuts[0])

    @property
    def before_windows(self) -> EvolutionInputs:
        """The past without the moment at which the first window begins: whatever order a seed gives to events of one
        moment, none of these is ever in a window.
        """
        return self._inputs(0, bisect_left(self.events, self.past_until, key=lambda event: event.timestamp))

    def known_by(self, end: int) -> EvolutionInputs:
        """Everything up to the event with this number, as one window."""
        return self._inputs(0, end)

    def window(self, number: int) -> Window:
        """Round `number`, 1..3."""
        start, end, scored = self.cuts[number - 1 : number + 2]
        had = {(event.user_id, event.item_id) for event in self.events[:end]}
        first: dict[UserId, Interaction] = {}
        for event in self.events[end:scored]:
            if (event.user_id, event.item_id) not in had:
                first.setdefault(event.user_id, event)
        return Window(number, self._inputs(start, end), tuple(first.values()))

    def updates(self, number: int, n: int) -> tuple[EvolutionInputs, ...]:
        """The window of round `number` as `n` that follow each other, each with what is known by its own end."""
        start, end = self.cuts[number - 1 : number + 1]
        cuts = [start + round((end - start) * part / n) for part in range(n + 1)]
        return tuple(self._inputs(*cut) for cut in pairwise(cuts))

    def _inputs(self, start: int, end: int) -> EvolutionInputs:
        known = {event.item_id for event in self.events[:end]}
        histories: dict[UserId, list[Interaction]] = {}
        for event in self.events[:end]:
            histories.setdefault(event.user_id, []).append(event)
        return EvolutionInputs(
            domain=BENCH,
            items=tuple(item for item in self.items if item.item_id in known),
            histories={user: tuple(events) for user, events in histories.items()},
            window=frozenset(map(event_key, self.events[start:end])),
            panel=frozenset(user for user in histories if in_panel(user, PANEL_SHARE, self.fold)),
            seed=self.seed,
        )


def make_timeline(
    items: Iterable[Item], interactions: Sequence[Interaction], settings: Settings, *, seed: int, fold: int = 0
) -> Timeline:
    """The timeline of a dataset whose `interactions` come oldest first, ties in an order that `seed` gave them, and
    whose panel is the fifth of its users called `fold`. What is no longer available today was so in the past: all items
    are.

    Raises `InvalidInput` where they are too few, or have no dates.
    """
    catalog = {item.item_id: replace(item, available=True) for item in items}
    events = learnable(interactions, catalog, settings)
    require_dates(events)
    timeline = Timeline(tuple(catalog.values()), events, seed, fold)
    require_enough(len(events), len(interactions), timeline.cuts)
    return timeline


def learnable(
    interactions: Iterable[Interaction], catalog: Container[ItemId], settings: Settings
) -> tuple[Interaction, ...]:
    """Positive events on known items, each once and with an id, as the log would keep them."""
    events: dict[str, Interaction] = {}
    for event in interactions:
        if event.event_type in settings.positive_events and event.item_id in catalog:
            event_id = event.event_id or event_id_of(event.user_id, event.item_id, event.event_type, event.timestamp)
            events.setdefault(event_id, replace(event, event_id=event_id))
    return tuple(events.values())
