"""SASRec (arXiv 1808.09781), a light sequential model, whose items are known by their words as well as by their id.

An item's vector is its id's embedding plus the mean of its words' embeddings, so that an item nobody has bought yet can
be retrieved through its title.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class RetrieverConfig:
    """How many members a retriever has, and the shape of each: `max_length` is the longest history that they read (the
    newest items).
    """

    members: int = 1
    width: int = 64
    layers: int = 2
    heads: int = 2
    max_length: int = 50
    word_buckets: int = 8192
    dropout: float = 0.5

    @property
    def vector_width(self) -> int:
        """Of an item's vector, all members together."""
        return self.members * self.width


class SASRec(nn.Module):
    """`encode` reads histories; scores are dot products of its states with item vectors."""

    def __init__(self, n_items: int, config: RetrieverConfig) -> None:
        super().__init__()
        self.config = config
        # The last row belongs to items without an embedding of their own; it stays zero.
        self.ids = nn.Embedding(n_items + 1, config.width, padding_idx=n_items)
        self.words = nn.EmbeddingBag(config.word_buckets, config.width, mode="mean")
        self.positions = nn.Embedding(config.max_length, config.width)
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 2 * config.width, config.dropout, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        for embedding in (self.ids, self.words, self.positions):
            nn.init.normal_(embedding.weight, std=config.width**-0.5)
        with torch.no_grad():
            self.ids.weight.mul_(0.1)
            self.ids.weight[-1] = 0.0

    def item_vectors(self, rows: Tensor, buckets: Tensor, starts: Tensor) -> Tensor:
        """id embedding + mean of word embeddings.  rows: [I]; buckets, starts: see `ItemWords` -> [I, d]"""
        vectors: Tensor = self.ids(rows) + self.words(buckets, starts)
        return vectors

    def encode(self, history: Tensor) -> Tensor:
        """States after each item of left-aligned histories.  history: item vectors [B, T <= max_length, d] -> [B, T,
        d]
        """
        length = history.shape[1]
        hidden = self.dropout(history * self.config.width**0.5 + self.positions.weight[:length])
        causal = torch.ones(length, length, dtype=torch.bool, device=history.device).triu(1)
        states: Tensor = self.norm(self.blocks(hidden, mask=causal))
        return states

    def take(self, other: SASRec, rows: Sequence[int]) -> None:
        """Take the weights of another, whose items in `rows` come first; the further ones have (zero) embeddings."""
        table = torch.zeros_like(self.ids.weight)
        table[: len(rows)] = other.ids.weight[list(rows)]
        self.load_state_dict({**other.state_dict(), "ids.weight": table})
