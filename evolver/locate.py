"""Locate: which layers react to a change of preference (EvoRec, arXiv 2511.16414, "Locate").

For an active user u with an old history H_old and a new one H_new = H_old + window, the prompts of both, with the same
candidates, run through the current model. With h_l(t) the output of decoder block l at token t:

    s_l(u) = cos( mean_t h_l^old(t), mean_t h_l^new(t) )        the layer's similarity
    v(u)   = argmin_l s_l(u)                                    the user's vote
    S      = the k = floor(0.3 L) layers with most votes        (ties: the lower mean similarity)

The paper lets users vote for any layer; here for one of the upper two thirds, so that what lies below is computed once
(docs/adr/0023), and of layers whose votes so few users cannot tell apart the higher one is taken (docs/adr/0025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evolver.batches import SCORED_AT_ONCE, PromptBatch, collate, scored_batches
from evolver.merging import merged
from evolver.trunk import decoder_layers, run_trunk
from shared.prompt import Prompt

if TYPE_CHECKING:
    from peft import PeftModel

LOCATED_SHARE = 0.3
CLEAR = 2.0  # standard deviations between two layers' votes, from where on they differ


@dataclass(frozen=True, slots=True)
class Location:
    """`layers` ascending; `votes` and `similarity` (mean over users) have one entry per layer."""

    layers: tuple[int, ...]
    votes: tuple[int, ...]
    similarity: tuple[float, ...]


def layer_similarity(old: Tensor, new: Tensor) -> Tensor:
    """s_l = cos(old_l, new_l) of mean outputs.  old, new: [..., L, d] -> [..., L]"""
    return torch.cosine_similarity(old, new, dim=-1)


def pooled(h: Tensor, mask: Tensor) -> Tensor:
    """mean over real tokens, in float32.  h: [B, T, d], mask: [B, T] true on real tokens -> [B, d]"""
    weights = mask.float()[:, :, None]
    return (h.float() * weights).sum(1) / weights.sum(1)


def votes(similarity: Tensor) -> Tensor:
    """Each user's vote, counted per layer.  similarity: [U, L] -> [L]"""
    return torch.bincount(similarity.argmin(1), minlength=similarity.shape[1])


def located_count(n_layers: int) -> int:
    """floor(0.3 L), and at least one layer.

    >>> located_count(28)
    8
    """
    # floor(0.3 * 10) is 2 in binary floating point (0.3 is a little less than 3/10)
    return max(1, math.floor(LOCATED_SHARE * n_layers + 1e-9))


def first_upper_layer(n_layers: int) -> int:
    """The lowest layer of the upper two thirds.

    >>> first_upper_layer(10)
    4
    """
    return math.ceil(n_layers / 3)


def located(similarity: Tensor) -> Location:
    """The floor(0.3 L) layers with most votes, ties to the lower mean similarity.  similarity: [U, L]"""
    count, mean = votes(similarity), similarity.mean(0)
    return _first(similarity, lambda layer: (-int(count[layer]), float(mean[layer])))


def located_in_upper(similarity: Tensor) -> Location:
    """As `located`, but users choose among the upper two thirds, and the lowest layer gives way to a higher one with
    not clearly fewer votes: what lies below the lowest is computed once per prompt.

    similarity: [U, L]
    """
    n_layers = similarity.shape[1]
    upper = similarity.clone()
    upper[:, : min(first_upper_layer(n_layers), n_layers - 1)] = torch.inf
    found = located(upper)
    return Location(raised(found.layers, found.votes), found.votes, tuple(similarity.mean(0).tolist()))


def raised(layers: Sequence[int], count: Sequence[int]) -> tuple[int, ...]:
    """As many layers, after the lowest has given way to a higher one as often as there is one that has not clearly
    fewer votes than any layer that gave way: n and m of them differ where n - m > 2 sqrt(n + m), two standard
    deviations of the difference of two counts.  count: votes per layer [L]

    Of ten users two more voted for layer 1 than for layer 2, which is little; of a hundred twenty more did:

    >>> raised((1, 3), (0, 4, 2, 4)), raised((1, 3), (0, 40, 20, 40))
    ((2, 3), (1, 3))
    """
    chosen, gave_way = set(layers), 0  # the most votes of those that gave way
    while True:
        lowest = min(chosen)
        most = max(gave_way, count[lowest])
        higher = [
            layer
            for layer in range(lowest + 1, len(count))
            if layer not in chosen and most - count[layer] <= CLEAR * math.sqrt(most + count[layer])
        ]
        if not higher:
            return tuple(sorted(chosen))
        chosen, gave_way = chosen - {lowest} | {max(higher, key=lambda layer: (count[layer], layer))}, most


def least_similar(similarity: Tensor) -> Location:
    """Without votes: the floor(0.3 L) layers of lowest mean similarity.  similarity: [U, L]"""
    mean = similarity.mean(0)
    return _first(similarity, lambda layer: float(mean[layer]))


def most_similar(similarity: Tensor) -> Location:
    """The opposite: the floor(0.3 L) layers that react least.  similarity: [U, L]"""
    mean = similarity.mean(0)
    return _first(similarity, lambda layer: -float(mean[layer]))


def _first(similarity: Tensor, key: Callable[[int], float | tuple[int, float]]) -> Location:
    """The floor(0.3 L) layers that come first by some key."""
    n_layers = similarity.shape[1]
    order = sorted(range(n_layers), key=key)
    chosen = tuple(sorted(order[: located_count(n_layers)]))
    return Location(chosen, tuple(votes(similarity).tolist()), tuple(similarity.mean(0).tolist()))


@torch.inference_mode()
def locate(
    model: PeftModel,
    old: Sequence[Prompt],
    new: Sequence[Prompt],
    *,
    rule: Callable[[Tensor], Location] = located_in_upper,
    on_batch: Callable[[float], None] = lambda share: None,
) -> Location:
    """Run each user's two prompts (old[i], new[i]) through the model; `rule` makes the location of all users'
    similarities [U, L].

    Raises `ValueError` where there is no user to ask.
    """
    if not old:
        raise ValueError("Locate needs at least one active user with an old history")
    similarity = torch.empty(len(old), len(decoder_layers(model)))  # [U, L]
    done = 0
    with merged(model):
        for chunk in scored_batches(new, *SCORED_AT_ONCE[model.device.type]):
            before, after = (mean_outputs(model, collate([prompts[i] for i in chunk])) for prompts in (old, new))
            similarity[chunk] = layer_similarity(before, after)
            done += len(chunk)
            on_batch(done / len(old))
    return rule(similarity)


def mean_outputs(model: PeftModel, batch: PromptBatch) -> Tensor:
    """Every decoder block's output, the mean over each prompt's tokens.  -> [B, L, d] float32"""
    means: list[Tensor] = []
    mask = batch.mask.to(model.device)

    def keep(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        # By hooks, since a library's last "hidden state" may already be normalised; and at once, since all blocks'
        # outputs of a batch would take as much memory as training does.
        means.append(pooled(output if isinstance(output, Tensor) else output[0], mask))

    hooks = [layer.register_forward_hook(keep) for layer in decoder_layers(model)]
    try:
        run_trunk(model, batch.ids.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(means, dim=1).cpu()
