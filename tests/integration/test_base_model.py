"""The shipped base has learnt the task: it ranks for users and stores that it has never seen."""

from __future__ import annotations

import random

from evolver.batches import score_prompts
from evolver.evaluate import hit_rate, rank_of
from evolver.lora import load_with_lora
from evolver.stores import make_store
from shared.base_model import base_model_folder, base_model_info
from shared.config import Settings
from shared.prompt import Prompt, PromptBuilder
from shared.types import ItemId, UserId

UNSEEN_SEEDS = (5001, 5002, 5003, 5004)
USERS = 150


def _prompts(seed: int, builder: PromptBuilder) -> list[tuple[Prompt, int]]:
    """Each user's next purchase among 19 uniform draws from what they do not own."""
    store = make_store(seed)
    items = {item.item_id: item for item in store.items}
    owned: dict[UserId, list[ItemId]] = {}
    for event in (*store.first_period, *store.second_period):
        owned.setdefault(event.user_id, []).append(event.item_id)
    found = []
    for user in sorted(owned)[:USERS]:
        rng = random.Random(f"{seed}:{user}")
        target = store.future[user]
        others = sorted(items.keys() - {*owned[user], target})
        candidates = rng.sample([target, *rng.sample(others, 19)], 20)
        prompt = builder.build([items[item] for item in owned[user]], [items[item] for item in candidates])
        found.append((prompt, candidates.index(target)))
    return found


def test_unseen_users_of_unseen_stores_get_their_next_purchase_first_in_a_fifth_of_cases() -> None:
    """Chance is 0.05; a fresh LoRA changes nothing, so this is the base alone."""
    settings = Settings()
    builder = PromptBuilder.load(settings)
    model = load_with_lora(settings, None, seed=0)
    cases = [case for seed in UNSEEN_SEEDS for case in _prompts(seed, builder)]
    scores = score_prompts(model, [prompt for prompt, _ in cases], builder.label_ids)
    ranks = [rank_of(row, target) for row, (_, target) in zip(scores, cases, strict=True)]
    print(f"HR@1 {hit_rate(ranks, 1):.3f}, HR@3 {hit_rate(ranks, 3):.3f} of {len(ranks)} users")  # noqa: T201
    assert hit_rate(ranks, 1) >= 0.20


def test_it_is_small_and_has_three_layers_to_locate() -> None:
    folder = base_model_folder(Settings().base_model)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15e6
    assert base_model_info(str(folder)).n_layers == 10
    assert not list(folder.glob("*.bin")) + list(folder.glob("*.pt"))
