"""Forget: which older interactions no longer say anything about a user (EvoRec, arXiv 2511.16414, "Forget").

A light sequential model, fitted to the window, models the user's current sequence. With R the user's newest
interactions and H_<r the history before r, an older interaction o contributes

    c(o) = mean over r in R of [ log p(r | H_<r) - log p(r | H_<r without o) ]

and is outdated where c(o) < theta: the model predicts what the user does now better without it. The newest
interactions, R and everything of the window among them, are never forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.retriever import Retriever
from shared.types import Item, ItemId, UserId

# theta: chosen on generated stores, where it is known which interactions a drift of taste made outdated.
THRESHOLD = -0.02
RECENT = 4  # |R|
KEPT_NEWEST = 3  # never forgotten, window or not


@dataclass(frozen=True, slots=True)
class CurrentSequence:
    """A user's current sequence (oldest first), of which the first `n_old` interactions lie before the window."""

    items: tuple[ItemId, ...]
    n_old: int


def contributions(model: Retriever, vectors: Tensor, rows: Tensor, n_old: int) -> Tensor:
    """c(o) of the first n_old interactions.  vectors: item vectors [I, d], rows: catalog rows of the sequence [T] ->
    [n_old]
    """
    length = len(rows)
    recent = torch.arange(max(n_old, length - RECENT), length)  # positions of R
    whole = _logprobs(model, vectors, rows[None], recent[None] - 1)  # [1, R]
    keep = torch.stack(
        [torch.cat([torch.arange(o), torch.arange(o + 1, length)]) for o in range(n_old)]
    )  # [n_old, T - 1]
    # Without o everything after it stands one position earlier.
    without = _logprobs(model, vectors, rows[keep], (recent[None] - 2).expand(n_old, -1))  # [n_old, R]
    return (whole - without).mean(1)


def _logprobs(model: Retriever, vectors: Tensor, rows: Tensor, before: Tensor) -> Tensor:
    """log p of the item that follows each position.  rows: [N, T], before: positions [N, R] -> [N, R]"""
    states = model.encode(vectors[rows])  # [N, T, d]
    picked = states.gather(1, before[..., None].expand(-1, -1, states.shape[-1]))
    logits = picked @ vectors.T  # [N, R, I]
    next_rows = rows.gather(1, before + 1)
    chosen: Tensor = logits.gather(2, next_rows[..., None]).squeeze(2) - logits.logsumexp(2)
    return chosen


@torch.inference_mode()
def outdated(
    model: Retriever,
    items: Sequence[Item],
    sequences: Mapping[UserId, CurrentSequence],
    *,
    threshold: float = THRESHOLD,
    on_user: Callable[[float], None] = lambda share: None,
) -> dict[UserId, frozenset[int]]:
    """Positions of the outdated interactions of each user that has any."""
    model.eval()
    rows_of = {item.item_id: row for row, item in enumerate(items)}
    vectors = model.item_vectors(items)
    found: dict[UserId, frozenset[int]] = {}
    for done, (user, sequence) in enumerate(sequences.items(), start=1):
        positions = [p for p, item in enumerate(sequence.items) if item in rows_of][-model.config.max_length :]
        n_old = sum(1 for p in positions if p < sequence.n_old)
        may_go = min(n_old, len(positions) - KEPT_NEWEST)
        # One interaction alone (n_old = 1 and nothing else before R) has nothing to be compared with.
        if may_go > 0 and n_old < len(positions) and len(positions) > 2:
            rows = torch.tensor([rows_of[sequence.items[p]] for p in positions])
            scores = contributions(model, vectors, rows, n_old)[:may_go]
            gone = frozenset(
                p for p, score in zip(positions[:may_go], scores.tolist(), strict=True) if score < threshold
            )
            if gone:
                found[user] = gone
        on_user(done / len(sequences))
    return found
