"""Names that try to be paths, at every entrance: HTTP paths and bodies, command options, the artifact store."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from deploy.cli.main import app
from shared.artifacts import ARCHIVE, ArtifactStore
from shared.domains import validate_domain
from shared.errors import EvorecError
from shared.manifest import split_adapter_name
from shared.registry_records import AliasMove, RegistryRecords
from shared.types import AdapterName, DomainId
from tests import factories
from tests.conftest import make_settings
from tests.faults.conftest import SEED, Tell
from tests.service_support import SHOP, Running

pytest_plugins = ["tests.service_fixtures"]

VERSION = "shop-v000001"
MOVE = AliasMove(sequence=1, alias="champion", before=None, to=AdapterName(VERSION), at=0.0, reason="test")
TRICKS = (
    *("../shop", "../../etc", "/etc/passwd", "shop/../toys", "./shop", "shop/", "shop\\..\\toys", "..", ".", "~root"),
    *("%2e%2e%2fshop", "..%2f", "shop%00", "shop\x00", "shop\n", "shop\r\nX: y", "shop:0}", "{shop}", "*", "sh?p"),
    *("s\u04bbop", "\uff53hop", "shop\u200b", "\u202epohs", "sho\u0440", "shop\u2215x", "shop\u2024", "SHOP", "ſhop"),
    *("s" * 65, "s" * 5000, "-shop", "_shop", " shop", "shop ", "", "con:", "file:///etc", "s3://bucket/x", "$(id)"),
)
VERSION_TRICKS = (
    *(f"{trick}-v000001" for trick in TRICKS),
    *("shop-v1", "shop-v00001", "shop-v000001/..", "../shop-v000001", "shop-v\u0660\u0660\u0660\u0660\u0660\u0661"),
    *("shop-v000001\n", "shop-v000001\x00", "shop-v-00001", "shop-v0000a1", "shop-v000001.json", "shop-v000001%2f.."),
    f"shop-v{'1' * 5000}",
)
domains = st.sampled_from(TRICKS) | st.text(max_size=80).filter(lambda text: not re.fullmatch("[a-z0-9_-]+", text))
versions = st.sampled_from(VERSION_TRICKS) | domains.map(lambda text: f"{text}-v000001")


def refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except EvorecError:
        return True
    return False


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """Beside a folder that looks like an artifact, which no name may reach."""
    outside = tmp_path / "shop-v000001"
    outside.mkdir()
    (outside / "manifest.json").write_text(factories.manifest(1, domain=SHOP).to_json())
    return ArtifactStore(make_settings(state_dir=tmp_path))


def entrances(store: ArtifactStore, domain: str, version: str) -> dict[str, Callable[[], object]]:
    """Every function that makes a path or a key of a name from outside."""
    hostile, name = DomainId(domain), AdapterName(version)
    records = RegistryRecords(store)
    return {
        "validate_domain": lambda: validate_domain(domain),
        "split_adapter_name": lambda: split_adapter_name(version),
        "stage, domain": lambda: store.stage(hostile, AdapterName(VERSION)),
        "stage, name": lambda: store.stage(SHOP, name),
        "fetch, domain": lambda: store.fetch(hostile, AdapterName(VERSION)),
        "fetch, name": lambda: store.fetch(SHOP, name),
        "manifest, domain": lambda: store.manifest(hostile, AdapterName(VERSION)),
        "manifest, name": lambda: store.manifest(SHOP, name),
        "delete, domain": lambda: store.delete(hostile, AdapterName(VERSION)),
        "delete, name": lambda: store.delete(SHOP, name),
        "copies": lambda: store.copies(hostile),
        "drop_copy, domain": lambda: store.drop_copy(hostile, AdapterName(VERSION)),
        "drop_copy, name": lambda: store.drop_copy(SHOP, name),
        "names": lambda: store.names(hostile),
        "alias_moves": lambda: records.alias_moves(hostile),
        "record_alias_move": lambda: records.record_alias_move(hostile, MOVE),
        "route": lambda: records.route(hostile),
        "record_route": lambda: records.record_route(hostile, "{}"),
        "sweep": lambda: store.sweep(hostile, 0.0),
        "last_move": lambda: records.last_move(hostile),
        "alias_move": lambda: records.alias_move(hostile, "000000001.json"),
        **{f"{what}, domain": partial(call, hostile, ARCHIVE) for what, call in files_of(store).items()},
        **{f"{what}, name": partial(call, SHOP, name) for what, call in files_of(store).items()},
    }


def files_of(store: ArtifactStore) -> dict[str, Callable[..., object]]:
    """The functions that take a path in pieces."""
    return {
        "files": store.files,
        "open": lambda *path: store.open(*path, "x").close(),
        "delete_file": lambda *path: store.delete_file(*path, "x"),
        "write": lambda *path: write(store, *path, "x"),
    }


def write(store: ArtifactStore, domain: DomainId, *path: str) -> None:
    with store.write(domain, *path) as staged:
        staged.write_text("whole")


def test_the_stores_own_names_are_taken(store: ArtifactStore) -> None:
    """What lies beside the versions has names that are no version's."""
    records = RegistryRecords(store)
    assert (records.route(SHOP), records.last_move(SHOP), store.sweep(SHOP)) == (None, 0, 0)
    records.record_route(SHOP, "{}")
    assert records.route(SHOP) == "{}\n"
    records.record_alias_move(SHOP, MOVE)
    assert records.alias_moves(SHOP) == [MOVE] == [records.alias_move(SHOP, "000000001.json")]
    assert records.last_move(SHOP) == 1
    for folder in ("aliases", "archive"):
        write(store, SHOP, folder, "0", "x")
        assert store.files(SHOP, folder, "0") == ["x"]
        with store.open(SHOP, folder, "0", "x") as file:
            assert file.read() == b"whole"
        store.delete_file(SHOP, folder, "0", "x")
        assert store.files(SHOP, folder, "0") == []
    assert store.files(SHOP) == ["aliases", "archive", "route.json"]


def test_no_function_makes_a_path_of_a_tricky_name(
    store: ArtifactStore, tmp_path: Path, full: bool, outcome: Tell
) -> None:
    before = sorted(tmp_path.rglob("*"))
    tried = [0]

    @seed(SEED)
    @settings(max_examples=5000 if full else 200, database=None, suppress_health_check=[HealthCheck.filter_too_much])
    @given(domains, versions)
    def tricky(domain: str, version: str) -> None:
        calls = entrances(store, domain, version)
        assert [where for where, call in calls.items() if not refused(call)] == []
        tried[0] += len(calls)

    tricky()
    assert sorted(tmp_path.rglob("*")) == before
    outcome(6, "No function makes a path of a name with tricks", faults={"tricky name": tried[0]}, cases=tried[0])


async def test_no_call_takes_a_tricky_name(running: Running, outcome: Tell) -> None:
    await running.publisher.publish()
    before = sorted((running.settings.state_dir / "artifacts").rglob("*"))
    answers: list[tuple[str, str, int]] = []

    async def call(method: str, path: str, where: str, trick: str, body: Any = None) -> None:
        answers.append((where, trick, (await running.http.request(method, path, json=body)).status_code))

    for trick in TRICKS:
        quoted = quote(trick, safe="")
        if trick:
            await call("GET", f"/items/i1?domain={quoted}", "query", trick)
            await call("POST", f"/admin/adapters/{quoted}/promote", "promote", trick)
            await call("GET", f"/admin/evolutions/{quoted}-e000001", "evolution", trick)
        for method, path, rest in (
            ("POST", "/recommend", {"user_id": "u"}),
            ("POST", "/interactions", {"interactions": [{}]}),
            ("PUT", "/items", {"items": [{"item_id": "i", "title": "x"}]}),
            ("POST", "/admin/evolve", {}),
            ("POST", "/admin/rollback", {}),
            ("PUT", "/admin/routes", {"paused": True}),
        ):
            await call(method, path, path, trick, {**rest, "domain": trick})
    for trick in VERSION_TRICKS:
        await call("POST", f"/admin/adapters/{quote(trick, safe='')}/promote", "promote", trick)
        await call("PUT", "/admin/routes", "challenger", trick, {"challenger": trick, "share": 0.5})
    taken = [answer for answer in answers if answer[2] not in (404, 405, 413, 422)]
    assert taken == []
    assert sorted((running.settings.state_dir / "artifacts").rglob("*")) == before
    outcome(6, "No call takes a name with tricks", faults={"tricky name": len(answers)}, cases=len(answers))


@pytest.mark.parametrize("command", [["evolve"], ["adapters"], ["ingest", "x.csv"]], ids=lambda command: command[0])
def test_no_command_takes_a_tricky_domain(command: list[str], tmp_path: Path, outcome: Tell) -> None:
    file = tmp_path / "x.csv"
    file.write_text("user_id,item_id,timestamp\n")
    arguments = [str(file) if each == "x.csv" else each for each in command]
    tricks = [trick for trick in TRICKS if trick]  # the empty one means the default domain
    for trick in tricks:
        result = CliRunner().invoke(app, [*arguments, "--url", "http://127.0.0.1:1", f"--domain={trick}"])
        assert "1 to 64" in str(result.exception), (trick, result.output)
    what = f"`evorec {command[0]}` takes no domain with tricks"
    outcome(6, what, faults={"tricky domain": len(tricks)}, cases=len(tricks))
