"""vLLM's LoRA products on a CPU, as few dense products as the step's rows allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from service.lora_kernels.packing import GroupTensors, PackedLora, Workspace
from service.lora_kernels.rows import Rows


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """Replaces the stock wrapper, which copies an adapter's matrices for every token, and which gives rows without
    adapter the last slot's.

    Rows of one adapter that lie together (a prompt, or several of one adapter) are one dense product for each matrix.
    Where the runs are short (decoding), the rows are sorted by adapter first.
    """

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, device: torch.device | str, **kwargs: Any
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        self._rows = Rows.of((), {})
        self._sampled = self._rows
        self._groups: GroupTensors | None = None
        self._workspace = Workspace()
        self._packed: dict[int, PackedLora] = {}

    def update_metadata(
        self, mapping: Any, lora_index_to_id: Sequence[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        """Once a step: which rows use which slot."""
        slot_of = {lora_id: slot for slot, lora_id in enumerate(lora_index_to_id) if lora_id is not None}
        self._rows = Rows.of(mapping.index_mapping, slot_of)
        self._sampled = Rows.of(mapping.prompt_mapping, slot_of)
        self._groups = None if self._rows.groups is None else GroupTensors.of(self._rows.groups, self._workspace)
        # What vLLM's layers for embeddings and for whole matrices read of this object.
        self._publish(self._sampler_indices, 1, self._sampled.slots)
        self._publish(self._embeddings_indices, 3, np.maximum(self._rows.slots, 0) * vocab_size)

    def _publish(self, buffer: Tensor, number: int, values: NDArray[np.int64]) -> None:
        buffer[: len(values)] = torch.from_numpy(values)
        self.indices_len[number] = len(values)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """y[i] += scale x[i] A[slot(i)] B[slot(i)], for every row i with an adapter.  y: [n, out], x: [n, in]"""
        if not self._rows.runs:
            return
        lora = self._packed_of(lora_a_stacked, lora_b_stacked, output_slices)
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        if self._groups is not None:
            n = len(self._rows.slots)
            lora.add_grouped(y[:n], x[:n], self._groups, scale)
            return
        for run in self._rows.runs:
            lora.add(y[run.start : run.end], x[run.start : run.end], run.slot, scale)

    def add_shrink(
        self, y: Sequence[Tensor] | Tensor, x: Tensor, lora_a_stacked: Sequence[Tensor], scale: float, **kwargs: Any
    ) -> None:
        """y_i += scale x A_i, for layers that exchange the halves between tensor-parallel workers.  y_i: [n, r]"""
        flat = x.view(-1, x.shape[-1])
        for run in self._rows.runs:
            here = slice(run.start, run.end)
            for y_i, a_i in zip(y, lora_a_stacked, strict=True):
                y_i[here] += scale * torch.nn.functional.linear(flat[here], a_i[run.slot, 0]).to(y_i.dtype)

    def add_expand(
        self,
        y: Tensor,
        x: Sequence[Tensor] | Tensor,
        lora_b_stacked: Sequence[Tensor],
        output_slices: Sequence[int],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """y[:, columns of i] += x_i B_i (= without `add_inputs`).  x_i: [n, r], y: [n, out]"""
        flat = y.view(-1, y.shape[-1])
        start = offset_start
        for x_i, b_i, width in zip(x, lora_b_stacked, output_slices, strict=True):
            self._expand(flat[:, start : start + width], x_i, b_i, self._rows, add_inputs)
            start += width

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        """y += x B, where x holds the tokens' rows of A already.  x: [n, r], y: [n, d]"""
        self._expand(y, x, lora_b_stacked, self._rows, add_inputs)

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        *,
        buffer: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """y += scale x A B for the rows that are sampled from.  x: [m, d], y: [m, vocabulary]

        ValueError for other rows (log-probabilities of prompts): nothing says whose they are.
        """
        logits, hidden = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        if len(hidden) != len(self._sampled.slots):
            raise ValueError("an adapter on lm_head cannot answer for prompt log-probabilities of several requests")
        for run in self._sampled.runs:
            here = slice(run.start, run.end)
            h = torch.nn.functional.linear(hidden[here], lora_a_stacked[run.slot, 0])
            logits[here].addmm_(h.to(y.dtype), lora_b_stacked[run.slot, 0].T.to(y.dtype), alpha=scale)

    @staticmethod
    def _expand(y: Tensor, x: Tensor, b_stacked: Tensor, rows: Rows, add_inputs: bool) -> None:
        for run in rows.runs:
            here = slice(run.start, run.end)
            y[here].addmm_(x[here].to(y.dtype), b_stacked[run.slot, 0].T, beta=int(add_inputs))

    def _packed_of(
        self, a_stacked: Sequence[Tensor], b_stacked: Sequence[Tensor], output_slices: Sequence[int]
    ) -> PackedLora:
        # The address belongs to one linear as long as its packed matrices live, which is as long as this object.
        packed = self._packed.get(a_stacked[0].data_ptr())
        if packed is None:
            packed = PackedLora.pack(a_stacked, b_stacked, output_slices)
            self._packed[packed.a.data_ptr()] = packed
        return packed
