"""Small models of several families with a LoRA that matters, and what they say when each pass is whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from evolver.batches import BatchOf, label_logprobs
from evolver.lora import add_lora, lora_parameters, train_only
from evolver.trunk import run_trunk
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
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, query_pre_attn_scalar=8, sliding_window=4, final_logit_softcapping=None)
    ),
}


def adapted(base: PreTrainedModel) -> PeftModel:
    """With a LoRA that matters: B is not zero."""
    model = add_lora(base, SETTINGS, seed=0)
    with torch.no_grad():
        for _, _, parameter in lora_parameters(model):
            parameter.normal_(0.0, 0.2)
    return model


def make_model(name: str = "qwen3") -> PeftModel:
    torch.manual_seed(3)
    return adapted(BASES[name]())


def make_prompts(n: int, seed: int = 0) -> list[Prompt]:
    """Random tokens, 5 to 23 of them, with 2 to 6 candidates."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        length, candidates = int(rng.integers(5, 24)), int(rng.integers(2, 7))
        made.append(Prompt(tuple(rng.integers(1, 64, size=length).tolist()), tuple(range(candidates))))
    return made


def whole_logprobs(model: PeftModel, prompt: Prompt) -> Tensor:
    """The definition: one prompt, no padding, every block whole."""
    hidden = run_trunk(model, torch.tensor([prompt.token_ids]))[0, -1]
    return torch.log_softmax(model.get_base_model().lm_head.weight[list(LABELS[: prompt.n_candidates])] @ hidden, dim=0)


def gradients(model: PeftModel) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def loss_and_gradients(
    model: PeftModel, prompts: Sequence[Prompt], batch_of: BatchOf
) -> tuple[Tensor, dict[str, Tensor]]:
    targets = torch.tensor([i % prompt.n_candidates for i, prompt in enumerate(prompts)])
    train_only(model, UPPER)
    loss = alignment_loss(label_logprobs(model, batch_of(prompts), LABELS), targets)
    torch.autograd.backward(loss)
    return loss.detach(), gradients(model)


def train(model: PeftModel, layers: Sequence[int], **changes: int) -> None:
    """Judged on what it trains on, it surely keeps a trained checkpoint."""
    prompts = make_prompts(24)
    examples = [Labelled(prompt, i % prompt.n_candidates) for i, prompt in enumerate(prompts[:12])]
    config = UpdateConfig(epochs=3, batch_size=4, learning_rate=0.01, consistency=(0.01, 0.02), **changes)
    result = update(model, layers, examples, prompts[12:], examples, LABELS, config)
    assert result.loss_after < result.loss_before
