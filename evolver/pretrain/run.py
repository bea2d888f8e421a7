"""The run: tokenizer and model from corpora, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen3ForCausalLM

from evolver.attention import attend_blockwise
from evolver.pretrain.checkpoint import checkpoint_folder, load_checkpoint, save_checkpoint
from evolver.pretrain.config import PretrainConfig, learning_rate_factor
from evolver.pretrain.corpus import Corpus
from evolver.pretrain.loss import RankingLoss, fast_in_bfloat16
from evolver.pretrain.muon import MuonInFloat32
from evolver.pretrain.sampler import Batch, Sampler
from evolver.pretrain.tiny_model import make_model, save_base_model, train_tokenizer
from shared.categories import leaf
from shared.errors import InvalidInput
from shared.prompt import PromptBuilder

Progress = Callable[[int, int, dict[str, float]], None]

FINISHED = "pretrain.json"
"""Written last: a folder without it is of a run that was cut off, and pretraining goes on from its checkpoint."""


def pretrain(
    corpora: Sequence[Corpus], out: Path, config: PretrainConfig, progress: Progress, *, device: str = "cpu"
) -> None:
    """Train tokenizer and model on the corpora and write the base model to `out`.

    Checkpoints lie in `out/checkpoint`; a second call with the same corpora and configuration goes on from the last.
    """
    # Compiling pays on CPUs that compute in float32, where it fuses what would run from memory.
    config = replace(config, compile=config.compile and not fast_in_bfloat16(torch.device(device)))
    checkpoint = checkpoint_folder(out, corpora, config)
    checkpoint.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer_of(corpora, checkpoint, config)
    builder = PromptBuilder(
        tokenizer, history_window=max(s.history for s in config.stages), title_tokens=config.title_tokens
    )
    model = make_model(
        tokenizer.get_vocab_size(), hidden_size=config.hidden_size, n_layers=config.n_layers, seed=config.seed
    )
    if config.start_from:
        start_from_base(model, tokenizer, Path(config.start_from))
    if device == "cpu" and fast_in_bfloat16(model.device):
        attend_blockwise(model)
    ranking = RankingLoss(model.to(device), config).to(device)
    optimizers = make_optimizers(ranking, config)
    initial = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    done = load_checkpoint(checkpoint, ranking, optimizers)
    sampler = Sampler(corpora, builder, config.stages, config.seed)
    (out / FINISHED).unlink(missing_ok=True)  # a base of other data does not pass for this one's while this one is made
    step = 0
    for stage in config.stages:
        length = sampler.length(stage)
        for _ in range(stage.steps):
            if step >= done:
                factor = learning_rate_factor(step, config)
                for optimizer, rates in zip(optimizers, initial, strict=True):
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * factor
                progress(step, config.total_steps, train_step(ranking, optimizers, sampler.batch(stage, step, length)))
                if (step + 1) % config.checkpoint_every == 0:
                    save_checkpoint(checkpoint, ranking, optimizers, step + 1)
            step += 1
    save_base_model(out, model.cpu(), tokenizer)
    (out / FINISHED).write_text(json.dumps(asdict(replace(config, compile=False)), indent=1) + "\n")


def make_optimizers(ranking: RankingLoss, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the decoder blocks, AdamW for embeddings, norms and the auxiliary head."""
    blocks = [p for name, p in ranking.model.named_parameters() if p.ndim == 2 and "layers" in name]
    inside = {id(p) for p in blocks}
    rest = [p for p in ranking.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(blocks, lr=config.muon_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train_step(ranking: RankingLoss, optimizers: Iterable[torch.optim.Optimizer], batch: Batch) -> dict[str, float]:
    """One update; returns the parts of the loss."""
    loss, parts = ranking.forward(batch)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(ranking.parameters(), 1.0)
    with nullcontext() if fast_in_bfloat16(ranking.model.device) else MuonInFloat32():
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return parts


def _tokenizer_of(corpora: Sequence[Corpus], checkpoint: Path, config: PretrainConfig) -> Tokenizer:
    path = checkpoint / "tokenizer.json"
    if not path.exists():
        texts = (f"{item.title} {leaf(item.category)}" for corpus in corpora for item in corpus.items)
        aside = path.with_suffix(".new")
        train_tokenizer(texts, vocab_size=config.vocab_size).save(str(aside))
        aside.replace(path)
    return Tokenizer.from_file(str(path))


@torch.no_grad()
def start_from_base(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Copy another base's blocks, and its embeddings of the tokens that both know; the rest stays random.

    How to match and how to answer carry over from one catalog to the next; which words there are does not.
    Raises `InvalidInput` for a base of another shape.
    """
    weights = load_file(folder / "model.safetensors")
    old_table = weights.pop("model.embed_tokens.weight").float()
    known = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    table = model.model.embed_tokens.weight
    if old_table.shape[1] != table.shape[1]:
        raise InvalidInput(
            f"{folder} is {old_table.shape[1]} wide, the new base {table.shape[1]}: start from one of its shape"
        )
    for token, row in tokenizer.get_vocab().items():
        if token in known:
            table[row] = old_table[known[token]]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any("layers" in name for name in missing):
        raise InvalidInput(f"{folder} has other layers than the new base: {[*unexpected, *missing][:3]}")
