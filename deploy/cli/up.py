"""`evorec up`: everything on this machine, in one terminal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from deploy.local.signals import Interrupted, until_signal
from deploy.local.stack import REDIS, SERVICE, WORKER, require_free_port, service_ready, start_processes, start_redis
from deploy.local.supervisor import LineSink, Supervisor
from deploy.output import note_console
from shared.config import Settings

_COLOURS = {REDIS: "red", WORKER: "magenta", SERVICE: "cyan"}
_WIDTH = max(map(len, _COLOURS))


def up(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; beyond loopback EVOREC_API_KEYS is needed")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535)] = None,
) -> None:
    """Redis (embedded unless EVOREC_REDIS_URL is set), a worker and the service; Ctrl-C stops them all."""
    overrides = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = Settings().model_copy(update=overrides)
    env = {**os.environ, **{f"EVOREC_{name.upper()}": str(value) for name, value in overrides.items()}}
    try:
        asyncio.run(until_signal(_run(settings, env)))
    except Interrupted:
        note_console().print("Stopped.")


class OwnConsole(Console):
    """On stdout. Where nobody reads any more (`evorec up | head`) rich would end the process, past all that stops the
    children in order: here writing fails once, and then goes nowhere.
    """

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # children log in UTF-8, whatever this terminal can show
            sys.stdout.reconfigure(errors="backslashreplace")
        super().__init__(emoji=False)

    def on_broken_pipe(self) -> None:
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None


def line_printer(console: Console) -> LineSink:
    """Every child's lines, each behind the child's name in its colour."""

    def sink(name: str, line: str) -> None:
        colour = _COLOURS.get(name, "white")
        try:
            console.print(Text.assemble((f"{name:>{_WIDTH}} | ", colour), Text.from_ansi(line)), soft_wrap=True)
        except OSError:
            with console.capture():  # else rich keeps what it could not write, and tries it again with every line
                raise

    return sink


async def _run(settings: Settings, env: dict[str, str]) -> NoReturn:
    require_free_port(settings.listen_host, settings.port)
    console = OwnConsole()
    async with Supervisor(line_printer(console)) as supervisor:
        await start_redis(supervisor, settings, env)
        await start_processes(supervisor, env)
        await supervisor.guard(_announce(settings, console))
        await supervisor.watch()


async def _announce(settings: Settings, console: Console) -> None:
    url = settings.own_url

    def say(what: str, *, highlight: bool = False) -> None:
        with contextlib.suppress(OSError):  # as the children's lines: a full disk or a closed pipe stops nothing
            console.print(what, markup=False, highlight=highlight, soft_wrap=True)

    await service_ready(url, say=lambda what: say(f"The service is {what}"))
    say(
        f"evorec is ready at {url} (docs: {url}/docs). State: {settings.state_dir.absolute()}. Ctrl-C stops it.",
        highlight=True,
    )
