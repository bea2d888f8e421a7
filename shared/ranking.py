"""The blended probability that ranks candidates, for serving and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

SHARE_FLOOR = 1e-6


class BlendWeights(BaseModel):
    """Weights of the three log-linear experts; chosen on validation, kept in a version's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    llm: float = 1.0
    retriever: float = 0.0
    popularity: float = 0.0


def blend(
    llm_logprobs: Sequence[float],
    retriever_scores: Sequence[float],
    popularity_shares: Sequence[float],
    weights: BlendWeights,
) -> list[float]:
    """p_i proportional to exp(w_l log p_llm(i) + w_r s_i + w_p log(share_i + floor)); all arguments [C], result [C],
    sum 1.
    """
    logits = (
        weights.llm * np.asarray(llm_logprobs, dtype=np.float64)
        + weights.retriever * np.asarray(retriever_scores, dtype=np.float64)
        + weights.popularity * np.log(np.asarray(popularity_shares, dtype=np.float64) + SHARE_FLOOR)
    )
    odds = np.exp(logits - logits.max())
    return [float(value) for value in odds / odds.sum()]
