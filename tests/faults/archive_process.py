"""Archive, trim or restore in a process of its own, to be killed: `python -m tests.faults.archive_process WHAT DOMAIN`.

EVOREC_* are the settings as ever. "begin" on stdout says that the work starts now. Files and trims are small, so that
there are many moments to die in.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import NoReturn

from evolver.backend import open_backend
from evolver.upkeep import upkeep
from shared import archive, stream
from shared.artifacts import ArtifactStore
from shared.config import Settings
from shared.domains import validate_domain
from shared.restore import Restorer
from shared.types import DomainId


async def work(what: str, domain: DomainId) -> None:
    settings = Settings()
    async with open_backend(settings) as backend:
        await backend.redis.ping()
        os.write(1, b"begin\n")
        if what == "upkeep":
            await upkeep(backend, domain)
        else:
            await Restorer(backend.redis, settings, backend.artifacts).restore(domain)


def write_for_ever(domain: DomainId) -> NoReturn:
    """Into one file of the archive, which never gets whole."""
    store = ArtifactStore(Settings())
    with store.write(domain, "archive", "0", "0-0_1-0.parquet") as path, path.open("wb", buffering=0) as file:
        file.write(b"PAR1")
        os.write(1, b"begin\n")
        while True:
            file.write(b"half a row")
            time.sleep(0.001)


def main() -> int:
    import pyarrow.parquet  # noqa: F401 - its second of imports is not the work to be interrupted

    if sys.argv[1] == "write":
        write_for_ever(validate_domain(sys.argv[2]))
    archive.PART_ROWS = 100
    stream.TRIM_CHUNK = 100
    asyncio.run(work(sys.argv[1], validate_domain(sys.argv[2])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
