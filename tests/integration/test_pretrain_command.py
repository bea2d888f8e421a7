"""`evorec pretrain` makes a base of the shape that is asked for, from a catalog's past."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from deploy.cli.main import app
from shared.base_model import base_model_info
from shared.errors import InvalidInput
from tests.bench_support import write_shop


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
