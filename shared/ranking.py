"""The blended probability that ranks candidates, for serving and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

SHARE_FLOOR = 1e-6


class BlendWeights(BaseModel):
    """Weights of the three log-linear experts; chosen on validation, kept in a version's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    llm: float = 1.0
    retriever: float = 0.0
    popularity: float = 0.0


def log_odds(
    llm_logprobs: ArrayLike, retriever_scores: ArrayLike, popularity_shares: ArrayLike, weights: BlendWeights
) -> NDArray[np.float64]:
    """w_l log p_llm(i) + w_r s_i + w_p log(share_i + floor); all arguments and the result of one shape, [..., C]."""
    logits: NDArray[np.float64] = (
        weights.llm * np.asarray(llm_logprobs, dtype=np.float64)
        + weights.retriever * np.asarray(retriever_scores, dtype=np.float64)
        + weights.popularity * np.log(np.asarray(popularity_shares, dtype=np.float64) + SHARE_FLOOR)
    )
    return logits


def blend(
    llm_logprobs: Sequence[float],
    retriever_scores: Sequence[float],
    popularity_shares: Sequence[float],
    weights: BlendWeights,
) -> list[float]:
    """p_i proportional to exp(`log_odds`); all arguments [C], result [C], sum 1."""
    logits = log_odds(llm_logprobs, retriever_scores, popularity_shares, weights)
    odds = np.exp(logits - logits.max())
    return [float(value) for value in odds / odds.sum()]
