"""The manifest of an adapter version: what it is, what it learned from, and how well it does. Immutable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from shared.domains import DOMAIN_PATTERN
from shared.errors import InvalidArtifact, NotFound
from shared.ranking import Blends
from shared.types import AdapterName, DomainId, EvolutionId, StreamPositions

Metrics = Mapping[str, Mapping[str, Mapping[str, float]]]
"""{"before" | "after": {"U_A" | "U_I" | "U": {"n": 40.0, "hr@1": 0.2, ...}}}"""

# Python reads no number of more than 4300 digits, and no domain has so many versions.
_NAME = re.compile(rf"({DOMAIN_PATTERN})-v(\d{{6,18}})", re.ASCII)


def adapter_name(domain: DomainId, number: int) -> AdapterName:
    """
    >>> adapter_name(DomainId("beauty"), 7)
    'beauty-v000007'
    """
    return AdapterName(f"{domain}-v{number:06d}")


def split_adapter_name(name: str) -> tuple[DomainId, int]:
    """Domain and number; NotFound where the name cannot be one of ours (it may come from a URL).

    >>> split_adapter_name("beauty-v000007")
    ('beauty', 7)
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise NotFound(f"there is no adapter {name[:100]!r}; names look like 'beauty-v000007'")
    return DomainId(match[1]), int(match[2])


class Gate(BaseModel):
    """Whether the panel's metrics show no clear loss, and where they do. EVOREC_ENFORCE_GATE makes it a condition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    reasons: tuple[str, ...] = ()


class Manifest(BaseModel):
    """`stream_ranges`: partition -> (after: exclusive, until: inclusive). `layer_*`: one entry per decoder layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: AdapterName
    domain: DomainId
    parent: AdapterName | None = None
    base_model: str
    base_model_hash: str
    created_at: datetime
    code_version: str
    seed: int
    evolution_id: EvolutionId
    reason: Literal["bootstrap", "evolution"]
    stream_ranges: Mapping[int, tuple[str, str]]
    n_interactions: int
    n_active_users: int
    located_layers: tuple[int, ...]
    n_layers: int
    layer_votes: tuple[int, ...]
    layer_similarity: tuple[float, ...]
    trainable_parameters: int
    lora_parameters: int
    trained_share: float
    forgotten_interactions: int
    forgotten_share: float
    lora_rank: int
    target_modules: tuple[str, ...]
    blend: Blends
    metrics: Metrics
    gate: Gate
    stage_seconds: Mapping[str, float]
    checksums: Mapping[str, str] = {}

    @field_validator("checksums")
    @classmethod
    def _files_stay_inside(cls, checksums: Mapping[str, str]) -> Mapping[str, str]:
        for file in checksums:
            path = PurePosixPath(file)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise ValueError(f"file {file!r} lies outside of the artifact")
        return checksums

    @property
    def number(self) -> int:
        """The version's number; later versions have higher ones."""
        return split_adapter_name(self.name)[1]

    @property
    def range_end(self) -> StreamPositions:
        """The last stream id that the version learned from, per partition."""
        return {partition: until for partition, (_, until) in self.stream_ranges.items()}

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, content: str | bytes) -> Self:
        """InvalidArtifact where the content is no manifest."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise InvalidArtifact(f"not a valid manifest: {error}") from error
