"""Pages with figures are made from their result files: no number is typed by hand."""

from __future__ import annotations

import json
import re

import pytest

from deploy.experiments.real_loop import page as loop_page
from tests.load.page import PAGE, rendered
from tests.load.results import RESULTS, ROOT, compared


def test_the_page_of_the_real_loop_is_that_of_its_result_file() -> None:
    results = json.loads((ROOT / "docs" / "results" / "beauty-loop.json").read_text())
    assert loop_page(results) == (ROOT / "docs" / "beauty.md").read_text()


def test_the_tables_are_those_of_the_result_file() -> None:
    page, results = PAGE.read_text(), json.loads(RESULTS.read_text())
    assert rendered(page, results) == page
    assert set(re.findall(r"<!-- table: ([\w-]+) -->", page)) == results.keys()


def test_a_ratio_is_the_median_over_rounds_of_the_same_run() -> None:
    entry = compared("ours", "prompts/s", [10, 30, 20], "bench", baseline="theirs", against=[10, 20, 40])
    assert (entry.value, entry.ratio, entry.spread, entry.runs) == (20, 1.0, (0.5, 1.5), 3)


def test_a_figure_without_baseline_spreads_by_itself() -> None:
    entry = compared("ours", "ms", [3.0, 1.0, 2.0], "bench")
    assert (entry.value, entry.ratio, entry.spread) == (2.0, None, (1.0, 3.0))


@pytest.mark.parametrize("page", ["<!-- table: nothing -->\n<!-- end -->"])
def test_a_table_without_results_is_an_error(page: str) -> None:
    with pytest.raises(KeyError, match="nothing"):
        rendered(page, {})
