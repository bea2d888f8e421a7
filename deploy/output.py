"""What the commands print: results on stdout, everything else (progress, notes, errors) on stderr."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.files import Loaded

T = TypeVar("T")
SECONDS_PER_LINE = 60.0  # of progress, in a log


def result_console() -> Console:
    return Console(emoji=False)  # `:x:` may be a part of an id


def note_console() -> Console:
    return Console(stderr=True, emoji=False)


def log_as_notes() -> None:
    """Warnings of what a command calls go to stderr (structlog's own default is stdout). Processes that serve configure
    their logs themselves.
    """
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )


def print_json(value: object) -> None:
    """One document on stdout, for scripts."""
    result_console().print(
        json.dumps(value, ensure_ascii=False, default=str), markup=False, soft_wrap=True, highlight=False
    )


def print_error(title: str, text: str) -> None:
    console = note_console()
    console.print(f"{title}:", style="bold red", end=" ")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def counting_progress(console: Console) -> Progress:
    """A bar for work whose amount is known."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def share_progress(console: Console, clock: Callable[[], float] = time.monotonic) -> Progress:
    """A bar for work that reports a share of itself. `clock`: seconds."""
    return _BarsOrLines(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=console,
        get_time=clock,
    )


class _BarsOrLines(Progress):
    """Bars on a terminal. Elsewhere bars would show up at the very end alone: a line a minute goes into the log."""

    _said_at = -math.inf

    def update(self, *args: Any, **kwargs: Any) -> None:
        super().update(*args, **kwargs)
        now = self.get_time()
        if self.console.is_terminal or now < self._said_at + SECONDS_PER_LINE:
            return
        self._said_at = now
        shares = [f"{task.description} {task.percentage:.0f}%" for task in self.tasks if task.description]
        elapsed = timedelta(seconds=int(max(task.elapsed or 0.0 for task in self.tasks)))
        self.console.print(f"{elapsed}  {', '.join(shares)}", markup=False, highlight=False, soft_wrap=True)


def show_bad_lines(loaded: Loaded[T], what: str) -> None:
    if not loaded.n_bad:
        return
    console = note_console()
    console.print(
        f"{what}: {loaded.n_bad} bad lines left out, {len(loaded.rows)} good ones used. The first:",
        style="yellow",
        markup=False,
        soft_wrap=True,
    )
    for line in loaded.first_bad:
        console.print(
            f"  line {line.number}: {line.reason}: {line.text}", markup=False, highlight=False, soft_wrap=True
        )


def show_rejected(what: str, n_rejected: int, first: Sequence[tuple[str, str]]) -> None:
    """`first`: (the row in words, reason) of some of what the service refused."""
    if not n_rejected:
        return
    console = note_console()
    console.print(f"{n_rejected} {what} were rejected. The first:", style="yellow")
    for row, reason in first:
        console.print(f"  {row}: {reason}", markup=False, highlight=False, soft_wrap=True)
