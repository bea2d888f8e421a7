"""The embedded base model's form: a small model of the Qwen3 architecture with a tokenizer trained on a catalog's
titles.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from shared.prompt import ANSWER_HEADER, CANDIDATES_HEADER, CATEGORY_SEPARATOR, HISTORY_HEADER, LABEL_TOKENS, NO_HISTORY

PAD, END = "<|pad|>", "<|end|>"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A lower-casing byte-level BPE with one special token for each candidate label."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, END, *LABEL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    template = [HISTORY_HEADER, CANDIDATES_HEADER, ANSWER_HEADER, NO_HISTORY, CATEGORY_SEPARATOR] * 100
    tokenizer.train_from_iterator([*(f" {' '.join(text.split())}" for text in texts), *template], trainer)
    return tokenizer


def make_model(vocab_size: int, *, hidden_size: int = 192, n_layers: int = 10, seed: int = 0) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 with tied embeddings; 10 layers, so that floor(0.3 L) = 3 can be located."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=max(2, hidden_size // 48),
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        # Slow rotations: matching a word in the history with the same word in a candidate must not depend on their
        # distance.
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    _start_as_matchers(model)
    return model


@torch.no_grad()
def _start_as_matchers(model: Qwen3ForCausalLM) -> None:
    """Give the query heads of each layer's first key head that head's own weights: with normalised queries and keys
    such a head attends to tokens like its own from the first step on, which is where matching a candidate with the
    history begins."""
    config = model.config
    shared = config.num_attention_heads // config.num_key_value_heads
    for layer in model.model.layers:
        key = layer.self_attn.k_proj.weight[: config.head_dim]
        layer.self_attn.q_proj.weight[: shared * config.head_dim] = key.repeat(shared, 1)


def save_base_model(folder: Path, model: Qwen3ForCausalLM, tokenizer: Tokenizer) -> None:
    """Write config, bfloat16 safetensors and tokenizer: a folder that vLLM, transformers and `EVOREC_BASE_MODEL`
    take.
    """
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END).save_pretrained(folder)
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    config = model.config
    config.dtype = torch.bfloat16
    rounded = Qwen3ForCausalLM(config).to(torch.bfloat16)
    rounded.load_state_dict(weights)
    rounded.save_pretrained(folder)
