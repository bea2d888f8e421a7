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

from service.lora_kernels.rows import Groups

# Multiplications by zero that cost about as much as one more call, on 2 cores with AVX2 in float32.
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

    def add_grouped(self, y: Tensor, x: Tensor, groups: GroupTensors, scale: float) -> None:
        """y += scale (x A^T) B for rows of several adapters, one batched product over the groups for each matrix.

        y: [n, out], x: [n, in]
        """
        n_groups = len(groups.slots)
        a, b = groups.of_slots(self.a), groups.of_slots(self.b)
        together = x.index_select(0, groups.gather).view(n_groups, -1, x.shape[1])
        delta = groups.workspace(len(groups.gather) + 1, y.shape[1], y.dtype)
        torch.bmm(torch.bmm(together, a.transpose(1, 2)), b, out=delta[:-1].view(n_groups, -1, y.shape[1]))
        if groups.base_rows:
            delta[-1] = 0  # what rows without adapter get
        y.add_(delta.index_select(0, groups.scatter), alpha=scale)


class Workspace:
    """One buffer for all layers: a fresh one of some megabytes costs more in page faults than the product itself."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def __call__(self, n_rows: int, n_columns: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised [n_rows, n_columns], valid until the next call."""
        n_bytes = n_rows * n_columns * dtype.itemsize
        if len(self._buffer) < n_bytes:
            self._buffer = torch.empty(n_bytes, dtype=torch.uint8)
        return self._buffer[:n_bytes].view(dtype).view(n_rows, n_columns)


@dataclass(frozen=True)
class GroupTensors:
    """A step's `Groups` for torch. `base_rows`: whether any row has no adapter."""

    slots: Tensor
    gather: Tensor
    scatter: Tensor
    consecutive: slice | None
    base_rows: bool
    workspace: Workspace

    @classmethod
    def of(cls, groups: Groups, workspace: Workspace) -> GroupTensors:
        """The same in tensors."""
        first, last = int(groups.slots[0]), int(groups.slots[-1]) + 1
        whole = slice(first, last) if last - first == len(groups.slots) else None
        slots, gather, scatter = (torch.from_numpy(each) for each in (groups.slots, groups.gather, groups.scatter))
        return cls(slots, gather, scatter, whole, bool((groups.scatter == len(groups.gather)).any()), workspace)

    def of_slots(self, stacked: Tensor) -> Tensor:
        """The groups' matrices, copied only where their slots do not lie together.  stacked: [L, ...] -> [G, ...]"""
        return stacked.index_select(0, self.slots) if self.consecutive is None else stacked[self.consecutive]
