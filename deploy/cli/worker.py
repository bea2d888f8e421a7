"""`evorec worker`: one evolver process."""

from __future__ import annotations

import typer

from shared.config import Settings


def worker() -> None:
    """The evolver: a Celery worker that makes the next adapter version.

    SIGTERM or Ctrl-C: a running evolution ends at its next step, or is killed after 15 s; another worker redoes it.
    """
    from evolver.worker import run  # Celery is this command's alone

    raise typer.Exit(run(Settings()))
