"""A generated store's interactions as an evolution is given them."""

from __future__ import annotations

from collections.abc import Sequence

from evolver.inputs import EvolutionInputs, event_key
from evolver.stores import Store
from shared.panel import in_panel
from shared.types import DomainId, Interaction, UserId


def store_inputs(
    store: Store, events: Sequence[Interaction], window: Sequence[Interaction], *, panel_share: float
) -> EvolutionInputs:
    """All of `events` as histories, `window` among them."""
    histories: dict[UserId, list[Interaction]] = {}
    for event in sorted(events, key=lambda event: event.timestamp):
        histories.setdefault(event.user_id, []).append(event)
    return EvolutionInputs(
        domain=DomainId("store"),
        items=store.items,
        histories={user: tuple(history) for user, history in histories.items()},
        window=frozenset(map(event_key, window)),
        panel=frozenset(user for user in histories if in_panel(user, panel_share)),
        seed=0,
    )
