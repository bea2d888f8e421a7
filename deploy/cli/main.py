"""The `evorec` command. It is the one place that knows both sides, and imports neither until a command needs it."""

from __future__ import annotations

import sys

import typer
from pydantic import ValidationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from deploy.cli.adapters import adapters
from deploy.cli.bench import bench
from deploy.cli.dead_letters import dead_letters
from deploy.cli.demo import demo
from deploy.cli.evolve import evolve
from deploy.cli.ingest import bootstrap, ingest
from deploy.cli.key import key
from deploy.cli.pretrain import pretrain
from deploy.cli.registry import registry
from deploy.cli.serve import serve
from deploy.cli.up import up
from deploy.cli.worker import worker
from deploy.local.signals import Interrupted
from deploy.output import log_as_notes, print_error
from shared.config import Settings
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

_QUOTES = "()'\","  # what the client puts around an error's text


def main() -> None:
    """What people can put right becomes one readable line and exit code 1; what is left is a bug, and a traceback."""
    log_as_notes()
    try:
        app()
    except EvorecError as error:
        print_error(error.title, str(error))
    except (RedisConnectionError, RedisTimeoutError) as error:
        print_error("Redis does not answer", f"{error}; check EVOREC_REDIS_URL, or start one with `evorec up`")
    except RedisError as error:
        print_error("Redis refused", f"{_refusal(error)}; `redis-cli INFO` tells of its memory, disk and role")
    except ValidationError as error:
        if error.title != Settings.__name__:
            raise
        print_error("Invalid settings", _settings_to_mend(error))
    except OSError as error:
        print_error("The system refused", str(error) or repr(error))
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    else:
        return
    sys.exit(1)


def _refusal(error: RedisError) -> str:
    """Type and first sentence. Around it a pipeline quotes the command, and Redis one that it does not know: data.

    >>> _refusal(RedisError("Command # 1 (SET user hush) of pipeline caused error: ('no memory left. Free some.',)"))
    'RedisError: no memory left'
    """
    text = str(error).rpartition(" of pipeline caused error: ")[2].partition(", with args beginning with")[0]
    return f"{type(error).__name__}: {text.strip(_QUOTES).partition('. ')[0].removesuffix('.')}"


def _settings_to_mend(error: ValidationError) -> str:
    """Their names and what is wrong, without their values, which may be secrets."""
    return "; ".join(
        ": ".join([*(f"EVOREC_{str(name).upper()}" for name in each["loc"][:1]), each["msg"]])
        for each in error.errors()
    )


if __name__ == "__main__":
    main()
