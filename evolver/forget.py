"""Forget: which older interactions no longer say anything about a user (EvoRec, arXiv 2511.16414, "Forget").

A light sequential model, fitted to the window, models the user's current sequence. With R the newest interactions of
a user who is in the window, an older interaction o contributes what it alone says about the one of them that it speaks
for most:

    s(o, r) = log p(r | o) - log p(r)          how much likelier o makes r
    c(o)    = max over r in R of s(o, r)

and is outdated where c(o) < theta: it makes all of what the user does now less likely. R and the window are never
forgotten. Why each interaction is judged alone, and not by what the model loses without it: docs/adr/0006. Why R is not
of the window alone: docs/adr/0036.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from shared.retriever import Retriever
from shared.types import Item, ItemId, UserId

THRESHOLD = -0.5  # theta, in nats: chosen on generated stores, where it is known what a drift of taste made outdated
RECENT = 4  # |R|
PRIOR_ITEMS = 512  # p(r) is the mean of p(r | o) over so many items of the catalog
PRIOR_AT_ONCE = 2**26  # entries of log p(r | o) in it, 256 MiB: all of them below some 100,000 items
SCORED_AT_ONCE = 2**22  # entries of log p(r | o), some users together


@dataclass(frozen=True, slots=True)
class CurrentSequence:
    """A user's current sequence (oldest first) and the window's places in it; what came late is not at its end."""

    items: tuple[ItemId, ...]
    window: frozenset[int]

    @property
    def considered(self) -> tuple[int, ...]:
        """Places that may be forgotten, by users who are in the window: not of it, and not among the newest."""
        return tuple(p for p in range(len(self.items) - RECENT) if p not in self.window) if self.window else ()

    @property
    def recent(self) -> tuple[int, ...]:
        """The places of R."""
        return tuple(range(len(self.items))[-RECENT:])


def contributions(given: Tensor, log_prior: Tensor, old: Tensor, recent: Tensor) -> Tensor:
    """c(o) of each older interaction.

    given: log p(. | o) of some interactions [N, I], log_prior: log p(r) [I], old: places among the N [O], recent:
    catalog rows of R -> [O]
    """
    return (given[old[:, None], recent] - log_prior[recent]).max(1).values


def alone(model: Retriever, vectors: Tensor, rows: Tensor) -> Tensor:
    """log p(. | o) over the catalog, given a single interaction.  rows: [O] -> [O, I]"""
    states = model.encode(vectors[rows][:, None])[:, 0]  # [O, D]
    return torch.log_softmax(states @ vectors.T, dim=1)


def log_prior(model: Retriever, vectors: Tensor) -> Tensor:
    """log p(r): what the model expects next when it knows nothing of the user.  -> [I]"""
    rows = torch.arange(0, len(vectors), max(1, len(vectors) // PRIOR_ITEMS))
    chunks = rows.chunk(math.ceil(len(rows) * len(vectors) / PRIOR_AT_ONCE))
    sums = (alone(model, vectors, chunk).logsumexp(0) for chunk in chunks)
    return reduce(torch.logaddexp, sums) - math.log(len(rows))


@torch.inference_mode()
def outdated(
    model: Retriever,
    items: Sequence[Item],
    sequences: Mapping[UserId, CurrentSequence],
    *,
    threshold: float = THRESHOLD,
    on_chunk: Callable[[float], None] = lambda share: None,
) -> dict[UserId, frozenset[int]]:
    """Positions of the outdated interactions of each user that has any."""
    model.eval()
    rows_of = {item.item_id: row for row, item in enumerate(items)}
    vectors = model.item_vectors(items)
    prior = log_prior(model, vectors) if len(items) else vectors
    asked = [one for user, sequence in sequences.items() if (one := _candidate(user, sequence, rows_of))]
    found: dict[UserId, frozenset[int]] = {}
    done = 0
    for chunk in _chunks(asked, max(1, SCORED_AT_ONCE // max(1, len(items)))):
        rows, places = torch.unique(torch.cat([one.old for one in chunk]), return_inverse=True)
        given = alone(model, vectors, rows)
        for one, old in zip(chunk, places.split([len(one.old) for one in chunk]), strict=True):
            scores = contributions(given, prior, old, one.recent).tolist()
            gone = frozenset(p for p, score in zip(one.positions, scores, strict=True) if score < threshold)
            if gone:
                found[one.user_id] = gone
        done += len(chunk)
        on_chunk(done / len(asked))
    return found


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A user who may have something to forget: the older interactions' `positions` and catalog rows `old` [O], and the
    rows of R.
    """

    user_id: UserId
    positions: tuple[int, ...]
    old: Tensor
    recent: Tensor


def _candidate(user: UserId, sequence: CurrentSequence, rows_of: Mapping[ItemId, int]) -> _Candidate | None:
    """What left the catalog neither judges nor is judged."""
    old, recent = (
        [p for p in places if sequence.items[p] in rows_of] for places in (sequence.considered, sequence.recent)
    )
    if not (old and recent):
        return None

    def rows(positions: Sequence[int]) -> Tensor:
        return torch.tensor([rows_of[sequence.items[p]] for p in positions])

    return _Candidate(user, tuple(old), rows(old), rows(recent))


def _chunks(asked: Sequence[_Candidate], interactions: int) -> Iterator[list[_Candidate]]:
    """Users together, as long as they have not more older interactions than that (or one user)."""
    chunk: list[_Candidate] = []
    together = 0
    for one in asked:
        if chunk and together + len(one.old) > interactions:
            yield chunk
            chunk, together = [], 0
        chunk.append(one)
        together += len(one.old)
    if chunk:
        yield chunk
