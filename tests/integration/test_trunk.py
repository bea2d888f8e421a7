"""What is computed once, or not at all, gives what the whole pass gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from evolver import attention, merging
from evolver.attention import blockwise_attention
from evolver.batches import BatchOf, collate, label_logprobs, score_prompts
from evolver.lora import add_lora, lora_parameters, lora_state, train_only
from evolver.lower_blocks import LowerBlocks, batches_for
from evolver.merging import merged
from evolver.trunk import decoder_layers, has_parts, run_trunk
from evolver.update import Labelled, UpdateConfig, alignment_loss, update
from shared.config import Settings
from shared.prompt import Prompt

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

SETTINGS = Settings(dtype="float32", train_device="cpu", lora_rank=4)
LABELS = tuple(range(40, 60))
UPPER = (2, 3)  # of four layers
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
SLIDING = {
    "use_sliding_window": True,
    "sliding_window": 3,
    "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
}
BASES = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "qwen3 that attends differently in each layer": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, **SLIDING)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, query_pre_attn_scalar=8, sliding_window=4)),
}


def _adapted(base: PreTrainedModel) -> PeftModel:
    """With a LoRA that matters: B is not zero."""
    model = add_lora(base, SETTINGS, seed=0)
    with torch.no_grad():
        for _, _, parameter in lora_parameters(model):
            parameter.normal_(0.0, 0.2)
    return model


def _model(name: str = "qwen3") -> PeftModel:
    torch.manual_seed(3)
    return _adapted(BASES[name]())


def _prompts(n: int, seed: int = 0) -> list[Prompt]:
    """Random tokens, 5 to 23 of them, with 2 to 6 candidates."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        length, candidates = int(rng.integers(5, 24)), int(rng.integers(2, 7))
        made.append(Prompt(tuple(rng.integers(1, 64, size=length).tolist()), tuple(range(candidates))))
    return made


def _whole_logprobs(model: PeftModel, prompt: Prompt) -> Tensor:
    """The definition: one prompt, no padding, every block whole."""
    hidden = run_trunk(model, torch.tensor([prompt.token_ids]))[0, -1]
    return torch.log_softmax(model.get_base_model().lm_head.weight[list(LABELS[: prompt.n_candidates])] @ hidden, dim=0)


def _gradients(model: PeftModel) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def _loss_and_gradients(
    model: PeftModel, prompts: Sequence[Prompt], batch_of: BatchOf
) -> tuple[Tensor, dict[str, Tensor]]:
    targets = torch.tensor([i % prompt.n_candidates for i, prompt in enumerate(prompts)])
    train_only(model, UPPER)
    loss = alignment_loss(label_logprobs(model, batch_of(prompts), LABELS), targets)
    torch.autograd.backward(loss)
    return loss.detach(), _gradients(model)


@pytest.mark.parametrize("name", BASES)
def test_training_on_kept_states_has_the_losses_and_gradients_of_the_whole_pass(name: str) -> None:
    model, prompts = _model(name), _prompts(6)
    targets = torch.tensor([i % prompt.n_candidates for i, prompt in enumerate(prompts)])
    train_only(model, UPPER)
    rows = [_whole_logprobs(model, prompt)[target] for prompt, target in zip(prompts, targets, strict=True)]
    expected = -torch.stack(rows).mean()
    torch.autograd.backward(expected)
    expected_gradients = _gradients(model)

    assert model.has_parts
    batch_of = batches_for(model, UPPER, mib=1)
    for _ in range(2):  # computed, then kept
        loss, gradients = _loss_and_gradients(model, prompts, batch_of)
        torch.testing.assert_close(loss, expected.detach())
        assert gradients.keys() == expected_gradients.keys()
        for key, value in gradients.items():
            torch.testing.assert_close(value, expected_gradients[key], msg=key)


@pytest.mark.parametrize("name", BASES)
def test_scores_are_those_of_the_whole_pass(name: str) -> None:
    """Merged, padded, and with the last block's answer rows alone: they rank alike, and differ by rounding."""
    model, prompts = _model(name), _prompts(40)
    for prompt, scores in zip(prompts, score_prompts(model, prompts, LABELS), strict=True):
        with torch.no_grad():
            expected = _whole_logprobs(model, prompt)
        torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-4, atol=1e-4)
        assert np.argsort(scores).tolist() == expected.argsort().tolist()


# Layers that attend to a window, or bend their logits, go on as they did.
BLOCKWISE_LAYERS = {"qwen3": 4, "qwen3 that attends differently in each layer": 2, "qwen2": 4, "llama": 4, "gemma2": 0}


@pytest.mark.parametrize("name", BASES)
def test_in_bfloat16_attention_in_blocks_says_what_attention_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts, calls = _model(name), _prompts(6), []
    model.compute_dtype = torch.bfloat16

    def counted(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        calls.append(scaling)
        return blockwise_attention(query, key, value, scaling)

    monkeypatch.setattr(attention, "blockwise_attention", counted)
    with torch.no_grad():
        before = [_whole_logprobs(model, prompt) for prompt in prompts]
        attention.attend_blockwise(model.get_base_model())
        after = [_whole_logprobs(model, prompt) for prompt in prompts]
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
        model = _adapted(GraniteForCausalLM(GraniteConfig(**SIZES, embedding_multiplier=3.0)))
    assert [entry["event"] for entry in logs] == ["model_runs_as_a_whole"]
    assert not model.has_parts
    assert batches_for(model, (2, 3), mib=1) is collate
    prompts = _prompts(3)
    for prompt, scores in zip(prompts, score_prompts(model, prompts, LABELS), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(torch.tensor(scores), _whole_logprobs(model, prompt), rtol=1e-4, atol=1e-4)


def test_a_model_whose_parts_have_other_names_runs_as_a_whole() -> None:
    model = _model()
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


def _update(model: PeftModel, layers: Sequence[int], **changes: int) -> None:
    """Judged on what it trains on, it surely keeps a trained checkpoint."""
    prompts = _prompts(24)
    examples = [Labelled(prompt, i % prompt.n_candidates) for i, prompt in enumerate(prompts[:12])]
    config = UpdateConfig(epochs=3, batch_size=4, learning_rate=0.01, consistency=(0.01, 0.02), **changes)
    result = update(model, layers, examples, prompts[12:], examples, LABELS, config)
    assert result.loss_after < result.loss_before


def test_an_update_runs_the_lower_blocks_once_for_each_prompt() -> None:
    model = _model()
    below, above = _Rows(decoder_layers(model)[0]), _Rows(decoder_layers(model)[2])
    _update(model, (2, 3))
    assert below.count == 24
    assert above.count > 5 * 24


def test_without_room_the_lower_blocks_run_each_time_and_give_the_same() -> None:
    roomy, narrow = _model(), _model()
    below = _Rows(decoder_layers(narrow)[0])
    _update(roomy, (2, 3))
    _update(narrow, (2, 3), kept_mib=0)
    assert below.count > 5 * 24
    for name, value in lora_state(roomy, (2, 3)).items():
        torch.testing.assert_close(value, lora_state(narrow, (2, 3))[name], rtol=1e-3, atol=1e-4, msg=name)


def test_memory_is_kept_to_its_bound() -> None:
    """One MiB holds 8192 tokens of 32 numbers, of 4 bytes each."""
    model = _model()
    prompts = [Prompt(tuple([1 + n // 30, 1 + n % 30] * 1500), (0, 1)) for n in range(4)]
    lower = LowerBlocks(model, 1, mib=1)
    below = _Rows(decoder_layers(model)[0])
    for prompt in (*prompts, *prompts):
        lower.batch([prompt])
    assert below.count == 4 + 2  # two of the four fit


def test_what_does_not_train_stays_bit_for_bit() -> None:
    model = _model()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    _update(model, (1, 3))
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == lora_state(model, (1, 3)).keys()


def test_no_gradient_goes_below_the_lowest_located_layer() -> None:
    model = _model()
    train_only(model, (2, 3))
    needs = {}
    for number, block in enumerate(decoder_layers(model)):
        block.register_forward_hook(lambda _m, _i, output, number=number: needs.update({number: output.requires_grad}))
    label_logprobs(model, collate(_prompts(2)), LABELS)
    assert needs == {0: False, 1: False, 2: True, 3: True}


_QUERY = "base_model.model.model.layers.1.self_attn.q_proj.base_layer.weight"


def _merge_and_fail(model: PeftModel) -> None:
    before = model.state_dict()[_QUERY].clone()
    with merged(model, (0, 1)), merged(model):
        assert not torch.equal(model.state_dict()[_QUERY], before)
        raise InterruptedError


def test_merged_weights_come_back_bit_for_bit() -> None:
    model, prompts = _model(), _prompts(4)
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    with pytest.raises(InterruptedError):
        _merge_and_fail(model)
    score_prompts(model, prompts, LABELS)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_after_scoring_lora_counts_as_it_is_then() -> None:
    model, prompts = _model(), _prompts(4)
    before = score_prompts(model, prompts, LABELS)
    with torch.no_grad():
        torch.testing.assert_close(_whole_logprobs(model, prompts[0]), torch.tensor(before[0]), rtol=1e-4, atol=1e-4)
        for _, _, parameter in lora_parameters(model):
            parameter.zero_()
        assert not torch.allclose(_whole_logprobs(model, prompts[0]), torch.tensor(before[0]), atol=1e-2)
    assert not np.allclose(score_prompts(model, prompts, LABELS)[0], before[0], atol=1e-2)


def test_merging_in_bfloat16_errs_no_more_than_lora_apart() -> None:
    """The merged weight is rounded as the base's is in each product."""
    model, prompts = _model(), _prompts(32)
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
    model, prompts = _model(name), _prompts(6)
    products = _products_with_a(model)
    with merging.composed(model, UPPER):
        together = _loss_and_gradients(model, prompts, collate)
    assert not products
    apart = _loss_and_gradients(model, prompts, collate)
    assert products  # nothing stays composed
    torch.testing.assert_close(together, apart)


@pytest.mark.usefixtures("_composing")
def test_scores_between_steps_on_composed_weights_are_those_of_now() -> None:
    model, prompts = _model(), _prompts(4)
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
    model = _model()
    products = _products_with_a(model)
    _update(model, UPPER)
    assert bool(products) is not pays


def test_kept_states_lose_nothing_in_bfloat16() -> None:
    """Products are rounded, what goes from block to block is not: it is kept in float32."""
    model, prompts = _model(), _prompts(6)
    model.compute_dtype = torch.bfloat16
    with torch.no_grad():
        expected = label_logprobs(model, collate(prompts), LABELS)
        torch.testing.assert_close(label_logprobs(model, batches_for(model, (2,), mib=1)(prompts), LABELS), expected)


def test_scoring_while_training_keeps_states_that_can_be_trained_on() -> None:
    """Scores are asked for in inference mode, whose tensors autograd refuses."""
    model, prompts = _model(), _prompts(3)
    batch_of: BatchOf = batches_for(model, (2,), mib=1)
    train_only(model, (2,))
    score_prompts(model, prompts, LABELS, batch_of=batch_of)
    torch.autograd.backward(label_logprobs(model, batch_of(prompts), LABELS)[:, 0].sum())
    assert set(_gradients(model)) == set(lora_state(model, (2,)))
