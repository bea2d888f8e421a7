"""Update: train the located layers' LoRA parameters, and nothing else (EvoRec, arXiv 2511.16414, "Update").

    L = L_align + lambda L_cons

    L_align = - mean over active users' targets y  log p(y | H_filtered)     the ranking loss on what they did next
    L_cons  =   mean over inactive users KL( p_parent(. | H) || p(. | H) )   their predictions stay the parent's

Nothing below the lowest located layer changes: what it makes of each prompt is computed once, and kept for all epochs,
values of lambda, validations and teacher passes.

lambda is chosen on validation, and so is the checkpoint: the best one on validation is what stays in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from evolver.batches import BatchOf, batches_by_length, label_logprobs, score_prompts
from evolver.lora import lora_state, restore_lora, train_only
from evolver.lower_blocks import batches_for
from evolver.merging import composed, merged
from evolver.trunk import decoder_layers
from shared.prompt import Prompt

if TYPE_CHECKING:
    from peft import PeftModel


EXAMPLES_PER_INACTIVE = 8  # training prompts for each inactive user's prompt, in a step and in all


@dataclass(frozen=True, slots=True)
class Labelled:
    """A prompt and the index of the candidate that came next."""

    prompt: Prompt
    target: int


@dataclass(frozen=True, slots=True)
class UpdateConfig:
    """The optimiser's settings; `consistency` are the values of lambda to choose from, `kept_mib` the memory for what
    the layers below the located ones make of each prompt (4 T d bytes for T tokens; beyond it they run each time).
    """

    epochs: int = 2
    batch_size: int = 16
    learning_rate: float = 1e-3
    consistency: tuple[float, ...] = (1.0,)
    checks: int = 2  # validations (candidate checkpoints) in a training run
    seed: int = 0
    kept_mib: int = 1024

    @property
    def inactive_beside(self) -> int:
        """Inactive users' prompts beside each batch."""
        return max(1, self.batch_size // EXAMPLES_PER_INACTIVE)


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What was chosen; losses are nats per prompt on validation, before and after: equal where no checkpoint was better
    than the start, which then stays. `consistency` is 0 where that term took no part.
    """

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


def ranking_loss(scores: Sequence[Sequence[float]], examples: Sequence[Labelled]) -> float:
    """`alignment_loss` of scored prompts of any lengths, in nats; 0 without any."""
    gained = [row[example.target] for row, example in zip(scores, examples, strict=True)]
    return -float(np.mean(gained)) if gained else 0.0


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
    frozen = set(range(len(decoder_layers(model)))) - set(layers)
    with merged(model, frozen), composed(model, layers):
        asked = _Asked(model, label_ids, batches_for(model, layers, mib=config.kept_mib))
        return _update(asked, layers, active, inactive, validation, config, on_step)


def _update(
    asked: _Asked,
    layers: Collection[int],
    active: Sequence[Labelled],
    inactive: Sequence[Prompt],
    validation: Sequence[Labelled],
    config: UpdateConfig,
    on_step: Callable[[float], None],
) -> UpdateResult:
    parent = asked.scores(inactive)
    n_held = len(inactive) // 5
    trained, held = (
        _pairs(inactive, parent, 0, len(inactive) - n_held),
        _pairs(inactive, parent, len(inactive) - n_held, len(inactive)),
    )
    start = lora_state(asked.model, layers)
    before = best = _validate(asked, validation, held)
    best_state, best_weight = start, config.consistency[0]
    weights = config.consistency if inactive else config.consistency[:1]
    for number, weight in enumerate(weights):
        restore_lora(asked.model, start)
        run = _Run(asked, train_only(asked.model, layers), config, weight)
        for share in run.epochs(active, trained):
            on_step((number + share) / len(weights))
            if run.check_due(share):
                loss = _validate(asked, validation, held)
                if loss < best:
                    best, best_state, best_weight = loss, lora_state(asked.model, layers), weight
    restore_lora(asked.model, best_state)
    train_only(asked.model, ())
    return UpdateResult(best_weight if inactive else 0.0, before, best, len(active))


@dataclass(frozen=True, slots=True)
class _Asked:
    """The model as it is asked here: for label log-probabilities of batches made one way."""

    model: PeftModel
    label_ids: Sequence[int]
    batch_of: BatchOf

    def logprobs(self, prompts: Sequence[Prompt]) -> Tensor:
        """[B, C], to be differentiated."""
        return label_logprobs(self.model, self.batch_of(prompts), self.label_ids)

    def scores(self, prompts: Sequence[Prompt]) -> list[list[float]]:
        """The same in numbers, for any number of prompts."""
        return score_prompts(self.model, prompts, self.label_ids, batch_of=self.batch_of)


class _Run:
    """One training run with one lambda."""

    def __init__(self, asked: _Asked, parameters: Sequence[nn.Parameter], config: UpdateConfig, weight: float) -> None:
        self._asked, self._parameters = asked, parameters
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
        beside = self._drawn(inactive, len(batches), rng)
        for step, chunk in enumerate(batches):
            # Linear warm-up over a tenth, linear decay to a tenth.
            share = step / len(batches)
            self._optimizer.param_groups[0]["lr"] = self._config.learning_rate * min(1.0, 10 * share + 0.1, 1.1 - share)
            self._step([active[i] for i in chunk], beside[step])
            yield (step + 1) / len(batches)

    def _drawn(
        self, inactive: Sequence[tuple[Prompt, list[float]]], steps: int, rng: np.random.Generator
    ) -> list[list[tuple[Prompt, list[float]]]]:
        """Inactive users for each step: drawn for all steps at once, so that prompts of like length come together."""
        if not inactive or self._weight <= 0:
            return [[]] * steps
        size = self._config.inactive_beside
        drawn = [inactive[i] for i in rng.integers(0, len(inactive), size=size * steps)]
        return [[drawn[i] for i in chunk] for chunk in batches_by_length([p for p, _ in drawn], size, rng=rng)]

    def _step(self, active: Sequence[Labelled], beside: Sequence[tuple[Prompt, list[float]]]) -> None:
        logprobs = self._asked.logprobs([example.prompt for example in active])
        targets = torch.tensor([example.target for example in active], device=logprobs.device)
        torch.autograd.backward(alignment_loss(logprobs, targets))
        if beside:  # by itself: gradients add up, and the activations of one part are gone before the other's come
            torch.autograd.backward(self._weight * _consistency(self._asked, beside))
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


def _consistency(asked: _Asked, pairs: Sequence[tuple[Prompt, list[float]]]) -> Tensor:
    logprobs = asked.logprobs([prompt for prompt, _ in pairs])
    return consistency_loss(logprobs, _padded([scores for _, scores in pairs]).to(logprobs.device))


def _padded(scores: Sequence[Sequence[float]]) -> Tensor:
    """[B, C], -inf where a row has fewer."""
    rows = [torch.tensor(row) for row in scores]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-torch.inf)


def _validate(asked: _Asked, examples: Sequence[Labelled], held: Sequence[tuple[Prompt, list[float]]]) -> float:
    loss = ranking_loss(asked.scores([example.prompt for example in examples]), examples)
    if held:
        now = asked.scores([prompt for prompt, _ in held])
        loss += float(consistency_loss(_padded(now), _padded([scores for _, scores in held])))
    return loss
