"""One process at a time, where several work in one folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """Wait until no other process makes `path`, and keep others waiting; an empty `path`.lock lies beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go by the end of the process, however it comes
        yield
