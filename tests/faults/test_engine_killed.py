"""vLLM's processes killed or stopped under load: answers degrade, nobody gets an error, the engine comes back."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter

import httpx
import psutil
import pytest
from redis.asyncio import Redis

from shared.config import Settings
from tests.faults.conftest import Tell
from tests.service_support import SHOP, START_S, Publisher, until_ready

pytest_plugins = ["tests.service_fixtures"]
pytestmark = pytest.mark.timeout(1800)

REASONS = ("engine_unavailable", "adapter_unavailable", "engine_failed", "rank_timeout", "saturated")
TOLERANCE = 1e-2  # other batches, other sums; bfloat16 where the processor has it
CALL = {"user_id": "u1", "history": ["i1", "i2"], "candidates": [f"i{n}" for n in range(3, 13)], "explain": True}


async def test_the_engine_is_killed(
    service_process: tuple[psutil.Process, str],
    service_settings: Settings,
    redis: Redis,
    shop: str,
    full: bool,
    outcome: Tell,
) -> None:
    child, url = service_process
    champion = await Publisher(redis, service_settings).publish()
    killed, stopped = ("EngineCore", signal.SIGKILL), ("Worker", signal.SIGSTOP)  # what is stopped hangs
    faults = (
        [killed, ("Worker", signal.SIGKILL), stopped, ("EngineCore", signal.SIGSTOP)] if full else [killed, stopped]
    )
    seen: Counter[tuple[int, object]] = Counter()
    away_s: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await until_ready(http)
        before = await ranked(http, champion)
        ending = asyncio.Event()
        clients = [asyncio.create_task(client(http, number, ending, seen)) for number in range(4)]
        for name, how in faults:
            process_named(child, name).send_signal(how)
            started = time.monotonic()
            await until_status(http, 503)
            await until_status(http, 200)
            away_s.append(time.monotonic() - started)
            assert await ranked(http, champion) == pytest.approx(before, abs=TOLERANCE)
        ending.set()
        await asyncio.gather(*clients)
    assert {status for status, _ in seen} == {200}
    assert {degraded for _, degraded in seen} <= {False, *REASONS}
    assert seen[200, "engine_unavailable"] > 0
    outcome(
        3,
        f"vLLM killed or hanging under load: no error, the engine is back by itself (here within {max(away_s):.0f} s)",
        faults={f"{name} {'killed' if how is signal.SIGKILL else 'stopped'}": 1 for name, how in faults},
        cases=seen.total(),
    )


async def client(
    http: httpx.AsyncClient, number: int, ending: asyncio.Event, seen: Counter[tuple[int, object]]
) -> None:
    while not ending.is_set():
        answer = await http.post("/recommend", json={"user_id": f"u{number}", "history": ["i1", "i2"]})
        seen[answer.status_code, answer.json().get("degraded")] += 1
        await asyncio.sleep(0.2)


async def ranked(http: httpx.AsyncClient, champion: str) -> dict[str, float]:
    """The LLM's log-probability of each item."""
    answer = (await http.post("/recommend", json={"domain": SHOP, **CALL})).json()
    assert (answer["adapter"], answer["degraded"]) == (champion, False)
    return {item["item_id"]: item["reason"]["llm_log_probability"] for item in answer["items"]}


async def until_status(http: httpx.AsyncClient, status: int) -> None:
    async with asyncio.timeout(START_S):
        while (await http.get("/health/ready")).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def process_named(service: psutil.Process, name: str) -> psutil.Process:
    """vLLM names its processes by their titles."""
    titles = {each: " ".join([each.name(), *each.cmdline()]) for each in service.children(recursive=True)}
    found = [each for each, title in titles.items() if name.lower() in title.lower()]
    assert found, f"no process named {name} among {list(titles.values())}"
    return found[0]
