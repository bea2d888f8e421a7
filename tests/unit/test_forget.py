"""Forget's score against its definition, and who is never asked."""

from __future__ import annotations

import math

import pytest
import torch

from evolver.forget import KEPT_NEWEST, CurrentSequence, contributions, log_prior, outdated
from shared.retriever import Retriever, RetrieverConfig
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
        scores = contributions(model, vectors, log_prior(model, vectors), torch.tensor(old), torch.tensor(recent))

        def p(target: int, given: int) -> float:
            state = model.encode(vectors[[given]][None])[0, 0]
            return float(torch.softmax(vectors @ state, 0)[target])

        def said(o: int, r: int) -> float:
            return math.log(p(r, o) / (sum(p(r, other) for other in range(len(ITEMS))) / len(ITEMS)))

        expected = [max(said(o, r) for r in recent) for o in old]
    assert scores.tolist() == pytest.approx(expected, abs=1e-4)


def test_short_histories_forget_nothing() -> None:
    model = Retriever([item.item_id for item in ITEMS])
    short = CurrentSequence(tuple(i.item_id for i in TEAS[:KEPT_NEWEST]), n_old=1)
    alone = CurrentSequence((TEAS[0].item_id,), n_old=0)
    assert outdated(model, ITEMS, {UserId("a"): short, UserId("b"): alone}, threshold=1e9) == {}
