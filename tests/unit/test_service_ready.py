"""The wait for a service that starts: it says what keeps it, and ends only where a limit is given."""

from __future__ import annotations

import httpx
import pytest

from deploy.local.stack import service_ready
from shared.errors import Unavailable

STARTING = '{"ready": false, "engine": "starting"}'


class Time:
    """Passes by sleeping alone."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def starting(monkeypatch: pytest.MonkeyPatch) -> Time:
    """A service that refuses connections for ten seconds, then starts for an hour."""
    time = Time()

    async def get(_: httpx.AsyncClient, path: str) -> httpx.Response:
        assert path == "/health/ready"
        if time.now < 10:
            raise httpx.ConnectError("refused")
        return httpx.Response(503, text=STARTING) if time.now < 3600 else httpx.Response(200)

    monkeypatch.setattr("deploy.local.stack.time", time)
    monkeypatch.setattr("deploy.local.stack.asyncio.sleep", time.sleep)
    monkeypatch.setattr(httpx.AsyncClient, "get", get)
    return time


async def test_without_a_limit_it_is_said_every_few_minutes_what_keeps_the_service(starting: Time) -> None:
    said: list[str] = []
    await service_ready("http://service", say=said.append)
    assert starting.now >= 3600
    assert len(said) == 19
    assert said[0] == f"not ready after 180 s: /health/ready answers {STARTING}"


@pytest.mark.parametrize(("limit", "answer"), [(5, "no answer .*refused"), (900, f"/health/ready answers {STARTING}")])
async def test_a_limit_ends_the_wait_with_the_last_answer(starting: Time, limit: float, answer: str) -> None:
    with pytest.raises(Unavailable, match=f"not ready within {limit} s: {answer}"):
        await service_ready("http://service", timeout_s=limit)
    assert limit <= starting.now < limit + 1
