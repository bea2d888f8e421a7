"""Who may be learned from, and up to where: what panel and validation users did last is held out.

A target is the last item that a user had not had before (ADR 0031), and is held out with all that came after it.
Everything that an evolution fits or counts (retriever, Forget, Update, popularity) reads `Split.visible`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evolver.inputs import EvolutionInputs
from shared.forgotten import ForgottenSet
from shared.popularity import log2_weight
from shared.types import Interaction, ItemId, UserId

DAY_S = 86_400.0
VALIDATION_SHARE = 0.15
ROUNDING = 1e-9  # of an item's mass: what is less is left over from subtracting all of it
QUIET_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Target:
    """A held-out interaction with an item new to its user, and the events before it (unfiltered, oldest first)."""

    user_id: UserId
    item_id: ItemId
    before: tuple[Interaction, ...]
    active: bool


@dataclass(frozen=True, slots=True)
class Split:
    """`visible`: histories up to the held-out targets. `trainable`: users outside panel and validation.

    `validation`: active users, who choose checkpoint and consistency weight, and the blend together with
    `quiet_validation`: inactive ones. A parent was trained on all that others did before: so the former's targets are
    of the window, and the latter are of the panel. They are not in `panel`, which is asked afterwards.
    """

    visible: Mapping[UserId, tuple[Interaction, ...]]
    panel: tuple[Target, ...]
    validation: tuple[Target, ...]
    quiet_validation: tuple[Target, ...]
    trainable: frozenset[UserId]
    active: frozenset[UserId]


def split(inputs: EvolutionInputs, *, max_panel: int, max_validation: int) -> Split:
    """Hold out what panel users did last (for evaluation) and what some active others did (for validation).

    At most a quarter of the panel's inactive users, and as many as active ones, are for validation too.
    """
    known = {item.item_id for item in inputs.items}
    histories = {user: tuple(e for e in events if e.item_id in known) for user, events in inputs.histories.items()}
    active = frozenset(inputs.active_users())
    last = {user: max(first_times(events), default=0) for user, events in histories.items()}
    rng = np.random.default_rng(inputs.seed)
    panel = [user for user, place in last.items() if user in inputs.panel and place]
    others = [
        user
        for user, place in last.items()
        if user not in inputs.panel and place and inputs.in_window(histories[user][place])
    ]
    # Without anybody to validate on, no update could be seen to be better than what there was.
    at_least_one = 1 if len(others) > 1 else 0
    n_validation = min(max_validation, max(at_least_one, int(VALIDATION_SHARE * len(others))))
    validation = _drawn(others, n_validation, rng)
    inactive = [user for user in panel if user not in active]
    n_quiet = min(len(validation), int(QUIET_SHARE * len(inactive)))  # ADR 0018
    quiet = _drawn(inactive, n_quiet, rng)
    choosing = frozenset(quiet)
    evaluated = _balanced([user for user in panel if user not in choosing], active, max_panel, rng)

    def target(user: UserId) -> Target:
        events, place = histories[user], last[user]
        return Target(user, events[place].item_id, events[:place], user in active)

    held = {*panel, *validation}
    return Split(
        visible={user: events[: last[user]] if user in held else events for user, events in histories.items()},
        panel=tuple(target(user) for user in evaluated),
        validation=tuple(target(user) for user in validation),
        quiet_validation=tuple(target(user) for user in quiet),
        trainable=frozenset(histories) - inputs.panel - frozenset(validation),
        active=active,
    )


def _balanced(panel: Sequence[UserId], active: frozenset[UserId], limit: int, rng: np.random.Generator) -> list[UserId]:
    """At most `limit` panel users, half of each group where there are as many."""
    groups = [[user for user in panel if (user in active) is wanted] for wanted in (True, False)]
    in_window, away = map(len, groups)
    first = min(in_window, limit - min(away, limit // 2))
    room = [first, min(away, limit - first)]
    return [user for group, size in zip(groups, room, strict=True) for user in _drawn(group, size, rng)]


def _drawn(users: Sequence[UserId], limit: int, rng: np.random.Generator) -> list[UserId]:
    return [users[i] for i in rng.permutation(len(users))[:limit]]


def first_times(events: Sequence[Interaction]) -> list[int]:
    """Places of the interactions with items that the user had not had before."""
    places: dict[ItemId, int] = {}
    for place, event in enumerate(events):
        places.setdefault(event.item_id, place)
    return [*places.values()]


def item_sequence(events: Sequence[Interaction]) -> tuple[ItemId, ...]:
    """The items of some events."""
    return tuple(event.item_id for event in events)


def filtered(forgotten: ForgottenSet, user: UserId, events: Sequence[Interaction]) -> tuple[ItemId, ...]:
    """The items of a history as prompt and retriever see it."""
    return item_sequence(forgotten.filter(user, events))


def decayed_popularity(histories: Mapping[UserId, Sequence[Interaction]], half_life_days: float) -> dict[ItemId, float]:
    """Shares of exponentially decayed mass: sum over events of 2^((t - t_last) / half-life), normalised."""
    events = [event for history in histories.values() for event in history]
    if not events:
        return {}
    latest = max(event.timestamp for event in events)
    mass: dict[ItemId, float] = {}
    for event in events:
        weight = 2.0 ** ((event.timestamp - latest) / (half_life_days * DAY_S))
        mass[event.item_id] = mass.get(event.item_id, 0.0) + weight
    total = sum(mass.values())
    return {item: value / total for item, value in mass.items()}


def visible_popularity(inputs: EvolutionInputs, split: Split, half_life_days: float) -> dict[ItemId, float]:
    """Shares of decayed mass of everything in the domain but what is held out, as the service will see them."""
    if inputs.popularity is None:
        return decayed_popularity(split.visible, half_life_days)
    top = max(inputs.popularity.values(), default=0.0)
    whole = {item: 2.0 ** (mass - top) for item, mass in inputs.popularity.items()}
    left = dict(whole)
    for user, events in inputs.histories.items():
        visible = {event.event_id for event in split.visible[user]}
        for event in events:
            if event.event_id not in visible and event.item_id in left:
                # No event weighs more than the largest mass, unless that was counted with another half-life.
                left[event.item_id] -= 2.0 ** min(1.0, log2_weight(event.timestamp, half_life_days) - top)
    left = {item: mass for item, mass in left.items() if mass > ROUNDING * whole[item]}
    total = sum(left.values())
    return {item: mass / total for item, mass in left.items()}
