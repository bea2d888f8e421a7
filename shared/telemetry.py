"""Logging: structlog for our own records and for those of the libraries, in one format, with the request's id."""

from __future__ import annotations

import logging
import re
import sys
from contextlib import AbstractContextManager

import structlog
from structlog.types import Processor

from shared.config import Settings

# They log every request or connection at INFO.
_CHATTY = ("httpx", "httpcore", "uvicorn.access", "asyncio", "urllib3")
_QUOTED_COMMAND = re.compile(r"Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)


def configure_logging(settings: Settings, process_name: str) -> None:
    """Sends all logs of this process to standard error; call it once, at the start of a process."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _process(process_name),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderer(settings)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def bound_request_id(request_id: str) -> AbstractContextManager[None]:
    """Every record written inside, by this task and those it starts, carries the request's id."""
    return structlog.contextvars.bound_contextvars(request_id=request_id)


def described(error: BaseException) -> str:
    """An error's kind and message for a record's `error`; redis-py's own `repr` leaves the message out.

    Without the command that it quotes of a pipeline, which may name a user.

    >>> described(TimeoutError("no answer"))
    "TimeoutError('no answer')"
    >>> described(ValueError("Command # 1 (SADD ids:alice ...) of pipeline caused error: full"))
    "ValueError('full')"
    """
    return f"{type(error).__name__}({_QUOTED_COMMAND.sub('', str(error))!r})"


def _process(name: str) -> Processor:
    def add(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        event["process"] = name
        return event

    return add


def _renderer(settings: Settings) -> list[Processor]:
    if settings.log_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    # Plain tracebacks: rich ones print every local variable, passwords of Redis URLs among them.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
