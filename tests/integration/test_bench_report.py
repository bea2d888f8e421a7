"""The benchmark's report and its command: files in, files out, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from deploy.cli.bench_run import require_titles
from deploy.files import read_items
from evolver.bench.report import read_results, write_report
from shared.errors import InvalidInput, NotFound
from tests.bench_support import bench_results
from tests.load.results import ROOT

NAMES = ["frozen", "retrain", "evorec"]


def _written(folder: Path, seed: int, **changes: object) -> Path:
    path = folder / f"{seed}.json"
    results = bench_results(NAMES, seed=seed, value=lambda name, number, _: len(name) / 20 + number / 50)
    path.write_text(json.dumps({**results, **changes}))
    return path


def test_a_report_of_several_seeds_and_datasets_has_all_tables_and_plots(tmp_path: Path) -> None:
    other = bench_results(NAMES, value=lambda *_: 0.5)["data"] | {"name": "other"}
    paths = [_written(tmp_path, 0), _written(tmp_path, 1), _written(tmp_path, 2, data=other)]
    text = write_report(paths, tmp_path / "docs" / "results.md").read_text()
    for words in (
        "## shop",
        "## other",
        "Seeds: 0, 1.",
        "5.4 M parameters",
        "2 without a title",
        "A seed's learning took 0.4 hours of these, asking its versions 1.5 hours by the clock",
        "retrain: what it does.",
    ):
        assert words in text
    for name in ("shop", "other"):
        for plot in ("rounds", "against", "cost", "votes"):
            assert f"(results-{name}-{plot}.png)" in text
            with Image.open(tmp_path / "docs" / f"results-{name}-{plot}.png") as image:
                assert min(image.size) > 200
    assert "nan" not in text


def test_a_report_says_how_long_all_of_it_took_where_that_was_noted(tmp_path: Path) -> None:
    paths = [_written(tmp_path, seed, elapsed_seconds=3600.0 * hours) for seed, hours in ((0, 1), (1, 4))]
    text = write_report(paths, tmp_path / "report.md").read_text()
    assert "over all processes; 2.5 hours lie between its beginning and its last step's end, pauses included." in text
    unknown = write_report([paths[0], _written(tmp_path, 2)], tmp_path / "report.md").read_text()
    assert "over all processes." in unknown


def test_strategies_that_only_some_seeds_have_are_named_and_left_out(tmp_path: Path) -> None:
    few = bench_results(["frozen", "evorec"], seed=1, value=lambda *_: 0.5)
    (tmp_path / "1.json").write_text(json.dumps(few))
    text = write_report([_written(tmp_path, 0), tmp_path / "1.json"], tmp_path / "report.md").read_text()
    assert "Left out, since not all seeds have them: retrain (seeds 0)." in text
    assert "| retrain |" not in text


def test_a_report_of_a_shared_accelerator_has_no_seconds(tmp_path: Path) -> None:
    arguments = {"max_train_examples": 1500, "max_evaluated": 1000, "shared": True}
    text = write_report([_written(tmp_path, 0, arguments=arguments)], tmp_path / "report.md").read_text()
    assert "Other processes used the accelerator meanwhile, so no seconds are given." in text
    assert "total, s" not in text
    assert "| strategy | examples | tokens forward |" in text
    assert not (tmp_path / "report-shop-cost.png").exists()


def test_there_is_a_page_of_results_where_there_are_results_and_it_is_theirs(tmp_path: Path) -> None:
    docs = ROOT / "docs"
    files = sorted((docs / "results").glob("bench-*.json"))
    page = write_report(files, tmp_path / "results.md", docs / "results" / "forget.json") if files else None
    committed = docs / "results.md"
    assert (page and page.read_text()) == (committed.read_text() if committed.exists() else None)
    assert {path.name for path in tmp_path.glob("*.png")} == {path.name for path in docs.glob("results-*.png")}


def test_results_that_cannot_be_read_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no file .*missing\.json"):
        read_results([tmp_path / "missing.json"])
    with pytest.raises(InvalidInput, match="format 2"):
        read_results([_written(tmp_path, 0, format=0)])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InvalidInput, match="not JSON"):
        read_results([tmp_path / "broken.json"])
    twice = _written(tmp_path, 3)
    with pytest.raises(InvalidInput, match=r"shop with seeds \[3, 3\]"):
        read_results([twice, twice])


def test_items_without_title_are_counted_and_a_catalog_of_them_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    records = [
        {"item_id": "a", "title": "Rose cream"},
        {"item_id": "b", "brand": "Acme"},
        {"item_id": "c", "title": ""},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    items = read_items(path).rows
    assert require_titles(items, path) == 2
    with pytest.raises(InvalidInput, match=r"No item of .* has a title"):
        require_titles(items[1:], path)
