"""A full disk as an error that says where."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import DiskFull
from shared.local_files import FULL_DISK


@contextmanager
def room_in(folder: Path, needed: int = 0) -> Iterator[None]:
    """Raise `DiskFull` where writing below the folder fails for want of space.

    `needed`: bytes that must be free to begin with, for writers that do not say why they fail (safetensors).
    """
    try:
        if needed and (free := shutil.disk_usage(folder).free) < needed:
            raise _full(folder, f"{needed:,} bytes are needed and {free:,} are free")
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise _full(folder, str(error)) from error
        raise


def _full(folder: Path, why: str) -> DiskFull:
    return DiskFull(f"the disk of {folder} is full: {why}; nothing was changed, free some space there")
