"""Where and in what the evolver computes."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from evolver.lora import train_device, train_dtype
from shared.config import Settings

GIB = 2**30


@pytest.mark.parametrize(
    ("seen", "free_gib", "expected"), [(True, 9, "cuda"), (True, 3, "cpu"), (False, 0, "cpu")], ids=str
)
def test_left_open_it_is_a_gpu_with_room(
    monkeypatch: pytest.MonkeyPatch, seen: bool, free_gib: int, expected: str
) -> None:
    """Beside an engine that has taken the GPU's memory, evolutions go on as before: on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_gib * GIB, 10 * GIB))
    assert train_device(Settings(), base_bytes=2 * GIB) == torch.device(expected)


@pytest.mark.parametrize(("free_gib", "expected"), [(5, "cuda"), (3, "cpu")])
def test_a_small_base_still_needs_room_for_its_batches(
    monkeypatch: pytest.MonkeyPatch, free_gib: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_gib * GIB, 10 * GIB))
    assert train_device(Settings(), base_bytes=2**20) == torch.device(expected)


def test_a_named_device_is_taken_whatever_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert train_device(Settings(train_device="cpu"), base_bytes=1) == torch.device("cpu")
    assert train_device(Settings(train_device="cuda:1"), base_bytes=1) == torch.device("cuda", 1)


def test_a_device_of_another_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="train_device"):
        Settings(train_device="gpu")


def test_gradients_are_never_computed_in_float16() -> None:
    for device in (torch.device("cpu"), torch.device("cuda")):
        assert train_dtype(device, "float16") in {torch.bfloat16, torch.float32}
        assert train_dtype(device, "float32") is torch.float32
    assert train_dtype(torch.device("cuda"), "auto") is torch.bfloat16
