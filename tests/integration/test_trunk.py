"""What is computed once, or not at all, gives what the whole pass gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)

from evolver import attention
from evolver.attention import blockwise_attention
from evolver.batches import BatchOf, collate, label_logprobs, score_prompts
from evolver.locate import Location, locate, located, mean_outputs
from evolver.lora import lora_state, train_only
from evolver.lower_blocks import LowerBlocks, batches_for
from evolver.trunk import decoder_layers, has_parts
from shared.errors import InvalidInput
from shared.prompt import Prompt
from tests.trunk_support import (
    BASES,
    LABELS,
    SIZES,
    UPPER,
    adapted,
    gradients,
    loss_and_gradients,
    make_model,
    make_prompts,
    train,
    whole_logprobs,
)


@pytest.mark.parametrize("name", BASES)
def test_training_on_kept_states_has_the_losses_and_gradients_of_the_whole_pass(name: str) -> None:
    model, prompts = make_model(name), make_prompts(6)
    targets = torch.tensor([i % prompt.n_candidates for i, prompt in enumerate(prompts)])
    train_only(model, UPPER)
    rows = [whole_logprobs(model, prompt)[target] for prompt, target in zip(prompts, targets, strict=True)]
    expected = -torch.stack(rows).mean()
    torch.autograd.backward(expected)
    expected_gradients = gradients(model)

    assert model.has_parts
    batch_of = batches_for(model, UPPER, mib=1)
    for _ in range(2):  # computed, then kept
        loss, found = loss_and_gradients(model, prompts, batch_of)
        torch.testing.assert_close(loss, expected.detach())
        assert found.keys() == expected_gradients.keys()
        for key, value in found.items():
            torch.testing.assert_close(value, expected_gradients[key], msg=key)


@pytest.mark.parametrize("name", BASES)
def test_scores_are_those_of_the_whole_pass(name: str) -> None:
    """Merged, padded, and with the last block's answer rows alone: they rank alike, and differ by rounding."""
    model, prompts = make_model(name), make_prompts(40)
    for prompt, scores in zip(prompts, score_prompts(model, prompts, LABELS), strict=True):
        with torch.no_grad():
            expected = whole_logprobs(model, prompt)
        torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-4, atol=1e-4)
        assert np.argsort(scores).tolist() == expected.argsort().tolist()


@pytest.mark.parametrize("name", BASES)
def test_mean_outputs_are_those_of_the_blocks_and_padding_has_no_part_in_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = make_model(name), make_prompts(6)
    trunk = model.get_base_model().model
    with torch.no_grad():
        together = mean_outputs(model, collate(prompts))
        alone = torch.cat([mean_outputs(model, collate([prompt])) for prompt in prompts])
        monkeypatch.setattr(trunk, "norm", nn.Identity())  # the last of transformers' hidden states is normalised
        for found, prompt in zip(alone, prompts, strict=True):
            states = trunk(torch.tensor([prompt.token_ids]), output_hidden_states=True).hidden_states
            torch.testing.assert_close(found, torch.cat(states[1:]).mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_locate_compares_each_users_mean_outputs_before_and_after() -> None:
    model, old, new = make_model(), make_prompts(12), make_prompts(12, seed=1)
    seen = []

    def rule(similarity: Tensor) -> Location:
        seen.append(similarity)
        return located(similarity)

    locate(model, old, new, rule=rule)
    with torch.no_grad():
        expected = [
            torch.cosine_similarity(
                mean_outputs(model, collate([before]))[0], mean_outputs(model, collate([after]))[0], dim=-1
            )
            for before, after in zip(old, new, strict=True)
        ]
    torch.testing.assert_close(seen, [torch.stack(expected)], rtol=1e-4, atol=1e-4)


# Layers that attend to a window, or bend their logits, go on as they did.
BLOCKWISE_LAYERS = {"qwen3": 4, "qwen3 that attends differently in each layer": 2, "qwen2": 4, "llama": 4, "gemma2": 0}


@pytest.mark.parametrize("name", BASES)
def test_in_bfloat16_attention_in_blocks_says_what_attention_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts, calls = make_model(name), make_prompts(6), []
    model.compute_dtype = torch.bfloat16

    def counted(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        calls.append(scaling)
        return blockwise_attention(query, key, value, scaling)

    monkeypatch.setattr(attention, "blockwise_attention", counted)
    with torch.no_grad():
        before = [whole_logprobs(model, prompt) for prompt in prompts]
        attention.attend_blockwise(model.get_base_model())
        after = [whole_logprobs(model, prompt) for prompt in prompts]
    assert len(calls) == BLOCKWISE_LAYERS[name] * len(prompts)
    for ours, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_a_saved_model_does_not_ask_for_our_attention(tmp_path: Path) -> None:
    model = BASES["qwen3"]()
    attention.attend_blockwise(model)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()


def test_a_model_of_another_form_runs_as_a_whole() -> None:
    """Granite scales whatever it is given as embeddings, so that what enters a block cannot be fed to it."""
    torch.manual_seed(3)
    with capture_logs() as logs:
        model = adapted(GraniteForCausalLM(GraniteConfig(**SIZES, embedding_multiplier=3.0)))
    assert [entry["event"] for entry in logs] == ["model_runs_as_a_whole"]
    assert not model.has_parts
    assert batches_for(model, (2, 3), mib=1) is collate
    prompts = make_prompts(3)
    for prompt, scores in zip(prompts, score_prompts(model, prompts, LABELS), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(torch.tensor(scores), whole_logprobs(model, prompt), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "base",
    [
        lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0)),
        lambda: CohereForCausalLM(CohereConfig(**SIZES)),
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, query_pre_attn_scalar=8, final_logit_softcapping=2.0)),
    ],
    ids=["granite", "cohere", "gemma2"],
)
def test_a_model_that_scales_or_caps_its_logits_is_refused(base: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(3)
    with pytest.raises(InvalidInput, match=r"scales or caps its logits, .* choose another base"):
        adapted(base())


def test_a_model_whose_parts_have_other_names_runs_as_a_whole() -> None:
    model = make_model()
    block = decoder_layers(model)[-1]
    block.feed_forward = block.mlp
    del block.mlp
    with capture_logs() as logs:
        assert not has_parts(model)
    assert [entry["event"] for entry in logs] == ["model_runs_as_a_whole"]


class _Rows:
    """Counts the prompts that a decoder block has worked on."""

    def __init__(self, block: nn.Module) -> None:
        self.count = 0
        block.register_forward_hook(self)

    def __call__(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.count += len(output)


def test_an_update_runs_the_lower_blocks_once_for_each_prompt() -> None:
    model = make_model()
    below, above = _Rows(decoder_layers(model)[0]), _Rows(decoder_layers(model)[2])
    train(model, (2, 3))
    assert below.count == 24
    assert above.count > 5 * 24


def test_without_room_the_lower_blocks_run_each_time_and_give_the_same() -> None:
    roomy, narrow = make_model(), make_model()
    below = _Rows(decoder_layers(narrow)[0])
    train(roomy, (2, 3))
    train(narrow, (2, 3), kept_mib=0)
    assert below.count > 5 * 24
    for name, value in lora_state(roomy, (2, 3)).items():
        torch.testing.assert_close(value, lora_state(narrow, (2, 3))[name], rtol=1e-3, atol=1e-4, msg=name)


def test_memory_is_kept_to_its_bound() -> None:
    """One MiB holds 8192 tokens of 32 numbers, of 4 bytes each."""
    model = make_model()
    prompts = [Prompt(tuple([1 + n // 30, 1 + n % 30] * 1500), (0, 1)) for n in range(4)]
    lower = LowerBlocks(model, 1, mib=1)
    below = _Rows(decoder_layers(model)[0])
    for prompt in (*prompts, *prompts):
        lower.batch([prompt])
    assert below.count == 4 + 2  # two of the four fit


def test_what_does_not_train_stays_bit_for_bit() -> None:
    model = make_model()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train(model, (1, 3))
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == lora_state(model, (1, 3)).keys()


def test_no_gradient_goes_below_the_lowest_located_layer() -> None:
    model = make_model()
    train_only(model, (2, 3))
    needs = {}
    for number, block in enumerate(decoder_layers(model)):
        block.register_forward_hook(lambda _m, _i, output, number=number: needs.update({number: output.requires_grad}))
    label_logprobs(model, collate(make_prompts(2)), LABELS)
    assert needs == {0: False, 1: False, 2: True, 3: True}


def test_kept_states_lose_nothing_in_bfloat16() -> None:
    """Products are rounded, what goes from block to block is not: it is kept in float32."""
    model, prompts = make_model(), make_prompts(6)
    model.compute_dtype = torch.bfloat16
    with torch.no_grad():
        expected = label_logprobs(model, collate(prompts), LABELS)
        torch.testing.assert_close(label_logprobs(model, batches_for(model, (2,), mib=1)(prompts), LABELS), expected)


def test_scoring_while_training_keeps_states_that_can_be_trained_on() -> None:
    """Scores are asked for in inference mode, whose tensors autograd refuses."""
    model, prompts = make_model(), make_prompts(3)
    batch_of: BatchOf = batches_for(model, (2,), mib=1)
    train_only(model, (2,))
    score_prompts(model, prompts, LABELS, batch_of=batch_of)
    torch.autograd.backward(label_logprobs(model, batch_of(prompts), LABELS)[:, 0].sum())
    assert set(gradients(model)) == set(lora_state(model, (2,)))
