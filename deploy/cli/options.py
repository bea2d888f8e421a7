"""Options that several commands share, and how they become values."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from deploy.client import ServiceClient
from deploy.local.signals import until_signal
from shared.config import Settings
from shared.domains import validate_domain
from shared.types import DomainId

T = TypeVar("T")

Domain = Annotated[str | None, typer.Option(help="Domain; default: EVOREC_DEFAULT_DOMAIN")]
Url = Annotated[str | None, typer.Option(envvar="EVOREC_URL", help="The service; default: EVOREC_HOST and EVOREC_PORT")]
ApiKey = Annotated[str | None, typer.Option(envvar="EVOREC_API_KEY", help="Sent as X-API-Key")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for scripts")]
ItemsFile = Annotated[Path, typer.Option(help="items.jsonl or items.jsonl.gz")]
InteractionsFile = Annotated[Path, typer.Option(help="interactions.csv, .csv.gz or .parquet")]
Since = Annotated[str | None, typer.Option(help="ISO date or time, inclusive")]
Until = Annotated[str | None, typer.Option(help="ISO date or time, exclusive")]
Seed = Annotated[int, typer.Option(help="Of the order given to interactions with equal timestamps")]
Direct = Annotated[bool, typer.Option("--direct", help="Write into Redis instead of asking the service")]


def domain_id(domain: str | None) -> DomainId:
    return validate_domain(domain or Settings().default_domain)


def client(url: str | None, api_key: str | None) -> ServiceClient:
    return ServiceClient(url or Settings().own_url, api_key)


def run(work: Coroutine[object, object, T]) -> T:
    return asyncio.run(until_signal(work))
