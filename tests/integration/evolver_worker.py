"""A real worker process with the fast pipeline: `python -m tests.integration.evolver_worker`.

EVOREC_* are the settings as ever. FAKE_STAGE_S: seconds per stage. FAKE_KILL_ONCE: a file; while it exists, the run
that is about to publish a stored version removes it and kills its own process, as a crash at that point would.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from evolver import publish, worker
from evolver.backend import Backend
from evolver.lease import Lease
from shared.config import Settings
from shared.manifest import Manifest
from tests.integration.fake_pipeline import FakePipeline

_publish = publish.publish


async def _die_before_publishing(backend: Backend, manifest: Manifest, lease: Lease) -> Manifest:
    _die_once(Path(os.environ["FAKE_KILL_ONCE"]))
    return await _publish(backend, manifest, lease)


def _die_once(while_exists: Path) -> None:
    if while_exists.exists():
        while_exists.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    settings = Settings()
    if "FAKE_KILL_ONCE" in os.environ:
        publish.publish = _die_before_publishing
    stage_s = float(os.environ.get("FAKE_STAGE_S", "0"))
    return worker.run(settings, pipeline=FakePipeline(stage_s, trace=settings.state_dir / "trace"))


if __name__ == "__main__":
    sys.exit(main())
