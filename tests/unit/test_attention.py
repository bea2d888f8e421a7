"""Attention in blocks is attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evolver.attention import BLOCK, blockwise_attention

LENGTHS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7]


def tensors(length: int, heads: int, key_heads: int) -> list[Tensor]:
    """Queries, keys and values in float64, to be differentiated."""
    torch.manual_seed(length)
    shapes = [(2, heads, length, 8), (2, key_heads, length, 8), (2, key_heads, length, 8)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (4, 4), (6, 1)])
def test_results_and_gradients_are_those_of_torch(length: int, heads: int, key_heads: int) -> None:
    given = tensors(length, heads, key_heads)
    query, key, value = given
    ours = blockwise_attention(query, key, value, scaling=0.3)
    theirs = nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.3, enable_gqa=heads != key_heads
    )
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    for mine, expected in zip(
        torch.autograd.grad((ours * weights).sum(), given),
        torch.autograd.grad((theirs * weights).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected)


def test_nothing_sees_what_comes_later() -> None:
    query, key, value = (one.detach() for one in tensors(2 * BLOCK, 2, 2))
    before = blockwise_attention(query, key, value, scaling=1.0)
    key[:, :, BLOCK:], value[:, :, BLOCK:] = torch.inf, torch.nan
    after = blockwise_attention(query, key, value, scaling=1.0)
    torch.testing.assert_close(after[:, :, :BLOCK], before[:, :, :BLOCK], rtol=0, atol=0)
