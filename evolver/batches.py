"""Ranking examples, exactly as serving would have prompted them, and padded batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from evolver.merging import merged
from evolver.trunk import answer_states, run_trunk
from shared.prompt import Prompt, PromptBuilder, candidate_order
from shared.retriever import RetrieverIndex
from shared.types import Item, ItemId, UserId

if TYPE_CHECKING:
    from peft import PeftModel

# Most prompts and tokens in one batch of scores. On a CPU few at once are faster: their states stay in its caches.
SCORED_AT_ONCE = {"cpu": (32, 3072), "cuda": (256, 65_536)}
NEAR_NEGATIVES = 100  # near negatives are drawn from an index's best hundred


@dataclass(frozen=True, slots=True)
class Example:
    """One ranking: a user's history (oldest first, filtered) and candidates in label order, of which `target` came
    next.
    """

    user_id: UserId
    history: tuple[ItemId, ...]
    candidates: tuple[ItemId, ...]
    target: ItemId

    @property
    def target_index(self) -> int:
        return self.candidates.index(self.target)


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Right-padded prompts: `ids` [B, T], `mask` [B, T] true on real tokens, `n_candidates` [B].

    Where the lower blocks' work is known, `entering` [B, T, d] is what enters block number `block`.
    """

    ids: Tensor
    mask: Tensor
    n_candidates: Tensor
    entering: Tensor | None = None
    block: int = 0


def make_example(
    user_id: UserId,
    history: Sequence[ItemId],
    target: ItemId,
    index: RetrieverIndex,
    pool: Sequence[ItemId],
    *,
    near_share: float,
    n_candidates: int,
    own: frozenset[ItemId],
    seed: int,
) -> Example:
    """A training example: a share of the negatives from the index's best, the rest evenly from `pool`, never the user's
    own.

    The candidates stand in the order of a hash, never the retriever's.
    """
    rng = _rng(seed, user_id, target, len(history))
    wanted = min(n_candidates, len(pool)) - 1
    near = index.candidates(history, NEAR_NEGATIVES, exclude=own | {target}) if near_share else []
    chosen = [near[i][0] for i in rng.permutation(len(near))[: int(wanted * near_share)]]
    taken = {target, *chosen, *own}
    drawn = rng.choice(len(pool), size=min(len(pool), len(taken) + wanted), replace=False)  # enough of them are left
    far = [item for item in (pool[i] for i in drawn) if item not in taken]
    negatives = [*chosen, *far][:wanted]
    return Example(user_id, tuple(history), tuple(candidate_order([target, *negatives], user_id)), target)


def build_prompt(
    builder: PromptBuilder, index: RetrieverIndex, history: Sequence[ItemId], candidates: Sequence[ItemId]
) -> Prompt:
    """The prompt of a history and candidates in label order; items that left the catalog leave the history."""
    return builder.build(known_items(index, history), known_items(index, candidates))


def known_items(index: RetrieverIndex, item_ids: Sequence[ItemId]) -> list[Item]:
    """The catalog's entries of those ids that it still has."""
    found = (index.item(item_id) for item_id in item_ids)
    return [item for item in found if item is not None]


def collate(prompts: Sequence[Prompt]) -> PromptBatch:
    """Pad prompts on the right: under causal attention nothing real ever sees the padding."""
    length = max(len(prompt.token_ids) for prompt in prompts)
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt.token_ids)] = torch.tensor(prompt.token_ids)
        mask[row, : len(prompt.token_ids)] = True
    return PromptBatch(ids, mask, torch.tensor([prompt.n_candidates for prompt in prompts]))


BatchOf = Callable[[Sequence[Prompt]], PromptBatch]


def batches_by_length(
    prompts: Sequence[Prompt], size: int, *, rng: np.random.Generator | None = None
) -> Iterator[list[int]]:
    """Indices in batches of prompts of like length (little padding); with `rng` in random order, else longest first."""
    jitter = rng.uniform(0, 16, size=len(prompts)) if rng else np.zeros(len(prompts))
    order = np.argsort(
        [-len(prompt.token_ids) + noise for prompt, noise in zip(prompts, jitter, strict=True)], kind="stable"
    )
    chunks = [order[start : start + size].tolist() for start in range(0, len(order), size)]
    if rng:
        rng.shuffle(chunks)
    yield from chunks


def scored_batches(prompts: Sequence[Prompt], size: int, tokens: int) -> Iterator[list[int]]:
    """Indices, longest prompts first, in batches of at most `size` prompts and `tokens` tokens with padding (or one
    prompt).
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].token_ids))
    while order:
        rows = max(1, min(size, tokens // len(prompts[order[0]].token_ids)))
        yield order[:rows]
        order = order[rows:]


def label_logprobs(model: PeftModel, batch: PromptBatch, label_ids: Sequence[int]) -> Tensor:
    """log p(label | prompt), renormalised over each prompt's labels; -inf beyond them.  -> [B, max candidates]

    Only the labels' rows of the output matrix are multiplied, and of the last block only what the answer needs.
    """
    device = model.device
    x = batch.ids.to(device) if batch.entering is None else batch.entering
    last, n_candidates = (batch.mask.sum(1) - 1).to(device), batch.n_candidates.to(device)
    if model.has_parts:
        answer = answer_states(model, x, last, block=batch.block)  # [B, d]
    else:
        answer = run_trunk(model, x)[torch.arange(len(x), device=device), last]
    width = int(batch.n_candidates.max())
    labels = model.get_base_model().lm_head.weight[torch.tensor(label_ids[:width], device=device)]  # [C, d]
    logits = answer @ labels.T
    outside = torch.arange(width, device=device)[None, :] >= n_candidates[:, None]
    return torch.log_softmax(logits.masked_fill(outside, -torch.inf), dim=-1)


@torch.inference_mode()
def score_prompts(
    model: PeftModel,
    prompts: Sequence[Prompt],
    label_ids: Sequence[int],
    *,
    on_batch: Callable[[float], None] = lambda share: None,
    batch_of: BatchOf = collate,
) -> list[list[float]]:
    """Label log-probabilities of every prompt, in the order given."""
    scores: list[list[float]] = [[] for _ in prompts]
    done = 0
    with merged(model):
        for chunk in scored_batches(prompts, *SCORED_AT_ONCE[model.device.type]):
            logprobs = label_logprobs(model, batch_of([prompts[i] for i in chunk]), label_ids)
            for i, row in zip(chunk, logprobs.tolist(), strict=True):
                scores[i] = row[: prompts[i].n_candidates]
            done += len(chunk)
            on_batch(done / len(prompts))
    return scores


def _rng(seed: int, *parts: object) -> np.random.Generator:
    """A generator that depends on its arguments alone (Python's hash of strings differs between processes)."""
    return np.random.default_rng([seed, *("\0".join(map(str, parts))).encode()])
