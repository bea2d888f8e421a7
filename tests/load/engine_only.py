"""The service's own engine without the service around it: what `/recommend` is compared with.

`EngineOnly` starts it in a process of its own; `python -m tests.load.engine_only SETTINGS` is that process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.engine import start_engine
from service.ports import LoraHandle, RankingEngine
from shared.config import Settings
from shared.prompt import Prompt, PromptBuilder
from shared.types import AdapterName
from tests.load.engine_process import DONE, READY, say

LINE_LIMIT = 64 * 1024 * 1024


@dataclass(frozen=True)
class Ranked:
    """`seconds` for all prompts; each one's latency and label log-probabilities."""

    seconds: float
    latencies: list[float]
    logprobs: list[list[float]]


@dataclass(frozen=True)
class EngineOnly:
    process: Process

    async def rank(self, prompts: Sequence[Prompt], adapters: Sequence[Path], concurrency: int) -> Ranked:
        """Rank every prompt under its adapter (a folder), `concurrency` at a time."""
        job = {
            "prompts": [
                (p.token_ids, p.n_candidates, str(folder)) for p, folder in zip(prompts, adapters, strict=True)
            ],
            "concurrency": concurrency,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        await self.process.stdin.drain()
        return Ranked(**json.loads(await _line(self.process, DONE)))


@asynccontextmanager
async def engine_only(settings: Settings) -> AsyncIterator[EngineOnly]:
    """RuntimeError where the engine ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.load.engine_only", settings.model_dump_json()),
        stdin=PIPE,
        stdout=PIPE,
        limit=LINE_LIMIT,
    )
    try:
        await _line(process, READY)
        yield EngineOnly(process)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


async def _line(process: Process, word: str) -> str:
    assert process.stdout is not None
    async for line in process.stdout:
        if line.startswith(word.encode()):
            return line.decode().removeprefix(word)
    raise RuntimeError("the engine's process ended; what it said is above")


async def _serve(settings: Settings) -> None:
    engine = await start_engine(settings)
    labels = PromptBuilder.load(settings).label_ids
    handles: dict[str, LoraHandle] = {}
    say(READY)
    while line := await asyncio.to_thread(sys.stdin.readline):
        job: dict[str, Any] = json.loads(line)
        for folder in dict.fromkeys(folder for _, _, folder in job["prompts"]):
            if folder not in handles:
                handles[folder] = LoraHandle(len(handles) + 1, AdapterName(Path(folder).name), Path(folder))
                await engine.add_adapter(handles[folder])
        say(DONE, json.dumps(await _rank_all(engine, job, labels, handles)))
    await engine.close()


async def _rank_all(
    engine: RankingEngine, job: dict[str, Any], labels: Sequence[int], handles: dict[str, LoraHandle]
) -> dict[str, Any]:
    slots, latencies = asyncio.Semaphore(job["concurrency"]), []

    async def rank(ids: list[int], n: int, folder: str) -> list[float]:
        async with slots:
            began = time.perf_counter()
            found = await engine.rank(ids, labels[:n], handles[folder])
            latencies.append(time.perf_counter() - began)
            return found

    began = time.perf_counter()
    logprobs = await asyncio.gather(*(rank(*each) for each in job["prompts"]))
    return {"seconds": time.perf_counter() - began, "latencies": latencies, "logprobs": logprobs}


if __name__ == "__main__":
    asyncio.run(_serve(Settings.model_validate_json(sys.argv[1])))
