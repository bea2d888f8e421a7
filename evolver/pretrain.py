"""`evorec pretrain`: a small base model that has learnt the task from a catalog's past, or from generated stores.

What it must learn is to read a history and labelled candidates, and to answer with the label of the candidate that
fits. Trained on the answer alone, a small model takes long to bind labels; what helps is a schedule from few candidates
and short histories to the full prompt, and an auxiliary loss: a linear head scores every candidate at its label's
position in the middle of the network, so that the layers above find a score there that the answer position can read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from evolver.attention import attend_blockwise
from evolver.muon import MuonInFloat32
from evolver.tiny_model import make_model, save_base_model, train_tokenizer
from shared.errors import InvalidInput
from shared.precision import cpu_dtype
from shared.prompt import Prompt, PromptBuilder
from shared.types import Interaction, Item, UserId

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class Corpus:
    """One catalog with its users' purchases in time order, as indices into `items`."""

    items: tuple[Item, ...]
    sequences: dict[UserId, tuple[int, ...]]


def corpus_of(items: Sequence[Item], events: Iterable[Interaction]) -> Corpus:
    """`events`: each user's oldest first; those with unknown items are left out."""
    index = {item.item_id: number for number, item in enumerate(items)}
    sequences: dict[UserId, list[int]] = {}
    for event in events:
        if event.item_id in index:
            sequences.setdefault(event.user_id, []).append(index[event.item_id])
    return Corpus(tuple(items), {user: tuple(sequence) for user, sequence in sequences.items()})


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the schedule.

    `hard` is the share of negatives drawn from the categories of the history and the target; `matches` the share of
    prompts that are solvable by matching alone, the first thing to learn: the target, or another item of its category,
    is put into the history. `any_label` is the share of prompts whose candidates carry labels drawn from all there are
    instead of the first ones, so that short and easy prompts teach every label.
    """

    steps: int
    batch: int
    candidates: int
    history: int
    hard: float
    matches: float = 0.0
    any_label: float = 0.0


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """The recipe. The defaults are what making the shipped model taught; its own runs are in its `pretrain.json`."""

    stages: tuple[Stage, ...] = (
        Stage(steps=150, batch=64, candidates=4, history=2, hard=0.0, matches=1.0, any_label=0.5),
        Stage(steps=110, batch=48, candidates=10, history=2, hard=0.0, matches=1.0, any_label=0.5),
        Stage(steps=360, batch=32, candidates=20, history=2, hard=0.0, matches=0.8, any_label=0.3),
        Stage(steps=140, batch=48, candidates=10, history=6, hard=0.1, matches=0.1, any_label=0.2),
        Stage(steps=600, batch=32, candidates=20, history=10, hard=0.0, matches=0.1),
    )
    vocab_size: int = 4096
    hidden_size: int = 192
    n_layers: int = 10
    # The auxiliary head reads this layer's output; the layers above copy the best label to the answer position.
    auxiliary_layer: int = 6
    auxiliary_weight: float = 0.5
    # The answer also learns to say what the auxiliary head believes: purchases are noisy, that belief is not.
    distillation_weight: float = 1.0
    learning_rate: float = 2e-3
    muon_learning_rate: float = 0.02
    warmup: int = 50
    seed: int = 0
    title_tokens: int = 12
    # A base whose blocks, and whose embeddings of tokens that both vocabularies have, are the starting point.
    start_from: str | None = None
    checkpoint_every: int = 100
    compile: bool = field(default_factory=lambda: shutil.which("g++") is not None)

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


def scaled(config: PretrainConfig, scale: float) -> PretrainConfig:
    """The same schedule with a multiple of its steps."""
    stages = tuple(replace(stage, steps=max(1, round(stage.steps * scale))) for stage in config.stages)
    return replace(config, stages=stages)


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids` [B, T] padded on the right, `last` [B] (answer positions), `labels` [B, C] (label positions), `target`
    [B].
    """

    ids: Tensor
    last: Tensor
    labels: Tensor
    target: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(*(tensor.to(device) for tensor in (self.ids, self.last, self.labels, self.target)))


class Sampler:
    """Draws training prompts from corpora; a step's batch depends on seed and step alone, so that a resumed run is the
    same run.
    """

    def __init__(self, corpora: Sequence[Corpus], builder: PromptBuilder, seed: int) -> None:
        self._corpora = corpora
        self._builder = builder
        self._seed = seed
        self._by_category = [_by_category(corpus.items) for corpus in corpora]
        self._positions = np.array(
            [
                (number, user, position)
                for number, corpus in enumerate(corpora)
                for user, sequence in enumerate(corpus.sequences.values())
                for position in range(1, len(sequence))
            ],
            dtype=np.int64,
        )
        self._sequences = [list(corpus.sequences.values()) for corpus in corpora]

    def batch(self, stage: Stage, step: int, length: int) -> Batch:
        """The prompts of a step, padded or cut (histories first) to `length` tokens."""
        rng = np.random.default_rng([self._seed, step])
        rows = self._positions[rng.integers(0, len(self._positions), size=stage.batch)]
        built = [self._example(rng, stage, length, *map(int, row)) for row in rows]
        ids = torch.zeros(stage.batch, length, dtype=torch.long)
        for row, (tokens, _, _) in enumerate(built):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return Batch(
            ids,
            torch.tensor([len(tokens) - 1 for tokens, _, _ in built]),
            torch.tensor([positions for _, positions, _ in built]),
            torch.tensor([target for _, _, target in built]),
        )

    def length(self, stage: Stage) -> int:
        """A prompt length (a multiple of 16) that nearly all prompts of the stage keep to."""
        rng = np.random.default_rng(self._seed)
        rows = self._positions[rng.integers(0, len(self._positions), size=400)]
        lengths = [len(self._example(rng, stage, 10_000, *map(int, row))[0]) for row in rows]
        return int(np.ceil(np.quantile(lengths, 0.98) / 16) * 16)

    def _example(
        self, rng: np.random.Generator, stage: Stage, length: int, number: int, user: int, position: int
    ) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        corpus, sequence = self._corpora[number], self._sequences[number][user]
        target = sequence[position]
        start = max(0, position - int(rng.integers((stage.history + 1) // 2, stage.history + 1)))
        history = [corpus.items[index] for index in sequence[start:position]]
        if rng.random() < stage.matches:
            shelf = self._by_category[number][corpus.items[target].category]
            match = target if rng.random() < 0.5 else int(shelf[rng.integers(len(shelf))])
            history[int(rng.integers(len(history)))] = corpus.items[match]
        candidates = [target, *self._negatives(rng, stage, number, sequence, position)]
        order = rng.permutation(len(candidates))
        shown = [corpus.items[candidates[index]] for index in order]
        prompt = self._builder.build(history, shown)
        while len(prompt.token_ids) > length and history:
            history = history[1:]
            prompt = self._builder.build(history, shown)
        if len(prompt.token_ids) > length:  # very long titles: fewer labels would not fit the batch, so draw again
            return self._example(rng, stage, length, *map(int, self._positions[rng.integers(0, len(self._positions))]))
        ids = self._any_labels(rng, prompt) if rng.random() < stage.any_label else prompt.token_ids
        return ids, prompt.label_positions, int(np.flatnonzero(order == 0)[0])

    def _any_labels(self, rng: np.random.Generator, prompt: Prompt) -> tuple[int, ...]:
        """The prompt with other labels, in ascending order as always."""
        ids = list(prompt.token_ids)
        chosen = rng.choice(len(self._builder.label_ids), size=prompt.n_candidates, replace=False)
        for position, label in zip(prompt.label_positions, sorted(chosen.tolist()), strict=True):
            ids[position] = self._builder.label_ids[label]
        return tuple(ids)

    def _negatives(
        self, rng: np.random.Generator, stage: Stage, number: int, sequence: tuple[int, ...], position: int
    ) -> list[int]:
        items, shelves = self._corpora[number].items, self._by_category[number]
        near = [items[index].category for index in (sequence[position], *sequence[max(0, position - 3) : position])]
        taken = set(sequence)
        chosen: list[int] = []
        while len(chosen) < stage.candidates - 1:
            if rng.random() < stage.hard:
                shelf = shelves[near[int(rng.integers(len(near)))]]
                index = int(shelf[rng.integers(len(shelf))])
            else:
                index = int(rng.integers(len(items)))
            # A small shelf can be used up: after a few tries anything unseen will do.
            if index not in taken:
                chosen.append(index)
                taken.add(index)
            elif rng.random() < 0.2:
                stage = replace(stage, hard=stage.hard / 2)
        return chosen


def _by_category(items: Sequence[Item]) -> dict[str, np.ndarray]:
    shelves: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        shelves.setdefault(item.category, []).append(index)
    return {category: np.array(indices) for category, indices in shelves.items()}


class RankingLoss(nn.Module):
    """Cross-entropy over the prompt's labels at the answer position, plus the auxiliary head's over the candidates,
    plus the answer's against the auxiliary head's distribution.
    """

    def __init__(self, model: Qwen3ForCausalLM, config: PretrainConfig) -> None:
        super().__init__()
        self.model = model
        self.auxiliary = nn.Linear(config.hidden_size, 1, bias=False)
        self._config = config
        self.trunk = torch.compile(model.model, dynamic=False) if config.compile else model.model

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Loss and its parts for a batch; the trunk runs in the processor's fast format, the losses in float32."""
        device = self.model.device
        batch = batch.to(device)
        rows = torch.arange(len(batch.ids), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=_fast_in_bfloat16(device)):
            out = self.trunk(input_ids=batch.ids, use_cache=False, output_hidden_states=True)
        answer = out.last_hidden_state[rows, batch.last].float()
        labels = self.model.lm_head.weight[batch.ids[rows[:, None], batch.labels]]  # [B, C, d]
        logits = torch.einsum("bd,bcd->bc", answer, labels)
        middle = out.hidden_states[self._config.auxiliary_layer][rows[:, None], batch.labels].float()
        scores = self.auxiliary(nn.functional.rms_norm(middle, middle.shape[-1:])).squeeze(-1)
        loss = nn.functional.cross_entropy(logits, batch.target)
        auxiliary = nn.functional.cross_entropy(scores, batch.target)
        distillation = nn.functional.cross_entropy(logits, scores.detach().softmax(-1))
        parts = {
            "loss": loss.item(),
            "hr@1": (logits.argmax(-1) == batch.target).float().mean().item(),
            "auxiliary_hr@1": (scores.argmax(-1) == batch.target).float().mean().item(),
        }
        weights = self._config
        return loss + weights.auxiliary_weight * auxiliary + weights.distillation_weight * distillation, parts


def _fast_in_bfloat16(device: torch.device) -> bool:
    return device.type != "cpu" or cpu_dtype("auto") == "bfloat16"


def make_optimizers(ranking: RankingLoss, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the decoder blocks, AdamW for embeddings, norms and the auxiliary head."""
    blocks = [p for name, p in ranking.model.named_parameters() if p.ndim == 2 and "layers" in name]
    inside = {id(p) for p in blocks}
    rest = [p for p in ranking.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(blocks, lr=config.muon_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, constant, then linear decay to a twentieth over the last three fifths."""
    decay_from = config.total_steps * 2 // 5
    decay = max(0.05, 1 - (step - decay_from) / (config.total_steps - decay_from)) if step > decay_from else 1.0
    return min(1.0, (step + 1) / config.warmup) * decay


def pretrain(
    corpora: Sequence[Corpus], out: Path, config: PretrainConfig, progress: Progress, *, device: str = "cpu"
) -> None:
    """Train tokenizer and model on the corpora and write the base model to `out`.

    Checkpoints lie in `out/checkpoint`; a second call with the same configuration goes on from the last one.
    """
    # Compiling pays on CPUs that compute in float32, where it fuses what would run from memory.
    config = replace(config, compile=config.compile and not _fast_in_bfloat16(torch.device(device)))
    checkpoint = out / "checkpoint"
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
    if device == "cpu" and _fast_in_bfloat16(model.device):
        attend_blockwise(model)
    ranking = RankingLoss(model.to(device), config).to(device)
    optimizers = make_optimizers(ranking, config)
    initial = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    done = load_checkpoint(checkpoint, ranking, optimizers, config)
    sampler = Sampler(corpora, builder, config.seed)
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
                    save_checkpoint(checkpoint, ranking, optimizers, step + 1, config)
            step += 1
    save_base_model(out, model.cpu(), tokenizer)
    (out / "pretrain.json").write_text(json.dumps(asdict(replace(config, compile=False)), indent=1) + "\n")


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


def train_step(ranking: RankingLoss, optimizers: Iterable[torch.optim.Optimizer], batch: Batch) -> dict[str, float]:
    """One update; returns the parts of the loss."""
    loss, parts = ranking.forward(batch)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(ranking.parameters(), 1.0)
    with nullcontext() if _fast_in_bfloat16(ranking.model.device) else MuonInFloat32():
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return parts


def _tokenizer_of(corpora: Sequence[Corpus], checkpoint: Path, config: PretrainConfig) -> Tokenizer:
    path = checkpoint / "tokenizer.json"
    if not path.exists():
        texts = (f"{item.title} {item.category.rsplit('>', 1)[-1]}" for corpus in corpora for item in corpus.items)
        train_tokenizer(texts, vocab_size=config.vocab_size).save(str(path))
    return Tokenizer.from_file(str(path))


def save_checkpoint(
    folder: Path, ranking: RankingLoss, optimizers: Sequence[torch.optim.Optimizer], step: int, config: PretrainConfig
) -> None:
    """Weights, optimiser state and step in one safetensors file, replaced atomically."""
    tensors = {f"model.{name}": value for name, value in ranking.state_dict().items() if not _tied(name)}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{number}.{index}.{key}"] = torch.as_tensor(value)
    temporary = folder / "state.safetensors.new"
    save_file(
        {name: value.cpu().contiguous() for name, value in tensors.items()},
        temporary,
        {"step": str(step), "config": _key(config)},
    )
    temporary.replace(folder / "state.safetensors")


def load_checkpoint(
    folder: Path, ranking: RankingLoss, optimizers: Sequence[torch.optim.Optimizer], config: PretrainConfig
) -> int:
    """Steps done so far; 0 where there is no checkpoint or it is of another configuration."""
    path = folder / "state.safetensors"
    if not path.exists():
        return 0
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if metadata["config"] != _key(config):
        return 0
    tensors = load_file(path)
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    ranking.load_state_dict(weights, strict=False)
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        prefix = f"optimizer.{number}."
        for name, value in tensors.items():
            if name.startswith(prefix):
                index, key = name.removeprefix(prefix).split(".", 1)
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])


def _tied(name: str) -> bool:
    return name.endswith("lm_head.weight") or name.startswith("trunk.")


def _key(config: PretrainConfig) -> str:
    return json.dumps(asdict(replace(config, compile=False)), sort_keys=True)
