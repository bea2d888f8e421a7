"""Forget on stores where the truth is known: what no longer predicts goes, the newest never do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from evolver.bench.known_truth import FORMAT, KnownStore, section
from evolver.forget import CurrentSequence, outdated
from evolver.retriever_training import train_retriever
from evolver.stores import make_store
from shared.config import Settings
from shared.retriever import Retriever
from shared.sasrec import RetrieverConfig
from shared.types import Interaction, Item, ItemId, UserId

TEAS = [Item(ItemId(f"tea-{n}"), f"tea leaf {n}", "Tea") for n in range(8)]
TENTS = [Item(ItemId(f"tent-{n}"), f"dome tent {n}", "Tents") for n in range(8)]
ITEMS = [*TEAS, *TENTS]


def _trained() -> Retriever:
    """People who buy tea go on buying tea; likewise tents."""
    generator = torch.Generator().manual_seed(0)
    sequences = {}
    for number in range(120):
        shelf = TEAS if number % 2 else TENTS
        order = torch.randperm(8, generator=generator)[:6].tolist()
        sequences[UserId(f"u{number}")] = tuple(shelf[i].item_id for i in order)
    config = RetrieverConfig(width=32, layers=1, word_buckets=256, dropout=0.0)
    return train_retriever(ITEMS, sequences, epochs=20, seed=0, on_step=lambda _: None, config=config)


def test_a_taste_left_behind_is_outdated_and_the_newest_are_kept() -> None:
    model = _trained()
    window = frozenset(range(3, 7))
    moved = CurrentSequence(tuple(i.item_id for i in (*TENTS[:3], *TEAS[:4])), window)
    loyal = CurrentSequence(tuple(i.item_id for i in TEAS[:7]), window)
    gone = outdated(model, ITEMS, {UserId("moved"): moved, UserId("loyal"): loyal})
    assert gone.get(UserId("moved")), "nothing of the old taste was forgotten"
    assert len(gone[UserId("moved")]) > len(gone.get(UserId("loyal"), ()))
    assert not gone[UserId("moved")] & window


def test_what_a_drift_made_outdated_is_found_on_a_generated_store() -> None:
    """Where the truth is known: what is forgotten was outdated clearly more often than what is kept."""
    store = make_store(31, n_users=300, n_items=200, n_categories=10)
    sequences: dict[UserId, list[Interaction]] = {}
    for event in (*store.first_period, *store.second_period):
        sequences.setdefault(event.user_id, []).append(event)
    first = {event.event_id for event in store.first_period}
    items = {user: tuple(event.item_id for event in events) for user, events in sequences.items()}
    model = train_retriever(store.items, items, epochs=10, seed=0, on_step=lambda _: None)
    current = {
        user: CurrentSequence(items[user], frozenset(p for p, e in enumerate(events) if e.event_id not in first))
        for user, events in sequences.items()
    }
    gone = outdated(model, store.items, current)
    forgotten = {sequences[user][p].event_id for user, positions in gone.items() for p in positions}
    old = {e.event_id for user, s in current.items() if s.window for e in sequences[user] if e.event_id in first}
    precision = len(forgotten & store.outdated) / len(forgotten)
    base_rate = len((old - forgotten) & store.outdated) / len(old - forgotten)
    assert len(forgotten) > 50
    assert precision > 1.3 * base_rate


def test_precision_and_recall_are_those_of_the_sets_that_a_threshold_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[set[str], set[str]]] = {}
    store = make_store(31, n_users=60, n_items=100, n_categories=8)
    events: dict[UserId, list[str]] = {}
    for event in (*store.first_period, *store.second_period):
        events.setdefault(event.user_id, []).append(event.event_id)

    def asked(
        model: Retriever, items: Sequence[Item], current: Mapping[UserId, CurrentSequence], *, threshold: float
    ) -> Mapping[UserId, frozenset[int]]:
        gone = outdated(model, items, current, threshold=threshold)
        seen[f"{threshold:g}"] = (
            {events[user][place] for user, sequence in current.items() for place in sequence.considered},
            {events[user][place] for user, places in gone.items() for place in places},
        )
        return gone

    monkeypatch.setattr("evolver.bench.known_truth.outdated", asked)
    settings = Settings(_env_file=None, retriever_epochs=3, retriever_window_epochs=1)
    known = KnownStore(store, settings, seed=0)
    found = known.by_threshold()
    rates = [one["base_rate"] for one in found.values()]
    assert len(set(rates)) == 1
    shares = [found[threshold]["forgotten_share"] for threshold in sorted(found, key=float)]
    assert shares == sorted(shares)
    assert shares[-1] > 0
    for threshold, one in found.items():
        considered, forgotten = seen[threshold]
        true = considered & store.outdated
        assert one["precision"] == len(forgotten & true) / max(1, len(forgotten))
        assert one["recall"] == len(forgotten & true) / len(true)
        assert one["base_rate"] == len(true) / len(considered)
        assert one["forgotten_share"] == len(forgotten) / len(considered)
    assert 0 < found["0.5"]["precision"] < 1
    assert 0 < found["0.5"]["recall"] < 1
    results: dict[str, Any] = {"format": FORMAT, "command": "c", "threshold": -0.5, "seeds": [0], "stores": [found]}
    results["windows"] = [{str(n): known.in_windows(n) for n in (1, 4)}]
    assert any(line.startswith("| -0.5 (used) |") for line in section(results))


def test_short_windows_forget_hardly_more_than_a_long_one() -> None:
    """Online a user is mostly in a window with a single interaction, which cannot speak for all of their tastes."""
    known = KnownStore(make_store(31, n_users=200, n_items=160, n_categories=8), Settings(_env_file=None), seed=0)
    one, four = (known.in_windows(n) for n in (1, 4))
    assert 0 < four["steady"] < one["steady"] + 0.15
    assert four["steady"] < four["drifting"]
    assert four["precision"] > 0.5
