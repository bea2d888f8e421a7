"""Update: train the located layers' LoRA parameters, and nothing else (EvoRec, arXiv 2511.16414, "Update").

    L = L_align + lambda L_cons

    L_align = - mean over active users  log p(y | H_filtered)         the ranking loss on what they did next
    L_cons  =   mean over inactive users KL( p_parent(. | H) || p(. | H) )   their predictions stay the parent's

lambda is chosen on validation, and so is the checkpoint: the best one on validation is what stays in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from evolver.batches import batches_by_length, collate, label_logprobs, score_prompts
from evolver.lora import lora_state, restore_lora, train_only
from shared.prompt import Prompt

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, slots=True)
class Labelled:
    """A prompt and the index of the candidate that came next."""

    prompt: Prompt
    target: int


@dataclass(frozen=True, slots=True)
class UpdateConfig:
    """The optimiser's settings; `consistency` are the values of lambda to choose from."""

    epochs: int = 2
    batch_size: int = 16
    learning_rate: float = 1e-3
    consistency: tuple[float, ...] = (1.0,)
    checks: int = 2  # validations (candidate checkpoints) in a training run
    seed: int = 0


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What was chosen; losses are nats per prompt on validation, before and after."""

    consistency: float
    loss_before: float
    loss_after: float
    trained_prompts: int


def alignment_loss(logprobs: Tensor, target: Tensor) -> Tensor:
    """- mean log p(y).  logprobs: [B, C], target: [B] -> []

    >>> alignment_loss(torch.log(torch.tensor([[0.5, 0.5]])), torch.tensor([0])).item()  # log 2
    0.6931471824645996
    """
    return nn.functional.nll_loss(logprobs, target)


def consistency_loss(logprobs: Tensor, parent: Tensor) -> Tensor:
    """mean KL(parent || current).  logprobs, parent: [B, C], -inf where a prompt has fewer candidates -> []

    >>> same = torch.log(torch.tensor([[0.25, 0.75]]))
    >>> consistency_loss(same, same).item()
    0.0
    """
    terms = parent.exp() * (parent - logprobs)
    return terms.masked_fill(parent.isneginf(), 0.0).sum(1).mean()


def update(
    model: PeftModel,
    layers: Collection[int],
    active: Sequence[Labelled],
    inactive: Sequence[Prompt],
    validation: Sequence[Labelled],
    label_ids: Sequence[int],
    config: UpdateConfig,
    *,
    on_step: Callable[[float], None] = lambda share: None,
) -> UpdateResult:
    """Train in place; the model ends as the best checkpoint on validation, which may be the parent itself.

    Validation is the ranking loss on held-out active users plus, where there are inactive ones, the consistency loss on
    the last fifth of them, which are not trained on: lambda is judged by both things it trades.
    """
    parent = score_prompts(model, inactive, label_ids)
    n_held = len(inactive) // 5
    trained, held = (
        _pairs(inactive, parent, 0, len(inactive) - n_held),
        _pairs(inactive, parent, len(inactive) - n_held, len(inactive)),
    )
    start = lora_state(model, layers)
    before = best = _validate(model, validation, held, label_ids)
    best_state, best_weight = start, config.consistency[0]
    weights = config.consistency if inactive else config.consistency[:1]
    for number, weight in enumerate(weights):
        restore_lora(model, start)
        run = _Run(model, train_only(model, layers), label_ids, config, weight)
        for share in run.epochs(active, trained):
            on_step((number + share) / len(weights))
            if run.check_due(share):
                loss = _validate(model, validation, held, label_ids)
                if loss < best:
                    best, best_state, best_weight = loss, lora_state(model, layers), weight
    restore_lora(model, best_state)
    train_only(model, ())
    return UpdateResult(best_weight, before, best, len(active))


class _Run:
    """One training run with one lambda."""

    def __init__(
        self,
        model: PeftModel,
        parameters: Sequence[nn.Parameter],
        label_ids: Sequence[int],
        config: UpdateConfig,
        weight: float,
    ) -> None:
        self._model, self._parameters, self._label_ids = model, parameters, label_ids
        self._config, self._weight = config, weight
        self._optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
        self._checked = 0

    def epochs(self, active: Sequence[Labelled], inactive: Sequence[tuple[Prompt, list[float]]]) -> Iterator[float]:
        """Train; yields the share done after each step."""
        rng = np.random.default_rng(self._config.seed)
        prompts = [example.prompt for example in active]
        batches = [
            b for _ in range(self._config.epochs) for b in batches_by_length(prompts, self._config.batch_size, rng=rng)
        ]
        for step, chunk in enumerate(batches):
            # Linear warm-up over a tenth, linear decay to a tenth.
            share = step / len(batches)
            self._optimizer.param_groups[0]["lr"] = self._config.learning_rate * min(1.0, 10 * share + 0.1, 1.1 - share)
            self._step([active[i] for i in chunk], inactive, rng)
            yield (step + 1) / len(batches)

    def _step(
        self, active: Sequence[Labelled], inactive: Sequence[tuple[Prompt, list[float]]], rng: np.random.Generator
    ) -> None:
        logprobs = label_logprobs(self._model, collate([example.prompt for example in active]), self._label_ids)
        loss = alignment_loss(logprobs, torch.tensor([example.target for example in active]))
        if inactive and self._weight > 0:
            picked = [inactive[i] for i in rng.integers(0, len(inactive), size=max(1, len(active) // 2))]
            loss = loss + self._weight * _consistency(self._model, picked, self._label_ids)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def check_due(self, share: float) -> bool:
        """Whether the next of the evenly spread validations has been reached."""
        if share * self._config.checks + 1e-9 < self._checked + 1:
            return False
        self._checked += 1
        return True


def _pairs(
    prompts: Sequence[Prompt], parent: Sequence[list[float]], start: int, end: int
) -> list[tuple[Prompt, list[float]]]:
    return list(zip(prompts[start:end], parent[start:end], strict=True))


def _consistency(model: PeftModel, pairs: Sequence[tuple[Prompt, list[float]]], label_ids: Sequence[int]) -> Tensor:
    logprobs = label_logprobs(model, collate([prompt for prompt, _ in pairs]), label_ids)
    parent = torch.full_like(logprobs, -torch.inf)
    for row, (_, scores) in enumerate(pairs):
        parent[row, : len(scores)] = torch.tensor(scores)
    return consistency_loss(logprobs, parent)


@torch.inference_mode()
def _validate(
    model: PeftModel, examples: Sequence[Labelled], held: Sequence[tuple[Prompt, list[float]]], label_ids: Sequence[int]
) -> float:
    scores = score_prompts(model, [example.prompt for example in examples], label_ids)
    loss = (
        -float(np.mean([row[example.target] for row, example in zip(scores, examples, strict=True)]))
        if examples
        else 0.0
    )
    for start in range(0, len(held), 32):
        pairs = held[start : start + 32]
        loss += float(_consistency(model, pairs, label_ids)) * len(pairs) / len(held)
    return loss
