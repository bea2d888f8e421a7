"""`python -m deploy.local.redis_process`: the embedded Redis as a child of `evorec up`, its log on stdout."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import psutil

from shared.config import Settings
from shared.embedded_redis import EmbeddedRedis
from shared.errors import EvorecError
from shared.redis_urls import redis_log

_POLL_S = 0.5


class _LogFollower:
    """Copies what the server appends to its log file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0

    def copy(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        self._position += len(new)
        sys.stdout.write(new.decode("utf-8", "replace"))
        sys.stdout.flush()


def main() -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = Settings()
    log = _LogFollower(redis_log(settings))
    try:
        with EmbeddedRedis(settings) as server:
            while not stop.wait(_POLL_S):
                log.copy()
                if server.pid is None or not _runs(server.pid):
                    log.copy()
                    sys.stdout.write("redis-server ended by itself\n")
                    return 1
        log.copy()
    except (EvorecError, OSError) as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 0


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main())
