"""vLLM answers no call about adapters once its engine has died: whoever waits for one is told all the same.

And it drops an adapter for one too many, so none is added.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service import engine
from service.engine import VllmEngine, _log_lora_kernels
from service.ports import AdapterLoadFailed, EngineFull, EngineUnavailable, LoraHandle
from shared.types import AdapterName
from tests.conftest import make_settings

LORAS = [LoraHandle(n, AdapterName(f"shop-v{n:06d}"), Path(f"shop-v{n:06d}")) for n in range(1, 5)]
LORA = LORAS[0]


class Llm:
    """An AsyncLLM whose engine dies during the call named `deadly`; a call that is waited for is in `waiting`.

    `slow`: the call that never ends, while the engine lives.
    """

    def __init__(self, deadly: str, slow: str = "none") -> None:
        self.errored = False
        self._slow = slow
        self.waiting: set[str] = set()
        self._deadly = deadly

    async def add_lora(self, _: LoraHandle) -> bool:
        return await self._call("add_lora")

    async def remove_lora(self, _: int) -> bool:
        return await self._call("remove_lora")

    async def collective_rpc(self, _: str, timeout: float | None = None) -> bool:
        return await self._call("collective_rpc")

    def shutdown(self) -> None:
        self.errored = True

    async def _call(self, name: str) -> bool:
        self.waiting.add(name)
        try:
            if name == self._slow:
                await asyncio.Event().wait()
            if name == self._deadly:
                asyncio.get_running_loop().call_soon(setattr, self, "errored", True)
                await asyncio.Event().wait()
        finally:
            self.waiting.discard(name)
        return True


@pytest.fixture(autouse=True)
def _without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_lora_request", lambda lora: lora)


async def test_an_engine_that_dies_while_it_loads_an_adapter_is_unavailable() -> None:
    llm = Llm("add_lora")
    async with asyncio.timeout(20):
        with capture_logs() as said, pytest.raises(EngineUnavailable):
            await VllmEngine(llm, 16).add_adapter(LORA)
    await asyncio.sleep(0)
    assert not llm.waiting
    assert said == [], "a dead engine holds no adapter that would have to be removed"


async def test_an_engine_that_dies_while_it_removes_an_adapter_holds_nobody() -> None:
    llm = Llm("remove_lora")
    living = VllmEngine(llm, 16)
    await living.add_adapter(LORA)
    async with asyncio.timeout(20):
        await living.remove_adapter(LORA)
    assert not living.alive


async def test_an_engine_that_dies_while_it_names_its_kernels_holds_no_start() -> None:
    async with asyncio.timeout(20):
        with capture_logs() as said:
            await _log_lora_kernels(Llm("collective_rpc"), make_settings())
    assert [entry["event"] for entry in said] == ["lora_kernels_unknown"]


@pytest.mark.parametrize("call", [VllmEngine.add_adapter, VllmEngine.remove_adapter])
async def test_a_cancelled_caller_leaves_no_call_behind(
    call: Callable[[VllmEngine, LoraHandle], Coroutine[Any, Any, None]],
) -> None:
    """Where the engine lives on, and is merely slow."""
    llm = Llm(call.__name__.replace("adapter", "lora"))
    slow = VllmEngine(llm, 16)
    if call is VllmEngine.remove_adapter:
        await slow.add_adapter(LORA)
    waiting = asyncio.create_task(call(slow, LORA))
    async with asyncio.timeout(20):
        while not llm.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0)
    llm.errored = False
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert not llm.waiting


async def test_an_adapter_beyond_what_the_engine_holds_is_refused_until_one_goes() -> None:
    full = VllmEngine(Llm("none"), 2)
    # The second and the third at once: one of them fits.
    outcomes = await asyncio.gather(*(full.add_adapter(lora) for lora in LORAS[:3]), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), type(None), EngineFull]
    with pytest.raises(EngineFull, match=r"holds 2 adapters.*EVOREC_MAX_CPU_LORAS"):
        await full.add_adapter(LORAS[3])
    await full.add_adapter(LORA)  # which it holds
    await full.remove_adapter(LORA)
    await full.add_adapter(LORAS[3])
    with pytest.raises(AdapterLoadFailed):
        await full.add_adapter(LORA)


async def test_a_ranking_that_a_closing_engine_gives_up_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation would end the request that waits for it, too."""
    monkeypatch.setattr(engine, "DRAIN_S", 0.01)
    hanging = VllmEngine(Llm("none"), 2)
    await hanging.add_adapter(LORA)
    monkeypatch.setattr(hanging, "_label_logprobs", lambda *_: asyncio.Event().wait())
    told, cancelled = (asyncio.create_task(hanging.rank([1], [2], LORA)) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await hanging.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        await told


async def test_a_check_behind_adapters_that_load_is_answered_with_the_next_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM answers calls in their order: many large adapters are no silence."""
    monkeypatch.setattr(engine, "WATCH_S", 0.01)
    loading = VllmEngine(Llm("none", slow="collective_rpc"), 16)
    check = asyncio.create_task(loading.check())
    done, _ = await asyncio.wait([check], timeout=0.1)
    assert not done
    await loading.add_adapter(LORA)
    async with asyncio.timeout(20):
        await check
