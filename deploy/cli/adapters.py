"""`evorec adapters`: the versions of every domain."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli import options
from deploy.cli.tables import adapters_table
from deploy.output import print_json, result_console
from shared.domains import validate_domain
from shared.types import DomainId


def adapters(
    domain: Annotated[str | None, typer.Option(help="Of this domain alone")] = None,
    as_json: options.AsJson = False,
    url: options.Url = None,
    api_key: options.ApiKey = None,
) -> None:
    """Adapter versions, their aliases, what they learned and how well they do on the panel."""
    options.run(_adapters(validate_domain(domain) if domain else None, as_json, url, api_key))


async def _adapters(domain: DomainId | None, as_json: bool, url: str | None, api_key: str | None) -> None:
    async with options.client(url, api_key) as client:
        found = await client.adapters(domain)
    if as_json:
        print_json([entry.model_dump(mode="json") for entry in found])
    else:
        result_console().print(adapters_table(found))
