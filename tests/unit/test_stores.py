"""Generated stores: seeded, drifting where they say so."""

from __future__ import annotations

from collections import Counter

from evolver.stores import Store, make_store
from shared.types import Interaction


def _small(seed: int) -> Store:
    return make_store(seed, n_users=80, n_items=160, n_categories=8)


def test_a_seed_gives_a_store() -> None:
    assert _small(3) == _small(3)
    assert _small(3) != _small(4)


def test_titles_and_event_ids_are_unique_and_periods_follow_one_another() -> None:
    store = _small(5)
    events = [*store.first_period, *store.second_period]
    assert len({item.title for item in store.items}) == len(store.items)
    assert len({event.event_id for event in events}) == len(events)
    assert store.first_period[-1].timestamp < store.second_period[0].timestamp
    assert store.drifting
    assert store.steady
    assert store.drifting.isdisjoint(store.steady)


def test_drifting_users_change_their_categories_and_steady_ones_keep_them() -> None:
    store = make_store(5, n_users=200)
    category = {item.item_id: item.category for item in store.items}

    def kept(users: frozenset[str]) -> float:
        """Share of the second period's purchases in the user's two main categories of the first."""
        main: dict[str, set[str]] = {}
        for user in users:
            bought = Counter(category[e.item_id] for e in store.first_period if e.user_id == user)
            main[user] = {name for name, _ in bought.most_common(2)}
        second: list[Interaction] = [e for e in store.second_period if e.user_id in users]
        return sum(category[e.item_id] in main[e.user_id] for e in second) / len(second)

    assert kept(store.steady) > 2 * kept(store.drifting)
    assert store.outdated <= {e.event_id for e in store.first_period if e.user_id in store.drifting}
