"""One linear's LoRA matrices of all slots, laid out for dense products.

A linear of vLLM may be several of the model's in one (q, k and v): S slices, each with matrices of its own, which vLLM
keeps as S tensors A_i [L, 1, r, in] and B_i [L, 1, out_i, r] for L slots. Here they become

    A [L, S r, in]       the A_i of a slot below each other: one product for all slices
    B [L, S r, out]      the B_i^T of a slot on a block diagonal: one product for all slices, where calls cost more
                         than the zeros do; else the blocks one by one

vLLM's own tensors are turned into views of these, so it goes on loading and clearing adapters without knowing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Multiplications by zero that cost as much as one more call (see docs/performance.md for the measurement).
ZEROS_PER_CALL = 1_000_000


@dataclass(frozen=True, slots=True)
class PackedLora:
    """The matrices of one linear. `a`: [L, S r, in], `b`: [L, S r, out], `blocks[slot][slice]`: [r, out_i] of `b`."""

    a: Tensor
    b: Tensor
    rank: int
    output_slices: tuple[int, ...]
    blocks: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def pack(cls, a_stacked: Sequence[Tensor], b_stacked: Sequence[Tensor], output_slices: Sequence[int]) -> PackedLora:
        """Move what the stacked tensors hold, and make them views.  a_stacked: S x [L, 1, r, in], b_stacked: S x
        [L, 1, out_i, r]
        """
        n_slots, _, rank, n_in = a_stacked[0].shape
        n_slices = len(a_stacked)
        a = a_stacked[0].new_zeros(n_slots, n_slices * rank, n_in)
        b = b_stacked[0].new_zeros(n_slots, n_slices * rank, sum(output_slices))
        column = 0
        diagonal = []
        for i, (a_i, b_i, width) in enumerate(zip(a_stacked, b_stacked, output_slices, strict=True)):
            here = slice(i * rank, (i + 1) * rank)
            block = b[:, here, column : column + width]
            for mine, theirs in ((a[:, here].unsqueeze(1), a_i), (block.transpose(1, 2).unsqueeze(1), b_i)):
                mine.copy_(theirs)
                theirs.set_(mine)  # type: ignore[call-overload]
            diagonal.append(block)
            column += width
        blocks = tuple(tuple(block[slot] for block in diagonal) for slot in range(n_slots))
        return cls(a, b, rank, tuple(output_slices), blocks)

    def add(self, y: Tensor, x: Tensor, slot: int, scale: float) -> None:
        """y += scale (x A^T) B for rows of one adapter.  y: [n, out], x: [n, in]"""
        h = torch.nn.functional.linear(x, self.a[slot])
        # Of S slices, S - 1 times these multiplications are by zero, and S - 1 calls are saved.
        if len(self.output_slices) == 1 or len(x) * self.rank * y.shape[1] <= ZEROS_PER_CALL:
            y.addmm_(h, self.b[slot], alpha=scale)
            return
        column = 0
        for i, block in enumerate(self.blocks[slot]):
            width = self.output_slices[i]
            y[:, column : column + width].addmm_(h[:, i * self.rank : (i + 1) * self.rank], block, alpha=scale)
            column += width

    def add_mixed(self, y: Tensor, x: Tensor, one_hot: Tensor, first: int, last: int, scale: float) -> None:
        """y += scale (mask * (x A^T)) B with the matrices of the slots first..last side by side, where mask leaves
        each row its own slot's part.  y: [n, out], x: [n, in], one_hot: [n, last - first]
        """
        width = self.a.shape[1]
        h = torch.nn.functional.linear(x, self.a[first:last].flatten(0, 1))
        h.view(len(x), last - first, width).mul_(one_hot.unsqueeze(2))
        y.addmm_(h, self.b[first:last].flatten(0, 1), alpha=scale)
