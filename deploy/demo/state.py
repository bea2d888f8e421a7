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
# What connects an installation to its real data, and the lock that guards it.
_DROPPED = (
    "EVOREC_REDIS_URL",
    "EVOREC_BROKER_URL",
    "EVOREC_ARTIFACTS_URL",
    "EVOREC_API_KEYS",
    "EVOREC_API_KEYS_FILE",
    "EVOREC_API_KEY",
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
        sizes = {name: size for name, size in _SIZES.items() if name not in user.model_fields_set}
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
        disconnected = {
            "redis_url": None,
            "broker_url": None,
            "artifacts_url": None,
            "api_keys": (),
            "api_keys_file": None,
        }
        kept = {name: value for name, value in os.environ.items() if name.upper() not in _DROPPED}
        env = kept | {f"EVOREC_{name.upper()}": str(value) for name, value in changes.items()}
        # The processes run in the demo's folder, where no .env lies; the settings here must be the same as theirs.
        settings = Settings(_env_file=None).model_copy(update=changes | disconnected)
        yield DemoState(folder, settings, env)


def _absolute(base_model: str) -> str:
    """The demo's processes run in another folder; a hub id stays as it is."""
    return str(Path(base_model).absolute()) if Path(base_model).exists() else base_model


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
