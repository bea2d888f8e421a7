"""The blended probability that ranks candidates, for serving and for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, model_validator

SHARE_FLOOR = 1e-6  # an item without events: the logarithm has to be finite


class BlendWeights(BaseModel):
    """Weights of the three log-linear experts, chosen on validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    llm: float = 1.0
    retriever: float = 0.0
    popularity: float = 0.0


class Blends(BaseModel):
    """The weights by where candidates come from, kept in a version's manifest: those that a caller gives, and the
    retriever's own best, of which it has said most already (ADR 0038). Versions of before had one for both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    given: BlendWeights
    retrieved: BlendWeights

    @classmethod
    def alike(cls, weights: BlendWeights) -> Self:
        """The same for both."""
        return cls(given=weights, retrieved=weights)

    @model_validator(mode="before")
    @classmethod
    def _one_for_both(cls, found: Any) -> Any:
        if isinstance(found, Mapping) and not cls.model_fields.keys() & found.keys():
            return {"given": found, "retrieved": found}
        return found


def expert_features(
    llm_logprobs: ArrayLike, retriever_scores: ArrayLike, popularity_shares: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What the three weights multiply: log p_llm, s and log(share + floor); each of one shape, [..., C]."""
    llm, retriever, shares = (
        np.asarray(one, dtype=np.float64) for one in (llm_logprobs, retriever_scores, popularity_shares)
    )
    return llm, retriever, np.log(shares + SHARE_FLOOR)


def log_odds(
    llm_logprobs: ArrayLike, retriever_scores: ArrayLike, popularity_shares: ArrayLike, weights: BlendWeights
) -> NDArray[np.float64]:
    """w_l log p_llm(i) + w_r s_i + w_p log(share_i + floor); all arguments and the result of one shape, [..., C]."""
    llm, retriever, popularity = expert_features(llm_logprobs, retriever_scores, popularity_shares)
    # Sums, not a product of matrices: candidates of which all experts say the same must come out alike to the last bit.
    logits: NDArray[np.float64] = weights.llm * llm + weights.retriever * retriever + weights.popularity * popularity
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
