"""The pure parts of the demo: who is asked what, how hits count, and whose state is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deploy.client import Recommendation, Recommended, ServiceClient, ServiceRefused
from deploy.demo.run import cast_of
from deploy.demo.state import fresh_state
from deploy.demo.trial import N_CANDIDATES, HitRates, Trial, ask, hit_rates, panel_trials, rank_of
from evolver.stores import make_store
from shared.config import Settings
from shared.errors import Conflict
from shared.panel import in_panel
from shared.types import DomainId, ItemId, UserId


def test_trials_are_the_same_for_every_version_and_hold_the_target_once() -> None:
    store = make_store(3, n_users=80, n_items=120)
    trials = panel_trials(store, 0.5, seed=1)
    assert trials == panel_trials(store, 0.5, seed=1)
    assert {trial.user for trial in trials} == {user for user in store.future if in_panel(user, 0.5)}
    own: dict[UserId, set[ItemId]] = {}
    for event in (*store.first_period, *store.second_period):
        own.setdefault(event.user_id, set()).add(event.item_id)
    for trial in trials:
        assert len(set(trial.candidates)) == N_CANDIDATES
        assert trial.candidates.count(trial.target) == 1
        assert not (set(trial.candidates) - {trial.target}) & own[trial.user]
    assert len({trial.candidates.index(trial.target) for trial in trials}) > 5  # the position tells nothing


def test_ranks_count_ties_and_absence_against_the_target() -> None:
    items = tuple(Recommended(ItemId(i), score, "") for i, score in (("a", 0.5), ("b", 0.2), ("c", 0.2)))
    answer = Recommendation(items, "v", False)
    assert [rank_of(ItemId(i), answer) for i in "abcz"] == [1, 3, 3, 4]


def test_hit_rates_per_group() -> None:
    trials = [Trial(UserId(str(i)), ItemId("a"), (), active=i < 2) for i in range(5)]
    rates = hit_rates(trials, [1, 3, 1, 4, 2])
    assert rates["U_A"] == HitRates(2, 0.5, 1.0)
    assert rates["U_I"] == HitRates(3, 1 / 3, 2 / 3)
    assert rates["U"].n == 5
    assert hit_rates([], [])["U_A"] == HitRates(0, 0.0, 0.0)


async def test_a_question_that_fails_is_the_error_of_all() -> None:
    """Which the command tells; a group of errors would be a traceback."""
    trials = [Trial(UserId(str(i)), ItemId("a"), (ItemId("a"),), active=True) for i in range(20)]
    answer = httpx.MockTransport(lambda _: httpx.Response(403, json={"title": "Forbidden", "detail": "no key"}))
    async with ServiceClient("http://service", transport=answer) as client:
        with pytest.raises(ServiceRefused, match="no key"):
            await ask(client, DomainId("demo"), trials, lambda: None)


def test_the_cast_drifts_and_stays() -> None:
    store = make_store(7, n_users=80, n_items=120)
    cast = cast_of(store)
    assert cast["drifting"] in store.drifting
    assert cast["steady"] in store.steady


def test_the_demo_never_touches_the_real_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVOREC_STATE_DIR", "state")
    monkeypatch.setenv("EVOREC_REDIS_URL", "redis://real:6379/0")
    monkeypatch.setenv("EVOREC_API_KEYS", "k:admin")
    (tmp_path / "state" / "redis").mkdir(parents=True)
    (tmp_path / ".env").write_text("EVOREC_ARTIFACTS_URL=s3://real\n")
    with fresh_state(7) as state:
        assert state.settings.redis_url is None
        assert state.settings.artifacts_url is None
        assert state.settings.api_keys == ()
        assert state.settings.state_dir == tmp_path / "state" / "demo"
        assert not {"EVOREC_REDIS_URL", "EVOREC_API_KEYS"} & set(state.env)
        assert state.env["EVOREC_STATE_DIR"] == str(state.folder)
        (state.folder / "leftover").touch()
        with pytest.raises(Conflict, match="another"), fresh_state(7):
            pass
    with fresh_state(7) as state:
        assert not (state.folder / "leftover").exists()
    assert (tmp_path / "state" / "redis").is_dir()


def test_the_demo_inherits_no_setting_that_it_would_not_get_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changed = {
        "POSITIVE_EVENTS": "click",
        "WAIT_REPLICAS": "1",
        "WORKER_METRICS_PORT": "9100",
        "RATE_LIMIT": "1/hour",
        "MAX_CONCURRENT_REQUESTS": "1",
        "MAX_CONCURRENT_RANKINGS": "1",
    }
    for name, value in changed.items():
        monkeypatch.setenv(f"EVOREC_{name}", value)
    with fresh_state(7) as state:
        for name in changed:
            assert f"EVOREC_{name}" not in state.env
            assert getattr(state.settings, name.lower()) == Settings.model_fields[name.lower()].default


def test_sizes_of_the_environment_win_and_none_is_lost_to_a_file_that_the_processes_do_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVOREC_MAX_LOCATED_USERS", "9")
    (tmp_path / ".env").write_text("EVOREC_UPDATE_EPOCHS=5\n")
    with fresh_state(7) as state:
        assert (state.settings.max_located_users, state.settings.update_epochs) == (9, 1)
        assert (state.env["EVOREC_MAX_LOCATED_USERS"], state.env["EVOREC_UPDATE_EPOCHS"]) == ("9", "1")


def test_logs_are_written_whatever_the_locale_encodes(tmp_path: Path) -> None:
    code = (
        "import contextlib, pathlib, sys, types; from deploy.demo.run import _log_files\n"
        "state = types.SimpleNamespace(logs=pathlib.Path(sys.argv[1]))\n"
        "with contextlib.ExitStack() as files: _log_files(state, files)('worker', chr(0x2192))\n"
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, check=True)
    assert (tmp_path / "worker.log").read_text(encoding="utf-8") == "→\n"
