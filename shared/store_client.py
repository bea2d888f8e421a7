"""The file system of the artifact store: a local folder, or any that fsspec opens.

fsspec's own `isdir` and `exists` say no as well where a store merely did not answer, and its clients' errors are not
all OSErrors. Here whatever asks raises FileNotFoundError where the store says that there is no such thing, and
Unavailable where it says nothing; of a full disk of this machine, where downloads go, there is the OSError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shared.errors import InvalidInput, Unavailable
from shared.local_files import FULL_DISK


class StoreClient:
    """Paths are whole ones, below `root`."""

    def __init__(self, url: str) -> None:
        """InvalidInput for a place that nothing here can open."""
        self.fs, self.root = _open(url)
        self.local = isinstance(self.fs, LocalFileSystem)

    def names_in(self, folder: str) -> list[str]:
        """What is in a folder, sorted; FileNotFoundError where there is none."""
        self.fs.invalidate_cache()  # remote file systems remember listings; other processes write here too
        with _answering(folder):
            found = [str(path).rstrip("/") for path in self.fs.ls(folder, detail=False)]
        # Where it is a file, that is all there is.
        return sorted(path.rpartition("/")[2] for path in found if path != folder)

    def exists(self, path: str) -> bool:
        self.fs.invalidate_cache()
        try:
            with _answering(path):
                self.fs.info(path)
        except FileNotFoundError:
            return False
        return True

    def open(self, path: str) -> IO[bytes]:
        """What reading the file raises is fsspec's client's own."""
        with _answering(path):
            file: IO[bytes] = self.fs.open(path, "rb")
        return file

    def read(self, path: str) -> bytes:
        with _answering(path):
            content: bytes = self.fs.cat_file(path)
        return content

    def download(self, path: str, file: Path) -> None:
        with _answering(path):
            self.fs.get_file(path, str(file))

    def upload(self, file: Path, path: str) -> None:
        with _answering(path):
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.fs.put_file(str(file), path)

    def remove(self, path: str) -> None:
        with _answering(path):
            self.fs.rm_file(path)

    def remove_folder(self, folder: str) -> None:
        with _answering(folder):
            self.fs.rm(folder, recursive=True)


def _open(url: str) -> tuple[Any, str]:
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # no package for the scheme here, or none anywhere
        raise InvalidInput(
            f"EVOREC_ARTIFACTS_URL begins with {url.partition('://')[0]}://, which cannot be opened here: {error}. "
            "For s3:// install the extra `s3` (`-c constraints.txt -e '.[s3]'`; of an image, `--build-arg EXTRAS=s3`), "
            "for others their fsspec package"
        ) from error
    return fs, str(root).rstrip("/")


@contextmanager
def _answering(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(path) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise
        raise Unavailable(
            f"the artifact store does not answer for {path}; try again: {type(error).__name__}: {error}"
        ) from error
