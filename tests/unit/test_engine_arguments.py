from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.engine import capacity, engine_arguments
from shared.config import Settings
from tests.conftest import make_settings


def test_the_engine_takes_the_share_of_a_gpu_that_is_asked_for() -> None:
    settings = make_settings(gpu_memory_share=0.5)
    assert engine_arguments(settings, on_cpu=False)["gpu_memory_utilization"] == 0.5
    # On a CPU vLLM would take it for a share of the machine's memory.
    assert "gpu_memory_utilization" not in engine_arguments(settings, on_cpu=True)


def test_the_engine_holds_what_one_step_takes_at_least() -> None:
    for held, a_step, room in ((16, 4, 16), (2, 4, 4)):
        settings = make_settings(max_cpu_loras=held, max_loras=a_step)
        assert engine_arguments(settings, on_cpu=True)["max_cpu_loras"] == capacity(settings) == room


def test_the_engine_takes_every_rank_that_a_setting_may_have() -> None:
    for rank, room in ((1, 1), (9, 16), (512, 512)):
        assert engine_arguments(make_settings(lora_rank=rank), on_cpu=True)["max_lora_rank"] == room
    with pytest.raises(ValidationError):
        Settings(lora_rank=513)
