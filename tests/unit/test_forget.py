"""Forget on a store small enough to see through: what no longer predicts goes, the newest never do."""

from __future__ import annotations

import torch

from evolver.forget import KEPT_NEWEST, CurrentSequence, contributions, outdated
from evolver.retriever_training import train_retriever
from shared.retriever import Retriever, RetrieverConfig
from shared.types import Item, ItemId, UserId

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
    moved = CurrentSequence(tuple(i.item_id for i in (*TENTS[:3], *TEAS[:4])), n_old=3)
    loyal = CurrentSequence(tuple(i.item_id for i in TEAS[:7]), n_old=3)
    gone = outdated(model, ITEMS, {UserId("moved"): moved, UserId("loyal"): loyal})
    assert gone.get(UserId("moved")), "nothing of the old taste was forgotten"
    assert len(gone[UserId("moved")]) > len(gone.get(UserId("loyal"), ()))
    assert all(position < moved.n_old for position in gone[UserId("moved")])


def test_contribution_is_the_log_probability_lost_without_the_interaction() -> None:
    """Against the definition, one interaction and one target at a time."""
    model = _trained()
    vectors = model.item_vectors(ITEMS).detach()
    rows = torch.tensor([8, 9, 0, 1])
    with torch.inference_mode():
        scores = contributions(model, vectors, rows, 2)

        def logp(history: list[int], target: int) -> float:
            state = model.encode(vectors[torch.tensor([history])])[0, -1]
            return float(torch.log_softmax(vectors @ state, 0)[target])

        without_first = [logp([8, 9], 0) - logp([9], 0), logp([8, 9, 0], 1) - logp([9, 0], 1)]
        without_second = [logp([8, 9], 0) - logp([8], 0), logp([8, 9, 0], 1) - logp([8, 0], 1)]
    expected = torch.tensor([sum(without_first) / 2, sum(without_second) / 2])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_short_histories_forget_nothing() -> None:
    model = Retriever([item.item_id for item in ITEMS])
    short = CurrentSequence(tuple(i.item_id for i in TEAS[:KEPT_NEWEST]), n_old=1)
    alone = CurrentSequence((TEAS[0].item_id,), n_old=0)
    assert outdated(model, ITEMS, {UserId("a"): short, UserId("b"): alone}, threshold=1e9) == {}
