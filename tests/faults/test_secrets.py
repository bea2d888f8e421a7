"""No secret in any output: the real processes at DEBUG, with keys, passwords and failures of every kind."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from shared.config import Settings
from tests.faults.conftest import Tell
from tests.service_support import SHOP
from tests.tiny_base import write_weights

pytest_plugins = ["tests.service_fixtures"]

ROOT = Path(__file__).parents[2]
START_S = 200
PLAIN, HASHED, WRONG = "plain-key-4bQz", "hashed-key-9xLm", "wrong-key-7tRv"
REDIS_PASSWORD, BROKER_PASSWORD, MALFORMED = "redis-pass-2kWd", "broker-pass-8nYc", "malformed-key-3hFj"
HASH = hashlib.sha256(HASHED.encode()).hexdigest()
SECRETS = (PLAIN, HASHED, HASH, WRONG, REDIS_PASSWORD, BROKER_PASSWORD, MALFORMED)
AWAY = f"redis://user:{REDIS_PASSWORD}@127.0.0.1:1/0"
BROKER_AWAY = f"redis://:{BROKER_PASSWORD}@127.0.0.1:1/1"


def environment(settings: Settings, **changes: object) -> dict[str, str]:
    values = {
        "STATE_DIR": settings.state_dir,
        "BASE_MODEL": settings.base_model,
        "MAX_MODEL_LEN": settings.max_model_len,
        "DEFAULT_DOMAIN": SHOP,
        "LOG_LEVEL": "DEBUG",
        "API_KEYS": f"boss={PLAIN}:admin,shop=sha256${HASH}:ingest",
        "REDIS_URL": AWAY,
        "BROKER_URL": BROKER_AWAY,
        **changes,
    }
    return {**os.environ, **{f"EVOREC_{name}": str(value) for name, value in values.items()}}


@contextmanager
def running(module: list[str], env: dict[str, str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def traffic(url: str) -> int:
    """Every kind of call with every kind of key; how many were made."""
    calls = [
        ("POST", "/recommend", {"user_id": "u"}),
        ("POST", "/interactions", {"interactions": [{"user_id": "u", "item_id": "i1", "timestamp": 1.7e9}]}),
        ("PUT", "/items", {"items": [{"item_id": "i1", "title": "x"}]}),
        ("POST", "/admin/evolve", {"force": True}),
        ("POST", "/admin/evolve", {"api_key": WRONG}),
        ("GET", f"/items/i1?key={WRONG}", None),
        ("DELETE", "/users/u", None),
        ("GET", "/admin/audit", None),
        ("GET", "/metrics", None),
    ]
    made = 0
    with httpx.Client(base_url=url, timeout=60) as http:
        deadline = time.monotonic() + START_S
        while True:
            try:
                http.get("/health/live")
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline, "the service does not start"
                time.sleep(0.2)
        for headers in (
            {"X-API-Key": PLAIN},
            {"X-API-Key": HASHED},
            {"X-API-Key": WRONG},
            {"Authorization": WRONG},
            {},
        ):
            for method, path, body in calls:
                answer = http.request(method, path, json=body, headers=headers)
                assert not [secret for secret in SECRETS if secret in answer.text]
                made += 1
    return made


@pytest.mark.parametrize("redis_away", [False, True], ids=["broker away", "Redis away"])
async def test_the_service_logs_no_secret(
    service_settings: Settings,
    redis: Redis,
    shop: str,
    tmp_path: Path,
    unused_tcp_port: int,
    redis_away: bool,
    outcome: Tell,
) -> None:
    write_weights(Path(service_settings.base_model))
    url = AWAY if redis_away else service_settings.redis_url
    output = tmp_path / "service.log"
    env = environment(service_settings, PORT=unused_tcp_port, REDIS_URL=url)
    with running(["service.main"], env, output):
        made = traffic(f"http://127.0.0.1:{unused_tcp_port}")
    text = output.read_text(errors="replace")
    assert "plain_api_key" in text
    assert "audit" in text
    assert ("redis_unreachable" if redis_away else "request_failed") in text
    shown = [secret for secret in SECRETS if secret in text]
    what = f"The service's output at DEBUG shows no key and no password ({'Redis' if redis_away else 'broker'} away)"
    outcome(6, what, faults={"call with a secret": made}, cases=len(text.splitlines()), lost=len(shown))


COMMANDS = {
    "adapters": (["adapters"], {"URL": "http://127.0.0.1:1", "API_KEY": PLAIN}),
    "evolve": (["evolve", "--force"], {"URL": "http://127.0.0.1:1", "API_KEY": PLAIN}),
    "ingest": (["ingest", "interactions.csv", "--direct"], {}),
    "serve, a malformed key": (["serve"], {"API_KEYS": f"{MALFORMED}:everything"}),
    "serve, a malformed hash": (["serve"], {"API_KEYS": f"sha256${MALFORMED}:admin"}),
    "serve, a malformed file": (["serve"], {"API_KEYS_FILE": "keys"}),
    "serve, an impossible rate": (["serve"], {"RATE_LIMIT": "often"}),
    "worker": (["worker"], {}),
}


def test_commands_that_fail_show_no_secret(service_settings: Settings, tmp_path: Path, outcome: Tell) -> None:
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,i,1\n")
    (tmp_path / "keys").write_text(f"shop={MALFORMED}:nothing\n")
    shown: list[tuple[str, str]] = []
    lines = 0
    for name, (arguments, changes) in COMMANDS.items():
        env = environment(service_settings, **changes) | {"PYTHONPATH": str(ROOT)}
        output = tmp_path / f"{name}.log"
        with output.open("wb") as log:
            command = [sys.executable, "-m", "deploy.cli.main", *arguments]
            process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True)
            try:
                assert process.wait(10 if name == "worker" else 120) != 0, name
            except subprocess.TimeoutExpired:
                assert name == "worker"  # it waits for its broker, and says so
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, 9)
                    process.wait()
        text = output.read_text(errors="replace")
        assert text, name
        assert name == "worker" or "Traceback" not in text, name
        lines += len(text.splitlines())
        shown += [(name, secret) for secret in SECRETS if secret in text]
    assert shown == []
    faults = {"command that cannot succeed": len(COMMANDS)}
    outcome(6, "Failing commands show no key and no password", faults=faults, cases=lines)
