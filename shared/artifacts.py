"""The artifact store: immutable adapter versions as folders of files, and single files beside them.

Layout: `<root>/<domain>/<adapter name>/<files>`, `<root>/<domain>/aliases/<sequence>.json`, `<root>/<domain>/archive/`.
The root is a local folder, or any fsspec URL. A version becomes visible in one step: locally by renaming its complete
folder into place, remotely by its manifest, which is uploaded last.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from shared.config import Settings
from shared.domains import DOMAIN_PATTERN, validate_domain
from shared.errors import Conflict, InvalidArtifact, NotFound
from shared.local_files import files_below, intact, sha256, sync, sync_tree, verify
from shared.manifest import Manifest, split_adapter_name
from shared.store_client import StoreClient
from shared.types import AdapterName, DomainId

MANIFEST = "manifest.json"
ALIASES = "aliases"
ARCHIVE = "archive"
ROUTE = "route.json"
BESIDE_VERSIONS = (ALIASES, ARCHIVE, ROUTE)
STAGING_PREFIX = ".staging-"
STAGING_KEPT_S = 24 * 3600  # what is staged for longer belongs to a process that has died
DELETE_ATTEMPTS = 20  # more than a version has files


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
        checksums = {file: sha256(self.path / file) for file in files_below(self.path) if file != MANIFEST}
        complete = manifest.model_copy(update={"checksums": checksums})
        (self.path / MANIFEST).write_text(complete.to_json())
        self._store.adopt(complete, self.path)
        return complete


class ArtifactStore:
    """Synchronous file I/O: call it through `asyncio.to_thread` from a loop that serves.

    Whatever asks the store raises Unavailable where it does not answer; that is never taken for an empty folder or a
    missing file. Of what is written on this machine, a full disk say, there are OSErrors.
    """

    def __init__(self, settings: Settings) -> None:
        url = settings.artifacts_url or str(settings.state_dir.absolute() / "artifacts")
        self._client = StoreClient(url)
        self._cache = settings.state_dir.absolute() / "artifact-cache"

    @property
    def place(self) -> Path:
        """Where this machine writes: the store itself, or what is to be uploaded to it."""
        return Path(self._client.root) if self._client.local else self._cache

    def stage(self, domain: DomainId, name: AdapterName) -> StagedArtifact:
        self._refuse_existing(domain, name)
        # Locally in the domain's own folder: a rename is atomic within one file system alone.
        parent = Path(self._at(domain)) if self._client.local else self._cache
        parent.mkdir(parents=True, exist_ok=True)
        path = parent / f"{STAGING_PREFIX}{name}-{uuid.uuid4().hex[:8]}"
        path.mkdir()
        return StagedArtifact(self, domain, name, path)

    def adopt(self, manifest: Manifest, staged: Path) -> None:
        """Moves a complete staged folder to its final place; its manifest appears last."""
        self._refuse_existing(manifest.domain, manifest.name)
        final = self._at(manifest.domain, manifest.name)
        if self._client.local:
            sync_tree(staged)
            try:
                staged.rename(final)  # fails where a full folder has come into being meanwhile
            except OSError as error:
                raise Conflict(f"adapter {manifest.name} could not be put at {final}: {error}") from error
            sync(Path(final).parent)
            return
        for file in [*manifest.checksums, MANIFEST]:
            self._client.upload(staged / file, f"{final}/{file}")

    def fetch(self, domain: DomainId, name: AdapterName) -> Path:
        """A local folder whose files match their checksums, each time verified.

        NotFound for an unknown version, InvalidArtifact for a damaged one.
        """
        manifest = self.manifest(domain, name)
        if self._client.local:
            folder = Path(self._at(domain, name))
            verify(folder, manifest)
            return folder
        folder = self._cache / domain / name
        if not intact(folder, manifest):
            self._download(folder, manifest)
        return folder

    def manifest(self, domain: DomainId, name: AdapterName) -> Manifest:
        try:
            content = self.read(domain, name, MANIFEST)
        except FileNotFoundError as error:
            raise NotFound(f"there is no adapter {name!r} in the artifact store") from error
        manifest = Manifest.from_json(content)
        if (manifest.domain, manifest.name) != (domain, name):
            raise InvalidArtifact(f"the folder of {name} holds the manifest of {manifest.name}")
        return manifest

    def names(self, domain: DomainId) -> list[AdapterName]:
        """The complete versions, oldest first."""
        complete = [name for name in self.folders(domain) if self._client.exists(self._at(domain, name, MANIFEST))]
        return sorted(complete, key=lambda name: split_adapter_name(name)[1])

    def folders(self, domain: DomainId) -> list[AdapterName]:
        """The versions, complete or not, by the names alone."""
        return [AdapterName(name) for name in self._list(domain) if _is_version(domain, name)]

    def unfinished(self, domain: DomainId) -> list[AdapterName]:
        """The folders without a manifest: of an upload or a deletion that was cut off, or that is under way."""
        return [name for name in self.folders(domain) if self._lacks_manifest(self._at(domain, name))]

    def _lacks_manifest(self, folder: str) -> bool:
        try:
            return MANIFEST not in self._client.names_in(folder)
        except FileNotFoundError:
            return False

    def domains(self) -> list[DomainId]:
        """Other folders (`lost+found`) are left out."""
        return [DomainId(name) for name in self._list() if re.fullmatch(DOMAIN_PATTERN, name)]

    def delete(self, domain: DomainId, name: AdapterName) -> None:
        """Removes a version; one that is not there is no error. It stops being visible before its files go."""
        # Two workers may delete the same version: where the other one was faster, the rest is looked at again.
        for attempt in Retrying(
            retry=retry_if_exception_type(FileNotFoundError), stop=stop_after_attempt(DELETE_ATTEMPTS), reraise=True
        ):
            with attempt:
                self._delete_files(self._at(domain, name))
        self.drop_copy(domain, name)

    def _delete_files(self, folder: str) -> None:
        if not self._client.exists(folder):
            return
        with suppress(FileNotFoundError):
            self._client.remove(f"{folder}/{MANIFEST}")
        self._client.remove_folder(folder)

    def copies(self, domain: DomainId) -> list[AdapterName]:
        """The versions of which `fetch` has left a copy on this machine."""
        self._at(domain)
        folder = self._cache / domain
        found = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
        return [AdapterName(name) for name in sorted(found) if _is_version(domain, name)]

    def drop_copy(self, domain: DomainId, name: AdapterName) -> None:
        """One that is not there is no error; the next `fetch` makes it anew."""
        self._at(domain, name)
        shutil.rmtree(self._cache / domain / name, ignore_errors=True)

    # -- single files -----------------------------------------------------------------------------

    @contextmanager
    def write(self, domain: DomainId, *path: str) -> Iterator[Path]:
        """A path to write a file's content to; the file appears, or replaces the one before, as the block ends."""
        final = self._at(domain, *path)
        folder = Path(final).parent if self._client.local else self._cache
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / f"{STAGING_PREFIX}{path[-1]}-{uuid.uuid4().hex[:8]}"
        try:
            yield staged
            if self._client.local:
                sync(staged)
                staged.replace(final)
                for parent in Path(final).parents[: len(path) + 1]:  # some may have come into being just now
                    sync(parent)
            else:
                self._client.upload(staged, final)
        finally:
            staged.unlink(missing_ok=True)

    def files(self, domain: DomainId, *folder: str) -> list[str]:
        """Names of the files and folders in a folder, sorted, without staged ones; none where there is no folder."""
        return [name for name in self._list(domain, *folder) if not name.startswith(".")]

    def open(self, domain: DomainId, *path: str) -> IO[bytes]:
        """A file to read from; FileNotFoundError where there is none. What reading it raises is the client's own."""
        return self._client.open(self._at(domain, *path))

    def read(self, domain: DomainId, *path: str) -> bytes:
        """All of a file; FileNotFoundError where there is none."""
        return self._client.read(self._at(domain, *path))

    def delete_file(self, domain: DomainId, *path: str) -> None:
        """One that is not there is no error."""
        with suppress(FileNotFoundError):
            self._client.remove(self._at(domain, *path))

    def sweep(self, domain: DomainId, older_than_s: float = STAGING_KEPT_S, *, versions_only: bool = False) -> int:
        """Removes what dead processes left staged and nobody has touched for so long; how many folders and files.

        A writer that is merely slow fails for it: with a short time, it must not be one whose work still counts.
        """
        parent = Path(self._at(domain))  # refuses what is no domain, wherever the store is
        oldest = time.time() - older_than_s
        swept = 0
        for path in _staged(parent if self._client.local else self._cache):
            if versions_only and not _is_version(domain, path.name.removeprefix(STAGING_PREFIX).rpartition("-")[0]):
                continue
            try:
                if path.lstat().st_mtime > oldest:
                    continue
            except FileNotFoundError:
                continue  # its writer has just put it in place, or given it up
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            swept += 1
        return swept

    def _refuse_existing(self, domain: DomainId, name: AdapterName) -> None:
        if split_adapter_name(name)[0] != domain:
            raise InvalidArtifact(f"adapter {name} does not belong to domain {domain}")
        if self._client.exists(self._at(domain, name, MANIFEST)):
            raise Conflict(f"adapter {name} exists; versions are immutable and names are never used twice")

    def _download(self, folder: Path, manifest: Manifest) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=STAGING_PREFIX) as temporary:
            staged = Path(temporary) / manifest.name
            for file in [*manifest.checksums, MANIFEST]:
                (staged / file).parent.mkdir(parents=True, exist_ok=True)
                # Without its manifest the version has just been deleted; any other file `verify` misses.
                source = self._at(manifest.domain, manifest.name, file)
                with nullcontext() if file == MANIFEST else suppress(FileNotFoundError):
                    self._client.download(source, staged / file)
            verify(staged, manifest)
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            staged.rename(folder)

    def _list(self, *parts: str) -> list[str]:
        """None where there is no folder."""
        try:
            return self._client.names_in(self._at(*parts))
        except FileNotFoundError:
            return []

    def _at(self, *parts: str) -> str:
        """The path of a domain, a version or a file of it. Every path is made here, so that no name leads elsewhere.

        InvalidInput for an impossible domain, NotFound for an impossible version.
        """
        if parts:
            validate_domain(parts[0])
        if len(parts) > 1 and parts[1] not in BESIDE_VERSIONS and split_adapter_name(parts[1])[0] != parts[0]:
            raise NotFound(f"there is no adapter {parts[1]!r} in domain {parts[0]!r}")
        return "/".join([self._client.root, *parts])


def _is_version(domain: DomainId, name: str) -> bool:
    try:
        return split_adapter_name(name)[0] == domain
    except NotFound:
        return False


def _staged(root: Path) -> Iterator[Path]:
    """What is staged in a folder and those below it. Folders may come and go meanwhile."""
    for folder, folders, files in os.walk(root):
        found = [name for name in [*folders, *files] if name.startswith(STAGING_PREFIX)]
        folders[:] = [name for name in folders if name not in found]
        yield from (Path(folder, name) for name in found)
