"""Serving goes on: Redis away, versions damaged. Real HTTP, real Redis, real files; the engine is the fake one."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from safetensors.numpy import load_file, save_file

from shared.catalog import CatalogStore
from shared.config import Settings
from shared.embedded_redis import EmbeddedRedis
from shared.local_files import sha256
from shared.manifest import Manifest
from shared.redis_client import connect
from shared.registry import CHAMPION
from shared.stream import InteractionLog
from shared.types import AdapterName
from tests.factories import interaction, register
from tests.faults.conftest import Tell
from tests.service_support import ITEMS, SHOP, Running, serving
from tests.tiny_base import write_base

N_USERS = 12


@pytest.fixture
def own_settings(settings: Settings, tmp_path: Path) -> Settings:
    base = write_base(tmp_path / "base")
    return settings.model_copy(
        update={
            "base_model": str(base),
            "registry_poll_s": 0.2,
            "max_model_len": 1024,
            "default_domain": SHOP,
            "store_timeout_ms": 300,
        }
    )


@pytest.fixture
def server(own_settings: Settings) -> Iterator[EmbeddedRedis]:
    """A Redis that a test may kill."""
    with EmbeddedRedis(own_settings) as server:
        yield server


@pytest.fixture
async def store(own_settings: Settings, server: EmbeddedRedis) -> AsyncIterator[Redis]:
    async with connect(own_settings) as client:
        yield client


@pytest.fixture
async def shop_service(own_settings: Settings, store: Redis) -> AsyncIterator[Running]:
    """The service with a champion, over users with histories."""
    await CatalogStore(store).put(SHOP, ITEMS)
    events = [interaction(f"u{user}", f"i{(user * 7 + n) % 30}", n) for user in range(N_USERS) for n in range(6)]
    await InteractionLog(store, own_settings).append(SHOP, events)
    async with serving(own_settings, store) as running:
        await running.served_by(await running.publisher.publish())
        yield running


async def answers(running: Running) -> dict[str, dict[str, Any]]:
    """Every user's answer; each has to be there."""
    found = {}
    for user in (f"u{n}" for n in range(N_USERS)):
        answer = await running.recommend(user_id=user, history=None)
        assert answer.status_code == 200, answer.text
        found[user] = answer.json()
    return found


def ranking(answer: dict[str, Any]) -> list[tuple[str, float]]:
    # Popularity is summed anew every two seconds, in whatever order.
    return [(item["item_id"], round(item["score"], 9)) for item in answer["items"]]


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


class Outage:
    """Takes Redis away and gives it back; it keeps its append-only file."""

    def __init__(self, server: EmbeddedRedis, kind: str) -> None:
        self._server, self._kind = server, kind

    def begin(self) -> None:
        assert self._server.pid is not None
        os.kill(self._server.pid, signal.SIGKILL if self._kind == "killed" else signal.SIGSTOP)

    def end(self) -> None:
        if self._kind == "killed":
            self._server.stop()
            self._server.start()
        elif self._server.pid is not None:
            os.kill(self._server.pid, signal.SIGCONT)


def body_of(event_id: str, user: str) -> dict[str, Any]:
    event = {"event_id": event_id, "user_id": user, "item_id": "i29", "timestamp": 2e9 - 5e8}
    return {"domain": SHOP, "interactions": [event]}


@pytest.mark.parametrize("kind", ["killed", "stopped"])
async def test_redis_is_away(
    shop_service: Running, server: EmbeddedRedis, store: Redis, kind: str, full: bool, rng: random.Random, outcome: Tell
) -> None:
    running, outage, cycles, asked = shop_service, Outage(server, kind), 10 if full else 2, 0
    for cycle in range(cycles):
        before = await answers(running)
        assert {answer["degraded"] for answer in before.values()} == {False}
        outage.begin()
        try:
            during = await answers(running)
            stranger = (await running.recommend(user_id="never seen", history=None)).json()
            given = (await running.recommend()).json()
            refused = await running.http.post("/interactions", json=body_of(f"e{cycle}", "u0"))
            assert (await running.http.get("/health/ready")).status_code == 200
            await asyncio.sleep(rng.uniform(0.0, 1.5))
        finally:
            await asyncio.to_thread(outage.end)
        assert {(answer["degraded"], answer["adapter"]) for answer in during.values()} == {
            ("store_unavailable", before["u0"]["adapter"])
        }
        assert {user: ranking(answer) for user, answer in during.items()} == {
            user: ranking(answer) for user, answer in before.items()
        }
        assert stranger["items"]
        assert stranger["degraded"] == "store_unavailable"
        assert given["degraded"] is False, "a history that comes with the call needs no store"
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        await until(lambda: recovered(running))
        await until(partial(accepted, running, f"e{cycle}"))
        await running.served_by(await running.publisher.publish())
        asked += len(during) + 3
    history = (await running.http.get("/users/u0/history", params={"domain": SHOP})).json()["interactions"]
    counts = Counter(event["event_id"] for event in history)
    assert {event: counts[event] for event in (f"e{cycle}" for cycle in range(cycles))} == {
        f"e{cycle}": 1 for cycle in range(cycles)
    }
    outcome(
        3,
        f"Redis {kind}: recommendations go on from memory and say so, interactions get 503, both recover alone",
        faults={f"Redis {kind}": cycles},
        cases=asked,
    )


async def recovered(running: Running) -> bool:
    return {answer["degraded"] for answer in (await answers(running)).values()} == {False}


async def accepted(running: Running, event_id: str) -> bool:
    return (await running.http.post("/interactions", json=body_of(event_id, "u0"))).status_code == 202


async def test_a_service_that_starts_before_its_redis(own_settings: Settings, tmp_path: Path, outcome: Tell) -> None:
    server = EmbeddedRedis(own_settings)
    async with connect(own_settings) as store, serving(own_settings, store) as running:
        assert (await running.http.get("/health/live")).status_code == 200
        assert (await running.http.get("/health/ready")).status_code == 503
        early = [await running.recommend(), await running.http.post("/interactions", json=body_of("e", "u"))]
        assert {(answer.status_code, answer.headers["Retry-After"]) for answer in early} == {(503, "5")}
        with server:
            await CatalogStore(store).put(SHOP, ITEMS)
            await running.ready()
            await running.served_by(await running.publisher.publish())
    outcome(
        3,
        "a service started without Redis lives, says 503, and serves once it is there",
        faults={"late Redis": 1},
        cases=5,
    )


# -- damaged versions -----------------------------------------------------------------------------
Damage = Callable[[Path, random.Random], None]


def flip_a_bit(folder: Path, rng: random.Random) -> None:
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(folder: Path, rng: random.Random) -> None:
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    os.truncate(file, rng.randrange(file.stat().st_size))


def remove_a_file(folder: Path, rng: random.Random) -> None:
    rng.choice(sorted(path for path in folder.rglob("*") if path.is_file())).unlink()


def swap_two_tensors(folder: Path, rng: random.Random) -> None:
    """Whole, checksummed anew, and not what was published."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    first, second = rng.sample([name for name in sorted(tensors) if "lora_A" in name and "q_proj" in name], 2)
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, file)
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    checksums = {**manifest.checksums, file.name: sha256(file)}
    (folder / "manifest.json").write_text(manifest.model_copy(update={"checksums": checksums}).to_json())


DAMAGES: tuple[Damage, ...] = (flip_a_bit, truncate, remove_a_file, swap_two_tensors)


async def test_damaged_versions_are_refused(
    shop_service: Running, full: bool, rng: random.Random, outcome: Tell
) -> None:
    running = shop_service
    champion = await serving_adapter(running)
    done: Counter[str] = Counter()
    for number in range(200 if full else 24):
        damage = DAMAGES[number % len(DAMAGES)]
        name = await running.publisher.publish(champion=False)
        folder = running.publisher.artifacts.fetch(SHOP, name)
        damage(folder, rng)
        await promoted_but_refused(running, name, champion)
        done[damage.__name__.replace("_", " ")] += 1
    stranger = await running.publisher.publish(champion=False, base_model_hash="f" * 64)
    await promoted_but_refused(running, stranger, champion)
    wrong_rank = await running.publisher.publish(champion=False, lora_rank=4)
    await promoted_but_refused(running, wrong_rank, champion)
    done.update({"another base model": 1, "another rank": 1})
    assert {handle.name for handle in running.engines.last.loaded.values()} == {champion}
    outcome(
        3,
        "a damaged version is refused with its reason, its predecessor serves on",
        faults=done,
        cases=sum(done.values()),
    )


async def promoted_but_refused(running: Running, name: AdapterName, champion: AdapterName) -> None:
    """Refused before the engine sees it; the reason is in the registry, the metric counts, the champion answers."""
    counted = await refusals_counted(running)
    assert (await running.http.post(f"/admin/adapters/{name}/promote")).status_code == 200

    async def refused() -> bool:
        return name in (await domain_of(running))["refusals"]

    await until(refused)
    assert (await domain_of(running))["refusals"][name]["reason"]
    assert await refusals_counted(running) > counted
    assert await serving_adapter(running) == champion
    assert f"add {name}" not in running.engines.last.events
    answer = await running.http.post(f"/admin/adapters/{champion}/promote")
    assert answer.status_code == 200, answer.text


async def domain_of(running: Running) -> dict[str, Any]:
    answer = await running.http.get("/admin/adapters", params={"domain": SHOP})
    found: dict[str, Any] = answer.json()["domains"][0]
    return found


async def refusals_counted(running: Running) -> float:
    lines = (await running.http.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("evorec_adapter_refusals_total"))


async def serving_adapter(running: Running) -> AdapterName:
    answer = (await running.recommend()).json()
    assert answer["degraded"] is False
    return AdapterName(answer["adapter"])


async def test_a_service_that_starts_on_a_damaged_champion(
    own_settings: Settings, store: Redis, rng: random.Random, outcome: Tell
) -> None:
    """The nearest sound ancestor serves until the champion is sound, or another one is named."""
    await CatalogStore(store).put(SHOP, ITEMS)
    async with serving(own_settings, store) as running:
        sound = await running.publisher.publish()
        damaged = [await running.publisher.publish() for _ in range(3)]
    for name in damaged:
        truncate(running.publisher.artifacts.fetch(SHOP, name), rng)
    async with serving(own_settings, store) as running:
        await running.served_by(sound)
        assert (await running.http.get("/health/ready")).status_code == 200
        found = await domain_of(running)
        assert found["aliases"][CHAMPION] == damaged[-1]
        assert set(found["refusals"]) == set(damaged)
        running.engines.last.die()
        await until(partial(rebuilt, running))
        await running.ready()
        assert await serving_adapter(running) == sound, "the next engine does not hold the ancestor"
        await running.served_by(await running.publisher.publish())
    outcome(
        3,
        "a service that starts on damaged versions serves the nearest sound ancestor",
        faults={"damaged version": 3, "engine died": 1},
        cases=5,
    )


async def rebuilt(running: Running) -> bool:
    return len(running.engines.built) > 1


async def test_an_adapter_whose_numbers_diverged_is_refused(shop_service: Running, outcome: Tell) -> None:
    """Not damaged on the way: it was published like that, checksums and all."""
    running = shop_service
    champion = await serving_adapter(running)
    artifacts, registry = running.publisher.artifacts, running.publisher.registry
    name = await registry.reserve_name(SHOP)
    good = artifacts.fetch(SHOP, champion)
    with artifacts.stage(SHOP, name) as staged:
        for file in sorted(path for path in good.iterdir() if path.name != "manifest.json"):
            (staged.path / file.name).write_bytes(file.read_bytes())
        tensors = load_file(staged.path / "adapter_model.safetensors")
        tensors[sorted(tensors)[0]][0, 0] = float("nan")
        save_file(tensors, staged.path / "adapter_model.safetensors")
        manifest = artifacts.manifest(SHOP, champion).model_copy(update={"name": name, "parent": champion})
        await register(running.publisher.redis, staged.commit(manifest))
    await promoted_but_refused(running, name, champion)
    assert "not finite" in (await domain_of(running))["refusals"][name]["reason"]
    outcome(3, "an adapter with weights that are not finite is refused", faults={"NaN weight": 1}, cases=1)
