"""`evorec registry`: what to do when Redis has lost the registry."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

import typer

from deploy.cli import options
from deploy.cli.tables import rebuilt_table
from deploy.output import note_console, print_json, result_console
from shared.artifacts import ArtifactStore
from shared.config import Settings
from shared.domains import validate_domain
from shared.errors import EvorecError, NotFound
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
    ended = options.run(_rebuild(validate_domain(domain) if domain else None))
    if as_json:
        print_json(
            {
                "rebuilt": {name: _record(name, found) for name, found in ended.rebuilt.items()},
                "known": list(ended.known),
                "lacking": ended.behind,
                "empty": ended.empty,
                "failed": ended.failed,
            }
        )
    else:
        _tell(ended)
    if ended.failed:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Ended:
    """What became of each domain. `known`: those that Redis has, and the versions that it lacks of them; `empty`: those
    of which the artifact store has a folder and nothing to bring back; `failed`: why the others did not come back.
    """

    rebuilt: dict[DomainId, Found] = field(default_factory=dict)
    known: dict[DomainId, Sequence[AdapterName]] = field(default_factory=dict)
    empty: list[DomainId] = field(default_factory=list)
    failed: dict[DomainId, str] = field(default_factory=dict)

    @property
    def behind(self) -> dict[DomainId, Sequence[AdapterName]]:
        return {name: lacking for name, lacking in self.known.items() if lacking}


async def _rebuild(domain: DomainId | None) -> _Ended:
    """One that is named has to be lost. Of all, none keeps the others from coming back."""
    settings = Settings()
    redis, artifacts = connect(settings), ArtifactStore(settings)
    ended = _Ended()
    try:
        rebuilder = Rebuilder(redis, settings, artifacts)
        if domain is not None:
            ended.rebuilt[domain] = await rebuilder.rebuild(domain)
            return ended
        names = await asyncio.to_thread(artifacts.domains)
        if not names:
            raise NotFound("the artifact store has no domains")
        for name in names:
            try:
                await _bring_back(rebuilder, name, ended)
            except (EvorecError, OSError) as error:
                ended.failed[name] = str(error)
        return ended
    finally:
        await redis.aclose()


async def _bring_back(rebuilder: Rebuilder, name: DomainId, ended: _Ended) -> None:
    if await rebuilder.knows(name):
        ended.known[name] = await rebuilder.lacking(name)
        return
    try:
        ended.rebuilt[name] = await rebuilder.rebuild(name)
    except NotFound:  # paused before its first version, say: a folder with a route alone
        ended.empty.append(name)


def _tell(ended: _Ended) -> None:
    if ended.rebuilt:
        result_console().print(rebuilt_table(ended.rebuilt))
    for name, found in ended.rebuilt.items():
        for what, why in found.skipped:
            _note(f"{name}: left out {what}: {why}")
        _note(f"{name}: {_about_histories(name, found)}")
    if ended.known:
        _note(f"Untouched, since Redis knows them: {', '.join(ended.known)}")
    if ended.empty:
        _note(f"Nothing to bring back, no version, item or archive: {', '.join(ended.empty)}")
    for name, lacking in ended.behind.items():
        _note(f"{name}: {older(lacking)}")
    for name, why in ended.failed.items():
        _note(f"{name}: not brought back: {why}", style="bold red")


def _note(text: str, style: str | None = None) -> None:
    note_console().print(text, style=style, markup=False, highlight=False, soft_wrap=True)


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
