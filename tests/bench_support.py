"""A small dataset for the benchmark: users who buy within their shelf, over some months."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evolver.bench.cases import CATALOG_SET, KINDS
from evolver.bench.paired import GROUPS
from evolver.bench.results import FORMAT, SETS, served_of
from evolver.bench.rules import RULES
from evolver.bench.strategy import Cost, Learned
from evolver.inputs import EvolutionInputs
from evolver.locate import Location
from evolver.scoring import Version
from shared.config import Settings
from shared.forgotten import ForgottenSet
from shared.ranking import Blends, BlendWeights
from shared.retriever import Retriever, RetrieverIndex
from shared.types import Interaction, Item, ItemId
from tests.factories import T0, interaction

DAY = 86_400.0
N_ITEMS = 60
N_SHELVES = 5
ASKED = 200  # users of each group in results that are made up
SETTINGS = Settings(_env_file=None, max_validation_users=6)


def make_items(n: int = N_ITEMS) -> tuple[Item, ...]:
    return tuple(
        Item(ItemId(f"i{number:03d}"), f"thing{number} of shelf{number % N_SHELVES}", f"shelf{number % N_SHELVES}")
        for number in range(n)
    )


def make_interactions(n_users: int = 80, n: int = 900, seed: int = 0) -> tuple[Interaction, ...]:
    """One interaction every quarter of a day, oldest first; nobody buys a thing twice."""
    rng = np.random.default_rng(seed)
    bought: set[tuple[int, int]] = set()
    events: list[Interaction] = []
    while len(events) < n:
        user = int(rng.integers(n_users))
        item = int(rng.integers(N_ITEMS // N_SHELVES)) * N_SHELVES + user % N_SHELVES
        item = item if rng.random() < 0.8 else int(rng.integers(N_ITEMS))
        if (user, item) not in bought:
            bought.add((user, item))
            events.append(interaction(f"u{user:03d}", f"i{item:03d}", at=len(events) * DAY / 4))
    return tuple(events)


def write_shop(
    folder: Path, items: Sequence[Item] = make_items(), interactions: Sequence[Interaction] = make_interactions()
) -> list[str]:
    """A dataset as files; the options that name them."""
    files = {"items": folder / "items.jsonl", "interactions": folder / "interactions.csv"}
    files["items"].write_text("\n".join(json.dumps(asdict(item)) for item in items))
    rows = [f"{event.user_id},{event.item_id},{event.timestamp}" for event in interactions]
    files["interactions"].write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    return [word for option, path in files.items() for word in (f"--{option}", str(path))]


def learned_nothing(inputs: EvolutionInputs, out: Path) -> Learned:
    """A version without an LLM, whose retriever knows words alone; the file in `out` stands for its files."""
    torch.manual_seed(0)
    (out / "made").touch()
    return Learned(
        version=Version(None, RetrieverIndex(Retriever([]), inputs.items), ForgottenSet()),
        blend=Blends.alike(BlendWeights(llm=0.0, retriever=1.0, popularity=0.5)),
        location=Location((1,), (0, 3), (0.9, 0.8)),
        forgotten_interactions=4,
        forgotten_share=0.25,
        consistency=1.0,
        validation_loss=(2.5, 2.4),
        cost=Cost({"update": 2.0}, 10, 1000, 900, 30, 100, 64.0),
    )


def bench_results(
    strategies: Sequence[str], *, n_rounds: int = 3, seed: int = 0, value: Callable[[str, int, str], float]
) -> dict[str, Any]:
    """Results as `evorec bench` writes them; `value(strategy, round, group)` is every figure of the blend, and the
    LLM and the retriever alone have half of it.
    """

    def figures(name: str, number: int, share: float) -> dict[str, dict[str, float]]:
        metrics = ("hr@1", "hr@3", "ndcg@3", "hr@10", "ndcg@10")
        counts = zip(GROUPS, (ASKED, ASKED, 2 * ASKED), strict=True)
        return {group: {"n": n, **dict.fromkeys(metrics, share * value(name, number, group))} for group, n in counts}

    def version(name: str, number: int) -> dict[str, Any]:
        rankers = {"blend": figures(name, number, 1.0), **{r: figures(name, number, 0.5) for r in ("llm", "retriever")}}
        place = list(strategies).index(name)
        return {
            "blend": {"llm": 1.0, "retriever": 0.5, "popularity": 0.25},
            "location": {"layers": [7, 8, 9], "votes": [0, 0, 1, 2, 4, 9, 30, 60, 40, 14], "similarity": [0.9] * 10},
            "forgotten_interactions": 3,
            "forgotten_share": 0.125,
            "consistency": 1.0,
            "validation_loss": [2.5, 2.4] if place else None,
            "code": "c0de",
            "evaluation_seconds": 600.0,
            "cost": {
                "seconds": {"locate": 3.0 * place, "update": 10.0 * 2**place} if place else {},
                "examples": 100 * place,
                "tokens_forward": 2000 * place,
                "tokens_backward": 1000 * place,
                "trainable_parameters": 30,
                "lora_parameters": 100,
                "added_memory_mib": 512.0,
            },
            "metrics": {kind: dict.fromkeys(SETS, rankers) for kind in KINDS},
        }

    def asked(number: int, candidates: str) -> dict[str, Any]:
        """As many users of each group have their target on rank 1 as the figure says, always the first ones."""
        users = np.arange(2 * ASKED)

        def hits(name: str, share: float) -> str:
            shares = [share * value(name, number, group) for group in GROUPS[:2]]
            return " ".join(str(int(n < round(one * ASKED))) for one in shares for n in range(ASKED))

        served = served_of(strategies)
        alone = ("llm", "retriever", *(() if candidates == CATALOG_SET else RULES))
        return {
            "users": " ".join(map(str, users)),
            "active": " ".join("1" if user < ASKED else "0" for user in users),
            "ranks": {name: hits(name, 1.0) for name in strategies},
            "alone": {part: hits(served, 0.5) for part in alone},
        }

    rules = {rule: {group: dict.fromkeys(("hr@1", "hr@3", "ndcg@3"), 0.111) for group in GROUPS} for rule in RULES}
    return {
        "format": FORMAT,
        "command": "evorec bench --items shop/items.jsonl --interactions shop/interactions.csv",
        "machine": {"cores": 2, "threads": 1, "accelerator": None},
        "data": {
            "name": "shop",
            "items": 60,
            "items_without_title": 2,
            "users": 80,
            "interactions": 900,
            "interactions_left_out": 5,
            "from": T0,
            "past_until": T0 + 157 * DAY,
            "until": T0 + 225 * DAY,
        },
        "seed": seed,
        "base": {
            "name": "base",
            "parameters": 5_400_000,
            "layers": 10,
            "hidden_size": 192,
            "pretrained_on_the_past": True,
            "pretraining_steps": 476,
        },
        "arguments": {"max_train_examples": 1500, "max_evaluated": 1000},
        "strategies": {name: f"{name}: what it does." for name in strategies},
        "bootstrap": {"cost": {"seconds": {"forget": 360.0, "update": 720.0}}},
        "rounds": [
            {
                "round": number,
                "rules": {kind: dict.fromkeys(SETS, rules) for kind in KINDS},
                "population": {kind: {"U_A": ASKED, "U_I": 3 * ASKED} for kind in KINDS},
                "strategies": {name: version(name, number) for name in strategies},
                "asked": {f"{kind}/{key}": asked(number, key) for kind in KINDS for key in SETS},
            }
            for number in range(1, n_rounds + 1)
        ],
    }


def rows_of(lines: Sequence[str]) -> dict[str, list[str]]:
    """A Markdown table's rows: what stands first in them -> their other cells."""
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: cells for name, *cells in table[2:]}
