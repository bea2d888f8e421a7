"""`evorec key`: a new API key, and the hashed entry that the service is given instead of it."""

from __future__ import annotations

import secrets
import sys
from typing import Annotated

import typer

from deploy.cli import options
from deploy.output import note_console, print_json, result_console
from service.auth import key_entry, parse_scopes
from shared.errors import InvalidInput

_BYTES = 32


def key(
    name: Annotated[str, typer.Option(help="Names the key in logs, metrics, rate limits and audit records")],
    scopes: Annotated[str, typer.Option(help="recommend, ingest, admin; joined by '+'")] = "recommend+ingest",
    from_stdin: Annotated[bool, typer.Option("--hash", help="Hash the key on standard input; make no new one")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Make an API key. It is shown once; the service needs the entry alone, which holds its hash."""
    granted = parse_scopes(scopes)
    secret = _given() if from_stdin else secrets.token_urlsafe(_BYTES)
    entry = key_entry(name, secret, granted)
    made = {} if from_stdin else {"key": secret}
    if as_json:
        print_json({**made, "entry": entry})
        return
    if made:
        note_console().print("The key, for the caller's X-API-Key; it is shown this once:")
        result_console().print(secret, markup=False, highlight=False, soft_wrap=True)
    note_console().print("Its entry, for EVOREC_API_KEYS (in single quotes) or EVOREC_API_KEYS_FILE:")
    result_console().print(entry, markup=False, highlight=False, soft_wrap=True)


def _given() -> str:
    secret = sys.stdin.readline().rstrip("\r\n")
    if not secret:
        raise InvalidInput("there is no key on standard input")
    return secret
