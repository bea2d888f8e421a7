"""The command line: its commands and options, its tables, and the words it has for the final state."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from deploy.cli import main, options
from deploy.cli.main import app
from deploy.cli.tables import adapters_table, evolution_table, metric_line
from deploy.client import DomainVersions, ServiceClient, ServiceRefused
from deploy.demo.report import taste
from deploy.following import EvolutionFailed, NothingPublished, require_finished, require_published
from deploy.health import check_service
from deploy.output import print_error, print_json
from shared.config import Settings
from shared.errors import InvalidInput
from shared.evolutions import Evolution, EvolutionStatus
from shared.manifest import Gate
from shared.types import DomainId, EvolutionId, Interaction, Item, ItemId, UserId
from tests import factories

METRICS = {
    "before": {"U_A": {"n": 40.0, "hr@1": 0.2, "hr@3": 0.4, "ndcg@3": 0.3}},
    "after": {"U_A": {"n": 40.0, "hr@1": 0.25, "hr@3": 0.5, "ndcg@3": 0.4}, "U_I": {"n": 9.0, "hr@1": 0.1}},
}
EVOLUTION = Evolution(
    id=EvolutionId("shop-e000002"),
    domain=DomainId("shop"),
    status=EvolutionStatus.rejected,
    requested_at=0.0,
    located_layers=(7, 8, 9),
    layer_votes=(0, 0, 0, 0, 0, 0, 0, 5, 9, 7),
    forgotten_share=0.125,
    metrics=METRICS,
    gate=Gate(passed=False, reasons=("U_I lost 3 points",)),
)
PUBLISHED = EVOLUTION.model_copy(update={"status": EvolutionStatus.published})
NEW_YEAR = 1767225600.0  # 2026


def rendered(renderable: object, width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest"],
        ["ingest", "--archive", "interactions.csv"],
        ["ingest", "--archive", "--since", "2026-01-01"],
        ["bootstrap", "--items", "i"],
        ["evolve", "--since", "x"],
        ["bench", "--items", "i", "--interactions", "c"],
        ["bench", "--items", "i", "--interactions", "c", "--out", "o", "--seeds", "0"],
        ["registry"],
        ["nothing"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize("command", ["pretrain", "bootstrap", "ingest", "bench"])
def test_what_reads_interactions_says_that_parquet_is_read(command: str) -> None:
    assert ".parquet" in CliRunner().invoke(app, [command, "--help"]).output


def serve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[httpx.Request], httpx.Response]) -> None:
    """Every command talks to a service that answers so."""
    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(options, "client", lambda _, key: ServiceClient("http://service", key, transport=transport))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the commands ask of a service that has one version: (call, body)."""
    calls: list[tuple[str, Any]] = []
    versions = [factories.manifest(1, domain=DomainId("shop")).model_dump(mode="json")]
    answers: dict[str, object] = {
        "PUT /items": {"upserted": 2, "rejected": []},
        "POST /interactions": {"accepted": 1, "duplicates": 0, "rejected": []},
        "PUT /admin/routes": {},
        "POST /admin/evolve": {"evolution_id": EVOLUTION.id},
        f"GET /admin/evolutions/{EVOLUTION.id}": PUBLISHED.model_dump(mode="json"),
        "GET /admin/adapters": {
            "domains": [{"domain": "shop", "aliases": {}, "paused": False, "versions": versions}],
        },
    }

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append((f"{request.method} {request.url.raw_path.decode()}", json.loads(request.content or "null")))
        return httpx.Response(200, json=answers[f"{request.method} {request.url.path}"])

    serve(monkeypatch, answer)
    return calls


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Two items, and an interaction on either side of new year."""
    items, interactions = tmp_path / "items.jsonl", tmp_path / "interactions.csv"
    items.write_text("\n".join(json.dumps({"item_id": item, "title": item}) for item in ("old", "new")))
    interactions.write_text(f"user_id,item_id,timestamp\nu,old,{NEW_YEAR - 1}\nu,new,{NEW_YEAR}\n")
    return str(items), str(interactions)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def interactions_of(item: str, timestamp: float) -> tuple[str, Any]:
    event = {"user_id": "u", "item_id": item, "timestamp": timestamp, "event_type": "purchase"}
    return "POST /interactions", {"domain": "shop", "interactions": [event]}


def evolve_asked(*, force: bool, dry_run: bool = False) -> list[tuple[str, Any]]:
    started = ("POST /admin/evolve", {"domain": "shop", "force": force, "dry_run": dry_run})
    return [started, (f"GET /admin/evolutions/{EVOLUTION.id}", None)]


def test_bootstrap_learns_the_past_alone(asked: list[tuple[str, Any]], files: tuple[str, str]) -> None:
    items, interactions = files
    invoke("bootstrap", "--domain", "shop", "--items", items, "--interactions", interactions, "--until", "2026-01-01")
    put, *rest = asked
    assert (put[0], [item["item_id"] for item in put[1]["items"]]) == ("PUT /items", ["old", "new"])
    assert rest == [
        ("GET /admin/adapters?domain=shop", None),
        ("PUT /admin/routes", {"domain": "shop", "paused": True}),
        interactions_of("old", NEW_YEAR - 1),
        ("PUT /admin/routes", {"domain": "shop", "paused": False}),
        *evolve_asked(force=True),
    ]


def test_ingest_sends_what_came_since(asked: list[tuple[str, Any]], files: tuple[str, str]) -> None:
    said = json.loads(invoke("ingest", "--domain", "shop", files[1], "--since", "2026-01-01", "--json"))
    assert asked == [interactions_of("new", NEW_YEAR)]
    assert (said["accepted"], said["outside"]) == (1, 1)


@pytest.mark.parametrize(
    ("since", "extra", "code"), [("2020-01-01", "", 1), ("2030-01-01", "", 0), ("2030-01-01", "u,old,soon\n", 0)]
)
def test_an_ingest_that_takes_nothing_in_is_an_error_unless_there_was_nothing(
    monkeypatch: pytest.MonkeyPatch, files: tuple[str, str], since: str, extra: str, code: int
) -> None:
    with Path(files[1]).open("a") as file:
        file.write(extra)
    rejected = [{"index": 0, "reason": "too old"}, {"index": 1, "reason": "too old"}]
    serve(monkeypatch, lambda _: httpx.Response(200, json={"accepted": 0, "duplicates": 0, "rejected": rejected}))
    result = CliRunner().invoke(app, ["ingest", "--domain", "shop", files[1], "--since", since])
    assert result.exit_code == code


def test_an_ingest_that_is_cut_off_tells_how_far_it_came(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "interactions.csv"
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"u,i,{n}\n" for n in range(1500)))
    answers = iter(
        [
            httpx.Response(200, json={"accepted": 990, "duplicates": 10, "rejected": []}),
            httpx.Response(403, json={"title": "Forbidden", "detail": "the key was removed"}),
        ]
    )
    serve(monkeypatch, lambda _: next(answers))
    result = CliRunner().invoke(app, ["ingest", "--domain", "shop", str(path)])
    assert isinstance(result.exception, ServiceRefused)
    assert "Cut off: of 1500 interactions 990 accepted, 10 duplicates, 0 rejected;" in result.stderr


@pytest.mark.parametrize("files", [["ingest"], ["bootstrap", "--items", "absent", "--interactions"]])
def test_a_domain_that_cannot_be_is_refused_before_files_are_read(files: list[str]) -> None:
    error = CliRunner().invoke(app, [*files, "absent.csv", "--domain", "Shop!"]).exception
    assert isinstance(error, InvalidInput)
    assert "domain" in str(error)


def test_a_rejected_interaction_is_told_by_its_own_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its place among the sorted rows that were sent says nothing of its place in the file."""
    path = tmp_path / "interactions.csv"
    path.write_text("event_type,user_id,item_id,timestamp\nView,u[x],new,2026-01-01\nbad\nview,u,old,2025-12-31\n")
    rejected = [{"index": 1, "reason": "event_type: View"}]
    serve(monkeypatch, lambda _: httpx.Response(200, json={"accepted": 1, "duplicates": 0, "rejected": rejected}))
    result = CliRunner().invoke(app, ["ingest", "--domain", "shop", str(path)], catch_exceptions=False)
    said = "user_id u[x], item_id new, event_type View, timestamp 1767225600: event_type: View"
    assert said in result.stderr


@pytest.mark.parametrize(
    ("flags", "calls"),
    [
        ([], evolve_asked(force=False)),
        (["--force"], evolve_asked(force=True)),
        (["--dry-run"], evolve_asked(force=False, dry_run=True)),
        (["--no-follow"], evolve_asked(force=False)[:1]),
    ],
)
def test_evolve_asks_for_what_its_flags_say(
    asked: list[tuple[str, Any]], flags: list[str], calls: list[tuple[str, Any]]
) -> None:
    assert EVOLUTION.id in invoke("evolve", "--domain", "shop", *flags)
    assert asked == calls


def answer_while_one_runs(monkeypatch: pytest.MonkeyPatch, listed: list[str], *, dry_run: bool = False) -> None:
    """A service in which an evolution is under way; its calls go into `listed`."""
    running = EVOLUTION.model_copy(update={"status": EvolutionStatus.running, "dry_run": dry_run}).model_dump(
        mode="json"
    )

    def answer(request: httpx.Request) -> httpx.Response:
        listed.append(f"{request.method} {request.url.path}")
        if request.method == "POST":
            return httpx.Response(409, json={"title": "Conflict", "detail": f"{EVOLUTION.id} is running"})
        of_domain = request.url.path == "/admin/evolutions"
        return httpx.Response(200, json={"evolutions": [running]} if of_domain else EVOLUTION.model_dump(mode="json"))

    serve(monkeypatch, answer)


@pytest.mark.parametrize("flags", [[], ["--force"], ["--no-follow"]])
def test_evolve_follows_the_evolution_that_is_under_way(monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    listed: list[str] = []
    answer_while_one_runs(monkeypatch, listed)
    assert EVOLUTION.id in invoke("evolve", "--domain", "shop", *flags)
    assert listed[:2] == ["POST /admin/evolve", "GET /admin/evolutions"]


@pytest.mark.parametrize(("flags", "running"), [(["--dry-run"], False), ([], True), (["--force"], True)])
def test_a_dry_run_and_an_evolution_that_publishes_do_not_stand_for_each_other(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], running: bool
) -> None:
    listed: list[str] = []
    answer_while_one_runs(monkeypatch, listed, dry_run=running)
    assert CliRunner().invoke(app, ["evolve", "--domain", "shop", *flags]).exit_code == 1
    assert listed == ["POST /admin/evolve", "GET /admin/evolutions"]


def test_adapters_shows_the_services_versions(asked: list[tuple[str, Any]]) -> None:
    [shop] = json.loads(invoke("adapters", "--json"))
    assert [version["name"] for version in shop["versions"]] == ["shop-v000001"]
    assert asked == [("GET /admin/adapters", None)]


def test_an_evolution_as_a_table() -> None:
    text = rendered(evolution_table(EVOLUTION))
    assert "7 8 9" in text
    assert "12.5% of older interactions" in text
    assert "not passed: U_I lost 3 points" in text
    assert "n=40: HR@1 0.200 -> 0.250, HR@3 0.400 -> 0.500" in text
    assert "n=9: HR@1 0.100" in text


def test_an_evolutions_error_is_shown_as_it_is() -> None:
    text = rendered(evolution_table(EVOLUTION.model_copy(update={"error": "no room in [/tmp/a]\x1b[2J\n[red]for it"})))
    assert "no room in [/tmp/a]?[2J" in text
    assert "[red]for it" in text


def test_a_group_that_was_not_measured_has_no_line() -> None:
    assert metric_line(METRICS, "U") is None
    assert metric_line({}, "U_A") is None
    assert metric_line({"after": {"U_I": {"n": 0.0, "hr@1": 0.0}}}, "U_I") is None


def test_versions_as_a_table_that_a_terminal_shows_whole() -> None:
    nobody_inactive = {"after": {"U_A": {"n": 40.0, "hr@1": 0.3}, "U_I": {"n": 0.0, "hr@1": 0.0}}}
    evolved = factories.manifest(2).model_copy(update={"located_layers": (0, 2, 5, 6, 7), "metrics": METRICS})
    bootstrapped = factories.manifest(1).model_copy(
        update={"located_layers": tuple(range(28)), "reason": "bootstrap", "metrics": nobody_inactive}
    )
    aliases = {"champion": bootstrapped.name, "challenger": evolved.name}
    entry = DomainVersions(domain=evolved.domain, aliases=aliases, paused=False, versions=(evolved, bootstrapped))
    text = rendered(adapters_table([entry]), width=80)
    words = text.split()
    assert "…" not in text
    assert "0.000" not in words  # of nobody
    assert {"beauty-v000002", "challenger", "0", "2", "5-7", "0.250", "0.100"} <= set(words)
    assert {"beauty-v000001", "champion", "0-27", "bootstrap", "0.300"} <= set(words)


@pytest.mark.parametrize("status", [EvolutionStatus.failed, EvolutionStatus.cancelled])
def test_what_did_not_finish_is_an_error(status: EvolutionStatus) -> None:
    with pytest.raises(EvolutionFailed, match=rf"shop-e000002 {status}: disk full"):
        require_finished(EVOLUTION.model_copy(update={"status": status, "error": "disk full"}))
    assert require_finished(EVOLUTION) is EVOLUTION


def test_a_bootstrap_without_a_version_is_an_error() -> None:
    assert require_published(PUBLISHED) is PUBLISHED
    for status in set(EvolutionStatus) - {EvolutionStatus.published}:
        with pytest.raises(NothingPublished, match=f"shop-e000002 {status}: nothing to learn"):
            require_published(EVOLUTION.model_copy(update={"status": status, "message": "nothing to learn"}))


@pytest.mark.parametrize(
    ("arguments", "name", "value", "said"),
    [
        (
            ["registry", "rebuild", "--domain", "shop"],
            "REDIS_URL",
            "redis://:hush@127.0.0.1:1",
            "check EVOREC_REDIS_URL",
        ),
        (["adapters"], "REDIS_URL", ":hush@127.0.0.1", "EVOREC_REDIS_URL: Value error, begins with none of redis://"),
        (["adapters"], "REDIS_URL", "redis://:hush#hush@127.0.0.1:1", "EVOREC_REDIS_URL: Value error, is no URL"),
        (["adapters"], "PORT", "hush", "EVOREC_PORT: Input should be a valid integer"),
        (["demo"], "STATE_DIR", __file__, f"File exists: '{__file__}'"),
    ],
)
def test_what_people_can_put_right_is_one_line(
    arguments: list[str],
    name: str,
    value: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(main, "log_as_notes", lambda: None)
    monkeypatch.setattr(sys, "argv", ["evorec", *arguments])
    monkeypatch.setenv(f"EVOREC_{name}", value)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert "hush" not in line


def test_a_service_that_listens_at_an_ipv6_address_is_asked_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOST", "::1"), ("PORT", "1")):
        monkeypatch.setenv(f"EVOREC_{name}", value)
    assert "no service answers at http://[::1]:1 " in str(CliRunner().invoke(app, ["adapters"]).exception)
    asked: list[str] = []

    def get(url: str, **_: object) -> httpx.Response:
        asked.append(url)
        return httpx.Response(200)

    monkeypatch.setattr(httpx, "get", get)
    check_service(Settings())
    assert asked == ["http://[::1]:1/health/ready"]


def test_no_id_becomes_an_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"user_id": "a:x:"})
    print_error("Not found", "no user a:x:")
    said = capsys.readouterr()
    assert json.loads(said.out) == {"user_id": "a:x:"}
    assert said.err == "Not found: no user a:x:\n"


def test_a_taste_is_what_was_bought_most() -> None:
    items = {ItemId(i): Item(ItemId(i), i, category) for i, category in (("a", "Kitchen > Tea"), ("b", "Pens"))}
    events = [
        Interaction("", UserId(user), ItemId(i), 0.0) for user, i in (("u", "a"), ("u", "b"), ("u", "a"), ("v", "b"))
    ]
    assert taste(events, items, UserId("u")) == "Tea (2), Pens (1)"
    assert taste(events, items, UserId("nobody")) == "nothing"
