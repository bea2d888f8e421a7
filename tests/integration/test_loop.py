"""The whole loop on real parts: embedded Redis, a Celery worker process, vLLM, and HTTP in and out.

Events go in, version 1 is learnt and served, more events come, version 2 is learnt and swapped in while requests go on.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.demo.state import free_port
from evolver.batches import collate, label_logprobs
from evolver.lora import load_with_lora
from evolver.stores import Store, make_store
from shared.artifacts import ArtifactStore
from shared.config import Settings
from shared.prompt import PromptBuilder, candidate_order
from shared.types import AdapterName, DomainId, Interaction, Item, ItemId, UserId

START_S, EVOLVE_S, SWAP_S = 300, 500, 60
# bfloat16 in the engine against float32 in PEFT: rounding of some 60 matrix products
TOLERANCE = 0.08
SMALL = {
    "EVOREC_MAX_TRAIN_EXAMPLES": "48",
    "EVOREC_MAX_LOCATED_USERS": "16",
    "EVOREC_MAX_EVALUATED_USERS": "16",
    "EVOREC_MAX_VALIDATION_USERS": "8",
    "EVOREC_RETRIEVER_EPOCHS": "4",
    "EVOREC_UPDATE_EPOCHS": "1",
    # Large enough that versions differ by far more than the engine's rounding.
    "EVOREC_LEARNING_RATE": "0.003",
    "EVOREC_EVOLVE_MIN_INTERACTIONS": str(10**9),
    "EVOREC_EVOLVE_MAX_AGE_S": str(10**9),
}


@dataclass
class Traffic:
    """What callers saw while the loop ran."""

    adapters: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stack:
    """`evorec up` in a process of its own."""

    http: httpx.AsyncClient
    settings: Settings
    log: Path

    async def evolve(self) -> dict[str, Any]:
        """Ask for an evolution and wait for its end."""
        asked = await self.http.post("/admin/evolve", json={"domain": "loop", "force": True})
        assert asked.status_code == 202, asked.text
        again = await self.http.post("/admin/evolve", json={"domain": "loop", "force": True})
        assert again.status_code == 409, "two evolutions of one domain at a time"
        deadline = time.monotonic() + EVOLVE_S
        while True:
            run: dict[str, Any] = (await self.http.get(f"/admin/evolutions/{asked.json()['evolution_id']}")).json()
            if run["finished_at"] is not None:
                return run
            assert time.monotonic() < deadline, run
            await asyncio.sleep(0.5)

    async def answered_by(self, adapter: str) -> None:
        deadline = time.monotonic() + SWAP_S
        while (await self.recommend("user-00000"))["adapter"] != adapter:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            await asyncio.sleep(0.2)

    async def recommend(self, user: str, **body: Any) -> dict[str, Any]:
        answer = await self.http.post("/recommend", json={"domain": "loop", "user_id": user, **body})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    port, log = free_port(), tmp_path / "up.log"
    changes = {"EVOREC_STATE_DIR": str(tmp_path / "state"), "EVOREC_PORT": str(port), **SMALL}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli.main", "up"],
            cwd=tmp_path,
            env={**_clean_environment(), **changes},
            stdout=sink,
            stderr=sink,
        )
    settings = Settings(_env_file=None, state_dir=tmp_path / "state")
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            await _ready(http, process, log)
            yield Stack(http, settings, log)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, log.read_text()[-3000:]


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


def _clean_environment() -> dict[str, str]:
    """Without what an engine started earlier in this process has set for its own threads: inherited, it makes vLLM's
    and the evolver's threads spin against each other.
    """
    prefixes = ("VLLM_", "OMP_", "KMP_", "GOMP_", "LD_PRELOAD")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


async def _ready(http: httpx.AsyncClient, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert process.poll() is None, _tail(log)
        assert time.monotonic() < deadline, _tail(log)
        try:
            if (await http.get("/health/ready")).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        await asyncio.sleep(0.5)


@asynccontextmanager
async def requests_going_on(stack: Stack, users: list[UserId]) -> AsyncIterator[Traffic]:
    """Two clients that ask all the time; every answer that is not a ranking by an adapter is a failure."""
    seen = Traffic()

    async def client(offset: int) -> None:
        number = offset
        while True:
            user = users[number % len(users)]
            answer = await stack.http.post("/recommend", json={"domain": "loop", "user_id": user, "count": 5})
            body = answer.json()
            if answer.status_code == 200 and body["degraded"] is False and len(body["items"]) == 5:
                seen.adapters.append(body["adapter"])
            else:
                seen.failures.append(answer.text)
            number += 1
            await asyncio.sleep(0.7)

    tasks = [asyncio.create_task(client(offset)) for offset in range(2)]
    try:
        yield seen
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        seen.failures += [repr(each) for each in results if not isinstance(each, asyncio.CancelledError)]


async def _send(stack: Stack, events: tuple[Interaction, ...]) -> None:
    for start in range(0, len(events), 500):
        body = [
            {"event_id": e.event_id, "user_id": e.user_id, "item_id": e.item_id, "timestamp": e.timestamp}
            for e in events[start : start + 500]
        ]
        answer = (await stack.http.post("/interactions", json={"domain": "loop", "interactions": body})).json()
        assert (answer["accepted"], answer["rejected"]) == (len(body), [])


async def _error_against_peft(stack: Stack, store: Store, adapter: str, user: UserId) -> float:
    """Largest difference of label log-probability between what was answered and PEFT in float32 with that version."""
    candidates = [item.item_id for item in store.items[:10]]
    body = await stack.recommend(user, candidates=candidates, count=10, explain=True)
    assert body["adapter"] == adapter
    answered = {item["item_id"]: item["reason"]["llm_log_probability"] for item in body["items"]}
    entries = (await stack.http.get(f"/users/{user}/history", params={"domain": "loop"})).json()["interactions"]
    items: dict[ItemId, Item] = {item.item_id: item for item in store.items}
    history = [items[entry["item_id"]] for entry in entries if not entry["forgotten"]]
    order = candidate_order(candidates, user)
    builder = PromptBuilder.load(stack.settings)
    prompt = builder.build(history, [items[item] for item in order])
    exact = stack.settings.model_copy(update={"dtype": "float32"})
    model = load_with_lora(exact, stack.settings.state_dir / "artifacts" / "loop" / adapter, seed=0)
    expected: list[float] = label_logprobs(model, collate([prompt]), builder.label_ids)[0].tolist()
    return max(abs(float(answered[item]) - value) for item, value in zip(order, expected, strict=True))


async def test_events_in_a_new_adapter_out_recommendations_from_it(stack: Stack) -> None:
    store = make_store(21, n_users=150, n_items=160, n_categories=8)
    catalog = [{"item_id": i.item_id, "title": i.title, "category": i.category, "brand": i.brand} for i in store.items]
    assert (await stack.http.put("/items", json={"domain": "loop", "items": catalog})).status_code == 200
    await _send(stack, store.first_period)
    assert (await stack.recommend("user-00000"))["degraded"] == "no_adapter"

    first = await stack.evolve()
    assert (first["status"], first["adapter"]) == ("published", "loop-v000001"), first
    await stack.answered_by("loop-v000001")
    active = sorted({event.user_id for event in store.second_period})
    assert await _error_against_peft(stack, store, "loop-v000001", active[0]) < TOLERANCE

    async with requests_going_on(stack, active[:20]) as traffic:
        await _send(stack, store.second_period)
        second = await stack.evolve()
        assert (second["status"], second["adapter"]) == ("published", "loop-v000002"), second
        await stack.answered_by("loop-v000002")
        await asyncio.sleep(1)
    assert traffic.failures == []
    swap = traffic.adapters.index("loop-v000002")
    assert set(traffic.adapters[:swap]) == {"loop-v000001"}
    # Two clients: at the moment of the swap one answer of the old version may still be on its way.
    assert traffic.adapters[swap:].count("loop-v000001") <= 1
    assert await _error_against_peft(stack, store, "loop-v000002", active[0]) < TOLERANCE

    await _check_manifest(stack, store, second)
    await _check_rollback(stack)


async def _check_manifest(stack: Stack, store: Store, run: dict[str, Any]) -> None:
    versions = (await stack.http.get("/admin/adapters", params={"domain": "loop"})).json()
    text = str(versions)
    assert "loop-v000001" in text
    assert "loop-v000002" in text
    assert len(run["located_layers"]) == 3
    assert sum(run["layer_votes"]) > 0
    assert 0 <= run["forgotten_share"] < 1
    assert {"before", "after"} <= run["metrics"].keys()
    folder = stack.settings.state_dir / "artifacts" / "loop" / "loop-v000002"
    expected = {"adapter_config.json", "adapter_model.safetensors", "retriever.safetensors", "manifest.json"}
    assert expected <= _files(folder)
    manifest = ArtifactStore(stack.settings).manifest(DomainId("loop"), AdapterName("loop-v000002"))
    assert manifest.parent == "loop-v000001"
    assert manifest.n_interactions == len(store.second_period)
    assert manifest.trained_share <= 0.3
    assert math.isclose(manifest.trained_share, manifest.trainable_parameters / manifest.lora_parameters)


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def _check_rollback(stack: Stack) -> None:
    back = await stack.http.post("/admin/rollback", json={"domain": "loop"})
    assert back.status_code == 200, back.text
    await stack.answered_by("loop-v000001")
