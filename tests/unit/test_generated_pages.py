"""Pages with figures are made from their result files: no number is typed by hand."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from deploy.experiments.real_loop import page as loop_page
from evolver.bench.known_truth import page as forget_page
from tests.faults import page as reliability
from tests.faults.results import RESULTS as RELIABILITY
from tests.load.page import PAGE, rendered
from tests.load.results import RESULTS, ROOT, compared

FAULTS = sorted((ROOT / "tests" / "faults").glob("test_*.py"))


def test_the_page_of_the_real_loop_is_that_of_its_result_file() -> None:
    results = json.loads((ROOT / "docs" / "results" / "beauty-loop.json").read_text())
    assert loop_page(results) == (ROOT / "docs" / "beauty.md").read_text()


def test_the_page_of_forget_is_that_of_its_result_file() -> None:
    results = json.loads((ROOT / "docs" / "results" / "forget.json").read_text())
    assert forget_page(results) == (ROOT / "docs" / "forget.md").read_text()


def test_the_tables_are_those_of_the_result_file() -> None:
    page, results = PAGE.read_text(), json.loads(RESULTS.read_text())
    assert rendered(page, results) == page
    assert set(re.findall(r"<!-- table: ([\w-]+) -->", page)) == results.keys()


def test_the_tables_of_the_promises_are_those_of_the_result_file() -> None:
    page, results = reliability.PAGE.read_text(), json.loads(RELIABILITY.read_text())
    assert reliability.rendered(page, results) == page
    assert {each["promise"] for each in results.values()} == set(reliability.PROMISES)


def test_every_fault_test_is_on_the_page_and_nothing_else() -> None:
    results = json.loads(RELIABILITY.read_text())
    written = {f"{path.relative_to(ROOT).as_posix()}::{name}" for path in FAULTS for name in fault_tests(path)}
    assert {test.partition("[")[0] for test in results} == written


def fault_tests(path: Path) -> list[str]:
    """Names of the tests in a file that tell an outcome."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)]
    return [
        each.name
        for each in found
        if each.name.startswith("test_") and "outcome" in {arg.arg for arg in each.args.args}
    ]


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
