"""`evorec dead-letters`: what a domain could not read or learn from."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli import options
from deploy.cli.tables import dead_letters_table
from deploy.output import print_json, result_console
from shared.types import DomainId


def dead_letters(
    domain: options.Domain = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Newest letters shown")] = 50,
    as_json: options.AsJson = False,
    url: options.Url = None,
    api_key: options.ApiKey = None,
) -> None:
    """Interactions, items and users that were set aside, with the reason."""
    options.run(_dead_letters(options.domain_id(domain), limit, as_json, url, api_key))


async def _dead_letters(domain: DomainId, limit: int, as_json: bool, url: str | None, api_key: str | None) -> None:
    async with options.client(url, api_key) as client:
        found = await client.dead_letters(domain, limit)
    if as_json:
        print_json([letter.model_dump(mode="json") for letter in found])
    else:
        result_console().print(dead_letters_table(domain, found))
