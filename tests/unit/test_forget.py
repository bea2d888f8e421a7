"""Forget's score against its definition, and who is never asked."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from evolver.forget import RECENT, CurrentSequence, alone, contributions, log_prior, outdated
from shared.retriever import Retriever
from shared.sasrec import RetrieverConfig
from shared.types import Item, ItemId, UserId

TEAS = [Item(ItemId(f"tea-{n}"), f"tea leaf {n}", "Tea") for n in range(8)]
TENTS = [Item(ItemId(f"tent-{n}"), f"dome tent {n}", "Tents") for n in range(8)]
ITEMS = [*TEAS, *TENTS]


def test_contribution_is_what_the_interaction_alone_says_about_the_one_it_speaks_for_most() -> None:
    """Against the definition, one interaction and one target at a time; the catalog is small enough for p(r) to be
    exact.
    """
    torch.manual_seed(0)
    model = Retriever([item.item_id for item in ITEMS], RetrieverConfig(width=32, layers=1, word_buckets=256)).eval()
    vectors = model.item_vectors(ITEMS).detach()
    old, recent = [8, 0], [1, 9]
    with torch.inference_mode():
        given = alone(model, vectors, torch.arange(len(ITEMS)))
        scores = contributions(given, log_prior(model, vectors), torch.tensor(old), torch.tensor(recent))

        def p(target: int, given: int) -> float:
            state = model.encode(vectors[[given]][None])[0, 0]
            return float(torch.softmax(vectors @ state, 0)[target])

        def said(o: int, r: int) -> float:
            return math.log(p(r, o) / (sum(p(r, other) for other in range(len(ITEMS))) / len(ITEMS)))

        expected = [max(said(o, r) for r in recent) for o in old]
    assert scores.tolist() == pytest.approx(expected, abs=1e-4)


def test_the_prior_is_made_in_parts_that_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Retriever([item.item_id for item in ITEMS], RetrieverConfig(width=32, layers=1, word_buckets=256)).eval()
    vectors, asked = model.item_vectors(ITEMS).detach(), list[int]()

    def counted(model: Retriever, vectors: Tensor, rows: Tensor) -> Tensor:
        asked.append(len(rows))
        return alone(model, vectors, rows)

    whole = log_prior(model, vectors)
    monkeypatch.setattr("evolver.forget.alone", counted)
    monkeypatch.setattr("evolver.forget.PRIOR_AT_ONCE", 5 * len(ITEMS))
    torch.testing.assert_close(log_prior(model, vectors), whole)
    assert asked == [4, 4, 4, 4]


def test_short_histories_forget_nothing() -> None:
    model = Retriever([item.item_id for item in ITEMS])
    short = CurrentSequence(tuple(i.item_id for i in TEAS[:RECENT]), frozenset({2, 3}))
    alone = CurrentSequence((TEAS[0].item_id,), frozenset({0}))
    assert outdated(model, ITEMS, {UserId("a"): short, UserId("b"): alone}, threshold=1e9) == {}


@pytest.mark.parametrize("at_once", [1, 10 * len(ITEMS), 10**9])
def test_users_together_forget_what_each_would(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """However many are scored at once; they share items, and have had one that left the catalog."""
    torch.manual_seed(0)
    model = Retriever([item.item_id for item in ITEMS], RetrieverConfig(width=32, layers=1, word_buckets=256)).eval()
    ids = [item.item_id for item in ITEMS]
    sequences = {
        UserId(f"u{n}"): CurrentSequence(
            (*ids[n : n + 6], ItemId("gone"), ids[0], ids[n + 7]), window=frozenset(range(4 + n % 3, 9))
        )
        for n in range(8)
    }
    monkeypatch.setattr("evolver.forget.SCORED_AT_ONCE", at_once)
    each = [outdated(model, ITEMS, {user: sequence}, threshold=0.5) for user, sequence in sequences.items()]
    together = outdated(model, ITEMS, sequences, threshold=0.5)
    assert together == {user: gone for found in each for user, gone in found.items()}
    assert 0 < sum(map(len, together.values())) < sum(len(one.considered) for one in sequences.values())


def test_what_came_late_is_the_windows_and_the_newest_by_time_are_kept() -> None:
    model = Retriever([item.item_id for item in ITEMS])
    late = CurrentSequence(tuple(item.item_id for item in ITEMS[:8]), window=frozenset({1, 3}))
    assert outdated(model, ITEMS, {UserId("a"): late}, threshold=1e9) == {UserId("a"): frozenset({0, 2})}
    assert late.considered == (0, 2)


def test_who_is_not_in_the_window_forgets_nothing() -> None:
    model = Retriever([item.item_id for item in ITEMS])
    away = CurrentSequence(tuple(item.item_id for item in ITEMS), window=frozenset())
    assert outdated(model, ITEMS, {UserId("a"): away}, threshold=1e9) == {}
    assert away.considered == ()


def test_however_long_a_history_all_of_it_is_judged() -> None:
    model = Retriever([item.item_id for item in ITEMS])
    items = 20 * tuple(item.item_id for item in ITEMS)
    long = CurrentSequence(items, window=frozenset({len(items) - 1}))
    assert len(items) > model.config.max_length
    gone = outdated(model, ITEMS, {UserId("a"): long}, threshold=1e9)
    assert gone == {UserId("a"): frozenset(range(len(items) - RECENT))}
