"""The benchmark's report and its command: files in, files out, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from deploy.cli.bench_run import require_titles
from deploy.files import read_items
from evolver.bench.report import read_results, write_report
from evolver.bench.runner import SETTINGS_THAT_COUNT
from shared.config import Settings
from shared.errors import InvalidInput, NotFound
from tests.bench_support import bench_results
from tests.load.results import ROOT

NAMES = ["frozen", "retrain", "evorec"]


def _written(folder: Path, seed: int, **changes: object) -> Path:
    path = folder / f"{seed}.json"
    results = bench_results(NAMES, seed=seed, value=lambda name, number, _: len(name) / 20 + number / 50)
    path.write_text(json.dumps({**results, **changes}))
    return path


def _pages(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.md")}


def test_a_report_of_several_seeds_and_datasets_has_all_tables_and_plots(tmp_path: Path) -> None:
    other = bench_results(NAMES, value=lambda *_: 0.5)["data"] | {"name": "other"}
    paths = [_written(tmp_path, 0), _written(tmp_path, 1), _written(tmp_path, 2, data=other)]
    text = write_report(paths, tmp_path / "docs" / "figures.md").read_text()
    for words in (
        "## shop",
        "## other",
        "Seeds: 0, 1.",
        " --seeds 2`",
        " --first-seed 2`",
        "5.4 M parameters",
        "2 without a title",
        "A seed's learning took 21 minutes of these, asking its versions 90 minutes by the clock",
        "retrain: what it does.",
    ):
        assert words in text
    for name in ("shop", "other"):
        for plot in ("rounds", "against", "cost", "votes"):
            assert f"(figures/{name}-{plot}.png)" in text
            with Image.open(tmp_path / "docs" / "figures" / f"{name}-{plot}.png") as image:
                assert min(image.size) > 200
        others = (tmp_path / "docs" / "figures" / f"{name}.md").read_text()
        assert f"(figures/{name}.md)" in text
        assert "### Round 3, `next`, catalog candidates" in others
        assert "nan" not in others
    assert "nan" not in text
    glance = {cells[1].strip(): cells for cells in (line.split("|") for line in text.splitlines()) if len(cells) == 11}
    assert [cell.strip() for cell in glance["[shop](#shop)"][2:6]] == ["2", "3", "200", "1,500"]
    frozen, finetune, retrain = (cell.strip() for cell in glance["[other](#other)"][-4:-1])
    assert (frozen, finetune) == ("+0.000 [+0.000, +0.000]", "–")
    assert retrain.startswith("**-0.050 [")


def test_a_report_names_calls_for_seeds_with_a_gap_and_unlike_code(tmp_path: Path) -> None:
    rounds = json.loads(_written(tmp_path, 0).read_text())["rounds"]
    for a_round in rounds:
        a_round["strategies"]["evorec"]["code"] = "another"
    text = write_report([_written(tmp_path, 0, rounds=rounds), _written(tmp_path, 2)], tmp_path / "r.md").read_text()
    (command,) = (line for line in text.splitlines() if line.startswith("- Command: "))
    assert command.endswith("interactions.csv`, `" + command.split("`")[1] + " --first-seed 2`")
    assert "- Code that learned: frozen, retrain, evorec (c0de); evorec (another). Seconds of unlike" in text


def test_a_report_says_how_long_all_of_it_took_where_that_was_noted(tmp_path: Path) -> None:
    paths = [_written(tmp_path, seed, elapsed_seconds=3600.0 * hours) for seed, hours in ((0, 1), (1, 4))]
    text = write_report(paths, tmp_path / "report.md").read_text()
    assert (
        "over all processes; 150 minutes lie between its beginning and its last step's end, pauses included, making"
        in text
    )
    unknown = write_report([paths[0], _written(tmp_path, 2)], tmp_path / "report.md").read_text()
    assert "over all processes." in unknown


def test_memory_of_results_that_have_the_whole_process_s_is_left_out(tmp_path: Path) -> None:
    assert "| 512 |" in write_report([_written(tmp_path, 0)], tmp_path / "report.md").read_text()
    old = json.loads((tmp_path / "0.json").read_text())
    for a_round in old["rounds"]:
        for made in a_round["strategies"].values():
            made["cost"]["peak_memory_mib"] = made["cost"].pop("added_memory_mib")
    (tmp_path / "0.json").write_text(json.dumps(old))
    text = write_report([tmp_path / "0.json"], tmp_path / "report.md").read_text()
    assert "| 512 |" not in text
    assert "| memory, MiB |" in text


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
    assert not (tmp_path / "report" / "shop-cost.png").exists()


def test_settings_that_are_not_the_defaults_are_said_and_those_that_a_run_is_too_old_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = Settings(_env_file=None).model_dump(mode="json", include={*SETTINGS_THAT_COUNT})
    monkeypatch.setenv("EVOREC_LORA_RANK", "8")  # as it was when the command ran: that makes it no default
    arguments |= {"max_train_examples": 500, "max_evaluated": 1000}
    text = write_report([_written(tmp_path, 0, arguments=arguments)], tmp_path / "report.md").read_text()
    assert "Settings other than" not in text
    arguments |= {"lora_rank": 8, "positive_events": ["purchase", "cart"]}
    del arguments["retriever_dropout"]
    text = write_report([_written(tmp_path, 0, arguments=arguments)], tmp_path / "report.md").read_text()
    said = "- Settings other than today's defaults (in parentheses): "
    (line,) = (line.removeprefix(said) for line in text.splitlines() if line.startswith(said))
    assert set(line.removesuffix(".").split(", ")) == {
        "lora_rank 8 (16)",
        "positive_events purchase,cart (purchase)",
        "no retriever_dropout (0.5)",
    }


@pytest.mark.parametrize("name", ["results", "results-earlier"])
def test_there_is_a_page_of_results_where_there_are_results_and_it_is_theirs(tmp_path: Path, name: str) -> None:
    docs = ROOT / "docs"
    files = sorted((docs / name).glob("bench-*.json"))
    forget = docs / name / "forget.json"
    page = write_report(files, tmp_path / f"{name}.md", forget if forget.exists() else None) if files else None
    committed = docs / f"{name}.md"
    assert (page and page.read_text()) == (committed.read_text() if committed.exists() else None)
    assert {path.name for path in tmp_path.glob("*/*.png")} == {path.name for path in (docs / name).glob("*.png")}
    assert _pages(tmp_path / name) == _pages(docs / name)


def test_results_that_cannot_be_read_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"name it .*report\.md"):
        write_report([], tmp_path / "report")
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
    data = bench_results(NAMES, value=lambda *_: 0.5)["data"]
    elsewhere = _written(tmp_path, 4, data=data | {"users": data["users"] + 1})
    with pytest.raises(InvalidInput, match=r"shop are of different runs \(data users differ\)"):
        read_results([twice, elsewhere])
    other = tmp_path / "other.json"
    other.write_text(json.dumps(bench_results(["kl"], seed=5, value=lambda *_: 0.5)))
    with pytest.raises(InvalidInput, match="shop have no strategy in common"):
        read_results([_written(tmp_path, 4), other])


def test_of_seeds_that_went_on_for_longer_the_rounds_that_all_have_are_read(tmp_path: Path) -> None:
    whole = bench_results(NAMES, seed=1, value=lambda *_: 0.5)
    shorter = _written(tmp_path, 1, rounds=whole["rounds"][:2])
    seeds = read_results([_written(tmp_path, 0), shorter])["shop"]
    assert [len(one["rounds"]) for one in seeds] == [2, 2]


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
