"""Update on a small model: what lambda does, and which checkpoint stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
import torch

from evolver.batches import score_prompts
from evolver.lora import lora_state
from evolver.update import Labelled, UpdateConfig, UpdateResult, consistency_loss, ranking_loss, update
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


def test_of_several_lambdas_the_checkpoint_best_on_validation_stays() -> None:
    """Judged on what it trains on, the smallest lambda is the best: neither the first nor the last that is tried. What
    the result says of it is what the model says.
    """
    alone, model = make_model(), make_model()
    expected = _update(alone, [0.0], rate=0.01, epochs=3)
    result = _update(model, [10.0, 0.0, 1.0], rate=0.01, epochs=3)
    assert result.consistency == 0.0
    for name, value in lora_state(model, UPPER).items():
        torch.testing.assert_close(value, lora_state(alone, UPPER)[name], msg=name)
    ranking = ranking_loss(score_prompts(model, [example.prompt for example in ACTIVE], LABELS), ACTIVE)
    held = INACTIVE[-2:]  # a fifth of twelve
    assert result.loss_after == pytest.approx(ranking + _divergence(model, held), abs=1e-4)
    assert result.loss_after == pytest.approx(expected.loss_after)
    assert result.loss_after < result.loss_before


def test_the_parent_stays_bit_for_bit_where_no_checkpoint_is_better() -> None:
    """Validation wants of the very prompts that are trained on the candidate that training calls wrong."""
    model = make_model()
    start = lora_state(model, range(4))
    opposite = [Labelled(one.prompt, (one.target + 1) % one.prompt.n_candidates) for one in ACTIVE]
    result = _update(model, [1.0, 10.0], rate=0.1, epochs=3, validation=opposite)
    assert result.loss_after == result.loss_before
    assert all(torch.equal(value, start[name]) for name, value in lora_state(model, range(4)).items())
