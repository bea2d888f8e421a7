"""Weights with LoRA merged or composed into them say what LoRA apart says, and come back as they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from evolver import merging
from evolver.batches import collate, label_logprobs, score_prompts
from evolver.lora import lora_parameters
from evolver.merging import merged
from tests.trunk_support import (
    BASES,
    LABELS,
    UPPER,
    loss_and_gradients,
    make_model,
    make_prompts,
    train,
    whole_logprobs,
)

if TYPE_CHECKING:
    from peft import PeftModel

_QUERY = "base_model.model.model.layers.1.self_attn.q_proj.base_layer.weight"


def _merge_and_fail(model: PeftModel) -> None:
    before = model.state_dict()[_QUERY].clone()
    with merged(model, (0, 1)), merged(model):
        assert not torch.equal(model.state_dict()[_QUERY], before)
        raise InterruptedError


def test_merged_weights_come_back_bit_for_bit() -> None:
    model, prompts = make_model(), make_prompts(4)
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    with pytest.raises(InterruptedError):
        _merge_and_fail(model)
    score_prompts(model, prompts, LABELS)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_after_scoring_lora_counts_as_it_is_then() -> None:
    model, prompts = make_model(), make_prompts(4)
    before = score_prompts(model, prompts, LABELS)
    with torch.no_grad():
        torch.testing.assert_close(whole_logprobs(model, prompts[0]), torch.tensor(before[0]), rtol=1e-4, atol=1e-4)
        for _, _, parameter in lora_parameters(model):
            parameter.zero_()
        assert not torch.allclose(whole_logprobs(model, prompts[0]), torch.tensor(before[0]), atol=1e-2)
    assert not np.allclose(score_prompts(model, prompts, LABELS)[0], before[0], atol=1e-2)


def test_merging_in_bfloat16_errs_no_more_than_lora_apart() -> None:
    """The merged weight is rounded as the base's is in each product."""
    model, prompts = make_model(), make_prompts(32)
    exact = np.concatenate(score_prompts(model, prompts, LABELS))
    model.compute_dtype = torch.bfloat16
    together = np.concatenate(score_prompts(model, prompts, LABELS))
    with torch.inference_mode():
        rows = label_logprobs(model, collate(prompts), LABELS)
    apart = rows[rows.isfinite()].numpy()  # row by row, as `exact` is
    assert 0 < np.abs(together - exact).mean() < 1.5 * np.abs(apart - exact).mean()


@pytest.fixture
def _composing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(merging, "composing_pays", lambda *_: True)


def _products_with_a(model: PeftModel) -> list[str]:
    """Fills up while the last block multiplies by A alone."""
    products: list[str] = []
    a = model.get_submodule("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default")
    a.register_forward_hook(lambda *_: products.append("A x"))
    return products


@pytest.mark.usefixtures("_composing")
@pytest.mark.parametrize("name", BASES)
def test_training_through_composed_weights_has_the_same_losses_and_gradients(name: str) -> None:
    model, prompts = make_model(name), make_prompts(6)
    products = _products_with_a(model)
    with merging.composed(model, UPPER):
        together = loss_and_gradients(model, prompts, collate)
    assert not products
    apart = loss_and_gradients(model, prompts, collate)
    assert products  # nothing stays composed
    torch.testing.assert_close(together, apart)


@pytest.mark.usefixtures("_composing")
def test_scores_between_steps_on_composed_weights_are_those_of_now() -> None:
    model, prompts = make_model(), make_prompts(4)
    before = score_prompts(model, prompts, LABELS)
    with merging.composed(model, UPPER):
        np.testing.assert_allclose(score_prompts(model, prompts, LABELS)[0], before[0], rtol=1e-4)
        with torch.no_grad():
            for _, _, parameter in lora_parameters(model):
                parameter.zero_()
        assert not np.allclose(score_prompts(model, prompts, LABELS)[0], before[0], atol=1e-2)


@pytest.mark.parametrize("pays", [True, False])
def test_an_update_composes_weights_where_that_pays(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "composing_pays", lambda *_: pays)
    model = make_model()
    products = _products_with_a(model)
    train(model, UPPER)
    assert bool(products) is not pays
