"""A ranking engine without a model. It passes the contract tests of the real one (tests/contract)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from service.ports import AdapterLoadFailed, AdapterNotLoaded, EngineFull, EngineUnavailable, LoraHandle, PromptTokens
from service.scoring import log_softmax
from shared.errors import InvalidInput

MAX_LABELS = 128


class FakeEngine:
    """Log-probabilities are a hash of adapter, prompt and label. `delay_s` and `die` stand for load and death.

    Rankings and checks that begin while there is a `gate` wait until it is set. `room`: how many adapters it holds;
    None: any.
    """

    def __init__(self, vocabulary: int, max_prompt: int) -> None:
        self.delay_s = 0.0
        self.gate: asyncio.Event | None = None
        self.room: int | None = None
        self.prompt_tokens = PromptTokens()
        self.loaded: dict[int, LoraHandle] = {}
        self.calls: list[tuple[LoraHandle, tuple[int, ...]]] = []
        self.events: list[str] = []
        self._vocabulary = vocabulary
        self._max_prompt = max_prompt
        self._alive = True

    @property
    def alive(self) -> bool:
        return self._alive

    def die(self) -> None:
        self._alive = False

    async def add_adapter(self, lora: LoraHandle) -> None:
        self._check_alive()
        if lora.lora_id in self.loaded:
            return
        if any(lora.name == other.name or lora.path == other.path for other in self.loaded.values()):
            raise AdapterLoadFailed(f"adapter {lora.name}: its name or path is loaded already under another id")
        if self.room is not None and len(self.loaded) >= self.room:
            raise EngineFull(f"adapter {lora.name}: the engine holds {self.room} adapters, as many as fit")
        if not (lora.path / "adapter_config.json").exists() or not (lora.path / "adapter_model.safetensors").exists():
            raise AdapterLoadFailed(f"adapter {lora.name}: no adapter at {lora.path}")
        self.loaded[lora.lora_id] = lora
        self.events.append(f"add {lora.name}")

    async def remove_adapter(self, lora: LoraHandle) -> None:
        if self.loaded.pop(lora.lora_id, None) is not None:
            self.events.append(f"remove {lora.name}")

    async def rank(self, token_ids: Sequence[int], label_ids: Sequence[int], lora: LoraHandle) -> list[float]:
        if not 1 <= len(label_ids) <= MAX_LABELS:
            raise InvalidInput(f"{len(label_ids)} labels; one call ranks 1 to {MAX_LABELS}")
        self._check_alive()
        if self.loaded.get(lora.lora_id) != lora:
            raise AdapterNotLoaded(f"adapter {lora.name} is not loaded")
        if len(token_ids) >= self._max_prompt or not all(0 <= each < self._vocabulary for each in label_ids):
            raise InvalidInput("the engine cannot rank this prompt")
        self.calls.append((lora, tuple(token_ids)))
        self.prompt_tokens.asked += len(token_ids)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(self.delay_s)
        self._check_alive()
        return log_softmax([_pseudo_logit(lora.name, token_ids, label) for label in label_ids])

    async def check(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self._check_alive()

    async def close(self) -> None:
        self._alive = False

    def _check_alive(self) -> None:
        if not self._alive:
            raise EngineUnavailable("the engine has died")


def _pseudo_logit(name: str, token_ids: Sequence[int], label: int) -> float:
    digest = hashlib.blake2b(f"{name}|{list(token_ids)}|{label}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**62
