"""Update's losses, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from evolver.update import alignment_loss, consistency_loss


def test_alignment_is_the_mean_negative_log_probability_of_what_came_next() -> None:
    """-(log 0.5 + log 0.25) / 2 = 1.5 log 2."""
    logprobs = torch.log(torch.tensor([[0.5, 0.5], [0.75, 0.25]]))
    assert alignment_loss(logprobs, torch.tensor([0, 1])).item() == pytest.approx(1.5 * math.log(2))


def test_consistency_is_the_divergence_from_the_parent() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = (log 2 + log 2/3) / 2."""
    parent = torch.log(torch.tensor([[0.5, 0.5]]))
    current = torch.log(torch.tensor([[0.25, 0.75]]))
    assert consistency_loss(current, parent).item() == pytest.approx((math.log(2) + math.log(2 / 3)) / 2)


def test_missing_candidates_add_nothing() -> None:
    parent = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]])
    current = parent.clone().requires_grad_()
    loss = consistency_loss(current, parent)
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert current.grad is not None
    assert torch.isfinite(current.grad).all()
