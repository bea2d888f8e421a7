"""`evorec up` as a process: everything starts, logs in one place, and nothing is left however it ends.

The engine has no model here and never becomes ready: starting and stopping is what these tests are about.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from deploy.demo.state import free_port
from shared.config import Settings
from tests.integration.evolver_support import healthy_worker, until

START_S = 120


class Up:
    """A running `evorec up`, what it printed so far, and the processes that belong to it."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.port = free_port()
        self.log = folder / "up.log"
        env = {
            **os.environ,
            "EVOREC_STATE_DIR": str(self.state),
            "EVOREC_PORT": str(self.port),
            "EVOREC_BASE_MODEL": str(folder / "no-model"),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy.cli.main", "up"], cwd=folder, env=env, stdout=log, stderr=log
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def members(self) -> list[psutil.Process]:
        """It and all its descendants."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def started(self) -> bool:
        try:
            alive = httpx.get(f"http://127.0.0.1:{self.port}/health/live", timeout=2, trust_env=False).is_success
        except httpx.HTTPError:
            alive = False
        return alive and "worker_ready" in self.text()

    async def until_started(self) -> None:
        deadline = time.monotonic() + START_S
        while not self.started():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            await asyncio.sleep(0.3)

    def child(self, name: str) -> psutil.Process:
        """Celery renames its process."""
        title = {"worker": "celeryd", "service": "serve"}[name]
        return next(p for p in psutil.Process(self.process.pid).children() if title in " ".join(p.cmdline()))

    def wait(self) -> int:
        return self.process.wait(timeout=60)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path)
    yield running
    if running.process.poll() is None:
        for process in running.members():
            process.kill()
    running.process.wait(timeout=10)


def still_running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


async def test_ctrl_c_leaves_nothing_running(up: Up) -> None:
    await up.until_started()
    await until(lambda: healthy_worker(Settings(_env_file=None, state_dir=up.state)), "the worker's first tick")
    names = {line.split("|")[0].strip() for line in up.text().splitlines() if " | " in line}
    assert {"redis", "worker", "service"} <= names
    members = up.members()
    assert len(members) >= 6  # itself, Redis and its keeper, worker and its child, service
    up.process.send_signal(signal.SIGINT)
    assert up.wait() == 0, up.text()
    assert still_running(members) == []
    assert (up.state / "redis").is_dir()


async def test_one_dead_process_stops_the_others(up: Up) -> None:
    await up.until_started()
    members = up.members()
    up.child("worker").kill()
    assert up.wait() == 1
    assert "worker was killed by SIGKILL" in up.text()
    assert still_running(members) == []


def test_every_command_explains_itself_without_loading_an_engine() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from deploy.cli.main import app;"
        "print(CliRunner().invoke(app, ['--help']).output);"
        "print([name for name in ('torch', 'vllm', 'celery', 'fastapi') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("up", "demo", "serve", "worker", "pretrain", "bootstrap", "ingest", "evolve", "adapters"):
        assert name in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"
