"""`evorec ingest` and `evorec bootstrap`: canonical files into a domain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from deploy.cli import options
from deploy.cli.tables import evolution_table
from deploy.client import BATCH, ServiceClient
from deploy.files import Loaded, parse_date, read_interactions, read_items
from deploy.following import follow, require_published, start_evolution
from deploy.loading import Loader, Total, load_interactions, load_items, loader
from deploy.output import (
    counting_progress,
    note_console,
    print_json,
    result_console,
    show_bad_lines,
    show_rejected,
)
from shared.artifacts import ArtifactStore
from shared.config import Settings
from shared.errors import EvorecError, InvalidInput
from shared.evolutions import Evolution
from shared.redis_client import connect
from shared.restore import Restored, Restorer
from shared.types import DomainId, Interaction, Item


def ingest(
    interactions: Annotated[Path | None, typer.Argument(help="interactions.csv[.gz] or .parquet")] = None,
    domain: options.Domain = None,
    archive: Annotated[
        bool, typer.Option("--archive", help="What the archive holds and Redis has lost, at its old stream ids")
    ] = False,
    items: Annotated[Path | None, typer.Option(help="Catalog to put first: items.jsonl[.gz]")] = None,
    since: options.Since = None,
    until: options.Until = None,
    seed: options.Seed = 0,
    direct: options.Direct = False,
    as_json: options.AsJson = False,
    url: options.Url = None,
    api_key: options.ApiKey = None,
) -> None:
    """Append a file's interactions, oldest first, or bring back the archive's. Within EVOREC_EVENT_ID_TTL_S (7
    days) running it again adds nothing.
    """
    if archive:
        if interactions or items or since or until:
            raise typer.BadParameter("--archive takes no file and no time range")
        _tell_restored(options.run(_restore(options.domain_id(domain))), as_json)
        return
    if interactions is None:
        raise typer.BadParameter("name a file of interactions, or --archive")
    into = options.domain_id(domain)  # before files that may take minutes
    events = _events(interactions, since, until, seed)
    catalog = _catalog(items) if items else ()
    total = options.run(_ingest(into, catalog, events.rows, direct, url, api_key))
    _tell(total, events, as_json)
    has_any = events.rows or (events.n_bad and not events.n_outside)
    if has_any and not total.accepted + total.duplicates:
        raise InvalidInput(f"nothing of {interactions} was taken in")


def bootstrap(
    items: options.ItemsFile,
    interactions: options.InteractionsFile,
    until: options.Until = None,
    domain: options.Domain = None,
    seed: options.Seed = 0,
    direct: options.Direct = False,
    as_json: options.AsJson = False,
    url: options.Url = None,
    api_key: options.ApiKey = None,
) -> None:
    """Put a catalog, append its past, and make the domain's first adapter version of it. Needs a running stack.

    Exit code 1 where no version came of it.
    """
    into = options.domain_id(domain)  # before files that may take minutes
    catalog = _catalog(items)
    events = _events(interactions, None, until, seed)
    evolution = options.run(_bootstrap(into, catalog, events.rows, direct, url, api_key))
    if as_json:
        print_json(evolution.model_dump(mode="json"))
    else:
        result_console().print(evolution_table(evolution))
    require_published(evolution)


async def _ingest(
    domain: DomainId,
    items: Sequence[Item],
    events: Sequence[Interaction],
    direct: bool,
    url: str | None,
    api_key: str | None,
) -> Total:
    async with options.client(url, api_key) as client, loader(client, direct) as to:
        return await _load(to, domain, items, events)


async def _restore(domain: DomainId) -> Restored:
    """Directly in Redis: the service knows no way to write at an old stream id."""
    settings = Settings()
    redis = connect(settings)
    try:
        restorer = Restorer(redis, settings, ArtifactStore(settings))
        rows = await asyncio.to_thread(restorer.rows, domain)
        with counting_progress(note_console()) as progress:
            bar = progress.add_task("Archived interactions", total=rows)
            return await restorer.restore(domain, lambda n: progress.advance(bar, n))
    finally:
        await redis.aclose()


async def _bootstrap(
    domain: DomainId,
    items: Sequence[Item],
    events: Sequence[Interaction],
    direct: bool,
    url: str | None,
    api_key: str | None,
) -> Evolution:
    async with options.client(url, api_key) as client, loader(client, direct) as to:
        await _load(to, domain, items, ())
        async with evolutions_paused(client, domain) as before:
            await _load(to, domain, (), events)
        evolution = await first_version(client, domain)
        if before:
            _say_paused(domain, "were paused before, maybe by a bootstrap that was cut off, and still are. To end that")
        return evolution


@asynccontextmanager
async def evolutions_paused(client: ServiceClient, domain: DomainId) -> AsyncIterator[bool]:
    """A trigger must not fire on half of the past. A pause from before stays; yields whether there was one."""
    if (await client.adapters(domain))[0].paused:
        yield True
        return
    await client.pause_evolutions(domain, True)
    try:
        yield False
    finally:
        try:
            await client.pause_evolutions(domain, False)
        except (EvorecError, asyncio.CancelledError):
            _say_paused(domain, "are still paused. Once the service answers, end that")
            raise


def _say_paused(domain: DomainId, how: str) -> None:
    note_console().print(
        f'Evolutions of {domain} {how}: PUT /admin/routes {{"domain": "{domain}", "paused": false}}',
        style="bold red",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


async def first_version(client: ServiceClient, domain: DomainId) -> Evolution:
    evolution_id = await start_evolution(client, domain, force=True)
    return await follow(client, evolution_id, note_console(), f"Bootstrap of {domain}")


async def _load(to: Loader, domain: DomainId, items: Sequence[Item], events: Sequence[Interaction]) -> Total:
    with counting_progress(note_console()) as progress:
        if items:
            bar = progress.add_task("Items", total=len(items))
            with _telling_if_cut_off("items", len(items)) as so_far:
                put = await load_items(to, domain, items, lambda n: progress.advance(bar, n), so_far)
            show_rejected("items", put.rejected, put.first_rejected)
        total = Total()
        if events:
            bar = progress.add_task("Interactions", total=len(events))
            with _telling_if_cut_off("interactions", len(events)) as so_far:
                total = await load_interactions(to, domain, events, lambda n: progress.advance(bar, n), so_far)
            show_rejected("interactions", total.rejected, total.first_rejected)
        return total


@contextmanager
def _telling_if_cut_off(what: str, of: int) -> Iterator[Callable[[Total], object]]:
    """Takes totals, and tells the last one where the block fails or is interrupted."""
    totals = [Total()]
    try:
        yield totals.append
    except BaseException:
        note_console().print(
            f"Cut off: of {of} {what} {_counts(totals[-1])}; the next {BATCH} may have arrived without an answer.",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
        raise


def _catalog(path: Path) -> tuple[Item, ...]:
    with note_console().status(f"Reading {escape(str(path))}"):
        loaded = read_items(path)
    show_bad_lines(loaded, str(path))
    return loaded.rows


def _events(path: Path, since: str | None, until: str | None, seed: int) -> Loaded[Interaction]:
    low = None if since is None else parse_date(since)
    high = None if until is None else parse_date(until)
    with note_console().status(f"Reading {escape(str(path))}"):
        loaded = read_interactions(path, since=low, until=high, seed=seed)
    show_bad_lines(loaded, str(path))
    return loaded


def _tell_restored(restored: Restored, as_json: bool) -> None:
    if as_json:
        print_json(asdict(restored))
        return
    result_console().print(
        f"{restored.interactions} brought back, {restored.known} left out (sent again since the loss, or erased)."
    )


def _tell(total: Total, events: Loaded[Interaction], as_json: bool) -> None:
    if as_json:
        print_json({**asdict(total), "bad_lines": events.n_bad, "outside": events.n_outside})
        return
    result_console().print(f"{_counts(total)}; {events.n_bad} bad lines, {events.n_outside} outside of the time range.")


def _counts(total: Total) -> str:
    return f"{total.accepted} accepted, {total.duplicates} duplicates, {total.rejected} rejected"
