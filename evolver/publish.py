"""From a pipeline's result to the version that serves: artifact first, the alias last."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import math
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from evolver.backend import Backend
from evolver.disk import room_in
from evolver.inputs import Cancelled, ParentVersion, PipelineResult
from evolver.lease import Lease
from evolver.window import Window
from shared.base_model import base_model_hash
from shared.config import Settings
from shared.errors import EvorecError, InvalidArtifact, NotFound, Unavailable
from shared.evolutions import Evolution
from shared.manifest import Manifest
from shared.types import AdapterName, DomainId

log = structlog.get_logger(__name__)

CLOCKS_DIFFER_S: Final = 300.0
"""At most, between the machine that asked for an evolution and the one that runs it."""


def code_version() -> str:
    """The installed version of this package, "0" for a bare checkout."""
    try:
        return importlib.metadata.version("evorec")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def build_manifest(
    name: AdapterName,
    evolution: Evolution,
    window: Window,
    parent: ParentVersion | None,
    result: PipelineResult,
    settings: Settings,
    *,
    stage_seconds: Mapping[str, float],
) -> Manifest:
    """Everything there is to know about a version, but its files' checksums: those are taken when it is stored."""
    return Manifest(
        name=name,
        domain=evolution.domain,
        parent=None if parent is None else parent.manifest.name,
        base_model=settings.base_model,
        base_model_hash=base_model_hash(settings.base_model),
        created_at=datetime.now(UTC),
        code_version=code_version(),
        seed=window.inputs.seed,
        evolution_id=evolution.id,
        reason="bootstrap" if parent is None else "evolution",
        stream_ranges=dict(window.ranges),
        n_interactions=window.n_interactions,
        n_active_users=window.n_active_users,
        located_layers=result.located_layers,
        n_layers=result.n_layers,
        layer_votes=result.layer_votes,
        layer_similarity=result.layer_similarity,
        trainable_parameters=result.trainable_parameters,
        lora_parameters=result.lora_parameters,
        trained_share=result.trainable_parameters / result.lora_parameters if result.lora_parameters else 0.0,
        forgotten_interactions=result.forgotten_interactions,
        forgotten_share=result.forgotten_share,
        lora_rank=result.lora_rank,
        target_modules=result.target_modules,
        blend=result.blend,
        metrics=result.metrics,
        gate=result.gate,
        stage_seconds=dict(stage_seconds),
        checksums={},
    )


def storable(result: PipelineResult) -> PipelineResult:
    """The result with metrics that JSON can hold: one that is not finite (a mean over no users) is left out.

    Raises `EvorecError` where the located layers rest on such numbers: then the training has diverged.
    """
    if not all(map(math.isfinite, (*result.layer_similarity, result.forgotten_share))):
        raise EvorecError("layer similarities or the forgotten share are not finite: the model's numbers have diverged")
    metrics = {
        when: {who: {name: v for name, v in values.items() if math.isfinite(v)} for who, values in groups.items()}
        for when, groups in result.metrics.items()
    }
    return dataclasses.replace(result, metrics=metrics)


async def store(backend: Backend, manifest: Manifest, files: Path) -> Manifest:
    """Commit the files of `files` as an immutable artifact; the manifest with its checksums."""
    return await asyncio.to_thread(_store, backend, manifest, files)


def _store(backend: Backend, manifest: Manifest, files: Path) -> Manifest:
    with (
        room_in(backend.artifacts.place),
        backend.artifacts.stage(manifest.domain, manifest.name) as staged,
    ):
        for file in (path for path in files.rglob("*") if path.is_file()):
            target = staged.path / file.relative_to(files)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)  # copytree would gather errors into one without a number
        return staged.commit(manifest)


async def publish(backend: Backend, manifest: Manifest, lease: Lease) -> Manifest:
    """Make a stored version the champion; raise `LeaseLost` or `AliasMoved` when the world has moved on, `Cancelled`
    where somebody was promised that nothing is published.
    """
    # Asked here as well: the monitor looks every half second alone, and an earlier attempt's version needs no step.
    if await backend.evolutions.cancel_requested(manifest.evolution_id):
        raise Cancelled("on request")
    lease.check()
    await backend.registry.publish(manifest, expected=manifest.parent, fencing_token=lease.token)
    log.info("version_published", domain=manifest.domain, adapter=manifest.name, evolution=manifest.evolution_id)
    return manifest


async def finish_earlier_attempt(backend: Backend, evolution: Evolution, lease: Lease) -> Manifest | None:
    """The version an earlier attempt of this evolution has published or stored; None when there is none.

    An attempt that died between the artifact and the registry has left a complete version: it is published as it
    is, so that the evolution makes exactly one. Where the champion has moved since, it is of no use and goes; so it
    does where a user was erased since whose history it may have read.
    """
    await _clear_away(backend, evolution.domain)
    registered = await backend.registry.versions(evolution.domain)
    for known in registered:
        if known.evolution_id == evolution.id:
            return known
    stored = await asyncio.to_thread(_stored, backend, evolution, frozenset(known.name for known in registered))
    if stored is None:
        return None
    if await backend.eraser.any_since(evolution.domain, evolution.requested_at - CLOCKS_DIFFER_S):
        return None
    if stored.parent == await backend.registry.champion(evolution.domain):
        return await publish(backend, stored, lease)
    return None


async def _clear_away(backend: Backend, domain: DomainId) -> None:
    """What dead attempts left half done. Under the lease: whoever still makes a version of this domain has lost it."""
    await asyncio.to_thread(backend.artifacts.sweep, domain, 0.0, versions_only=True)
    try:
        dropped = await backend.retention.drop_unfinished(domain)
    except Unavailable as error:
        log.warning("unfinished_versions_kept", domain=domain, error=repr(error))  # the next run tries again
    else:
        if dropped:
            log.info("unfinished_versions_dropped", domain=domain, adapters=dropped)


async def discard_unpublished(backend: Backend, evolution: Evolution) -> None:
    """Remove the stored versions of a finished evolution that were not published; what the registry knows stays.

    Only once the evolution's record is final: before that, another attempt may be about to publish one of them. And
    only where Redis has a registry: an emptied one counts evolutions anew, and knows no version at all.
    """
    if await backend.registry.lost(evolution.domain):
        return
    registered = frozenset(known.name for known in await backend.registry.versions(evolution.domain))
    for manifest in await asyncio.to_thread(_unpublished, backend, evolution, registered):
        await asyncio.to_thread(backend.artifacts.delete, manifest.domain, manifest.name)


def _stored(backend: Backend, evolution: Evolution, registered: frozenset[AdapterName]) -> Manifest | None:
    """The newest intact artifact of this evolution that the registry does not know."""
    for manifest in _unpublished(backend, evolution, registered):
        try:
            backend.artifacts.fetch(manifest.domain, manifest.name)
        except InvalidArtifact as error:
            log.warning("artifact_skipped", domain=manifest.domain, adapter=manifest.name, error=str(error))
        else:
            return manifest
    return None


def _unpublished(backend: Backend, evolution: Evolution, registered: frozenset[AdapterName]) -> list[Manifest]:
    """The artifacts of this evolution that the registry does not know, newest first."""
    found = []
    for name in reversed(backend.artifacts.names(evolution.domain)):
        if name in registered:
            continue
        try:
            manifest = backend.artifacts.manifest(evolution.domain, name)
        except (InvalidArtifact, NotFound) as error:
            log.warning("artifact_skipped", domain=evolution.domain, adapter=name, error=str(error))
            continue
        # A Redis that lost everything counts evolutions anew: an older artifact may bear this one's id.
        of_its_time = manifest.created_at.timestamp() > evolution.requested_at - CLOCKS_DIFFER_S
        if manifest.evolution_id == evolution.id and of_its_time:
            found.append(manifest)
    return found
