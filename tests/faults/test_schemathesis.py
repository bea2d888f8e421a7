"""schemathesis against the live service: every call of its OpenAPI document, all checks."""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from shared.config import Settings
from tests.faults.conftest import SEED, Tell
from tests.service_support import Running, serving

pytest_plugins = ["tests.service_fixtures"]

KEY = "fuzz-secret"
COUNTED = re.compile(r'evorec_http_requests_total\{method="(\w+)",route="([^"]*)",status="(\d+)"\} ([\d.e+]+)')


@pytest.fixture
async def guarded(service_settings: Settings, redis: Redis, shop: str) -> AsyncIterator[Running]:
    """With a key, so that the checks of missing and wrong keys have something to find."""
    changes = {"api_keys": (SecretStr(f"fuzz={KEY}:admin"),)}
    async with serving(service_settings.model_copy(update=changes), redis) as service:
        await service.ready()
        yield service


async def run_schemathesis(service: Running, folder: Path, examples: int) -> tuple[int, str]:
    """Exit status and output of `schemathesis run` with every check."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "schemathesis"),
        f"--config-file={Path(__file__).with_name('schemathesis.toml')}",
        "run",
        f"{str(service.http.base_url).rstrip('/')}/openapi.json",
        f"--header=X-API-Key: {KEY}",
        "--checks=all",
        # DELETE /admin/evolutions/{id} cancels a run, whose record stays, and says so: this check is all or nothing.
        "--exclude-checks=use_after_free",
        f"--max-examples={examples}",
        f"--seed={SEED}",
        "--continue-on-failure",
        "--no-color",
        "--warnings=off",
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return await process.wait(), output.decode()


async def answered(service: Running) -> Counter[int]:
    """Status -> how many requests the service has counted."""
    text = (await service.http.get("/metrics")).text
    counts: Counter[int] = Counter()
    for _, route, status, count in COUNTED.findall(text):
        if not route.startswith(("/health", "/metrics")):
            counts[int(status)] += int(float(count))
    return counts


async def test_every_call_keeps_to_its_document(guarded: Running, tmp_path: Path, full: bool, outcome: Tell) -> None:
    await guarded.publisher.publish()
    status, output = await run_schemathesis(guarded, tmp_path, 300 if full else 5)
    counts = await answered(guarded)
    assert status == 0, output[-20_000:]
    assert not [each for each in counts if each >= 500], (counts, output[-20_000:])
    assert counts[200] > 0
    assert counts[422] > 0
    outcome(
        7,
        "Every answer keeps to the OpenAPI document; none is a server error",
        faults={f"answer {each}": count for each, count in sorted(counts.items())},
        cases=sum(counts.values()),
    )
