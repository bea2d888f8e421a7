"""The service as a process of its own: real engine, hot swap under load, and a SIGTERM that fails nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from redis.asyncio import Redis

from service.main import LAME_DUCK_S
from shared.config import Settings
from tests.service_support import SHOP, Publisher
from tests.tiny_base import write_weights

pytest_plugins = ["tests.service_fixtures"]

START_S = 400  # some 25 s on two idle cores


@pytest.fixture
def process(service_settings: Settings, unused_tcp_port: int) -> Iterator[tuple[psutil.Process, str]]:
    write_weights(Path(service_settings.base_model))
    values = {
        "STATE_DIR": service_settings.state_dir,
        "REDIS_URL": service_settings.redis_url,
        "BASE_MODEL": service_settings.base_model,
        "MAX_MODEL_LEN": service_settings.max_model_len,
        "DEFAULT_DOMAIN": SHOP,
        "PORT": unused_tcp_port,
    }
    environment = {**os.environ, **{f"EVOREC_{name}": str(value) for name, value in values.items()}}
    with subprocess.Popen([sys.executable, "-m", "service.main"], env=environment, start_new_session=True) as child:
        started = psutil.Process(child.pid)
        yield started, f"http://127.0.0.1:{unused_tcp_port}"
        family = [*started.children(recursive=True), started] if started.is_running() else []
        for each in family:
            each.kill()


async def test_real_engine_swaps_and_drains(
    process: tuple[psutil.Process, str], service_settings: Settings, redis: Redis, shop: str
) -> None:
    child, url = process
    publisher = Publisher(redis, service_settings)
    names = [await publisher.publish()]
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await _ready(http)
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


async def _ready(http: httpx.AsyncClient) -> None:
    """Once it lives it goes on answering, while the engine starts."""
    lived = False
    async with asyncio.timeout(START_S):
        while True:
            try:
                lived = (await http.get("/health/live")).status_code == 200
                if (await http.get("/health/ready")).status_code == 200:
                    return
            except httpx.ConnectError:
                assert not lived
            await asyncio.sleep(0.1)
