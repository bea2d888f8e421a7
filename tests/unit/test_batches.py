"""Batches of prompts."""

from __future__ import annotations

import pytest

from evolver.batches import scored_batches
from shared.prompt import Prompt


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
