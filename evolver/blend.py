"""The weights of the blend: those under which validation users were likeliest to choose what they chose.

With f_e(c) what expert e says of candidate c (`shared.ranking.expert_features`), the blend is a conditional logit
(McFadden 1974) with one weight per expert, and

    w = argmin_{w >= 0}  - mean_sets mean_users log softmax_c(w . f(c))[target]  +  m |w - w_0|^2 / (2 n)

n being the users of a set. The last term is a prior, worth m users: it decides where there are few, and is forgotten
with many. w_0 are the parent's weights, which earlier users chose (ADR 0037); a version without one has a constant.
The likelihood is smooth where a rank is not, so it says more about the same users (ADR 0020).

This is done twice: for candidates that a caller gives, of whom drawn ones stand in, and for the retriever's own best,
where the users are those whose choice was among them (ADR 0038).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from evolver.scoring import Scored
from shared.errors import EvorecError
from shared.ranking import Blends, BlendWeights, expert_features

PRIOR = BlendWeights(llm=1.0, retriever=0.5, popularity=0.25)
PARENT_WORTH = 30  # m, in users, of a parent's weights; those of `PRIOR`, which nobody chose, are worth one
LLM_AMONG_RETRIEVED = 0.25  # of its weight among given candidates, before anybody has been asked
START_AT_LEAST = 1e-3  # where softplus still has a gradient
DIGITS = 4
_ITERATIONS = 100


def choose_blend(
    given: Sequence[Sequence[Scored]], retrieved: Sequence[Scored], parent: Blends | None = None
) -> Blends:
    """The likeliest weights for drawn sets of candidates, which count alike, and for the retriever's own. Where nobody
    can be asked they are the parent's, or `PRIOR`. Raises `EvorecError` where no weights can be found, as of scores
    that are not numbers.
    """
    if parent:
        chosen, expected = likeliest(given, parent.given, PARENT_WORTH), parent.retrieved
    else:
        chosen = likeliest(given, PRIOR, worth=1)
        expected = chosen.model_copy(update={"llm": round(LLM_AMONG_RETRIEVED * chosen.llm, DIGITS)})
    return Blends(given=chosen, retrieved=likeliest([retrieved], expected, PARENT_WORTH))


def likeliest(scored: Sequence[Sequence[Scored]], expected: BlendWeights, worth: int) -> BlendWeights:
    """The likeliest weights for some sets of candidates, with a prior worth so many users: where nobody's target is
    among the candidates, it. Raises as `choose_blend` does.
    """
    sets = [_padded(found) for chosen in scored if (found := [one for one in chosen if one.target >= 0])]
    if not sets:
        return expected
    prior = torch.tensor([expected.llm, expected.retriever, expected.popularity], dtype=torch.float64)
    n_users = float(np.mean([len(targets) for _, _, targets in sets]))
    # softplus(free) >= 0 are the weights.
    free = torch.log(torch.expm1(prior.clamp(min=START_AT_LEAST))).requires_grad_()
    optimizer = torch.optim.LBFGS([free], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        weights = nn.functional.softplus(free)
        surprises = [
            nn.functional.cross_entropy((features @ weights).masked_fill(outside, -torch.inf), targets)
            for features, outside, targets in sets
        ]
        total = torch.stack(surprises).mean() + worth * ((weights - prior) ** 2).sum() / (2 * n_users)
        torch.autograd.backward(total)
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    llm, retriever, popularity = (round(weight, DIGITS) for weight in nn.functional.softplus(free).tolist())
    if not all(map(math.isfinite, (llm, retriever, popularity))):
        raise EvorecError(
            f"the blend's weights are not numbers (LLM {llm}, retriever {retriever}, popularity {popularity}): the "
            "validation users' scores or the parent's weights have diverged; POST /admin/rollback goes back to the "
            "version before the parent"
        )
    return BlendWeights(llm=llm, retriever=retriever, popularity=popularity)


def _padded(scored: Sequence[Scored]) -> tuple[Tensor, Tensor, Tensor]:
    """What each expert says of each candidate [N, C, 3], which places have none [N, C], and the targets [N]."""
    rows = [
        torch.from_numpy(np.stack(expert_features(one.llm, one.retriever, one.popularity), axis=-1)) for one in scored
    ]
    features = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    outside = torch.arange(features.shape[1])[None] >= torch.tensor([len(row) for row in rows])[:, None]
    return features, outside, torch.tensor([one.target for one in scored])
