"""`evorec worker`: one evolver process."""

from __future__ import annotations

import typer

from shared.config import Settings


def worker() -> None:
    """The evolver: a Celery worker that makes the next adapter version."""
    from evolver.worker import run  # Celery is this command's alone

    raise typer.Exit(run(Settings()))
