"""An evolution from its request to its end, with a bar meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console

from deploy.client import ServiceClient, ServiceRefused
from deploy.output import note_console, share_progress
from shared.errors import Conflict, EvorecError
from shared.evolutions import Evolution, EvolutionStatus
from shared.types import DomainId, EvolutionId

_QUEUED_S = 60.0
_NO_WORKER = "No worker has taken it yet: is one running with this EVOREC_BROKER_URL, and not busy with another domain?"


class EvolutionFailed(EvorecError):
    title = "The evolution did not finish"


class NothingPublished(EvorecError):
    title = "No version came of it"


async def start_evolution(
    client: ServiceClient, domain: DomainId, *, force: bool, dry_run: bool = False
) -> EvolutionId:
    """A new evolution, or the one that is under way already; a dry run and a real one do not stand for each other."""
    try:
        return await client.evolve(domain, force=force, dry_run=dry_run)
    except ServiceRefused as refused:
        active = await client.active_evolution(domain) if refused.status_code == Conflict.status else None
        if active is None or active.dry_run or dry_run:
            raise
        note_console().print(f"{active.id} is under way already.")
        return active.id


async def follow(
    client: ServiceClient,
    evolution_id: EvolutionId,
    console: Console,
    label: str,
    clock: Callable[[], float] = time.monotonic,
) -> Evolution:
    """The final state. Ctrl-C ends the watching, not the evolution. `clock`: seconds."""
    began, is_told = clock(), False
    with share_progress(console) as progress:
        task = progress.add_task(f"{label}: queued", total=1.0)
        async for evolution in client.follow(evolution_id):
            if evolution.status is EvolutionStatus.queued and not is_told and clock() >= began + _QUEUED_S:
                is_told = True
                console.print(_NO_WORKER, style="yellow", soft_wrap=True)
            stage = evolution.status if evolution.status.final else evolution.stage or evolution.status
            completed = 1.0 if evolution.status.final else evolution.progress
            progress.update(task, description=f"{label}: {stage}", completed=completed)
    return evolution


def require_finished(evolution: Evolution) -> Evolution:
    """Raises `EvolutionFailed` where it failed or was cancelled."""
    if evolution.status in (EvolutionStatus.failed, EvolutionStatus.cancelled):
        raise EvolutionFailed(_ended(evolution))
    return evolution


def require_published(evolution: Evolution) -> Evolution:
    """Raises `NothingPublished` where no version came of it, for want of anything to learn too."""
    if evolution.status is not EvolutionStatus.published:
        raise NothingPublished(_ended(evolution))
    return evolution


def _ended(evolution: Evolution) -> str:
    return f"{evolution.id} {evolution.status}: {evolution.error or evolution.message or 'no reason given'}"
