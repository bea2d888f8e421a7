"""A real service process whose engine is `tests.fake_engine.FakeEngine`: `python -m tests.faults.service_worker`.

EVOREC_* are the settings as ever. FAKE_DELAY_S: seconds that the engine takes for a ranking; FAKE_PARALLEL: how many
it works on at once; FAKE_HANGS_AFTER: it answers so many, and no other ever.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path

from service import main
from service.ports import LoraHandle, RankingEngine
from shared.config import Settings
from tests.fake_engine import FakeEngine


class BusyEngine(FakeEngine):
    """As a real one: it works on a few rankings at once, and the others wait."""

    def __init__(self, vocabulary: int, max_prompt: int, *, delay_s: float, parallel: int, hangs_after: float) -> None:
        super().__init__(vocabulary, max_prompt)
        self.delay_s = delay_s
        self._answers = hangs_after
        self._free = asyncio.Semaphore(parallel)

    async def rank(self, token_ids: Sequence[int], label_ids: Sequence[int], lora: LoraHandle) -> list[float]:
        self._answers -= 1
        if self._answers < 0:
            await asyncio.Event().wait()
        async with self._free:
            scores = await super().rank(token_ids, label_ids, lora)
        self.calls.clear()  # nobody asks for them here, and a soak would take them for a leak
        self.events.clear()
        return scores


async def start_engine(settings: Settings) -> RankingEngine:
    config = json.loads((Path(settings.base_model) / "config.json").read_text())
    return BusyEngine(
        config["vocab_size"],
        settings.max_model_len,
        delay_s=float(os.environ.get("FAKE_DELAY_S", "0")),
        parallel=int(os.environ.get("FAKE_PARALLEL", "64")),
        hangs_after=float(os.environ.get("FAKE_HANGS_AFTER", "inf")),
    )


if __name__ == "__main__":
    main.run(Settings(), engine=start_engine)
