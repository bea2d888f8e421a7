"""Evolutions as administrators start and see them, and the events that they could not read."""

from __future__ import annotations

from pydantic import BaseModel, Field

from service.schemas.common import DomainName, Request, example
from shared.dead_letters import DeadLetter
from shared.evolutions import Evolution


class EvolveRequest(Request):
    model_config = example(domain="beauty", force=False, dry_run=False)

    domain: DomainName | None = None
    force: bool = Field(False, description="Also while evolutions are paused, or where nothing new came in")
    dry_run: bool = Field(False, description="Run everything but the publication")


class EvolveAnswer(BaseModel):
    evolution_id: str


class EvolutionsAnswer(BaseModel):
    evolutions: list[Evolution] = Field(description="Newest first")


class DeadLettersAnswer(BaseModel):
    domain: str
    dead_letters: list[DeadLetter] = Field(description="Newest first")
