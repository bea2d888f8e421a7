"""From expert scores to a ranking. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.ranking import BlendWeights, blend
from shared.types import ItemId

# The first item that the LLM did not rank stays below the last one that it did.
BELOW = 1 - 1e-6


@dataclass(frozen=True, slots=True)
class Ranked:
    """An item in its place. `score` ranks; the experts' own scores are there to explain it (None: not asked)."""

    item_id: ItemId
    score: float
    llm: float | None = None
    retriever: float | None = None


def softmax(values: Sequence[float]) -> list[float]:
    """exp(x_i) / sum_j exp(x_j)

    >>> softmax([0.0, math.log(3)])
    [0.25, 0.75]
    """
    if not values:
        return []
    top = max(values)
    odds = [math.exp(value - top) for value in values]
    total = sum(odds)
    return [odd / total for odd in odds]


def log_softmax(values: Sequence[float]) -> list[float]:
    """x_i - log sum_j exp(x_j)

    >>> [round(math.exp(x), 3) for x in log_softmax([-9.0, -9.0 + math.log(3)])]
    [0.25, 0.75]
    """
    top = max(values)
    norm = top + math.log(sum(math.exp(value - top) for value in values))
    return [value - norm for value in values]


def tail_scores(lowest: float, retriever: Sequence[float]) -> list[float]:
    """Scores below `lowest` that keep the retriever's order and its ratios.  retriever: best first

    >>> tail_scores(0.1, [-2.0, -2.0 - math.log(2)])
    [0.0999999, 0.04999995]
    """
    if not retriever:
        return []
    scores = (lowest * BELOW * math.exp(min(0.0, score - retriever[0])) for score in retriever)
    return [min(lowest, round(score, 12)) for score in scores]  # rounding a very small one could lift it above


def by_retriever(pairs: Sequence[tuple[ItemId, float]]) -> list[Ranked]:
    """The retriever's own ranking.  pairs: best first"""
    shares = softmax([score for _, score in pairs])
    return [Ranked(item, share, retriever=score) for (item, score), share in zip(pairs, shares, strict=True)]


def by_popularity(pairs: Sequence[tuple[ItemId, float]]) -> list[Ranked]:
    """The most popular first; ties stay in the order given."""
    return sorted((Ranked(item, share) for item, share in pairs), key=lambda ranked: -ranked.score)


def by_llm(
    pairs: Sequence[tuple[ItemId, float]],
    logprobs: Mapping[ItemId, float],
    shares: Sequence[float],
    weights: BlendWeights,
) -> list[Ranked]:
    """The blend of the experts; items without log-probability follow in the retriever's order.

    pairs: best first, those that the LLM ranked in front; shares: popularity of those.
    """
    head, tail = pairs[: len(logprobs)], pairs[len(logprobs) :]
    blended = blend([logprobs[item] for item, _ in head], [score for _, score in head], shares, weights)
    ranked = [
        Ranked(item, probability, llm=logprobs[item], retriever=score)
        for (item, score), probability in zip(head, blended, strict=True)
    ]
    ranked.sort(key=lambda each: -each.score)
    below = tail_scores(ranked[-1].score, [score for _, score in tail])
    rest = [Ranked(item, score, retriever=own) for (item, own), score in zip(tail, below, strict=True)]
    return ranked + rest
