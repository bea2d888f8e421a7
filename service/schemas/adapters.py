"""Adapter versions, their aliases and routes, as administrators see and move them."""

from __future__ import annotations

from pydantic import BaseModel, Field

from service.refusals import Refusal
from service.schemas.common import DomainName, Identifier, Request, example
from shared.manifest import Manifest


class ReplicaAdapter(BaseModel):
    """An adapter version as this process sees it."""

    name: str
    state: str
    refusal: str | None = Field(description="Why this process will not serve it")
    in_flight: int


class DomainAdapters(BaseModel):
    domain: str
    aliases: dict[str, str]
    challenger_share: float
    paused: bool
    versions: list[Manifest] = Field(description="Newest first")
    replica: list[ReplicaAdapter]
    refusals: dict[str, Refusal] = Field(description="Versions that a replica last refused to serve, and why")


class AdaptersAnswer(BaseModel):
    domains: list[DomainAdapters]


class AliasAnswer(BaseModel):
    domain: str
    champion: str


class RollbackRequest(Request):
    domain: DomainName | None = None
    leaving: Identifier | None = Field(
        None,
        alias="from",
        description="The champion to go back from: with it, a call that is repeated goes back once",
        examples=["beauty-v000008"],
    )


class RouteRequest(Request):
    """Either a challenger with its share, or `paused`, or both; what is absent stays as it is."""

    model_config = example(domain="beauty", challenger="beauty-v000008", share=0.1)

    domain: DomainName | None = None
    challenger: Identifier | None = Field(None, description="null ends the trial")
    share: float | None = Field(None, ge=0, le=1, description="Of the users; a new challenger needs one")
    paused: bool | None = None


class RouteAnswer(BaseModel):
    domain: str
    challenger: str | None
    share: float
    paused: bool
