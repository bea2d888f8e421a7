"""The processes of one machine over one state directory, each to be killed, stopped and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from deploy.demo.state import free_port
from shared.config import Settings
from shared.embedded_redis import EmbeddedRedis
from shared.redis_urls import socket_url
from tests.conftest import make_settings
from tests.load.http_client import Connection
from tests.service_support import SHOP
from tests.tiny_base import write_base

FAKE_ENGINE: Final = "tests.faults.service_worker"
START_S: Final = 300
_ROOT: Final = Path(__file__).parents[2]


@contextmanager
def machine(**changes: object) -> Iterator[Settings]:
    """Settings over a folder of its own, short enough for a socket's path to stay the same over restarts."""
    with tempfile.TemporaryDirectory(prefix="evorec-") as folder:
        base = write_base(Path(folder) / "base")
        fixed = {"state_dir": Path(folder), "base_model": str(base), "max_model_len": 1024, "default_domain": SHOP}
        settings = make_settings(**{**fixed, "port": free_port(), "registry_poll_s": 0.5, **changes})
        yield settings.model_copy(update={"redis_url": socket_url(settings)})


class RedisProcess:
    """The embedded Redis, as `evorec up` starts it."""

    def __init__(self, settings: Settings) -> None:
        self._server = EmbeddedRedis(settings)

    def start(self) -> None:
        self._server.start()

    def signal(self, number: signal.Signals) -> None:
        assert self._server.pid is not None
        os.kill(self._server.pid, number)

    def kill(self) -> None:
        if self._server.pid is not None:
            self.signal(signal.SIGKILL)
            self._server.stop()


class ServiceProcess:
    """`python -m MODULE` with the settings that differ from their defaults; its log lies in the state directory."""

    def __init__(self, settings: Settings, module: str = FAKE_ENGINE, **env: str) -> None:
        self.settings = settings
        self._module = module
        self._env = env
        self._log = settings.state_dir / "service.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def process(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def start(self) -> None:
        changed = self.settings.model_dump(mode="json", exclude_defaults=True)
        named = {f"EVOREC_{name.upper()}": str(value) for name, value in changed.items()}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                cwd=_ROOT,
                env={**os.environ, **named, **self._env},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def listening(self) -> None:
        """Returns once it listens; fails with its log where it ended."""
        async with asyncio.timeout(START_S):
            while True:
                assert self._process is not None
                assert self._process.poll() is None, self.log[-3000:]
                try:
                    (await self.connect()).close()
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    return

    async def connect(self) -> Connection:
        return await Connection.open(self.settings.host, self.settings.port)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Its exit status."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL to it and to its engine's processes, as when its container ends."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
