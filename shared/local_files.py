"""Folders of files on this machine: checksums, and what has to happen before a name may point at them."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from shared.errors import InvalidArtifact
from shared.manifest import Manifest

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def verify(folder: Path, manifest: Manifest) -> None:
    """InvalidArtifact where a file is missing, another one, or on a bad sector; OSError where nobody can tell."""
    for file, checksum in manifest.checksums.items():
        if not (folder / file).is_file():
            raise InvalidArtifact(f"adapter {manifest.name}: {file} is missing")
        try:
            found = sha256(folder / file)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise InvalidArtifact(f"adapter {manifest.name}: {file} cannot be read: {error}") from error
        if found != checksum:
            raise InvalidArtifact(f"adapter {manifest.name}: {file} does not match its checksum")


def intact(folder: Path, manifest: Manifest) -> bool:
    try:
        verify(folder, manifest)
    except (InvalidArtifact, FileNotFoundError):  # another process may remove it meanwhile
        return False
    return True


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        sync(path)
