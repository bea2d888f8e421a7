"""A random Qwen3 base of some 100,000 parameters with a tokenizer, and random adapters for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from shared.prompt import LABEL_TOKENS

WORDS = [
    "red",
    "blue",
    "green",
    "cream",
    "soap",
    "lotion",
    "shampoo",
    "Candidates",
    "Purchases",
    "oldest",
    "first",
    "|",
]
RANK = 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}


def write_base(folder: Path) -> Path:
    """Configuration and tokenizer: enough for prompts, hashes and shape checks (`write_weights` adds the model)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    vocabulary = {word: index for index, word in enumerate(["<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in LABEL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_weights(folder: Path, seed: int = 0) -> Path:
    """Random weights of a scale that makes answers differ clearly."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder)
    config.initializer_range = 0.08
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def adapter_shapes(rank: int = RANK) -> dict[str, tuple[int, int]]:
    """LoRA tensors of every linear of the base: name -> shape."""
    hidden, inner, head = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    attention, keys = head * CONFIG["num_attention_heads"], head * CONFIG["num_key_value_heads"]
    linears = {
        "self_attn.q_proj": (hidden, attention),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (attention, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(CONFIG["num_hidden_layers"]):
        for name, (features_in, features_out) in linears.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            shapes[f"{prefix}.lora_A.weight"] = (rank, features_in)
            shapes[f"{prefix}.lora_B.weight"] = (features_out, rank)
    return shapes


def write_adapter(folder: Path, seed: int, base: Path, *, rank: int = RANK) -> Path:
    """A random LoRA on all seven linears, as PEFT stores it."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {
        name: random.normal(0.0, 0.1, size=shape).astype(np.float32) for name, shape in adapter_shapes(rank).items()
    }
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": TARGETS,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
