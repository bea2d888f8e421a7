"""What every ranking engine must do; the fake and the real one are held to the same functions.

Each function gets an engine that holds no adapter, and the folders of adapters that differ.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.ports import AdapterLoadFailed, AdapterNotLoaded, EngineUnavailable, LoraHandle, RankingEngine
from shared.errors import InvalidInput
from shared.types import AdapterName
from tests.tiny_base import CONFIG

PROMPT = tuple(1 + (7 * n) % 100 for n in range(40))
LABELS = tuple(range(20, 30))
_ids = itertools.count(1)


def handle(folder: Path) -> LoraHandle:
    """A version that no engine has seen: new id, new name; the folder may be one that was removed before."""
    number = next(_ids)
    return LoraHandle(number, AdapterName(f"contract-v{number:06d}"), folder)


async def ranks_are_renormalised_log_probabilities(engine: RankingEngine, folders: Sequence[Path]) -> None:
    lora = handle(folders[0])
    await engine.add_adapter(lora)
    logprobs = await engine.rank(PROMPT, LABELS, lora)
    assert len(logprobs) == len(LABELS)
    assert sum(map(math.exp, logprobs)) == pytest.approx(1.0)
    assert await engine.rank(PROMPT, [LABELS[3]], lora) == [0.0]
    await engine.remove_adapter(lora)


async def answers_follow_adapter_and_prompt(engine: RankingEngine, folders: Sequence[Path]) -> None:
    loras = [handle(folder) for folder in folders[:2]]
    for lora in loras:
        await engine.add_adapter(lora)
    first, again, other_adapter, other_prompt = await asyncio.gather(
        engine.rank(PROMPT, LABELS, loras[0]),
        engine.rank(PROMPT, LABELS, loras[0]),
        engine.rank(PROMPT, LABELS, loras[1]),
        engine.rank(PROMPT[::-1], LABELS, loras[0]),
    )
    assert first == pytest.approx(again, abs=0.05)
    assert first != pytest.approx(other_adapter, abs=0.05)
    assert first != pytest.approx(other_prompt, abs=0.05)
    for lora in loras:
        await engine.remove_adapter(lora)


async def adding_twice_is_adding_once(engine: RankingEngine, folders: Sequence[Path]) -> None:
    lora = handle(folders[0])
    await engine.add_adapter(lora)
    await engine.add_adapter(lora)
    await engine.rank(PROMPT, LABELS, lora)
    await engine.remove_adapter(lora)
    await engine.remove_adapter(lora)
    with pytest.raises(AdapterNotLoaded):
        await engine.rank(PROMPT, LABELS, lora)


async def a_name_or_path_under_a_second_id_is_refused(engine: RankingEngine, folders: Sequence[Path]) -> None:
    lora = handle(folders[0])
    await engine.add_adapter(lora)
    with pytest.raises(AdapterLoadFailed):
        await engine.add_adapter(LoraHandle(next(_ids), lora.name, folders[1]))
    with pytest.raises(AdapterLoadFailed):
        await engine.add_adapter(handle(folders[0]))
    await engine.remove_adapter(lora)


async def a_failed_load_leaves_no_trace(engine: RankingEngine, folders: Sequence[Path]) -> None:
    good, missing = handle(folders[0]), handle(folders[0] / "nowhere")
    await engine.add_adapter(good)
    with pytest.raises(AdapterLoadFailed):
        await engine.add_adapter(missing)
    with pytest.raises(AdapterNotLoaded):
        await engine.rank(PROMPT, LABELS, missing)
    assert engine.alive
    assert len(await engine.rank(PROMPT, LABELS, good)) == len(LABELS)
    await engine.remove_adapter(good)


async def bad_prompts_are_invalid_input(engine: RankingEngine, folders: Sequence[Path]) -> None:
    lora = handle(folders[0])
    await engine.add_adapter(lora)
    too_long = PROMPT * (CONFIG["max_position_embeddings"] // len(PROMPT) + 1)
    for token_ids, label_ids in (
        (PROMPT, [CONFIG["vocab_size"]]),
        (PROMPT, []),
        (PROMPT, [0] * 129),
        (too_long, LABELS),
    ):
        with pytest.raises(InvalidInput):
            await engine.rank(token_ids, label_ids, lora)
    assert engine.alive
    assert len(await engine.rank(PROMPT, LABELS, lora)) == len(LABELS)
    await engine.remove_adapter(lora)


async def a_cancelled_call_harms_nobody(engine: RankingEngine, folders: Sequence[Path]) -> None:
    lora = handle(folders[0])
    await engine.add_adapter(lora)
    calls = [asyncio.create_task(engine.rank((n + 1, *PROMPT), LABELS, lora)) for n in range(6)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(answer, list) for answer in answers[1::2]] == [True] * 3
    assert len(await engine.rank(PROMPT, LABELS, lora)) == len(LABELS)
    await engine.remove_adapter(lora)


async def a_check_is_answered_beside_rankings(engine: RankingEngine, folders: Sequence[Path]) -> None:
    lora = handle(folders[0])
    await engine.add_adapter(lora)
    async with asyncio.timeout(120):
        await asyncio.gather(engine.check(), *(engine.rank((n, *PROMPT), LABELS, lora) for n in range(1, 5)))
        await engine.check()
    await engine.remove_adapter(lora)


async def a_closed_engine_is_unavailable(engine: RankingEngine, folders: Sequence[Path]) -> None:
    """The last one: it closes the engine."""
    lora = handle(folders[0])
    await engine.add_adapter(lora)
    await engine.close()
    await engine.close()
    assert not engine.alive
    with pytest.raises(EngineUnavailable):
        await engine.rank(PROMPT, LABELS, lora)
    with pytest.raises(EngineUnavailable):
        await engine.check()
    with pytest.raises(EngineUnavailable):
        await engine.add_adapter(handle(folders[1]))
    await engine.remove_adapter(lora)


CONTRACT = (
    ranks_are_renormalised_log_probabilities,
    answers_follow_adapter_and_prompt,
    adding_twice_is_adding_once,
    a_name_or_path_under_a_second_id_is_refused,
    a_failed_load_leaves_no_trace,
    bad_prompts_are_invalid_input,
    a_cancelled_call_harms_nobody,
    a_check_is_answered_beside_rankings,
    a_closed_engine_is_unavailable,
)
