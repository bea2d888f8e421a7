"""What the blocks below the lowest located layer make of each prompt, computed once: while Update trains, nothing there
changes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evolver.batches import BatchOf, PromptBatch, collate
from evolver.trunk import entering_block
from shared.prompt import Prompt

if TYPE_CHECKING:
    from peft import PeftModel


def batches_for(model: PeftModel, layers: Collection[int], *, mib: int) -> BatchOf:
    """How to make batches while these layers train: with the lower blocks' work kept, where there are lower blocks and
    the model can be run in parts.
    """
    block = min(layers, default=0)
    return LowerBlocks(model, block, mib=mib).batch if block and model.has_parts else collate


class LowerBlocks:
    """The hidden states that enter block number `block`: float32, [T, d] per prompt, on the model's device.

    The first `mib` MiB of prompts asked for are kept, the others computed each time. Correct only for as long as
    nothing below the block changes.
    """

    def __init__(self, model: PeftModel, block: int, *, mib: int) -> None:
        self._model, self._block = model, block
        self._room = mib * 2**20
        self._kept: dict[Prompt, Tensor] = {}

    def batch(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """As `collate`, with what enters the block; zero on padding, which nothing real sees."""
        batch = collate(prompts)
        # Plain tensors, also where scores are asked for in inference mode: training will need them.
        with torch.inference_mode(False), torch.no_grad():
            states = self._states(prompts)
            first = states[prompts[0]]
            entering = first.new_zeros(*batch.ids.shape, first.shape[-1])
            for row, prompt in enumerate(prompts):
                entering[row, : len(prompt.token_ids)] = states[prompt]
        return replace(batch, entering=entering, block=self._block)

    def _states(self, prompts: Sequence[Prompt]) -> dict[Prompt, Tensor]:
        """[T, d] of each prompt."""
        states = {prompt: self._kept[prompt] for prompt in prompts if prompt in self._kept}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in states]
        if new:
            entering = entering_block(self._model, collate(new).ids.to(self._model.device), self._block)
            states |= {prompt: x[: len(prompt.token_ids)] for prompt, x in zip(new, entering, strict=True)}
        for prompt in new:
            if states[prompt].nbytes <= self._room:
                self._room -= states[prompt].nbytes
                self._kept[prompt] = states[prompt].clone()  # a view would keep the whole batch
        return states
