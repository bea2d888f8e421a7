"""`evorec pretrain` makes a base of the shape that is asked for, from a catalog's past, and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.cli.pretrain import corpus_of_files
from evolver.bench.timeline import PANEL_SHARE
from evolver.pretrain.config import PretrainConfig, Stage, learning_rate_factor, scaled, shaped
from evolver.pretrain.corpus import Corpus, corpus_of
from evolver.pretrain.run import pretrain
from shared.base_model import base_model_hash, base_model_info
from shared.errors import InvalidInput
from shared.panel import in_panel
from shared.types import Item, ItemId
from tests.bench_support import make_interactions, make_items, write_shop
from tests.factories import interaction

SHORT = shaped(
    PretrainConfig(
        stages=(Stage(steps=3, batch=4, candidates=4, history=2, hard=0.0),), checkpoint_every=1, compile=False
    ),
    hidden_size=96,
    n_layers=4,
)
LATER = Item(ItemId("later"), "Zyxwvut of the Future")


class Stopped(Exception):
    """What a run is cut off by."""


def past_and_more() -> tuple[Corpus, Corpus]:
    """A shop's past, and the same with what came later: an item that nobody knew before."""
    items, events = make_items(), make_interactions()
    more = corpus_of((*items, LATER), (*events, interaction("u000", LATER.item_id, at=10**8)))
    return corpus_of(items, events), more


def steps_of(corpus: Corpus, out: Path, *, stop_at: int | None = None) -> list[int]:
    """The steps that a run does."""
    done: list[int] = []

    def progress(step: int, total: int, parts: dict[str, float]) -> None:
        if step == stop_at:
            raise Stopped
        done.append(step)

    pretrain([corpus], out, SHORT, progress)
    return done


def test_a_run_goes_on_from_a_checkpoint_of_its_own_data_alone(tmp_path: Path) -> None:
    past, more = past_and_more()
    with pytest.raises(Stopped):
        steps_of(more, tmp_path / "base", stop_at=2)
    assert steps_of(past, tmp_path / "base") == [0, 1, 2]
    assert steps_of(past, tmp_path / "fresh") == [0, 1, 2]
    assert base_model_hash(str(tmp_path / "base")) == base_model_hash(str(tmp_path / "fresh"))
    assert steps_of(more, tmp_path / "base") == [2]


def test_a_finished_base_of_other_data_does_not_pass_for_one_that_was_cut_off(tmp_path: Path) -> None:
    past, more = past_and_more()
    steps_of(more, tmp_path)
    assert (tmp_path / "pretrain.json").exists()
    with pytest.raises(Stopped):
        steps_of(past, tmp_path, stop_at=1)
    assert not (tmp_path / "pretrain.json").exists()


def test_neither_the_service_s_panel_nor_the_benchmark_s_teaches_a_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict(zip(("items", "interactions"), (Path(file) for file in write_shop(tmp_path)[1::2]), strict=True))
    for service_s, left_out in ((0.1, PANEL_SHARE), (0.4, 0.4)):
        monkeypatch.setenv("EVOREC_PANEL_SHARE", str(service_s))
        taught = corpus_of_files(**files, until=None, seed=0).sequences
        everyone = {event.user_id for event in make_interactions()}
        assert {*taught} == {user for user in everyone if not in_panel(user, left_out)}


def test_a_base_of_another_shape(tmp_path: Path) -> None:
    files = write_shop(tmp_path)
    shape = ["--hidden-size", "96", "--layers", "4"]
    outcome = CliRunner().invoke(
        app, ["pretrain", *files, *shape, "--scale", "0.001", "--out", str(tmp_path / "base"), "--json"]
    )
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)["steps"] == 5
    info = base_model_info(str(tmp_path / "base"))
    assert (info.hidden_size, info.n_layers) == (96, 4)
    assert json.loads((tmp_path / "base" / "pretrain.json").read_text())["auxiliary_layer"] == 2


def test_a_width_that_heads_cannot_share_is_refused(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["pretrain", "--hidden-size", "100", "--out", str(tmp_path / "base")])
    assert isinstance(outcome.exception, InvalidInput)
    assert "multiple of 96, not 100" in str(outcome.exception)
    assert not (tmp_path / "base").exists()


def test_a_catalog_too_small_for_the_recipe_is_refused(tmp_path: Path) -> None:
    bought = [interaction(f"u{user}", f"i{number:03d}", at=number) for user in range(20) for number in range(12)]
    files = write_shop(tmp_path, make_items(30), bought)
    outcome = CliRunner().invoke(app, ["pretrain", *files, "--scale", "0.001", "--out", str(tmp_path / "base")])
    assert isinstance(outcome.exception, InvalidInput)
    assert "larger catalog" in str(outcome.exception)


def test_views_are_not_taken_for_purchases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = dict(zip(("items", "interactions"), (Path(file) for file in write_shop(tmp_path)[1::2]), strict=True))
    bought = corpus_of_files(**files, until=None, seed=0)
    assert "left out" not in capsys.readouterr().err
    header, *rows = files["interactions"].read_text().splitlines()
    views = [
        f"{user},i{number % 60:03d},{time},view"
        for number, (user, _, time) in enumerate(row.split(",") for row in rows)
    ]
    lines = [f"{header},event_type", *(f"{row},purchase" for row in (*rows, rows[0])), *views]
    files["interactions"].write_text("\n".join(lines))
    assert corpus_of_files(**files, until=None, seed=0) == bought
    assert f"{len(views) + 1:,} interactions are left out" in " ".join(capsys.readouterr().err.split())


def test_a_short_run_still_reaches_its_full_rate() -> None:
    short = scaled(PretrainConfig(), 0.01)
    assert max(learning_rate_factor(step, short) for step in range(short.total_steps)) == 1.0
    assert scaled(PretrainConfig(), 1.0).warmup == PretrainConfig().warmup


def test_a_tokenizer_that_was_cut_off_is_made_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class CutOff:
        def save(self, path: str) -> None:
            Path(path).write_text('{"version')
            raise Stopped

    past, _ = past_and_more()
    with monkeypatch.context() as patch:
        patch.setattr("evolver.pretrain.run.train_tokenizer", lambda *args, **options: CutOff())
        with pytest.raises(Stopped):
            steps_of(past, tmp_path)
    assert steps_of(past, tmp_path) == [0, 1, 2]
