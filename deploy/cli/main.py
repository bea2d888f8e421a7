"""The `evorec` command. It is the one place that knows both sides, and imports neither until a command needs it."""

from __future__ import annotations

import sys

import typer

from deploy.cli.adapters import adapters
from deploy.cli.bench import bench
from deploy.cli.dead_letters import dead_letters
from deploy.cli.demo import demo
from deploy.cli.evolve import evolve
from deploy.cli.ingest import bootstrap, ingest
from deploy.cli.key import key
from deploy.cli.output import log_as_notes, print_error
from deploy.cli.pretrain import pretrain
from deploy.cli.registry import registry
from deploy.cli.serve import serve
from deploy.cli.up import up
from deploy.cli.worker import worker
from deploy.local.signals import Interrupted
from shared.errors import EvorecError

app = typer.Typer(
    name="evorec",
    help="Recommendations from an LLM that keeps learning.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals hold keys and whole catalogs
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (up, demo, serve, worker, pretrain, bootstrap, ingest, evolve, adapters, bench, dead_letters, key):
    app.command()(command)
app.add_typer(registry)


def main() -> None:
    """Our own errors become one readable line and exit code 1."""
    log_as_notes()
    try:
        app()
    except EvorecError as error:
        print_error(error)
        sys.exit(1)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)


if __name__ == "__main__":
    main()
