"""The artifact store: immutable adapter versions as folders of files, and the log of alias moves.

Layout: `<root>/<domain>/<adapter name>/<files>` and `<root>/<domain>/aliases/<sequence>.json`. The root is a local
folder, or any fsspec URL. A version becomes visible in one step: locally by renaming its complete folder into place,
remotely by its manifest, which is uploaded last.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, ValidationError

from shared.config import Settings
from shared.errors import Conflict, InvalidArtifact, NotFound
from shared.manifest import Manifest, split_adapter_name
from shared.redis_keys import DOMAIN_PATTERN, validate_domain
from shared.types import AdapterName, DomainId

MANIFEST = "manifest.json"
ALIASES = "aliases"
STAGING_PREFIX = ".staging-"


class AliasMove(BaseModel):
    """One move of an alias. `at`: unix seconds; `before`/`to` are None where the alias was or became unset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int
    alias: str
    before: AdapterName | None
    to: AdapterName | None
    at: float
    reason: str


class StagedArtifact:
    """A folder to write a version's files in; as a context manager it leaves nothing behind without `commit`."""

    def __init__(self, store: ArtifactStore, domain: DomainId, name: AdapterName, path: Path) -> None:
        self.path = path
        self._store = store
        self._domain = domain
        self._name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def commit(self, manifest: Manifest) -> Manifest:
        """Makes the version visible; the manifest with its files' checksums. Conflict where the name is taken."""
        if (manifest.domain, manifest.name) != (self._domain, self._name):
            raise InvalidArtifact(f"the manifest of {manifest.name} was committed as {self._name} of {self._domain}")
        checksums = {file: sha256(self.path / file) for file in _files(self.path) if file != MANIFEST}
        complete = manifest.model_copy(update={"checksums": checksums})
        (self.path / MANIFEST).write_text(complete.to_json())
        self._store.adopt(complete, self.path)
        return complete


class ArtifactStore:
    """Synchronous file I/O: call it through `asyncio.to_thread` from a loop that serves."""

    def __init__(self, settings: Settings) -> None:
        url = settings.artifacts_url or str(settings.state_dir.absolute() / "artifacts")
        self._fs, self._root = _open(url)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._cache = settings.state_dir.absolute() / "artifact-cache"

    def stage(self, domain: DomainId, name: AdapterName) -> StagedArtifact:
        self._refuse_existing(domain, name)
        # Locally in the domain's own folder: a rename is atomic within one file system alone.
        parent = Path(self._at(domain)) if self._local else self._cache
        parent.mkdir(parents=True, exist_ok=True)
        path = parent / f"{STAGING_PREFIX}{name}-{uuid.uuid4().hex[:8]}"
        path.mkdir()
        return StagedArtifact(self, domain, name, path)

    def adopt(self, manifest: Manifest, staged: Path) -> None:
        """Moves a complete staged folder to its final place; its manifest appears last."""
        self._refuse_existing(manifest.domain, manifest.name)
        final = self._at(manifest.domain, manifest.name)
        if self._local:
            _sync_tree(staged)
            try:
                staged.rename(final)  # fails where a full folder has come into being meanwhile
            except OSError as error:
                raise Conflict(f"adapter {manifest.name} could not be put at {final}: {error}") from error
            _sync(Path(final).parent)
            return
        for file in [*manifest.checksums, MANIFEST]:
            self._fs.makedirs(f"{final}/{file}".rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(staged / file), f"{final}/{file}")

    def fetch(self, domain: DomainId, name: AdapterName) -> Path:
        """A local folder whose files match their checksums, each time verified.

        NotFound for an unknown version, InvalidArtifact for a damaged one.
        """
        manifest = self.manifest(domain, name)
        if self._local:
            folder = Path(self._at(domain, name))
            _verify(folder, manifest)
            return folder
        folder = self._cache / domain / name
        if not _intact(folder, manifest):
            self._download(folder, manifest)
        return folder

    def manifest(self, domain: DomainId, name: AdapterName) -> Manifest:
        try:
            content: bytes = self._fs.cat_file(self._at(domain, name, MANIFEST))
        except FileNotFoundError as error:
            raise NotFound(f"there is no adapter {name!r} in the artifact store") from error
        manifest = Manifest.from_json(content)
        if (manifest.domain, manifest.name) != (domain, name):
            raise InvalidArtifact(f"the folder of {name} holds the manifest of {manifest.name}")
        return manifest

    def names(self, domain: DomainId) -> list[AdapterName]:
        """The complete versions, oldest first."""
        found = [AdapterName(name) for name in self._list(domain) if _is_version(domain, name)]
        complete = [name for name in found if self._fs.exists(self._at(domain, name, MANIFEST))]
        return sorted(complete, key=lambda name: split_adapter_name(name)[1])

    def domains(self) -> list[DomainId]:
        """Other folders (`lost+found`) are left out."""
        return [DomainId(name) for name in self._list() if re.fullmatch(DOMAIN_PATTERN, name)]

    def delete(self, domain: DomainId, name: AdapterName) -> None:
        """Removes a version; one that is not there is no error. It stops being visible before its files go."""
        folder = self._at(domain, name)
        if not self._fs.exists(folder):
            return
        if self._fs.exists(f"{folder}/{MANIFEST}"):
            self._fs.rm_file(f"{folder}/{MANIFEST}")
        self._fs.rm(folder, recursive=True)
        shutil.rmtree(self._cache / domain / name, ignore_errors=True)

    def record_alias_move(self, domain: DomainId, move: AliasMove) -> None:
        """Writing the same move again changes nothing."""
        path = self._at(domain, ALIASES, f"{move.sequence:09d}.json")
        self._fs.makedirs(self._at(domain, ALIASES), exist_ok=True)
        content = (move.model_dump_json() + "\n").encode()
        if self._local:
            _write_atomically(Path(path), content)
        else:
            self._fs.pipe_file(path, content)

    def alias_moves(self, domain: DomainId) -> list[AliasMove]:
        """Every recorded move, in order."""
        files = [file for file in self._list(domain, ALIASES) if file.endswith(".json") and not file.startswith(".")]
        contents = [(file, self._fs.cat_file(self._at(domain, ALIASES, file))) for file in sorted(files)]
        try:
            return [AliasMove.model_validate_json(content) for _, content in contents]
        except ValidationError as error:
            raise InvalidArtifact(f"an alias move of {domain} cannot be read: {error}") from error

    def _refuse_existing(self, domain: DomainId, name: AdapterName) -> None:
        if split_adapter_name(name)[0] != domain:
            raise InvalidArtifact(f"adapter {name} does not belong to domain {domain}")
        if self._fs.exists(self._at(domain, name, MANIFEST)):
            raise Conflict(f"adapter {name} exists; versions are immutable and names are never used twice")

    def _download(self, folder: Path, manifest: Manifest) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=STAGING_PREFIX) as temporary:
            staged = Path(temporary) / manifest.name
            for file in [*manifest.checksums, MANIFEST]:
                (staged / file).parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(self._at(manifest.domain, manifest.name, file), str(staged / file))
            _verify(staged, manifest)
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            staged.rename(folder)

    def _list(self, *parts: str) -> list[str]:
        folder = self._at(*parts)
        self._fs.invalidate_cache()  # remote file systems remember listings; other processes write here too
        if not self._fs.isdir(folder):
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in self._fs.ls(folder, detail=False))

    def _at(self, *parts: str) -> str:
        """The path of a domain, a version or a file of it. Every path is made here, so that no name leads elsewhere.

        InvalidInput for an impossible domain, NotFound for an impossible version.
        """
        if parts:
            validate_domain(parts[0])
        if len(parts) > 1 and parts[1] != ALIASES and split_adapter_name(parts[1])[0] != parts[0]:
            raise NotFound(f"there is no adapter {parts[1]!r} in domain {parts[0]!r}")
        return "/".join([self._root, *parts])


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(url: str) -> tuple[Any, str]:
    fs, root = fsspec.core.url_to_fs(url)
    return fs, str(root).rstrip("/")


def _is_version(domain: DomainId, name: str) -> bool:
    try:
        return split_adapter_name(name)[0] == domain
    except NotFound:
        return False


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _verify(folder: Path, manifest: Manifest) -> None:
    for file, checksum in manifest.checksums.items():
        if not (folder / file).is_file():
            raise InvalidArtifact(f"adapter {manifest.name}: {file} is missing")
        if sha256(folder / file) != checksum:
            raise InvalidArtifact(f"adapter {manifest.name}: {file} does not match its checksum")


def _intact(folder: Path, manifest: Manifest) -> bool:
    try:
        _verify(folder, manifest)
    except InvalidArtifact:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    temporary.write_bytes(content)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)
