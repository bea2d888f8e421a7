"""Values for tests, with everything filled in that a test does not care about."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from shared.artifacts import ArtifactStore
from shared.changes import announce
from shared.manifest import Gate, Manifest, adapter_name
from shared.ranking import Blends, BlendWeights
from shared.redis_keys import DomainKeys
from shared.types import AdapterName, DomainId, EvolutionId, Interaction, ItemId, UserId

BEAUTY = DomainId("beauty")
T0 = 1_700_000_000.0


def interaction(user: str = "u1", item: str = "i1", at: float = 0.0, event_id: str = "", **changes: Any) -> Interaction:
    """`at`: seconds after T0. Without an event id, as a client may send it."""
    return Interaction(event_id, UserId(user), ItemId(item), T0 + at, **changes)


def manifest(
    number: int = 1, *, domain: DomainId = BEAUTY, parent: AdapterName | None = None, **changes: Any
) -> Manifest:
    fields: dict[str, Any] = {
        "name": adapter_name(domain, number),
        "domain": domain,
        "parent": parent,
        "base_model": "tiny-stores",
        "base_model_hash": "0" * 64,
        "created_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "code_version": "0.1.0",
        "seed": 7,
        "evolution_id": EvolutionId(f"{domain}-e{number:06d}"),
        "reason": "bootstrap" if parent is None else "evolution",
        "stream_ranges": {0: (f"{number - 1}-0", f"{number}-0")},
        "n_interactions": 1000,
        "n_active_users": 120,
        "located_layers": (2, 5, 6),
        "n_layers": 10,
        "layer_votes": (0, 3, 40, 2, 5, 30, 25, 5, 5, 5),
        "layer_similarity": (0.99, 0.98, 0.7, 0.9, 0.9, 0.75, 0.8, 0.9, 0.9, 0.9),
        "trainable_parameters": 30_000,
        "lora_parameters": 100_000,
        "trained_share": 0.3,
        "forgotten_interactions": 50,
        "forgotten_share": 0.05,
        "lora_rank": 16,
        "target_modules": ("q_proj", "v_proj"),
        "blend": Blends.alike(BlendWeights(llm=1.0, retriever=0.5, popularity=0.25)),
        "metrics": {
            "before": {"U_A": {"n": 40.0, "hr@1": 0.2}, "U_I": {"n": 20.0, "hr@1": 0.25}},
            "after": {"U_A": {"n": 40.0, "hr@1": 0.3}, "U_I": {"n": 20.0, "hr@1": 0.25}},
        },
        "gate": Gate(passed=True, reasons=("hr@1 of U_A rose",)),
        "stage_seconds": {"locate": 1.5, "update": 30.25},
    }
    return Manifest(**{**fields, **changes})


def write_files(folder: Path, content: str = "weights") -> None:
    """The files of a version, small."""
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(content)


async def register(redis: Redis, version: Manifest) -> None:
    """Makes a committed version known that has never been a champion."""
    await redis.hset(DomainKeys(version.domain).versions, version.name, version.model_dump_json())
    await announce(redis, version.domain)


def commit(store: ArtifactStore, version: Manifest) -> Manifest:
    with store.stage(version.domain, version.name) as staged:
        write_files(staged.path, content=version.name)
        return staged.commit(version)
