"""The service as a process of its own: real engine, hot swap under load, and a SIGTERM that fails nobody."""

from __future__ import annotations

import asyncio
import signal

import httpx
import psutil
from redis.asyncio import Redis

from service.main import LAME_DUCK_S
from shared.config import Settings
from tests.service_support import Publisher, until_ready

pytest_plugins = ["tests.service_fixtures"]


async def test_real_engine_swaps_and_drains(
    service_process: tuple[psutil.Process, str], service_settings: Settings, redis: Redis, shop: str
) -> None:
    child, url = service_process
    publisher = Publisher(redis, service_settings)
    names = [await publisher.publish()]
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await until_ready(http)
        answers: list[tuple[int, object, str]] = []
        ending = asyncio.Event()

        async def client(number: int) -> None:
            while not ending.is_set():
                answer = await http.post("/recommend", json={"user_id": f"u{number}", "history": ["i1", "i2"]})
                answers.append((answer.status_code, answer.json()["degraded"], answer.json()["adapter"]))

        clients = [asyncio.create_task(client(number)) for number in range(4)]
        for _ in range(3):
            names.append(await publisher.publish())
            async with asyncio.timeout(60):
                while not answers or answers[-1][2] != names[-1]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        family = child.children(recursive=True)
        child.send_signal(signal.SIGTERM)
        await asyncio.sleep(LAME_DUCK_S / 2)
        assert (await http.get("/health/ready")).status_code == 503
        ending.set()
        await asyncio.gather(*clients)
    assert {(status, degraded) for status, degraded, _ in answers} == {(200, False)}
    assert {adapter for _, _, adapter in answers} >= set(names[1:])
    assert await asyncio.to_thread(child.wait, 60) == 0
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 10)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
