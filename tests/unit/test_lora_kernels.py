"""The arithmetic of the LoRA kernels, row by row against the definition; vLLM is not needed for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.lora_kernels import MADE_FOR, packing, why_not
from service.lora_kernels.packing import GroupTensors, PackedLora, Workspace
from service.lora_kernels.rows import NO_SLOT, Rows

SLOTS, RANK, WIDTH = 3, 4, 12
SLICES = (10, 6, 6)


def stacked(seed: int = 0, slices: Sequence[int] = SLICES) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What vLLM holds of one linear: A_i [L, 1, r, in] and B_i [L, 1, out_i, r]."""
    generator = torch.Generator().manual_seed(seed)
    a = tuple(torch.randn(SLOTS, 1, RANK, WIDTH, generator=generator, dtype=torch.float64) for _ in slices)
    b = tuple(torch.randn(SLOTS, 1, width, RANK, generator=generator, dtype=torch.float64) for width in slices)
    return a, b


def by_definition(x: Tensor, a: Sequence[Tensor], b: Sequence[Tensor], slots: Sequence[int]) -> Tensor:
    """y[i] = concat over slices of B x A, row by row; zero where a row has no adapter."""
    rows = []
    for row, slot in zip(x, slots, strict=True):
        parts = [b_i[slot, 0] @ (a_i[slot, 0] @ row) for a_i, b_i in zip(a, b, strict=True)]
        rows.append(torch.cat(parts) if slot != NO_SLOT else x.new_zeros(sum(len(part) for part in parts)))
    return torch.stack(rows)


@pytest.mark.parametrize("zeros_per_call", [0, 1_000_000])
@pytest.mark.parametrize("slot", range(SLOTS))
def test_one_adapter_in_one_product_or_slice_by_slice(
    zeros_per_call: int, slot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "ZEROS_PER_CALL", zeros_per_call)
    n_rows = 5
    a, b = stacked()
    x = torch.randn(n_rows, WIDTH, dtype=torch.float64)
    expected = 1.0 + 0.5 * by_definition(x, a, b, [slot] * n_rows)
    y = torch.ones(n_rows, sum(SLICES), dtype=torch.float64)
    PackedLora.pack(a, b, SLICES).add(y, x, slot, 0.5)
    assert torch.allclose(y, expected)


@given(ids=st.lists(st.sampled_from([0, 5, 7, 9]), min_size=2, max_size=40))
def test_rows_sorted_by_adapter_come_back_to_their_places(ids: list[int]) -> None:
    a, b = stacked()
    rows = Rows.of(ids, {5: 0, 7: 1, 9: 2})
    if rows.groups is None:
        assert len(rows.runs) < 2
        return
    x = torch.randn(len(ids), WIDTH, dtype=torch.float64)
    expected = 1.0 + 0.5 * by_definition(x, a, b, rows.slots.tolist())
    y = torch.ones(len(ids), sum(SLICES), dtype=torch.float64)
    PackedLora.pack(a, b, SLICES).add_grouped(y, x, GroupTensors.of(rows.groups, Workspace()), 0.5)
    assert torch.allclose(y, expected)


def test_long_runs_stay_where_they_are() -> None:
    assert Rows.of([5] * 400 + [7] * 400, {5: 0, 7: 1}).groups is None
    assert Rows.of([5, 7] * 400, {5: 0, 7: 1}).groups is not None


def test_vllm_goes_on_writing_through_its_own_tensors() -> None:
    a, b = stacked()
    packed = PackedLora.pack(a, b, SLICES)
    fresh_a, fresh_b = stacked(seed=1)
    for mine, theirs in zip((*a, *b), (*fresh_a, *fresh_b), strict=True):
        mine[1] = 0  # what vLLM does when it clears a slot
        mine[1, 0, : theirs.shape[2], : theirs.shape[3]].copy_(theirs[1, 0])
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    for slot, (wanted_a, wanted_b) in {0: stacked(), 1: (fresh_a, fresh_b)}.items():
        y = torch.zeros(4, sum(SLICES), dtype=torch.float64)
        packed.add(y, x, slot, 1.0)
        assert torch.allclose(y, by_definition(x, wanted_a, wanted_b, [slot] * 4))


def test_a_slice_without_adapter_stays_zero() -> None:
    a, b = stacked()
    packed = PackedLora.pack(a, b, SLICES)
    a[1][2] = b[1][2] = 0  # an adapter that has no matrices for the second slice
    x = torch.randn(7, WIDTH, dtype=torch.float64)
    y = torch.zeros(7, sum(SLICES), dtype=torch.float64)
    packed.add(y, x, 2, 1.0)
    assert not y[:, SLICES[0] : SLICES[0] + SLICES[1]].any()
    assert y[:, : SLICES[0]].all()


@given(ids=st.lists(st.sampled_from([0, 5, 9]), max_size=30))
def test_rows_say_of_each_row_which_slot_it_uses(ids: list[int]) -> None:
    rows = Rows.of(ids, {5: 3, 9: 1})
    assert rows.slots.tolist() == [{0: NO_SLOT, 5: 3, 9: 1}[i] for i in ids]
    covered = {row: run.slot for run in rows.runs for row in range(run.start, run.end)}
    assert covered == {row: slot for row, slot in enumerate(rows.slots.tolist()) if slot != NO_SLOT}
    assert all(left.end < right.start or left.slot != right.slot for left, right in pairwise(rows.runs))  # no run split


def test_another_vllm_is_declined_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setattr("vllm.__version__", "0.99.0", raising=False)
    assert "0.99.0" in (why_not() or "")


def test_a_vllm_whose_parts_have_moved_is_declined_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setattr("vllm.__version__", f"{MADE_FOR}0", raising=False)
    monkeypatch.setitem(sys.modules, "vllm.lora.punica_wrapper.punica_cpu", None)
    assert "do not load" in (why_not() or "")
