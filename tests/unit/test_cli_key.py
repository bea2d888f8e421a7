"""`evorec key`: a key, and the entry that opens with it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from deploy.cli.main import app
from service.auth import KeyRing, Principal, Scope
from shared.errors import InvalidInput


def test_a_new_key_opens_what_its_entry_says() -> None:
    result = CliRunner().invoke(app, ["key", "--name", "shop", "--scopes", "ingest+recommend", "--json"])
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    ring = KeyRing.parse([made["entry"]])
    expected = Principal(frozenset({Scope.ingest, Scope.recommend}), "shop")
    assert ring.authenticate(made["key"], None) == expected
    assert made["key"] not in made["entry"]
    assert ring.plain == ()
    again = json.loads(CliRunner().invoke(app, ["key", "--name", "shop", "--json"]).stdout)
    assert again["key"] != made["key"]


def test_an_existing_key_is_hashed_and_not_repeated() -> None:
    result = CliRunner().invoke(app, ["key", "--name", "shop", "--scopes", "admin", "--hash"], input="hush-hush\n")
    assert KeyRing.parse([result.stdout.strip()]).authenticate("hush-hush", None).name == "shop"
    assert "hush" not in result.output


@pytest.mark.parametrize("options", [["--name", "a:b"], ["--name", "shop", "--scopes", "root"]])
def test_a_key_that_cannot_be_is_no_key(options: list[str]) -> None:
    assert isinstance(CliRunner().invoke(app, ["key", *options]).exception, InvalidInput)
