"""Update on a small model: what lambda does, and which checkpoint stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from evolver.batches import score_prompts
from evolver.update import Labelled, UpdateConfig, UpdateResult, consistency_loss, update
from shared.prompt import Prompt
from tests.trunk_support import LABELS, UPPER, make_model, make_prompts

if TYPE_CHECKING:
    from peft import PeftModel

PROMPTS = make_prompts(24)
ACTIVE = [Labelled(prompt, i % prompt.n_candidates) for i, prompt in enumerate(PROMPTS[:12])]
INACTIVE = PROMPTS[12:]


def _update(
    model: PeftModel, consistency: Sequence[float], *, rate: float, epochs: int, validation: Sequence[Labelled] = ACTIVE
) -> UpdateResult:
    config = UpdateConfig(epochs=epochs, batch_size=4, learning_rate=rate, consistency=tuple(consistency))
    return update(model, UPPER, ACTIVE, INACTIVE, validation, LABELS, config)


def _divergence(model: PeftModel, prompts: Sequence[Prompt]) -> float:
    """mean KL(p_parent || p)"""
    parent, now = (score_prompts(asked, prompts, LABELS) for asked in (make_model(), model))
    terms = [consistency_loss(torch.tensor([a]), torch.tensor([b])).item() for a, b in zip(now, parent, strict=True)]
    return sum(terms) / len(terms)


def test_the_larger_lambda_the_nearer_inactive_users_predictions_stay_to_the_parents() -> None:
    """In small steps: a large lambda in large ones throws predictions to and fro."""
    found = []
    for weight in (0.0, 1.0, 10.0):
        model = make_model()
        result = _update(model, [weight], rate=1e-3, epochs=30)
        assert result.loss_after < result.loss_before
        found.append(_divergence(model, INACTIVE))
    assert found[0] > 2 * found[1] > 4 * found[2]
