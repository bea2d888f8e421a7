"""A fresh state of its own for every run of the demo, whatever the environment says about the real one."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.config import Settings
from shared.errors import Conflict
from shared.types import DomainId

DOMAIN = DomainId("demo")
_NEVER = 10**9  # the demo asks for its evolutions itself; no trigger may fire before
_PANEL_SHARE = 0.08  # of a small store, so that its hit rates say something
# Three minutes on two cores; the environment has the last word.
_SIZES: dict[str, object] = {
    "max_train_examples": 100,
    "max_located_users": 32,
    "max_evaluated_users": 48,
    "max_validation_users": 24,
    "update_epochs": 1,
}
# What connects an installation to its real data, the lock that guards it, and what the demo's purchases, its one Redis
# and its many calls would not get past. The demo has their defaults.
_DROPPED = (
    "redis_url",
    "broker_url",
    "artifacts_url",
    "api_keys",
    "api_keys_file",
    "positive_events",
    "rate_limit",
    "max_concurrent_requests",
    "max_concurrent_rankings",
    "wait_replicas",
    "worker_metrics_port",
)


@dataclass(frozen=True, slots=True)
class DemoState:
    """`env` is the complete environment of the demo's processes, `settings` what they will read from it."""

    folder: Path
    settings: Settings
    env: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://{self.settings.host}:{self.settings.port}"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"


@contextmanager
def fresh_state(seed: int) -> Iterator[DemoState]:
    """Conflict while another demo uses the folder. The state stays afterwards, to be looked at, until the next run."""
    user = Settings()
    folder = user.state_dir.absolute() / "demo"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "demo.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"another `evorec demo` runs in {folder}") from error
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "logs").mkdir(parents=True)
        # The processes run in the demo's folder, where no .env lies; the settings here must be the same as theirs.
        inherited = Settings(_env_file=None)
        sizes = {name: size for name, size in _SIZES.items() if name not in inherited.model_fields_set}
        changes: dict[str, object] = {
            **sizes,
            "state_dir": folder,
            "base_model": _absolute(user.base_model),
            "host": "127.0.0.1",
            "port": free_port(),
            "default_domain": DOMAIN,
            "evolve_min_interactions": _NEVER,
            "evolve_max_age_s": _NEVER,
            "panel_share": _PANEL_SHARE,
            "seed": seed,
        }
        defaults = {name: Settings.model_fields[name].default for name in _DROPPED}
        dropped = {"EVOREC_API_KEY", *map(_variable, _DROPPED)}
        kept = {name: value for name, value in os.environ.items() if name.upper() not in dropped}
        env = kept | {_variable(name): str(value) for name, value in changes.items()}
        settings = inherited.model_copy(update=changes | defaults)
        yield DemoState(folder, settings, env)


def _variable(name: str) -> str:
    return f"EVOREC_{name.upper()}"


def _absolute(base_model: str) -> str:
    """The demo's processes run in another folder; a hub id stays as it is."""
    return str(Path(base_model).absolute()) if Path(base_model).exists() else base_model


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
