"""`evorec demo`: the whole loop on a generated store, on this machine."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from deploy.cli import options
from deploy.output import note_console, print_json, result_console
from shared.errors import EvorecError

_SEED = 7  # the shipped base model was trained on stores with other seeds


def demo(
    seed: Annotated[int, typer.Option(help="Of the generated store")] = _SEED,
    as_json: options.AsJson = False,
) -> None:
    """Interactions in, a new adapter out, recommendations from it: every part real, in a few minutes."""
    from deploy.demo.report import print_report
    from deploy.demo.run import run_demo
    from deploy.demo.state import fresh_state
    from evolver.stores import make_store

    console = note_console() if as_json else result_console()
    with fresh_state(seed) as state:
        store = make_store(seed)
        console.print(
            f"A generated store: {len(store.items)} items, {len(store.future)} users, "
            f"{len(store.first_period)} purchases in the first period and {len(store.second_period)} in the second; "
            f"the tastes of {len(store.drifting)} users drift in between.",
            highlight=False,
        )
        try:
            report = options.run(run_demo(state, store, console))
        except EvorecError:
            note_console().print(f"The logs are in {state.logs}", markup=False, highlight=False, soft_wrap=True)
            raise
        (state.folder / "report.json").write_text(json.dumps(report.to_dict(), indent=1, default=str) + "\n")
        if as_json:
            print_json(report.to_dict())
            return
        print_report(console, report, store)
        _say_how_to_go_on(console)


def _say_how_to_go_on(console: Console) -> None:
    evorec = os.path.relpath(sys.argv[0]) if sys.argv[0].endswith("evorec") else "evorec"
    console.print(
        f"""
[bold]With your own data[/bold]: items.jsonl (item_id, title, category, brand),
interactions.csv (user_id,item_id,timestamp)
  {evorec} up                                   # Redis, worker and service, until Ctrl-C
  {evorec} bootstrap --domain shop --items items.jsonl --interactions interactions.csv --until 2026-01-01
  {evorec} ingest --domain shop interactions.csv --since 2026-01-01
  {evorec} evolve --domain shop --force
  curl -s localhost:8000/recommend -H 'Content-Type: application/json' -d '{{"domain": "shop", "user_id": "..."}}'
A larger model: EVOREC_BASE_MODEL=Qwen/Qwen3-0.6B. Your own Redis: EVOREC_REDIS_URL=redis://... (see README.md).""",
        highlight=False,
        soft_wrap=True,
    )
