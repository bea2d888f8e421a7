"""`evorec evolve`: asks for the next adapter version."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli import options
from deploy.cli.tables import evolution_table
from deploy.following import follow, require_finished, start_evolution
from deploy.output import note_console, print_json, result_console
from shared.types import DomainId


def evolve(
    domain: options.Domain = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also while evolutions are paused, or where nothing new came in")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Everything but the publication")] = False,
    wait: Annotated[bool, typer.Option("--follow/--no-follow", help="Stay until it has ended")] = True,
    as_json: options.AsJson = False,
    url: options.Url = None,
    api_key: options.ApiKey = None,
) -> None:
    """Start an evolution of a domain, or find the one under way, and follow it.

    Exit code 1 where it fails or is cancelled; not where it is rejected, having nothing to publish.
    """
    options.run(_evolve(options.domain_id(domain), force, dry_run, wait, as_json, url, api_key))


async def _evolve(
    domain: DomainId, force: bool, dry_run: bool, wait: bool, as_json: bool, url: str | None, api_key: str | None
) -> None:
    async with options.client(url, api_key) as client:
        evolution_id = await start_evolution(client, domain, force=force, dry_run=dry_run)
        if not wait:
            if as_json:
                print_json({"evolution_id": evolution_id})
            else:
                result_console().print(evolution_id)
            return
        evolution = await follow(client, evolution_id, note_console(), f"Evolution of {domain}")
    if as_json:
        print_json(evolution.model_dump(mode="json"))
    else:
        result_console().print(evolution_table(evolution))
    require_finished(evolution)
