"""Redis servers to replicate from, kill, stop and slow down."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.embedded_redis import redis_executable

START_S = 60.0


class RedisServer:
    """A server on a loopback port, with an append-only file unless `options` say otherwise."""

    def __init__(self, folder: Path, port: int, **options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        fixed = {"port": str(port), "bind": "127.0.0.1", "dir": str(folder), "logfile": str(folder / "redis.log")}
        self._options = {**fixed, "save": "", "appendonly": "yes", "appendfsync": "always", **options}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0), decode_responses=True)

    def start(self) -> None:
        """Returns once it answers."""
        options = [part for name, value in self._options.items() for part in (f"--{name}", *value.split(" "))]
        self._process = subprocess.Popen([redis_executable(), *options], stdout=subprocess.DEVNULL)
        with self.client() as client:
            until_answers(client)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def until_answers(client: redis.Redis) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            client.ping()
            return
        except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
            assert time.monotonic() < deadline, "Redis does not answer"
            time.sleep(0.02)


@contextmanager
def slow_syncs(pid: int, delay_s: float) -> Iterator[bool]:
    """Every sync of the process to the disk takes that much longer, by strace; False where that cannot be had."""
    strace = shutil.which("strace")
    if strace is None:
        yield False
        return
    inject = f"inject=fdatasync:delay_enter={round(delay_s * 1e6)}"
    command = [strace, "-f", "-qq", "-o", os.devnull, "-e", "trace=fdatasync", "-e", inject, "-p", str(pid)]
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _is_traced(pid, tracer)
    finally:
        tracer.kill()
        tracer.wait()


def _is_traced(pid: int, tracer: subprocess.Popen[bytes]) -> bool:
    status = Path(f"/proc/{pid}/status")
    while tracer.poll() is None:
        if f"TracerPid:\t{tracer.pid}\n" in status.read_text():
            return True
        time.sleep(0.01)
    return False
