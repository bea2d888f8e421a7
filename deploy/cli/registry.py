"""`evorec registry`: what to do when Redis has lost the registry."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from deploy.cli import options
from deploy.cli.tables import rebuilt_table
from deploy.output import note_console, print_json, result_console
from shared.artifacts import ArtifactStore
from shared.config import Settings
from shared.domains import validate_domain
from shared.errors import NotFound
from shared.rebuild import Found, Rebuilder, older
from shared.redis_client import connect
from shared.types import AdapterName, DomainId, order_of

registry = typer.Typer(name="registry", help="The registry of adapter versions.", no_args_is_help=True)


@registry.callback()
def _several() -> None:
    """Makes `rebuild` a command of its own name: Typer would let a lone one stand for its group."""


@registry.command()
def rebuild(
    domain: Annotated[str | None, typer.Option(help="This one alone; default: all that Redis has lost")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Bring domains back that Redis has lost: catalog, versions, aliases, routes. Works while the service runs."""
    rebuilt, known = options.run(_rebuild(validate_domain(domain) if domain else None))
    behind = {name: lacking for name, lacking in known.items() if lacking}
    if as_json:
        records = {name: _record(name, found) for name, found in rebuilt.items()}
        print_json({"rebuilt": records, "known": list(known), "lacking": behind})
        return
    if rebuilt:
        result_console().print(rebuilt_table(rebuilt))
    for name, found in rebuilt.items():
        for what, why in found.skipped:
            note_console().print(f"{name}: left out {what}: {why}", markup=False, highlight=False, soft_wrap=True)
        note_console().print(f"{name}: {_about_histories(name, found)}", markup=False, highlight=False, soft_wrap=True)
    if known:
        note_console().print(f"Untouched, since Redis knows them: {', '.join(known)}", highlight=False)
    for name, lacking in behind.items():
        note_console().print(f"{name}: {older(lacking)}", markup=False, highlight=False, soft_wrap=True)


async def _rebuild(
    domain: DomainId | None,
) -> tuple[Mapping[DomainId, Found], Mapping[DomainId, Sequence[AdapterName]]]:
    """What was rebuilt, and what Redis lacks of the domains that it knows; one that is named has to be lost."""
    settings = Settings()
    redis, artifacts = connect(settings), ArtifactStore(settings)
    try:
        rebuilder = Rebuilder(redis, settings, artifacts)
        if domain is not None:
            return {domain: await rebuilder.rebuild(domain)}, {}
        rebuilt: dict[DomainId, Found] = {}
        known: dict[DomainId, Sequence[AdapterName]] = {}
        for name in await asyncio.to_thread(artifacts.domains):
            if await rebuilder.knows(name):
                known[name] = await rebuilder.lacking(name)
            else:
                rebuilt[name] = await rebuilder.rebuild(name)
        if not rebuilt and not known:
            raise NotFound("the artifact store has no domains")
        return rebuilt, known
    finally:
        await redis.aclose()


def _about_histories(domain: DomainId, found: Found) -> str:
    if not found.archived:
        return "histories and interactions are lost: there is no archive of them."
    newest = max(order_of(until)[0] for until in found.archived.values()) / 1000
    until = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        f"interactions that arrived up to {until} are archived; `evorec ingest --archive --domain {domain}` brings "
        "them back. Newer histories are lost."
    )


def _record(domain: DomainId, found: Found) -> dict[str, object]:
    return {
        "items": len(found.items),
        "versions": [version.name for version in found.versions],
        "aliases": dict(found.aliases),
        "share": found.route.share,
        "paused": found.route.paused,
        "archived": dict(found.archived),
        "skipped": [{"what": what, "reason": why} for what, why in found.skipped],
        "histories": _about_histories(domain, found),
    }
