"""docs/operations.md lists each metric that there is (EVOREC_UPDATE_GOLDEN=1 rewrites the list)."""

from __future__ import annotations

import os

from prometheus_client.metrics import MetricWrapperBase

from evolver.figures import Figures
from service.metrics import Metrics
from tests.load.page import with_tables
from tests.load.results import ROOT

PAGE = ROOT / "docs" / "operations.md"
UPDATE = os.environ.get("EVOREC_UPDATE_GOLDEN")


def test_the_metrics_on_the_page_are_those_of_service_and_worker() -> None:
    page = PAGE.read_text()
    wanted = with_tables(page, {"metrics": table({"service": Metrics(), "worker": Figures()})})
    if UPDATE:
        PAGE.write_text(wanted)
    assert PAGE.read_text() == wanted
    assert "<!-- table: metrics -->" in page


def table(owners: dict[str, object]) -> str:
    rows = [
        f"| {owner} | {name(metric)} | {metric._documentation} |"
        for owner, holder in owners.items()
        for metric in vars(holder).values()
        if isinstance(metric, MetricWrapperBase)
    ]
    return "\n".join(["| of the | metric | what it says |", "| --- | --- | --- |", *rows]) + "\n"


def name(metric: MetricWrapperBase) -> str:
    """As it is scraped, with its labels."""
    suffix = "_total" if metric._type == "counter" else ""
    labels = f"{{{', '.join(metric._labelnames)}}}" if metric._labelnames else ""
    return f"`{metric._name}{suffix}{labels}`"
