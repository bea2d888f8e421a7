"""Batches of prompts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evolver.batches import NEAR_NEGATIVES, make_example, scored_batches
from shared.prompt import Prompt
from shared.retriever import Retriever, RetrieverIndex
from shared.types import Item, ItemId, UserId

ITEMS = tuple(Item(ItemId(f"i{number}"), f"title {number}") for number in range(300))


def _prompts(*lengths: int) -> list[Prompt]:
    return [Prompt((1,) * length, (0, 1)) for length in lengths]


@pytest.mark.parametrize(
    ("size", "tokens", "expected"),
    [
        (32, 100, [[1], [3, 0], [2, 4]]),  # 90; 50 + 50 (10 of them padding); 10 + 10
        (32, 1000, [[1, 3, 0, 2, 4]]),
        (2, 1000, [[1, 3], [0, 2], [4]]),
        (32, 5, [[1], [3], [0], [2], [4]]),  # none fits: one at a time
    ],
)
def test_scores_take_like_lengths_and_so_many_tokens_at_once(size: int, tokens: int, expected: list[list[int]]) -> None:
    assert list(scored_batches(_prompts(40, 90, 10, 50, 5), size, tokens)) == expected


def test_no_prompts_make_no_batch() -> None:
    assert list(scored_batches([], 32, 100)) == []


@settings(deadline=None)  # an index is made for each example
@given(
    n_known=st.integers(1, len(ITEMS)),
    n_own=st.integers(0, 40),
    n_candidates=st.integers(2, 30),
    near_share=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**31),
)
def test_a_target_stands_beside_so_many_other_items_none_the_users_own(
    n_known: int, n_own: int, n_candidates: int, near_share: float, seed: int
) -> None:
    """As many as wanted, or all there are: the target is item 0, the user's own are those after it."""
    pool = [item.item_id for item in ITEMS[:n_known]]
    target, own = pool[0], frozenset(pool[1 : 1 + n_own])
    index = RetrieverIndex(Retriever(pool), ITEMS[:n_known])
    example = make_example(
        UserId("u"),
        sorted(own),
        target,
        index,
        pool,
        near_share=near_share,
        n_candidates=n_candidates,
        own=own,
        seed=seed,
    )
    assert len(set(example.candidates)) == len(example.candidates) == min(n_candidates, n_known - len(own))
    assert set(example.candidates) <= set(pool) - own
    assert example.candidates[example.target_index] == target


@pytest.fixture
def index() -> RetrieverIndex:
    torch.manual_seed(0)
    return RetrieverIndex(Retriever([item.item_id for item in ITEMS]), ITEMS)


def test_near_negatives_are_half_of_all_and_even_ones_come_from_everywhere(index: RetrieverIndex) -> None:
    target, bought = ItemId("i0"), ItemId("i1")
    near = {item for item, _ in index.candidates([bought], NEAR_NEGATIVES, exclude={target, bought})}
    shares = {}
    for near_share in (0.0, 0.5):
        drawn = [
            item
            for seed in range(100)
            for item in make_example(
                UserId("u"),
                [bought],
                target,
                index,
                [item.item_id for item in ITEMS],
                near_share=near_share,
                n_candidates=20,
                own=frozenset({bought}),
                seed=seed,
            ).candidates
            if item != target
        ]
        shares[near_share] = sum(item in near for item in drawn) / len(drawn)
    # 100 of 298 are near ones; or 9 of 19 are, and of the other 10 the 91 near ones that are left among 289.
    assert shares == {0.0: pytest.approx(100 / 298, abs=0.04), 0.5: pytest.approx((9 + 10 * 91 / 289) / 19, abs=0.04)}
