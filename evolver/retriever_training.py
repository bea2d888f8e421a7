"""Training of the retriever, each member apart: from scratch at the bootstrap, and its renewal by a window with which
Forget begins. It trains on any device, and is handed over on the CPU, where it answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from shared.config import Settings
from shared.item_words import ItemWords
from shared.retriever import Retriever
from shared.sasrec import RetrieverConfig
from shared.types import Item, ItemId, UserId

# Above this many items the softmax runs over the targets and this many shared random items instead of the whole
# catalog.
MAX_SOFTMAX_ITEMS = 4096
BATCH_USERS = 128
WEIGHT_DECAY = 0.3  # AdamW's, beside a dropout of one half: most items have a handful of interactions (ADR 0030)
# AdamW's learning rates: as fast as from scratch, who rehearses; slower, whom little keeps from forgetting (ADR 0033).
RATE, WINDOW_RATE = 3e-3, 1e-3
READ_AT_ONCE = {"cpu": 32, "cuda": BATCH_USERS}  # users of a batch: a GPU waits longer for kernels than for padding
CPU = torch.device("cpu")

Places = Mapping[UserId, frozenset[int]]
"""Which places of whose sequences are predicted."""


def retriever_config(settings: Settings) -> RetrieverConfig:
    """What a domain's retriever is made as, at its bootstrap; its children keep it."""
    return RetrieverConfig(members=settings.retriever_members, dropout=settings.retriever_dropout)


def train_retriever(
    items: Sequence[Item],
    sequences: Mapping[UserId, Sequence[ItemId]],
    *,
    epochs: int,
    seed: int,
    on_step: Callable[[float], None],
    config: RetrieverConfig | None = None,
    device: torch.device = CPU,
) -> Retriever:
    """A retriever trained on every position of the sequences (oldest first)."""
    torch.manual_seed(seed)
    model = Retriever([item.item_id for item in items], config)
    targets = {user: frozenset(range(1, len(sequence))) for user, sequence in sequences.items()}
    _fit(model.to(device), items, sequences, [targets] * epochs, seed=seed, learning_rate=RATE, on_step=on_step)
    return model.to(CPU).eval()


def finetune_retriever(
    parent: Retriever,
    items: Sequence[Item],
    sequences: Mapping[UserId, Sequence[ItemId]],
    targets: Sequence[Places],
    *,
    learning_rate: float,
    seed: int,
    on_step: Callable[[float], None],
    device: torch.device = CPU,
) -> Retriever:
    """A copy of the parent, fitted to the positions in `targets` alone, which has those of each epoch."""
    torch.manual_seed(seed)
    model = parent.with_items([item.item_id for item in items])
    _fit(model.to(device), items, sequences, targets, seed=seed, learning_rate=learning_rate, on_step=on_step)
    return model.to(CPU).eval()


def renew_retriever(
    parent: Retriever,
    items: Sequence[Item],
    sequences: Mapping[UserId, Sequence[ItemId]],
    window: Places,
    rehearsed: Sequence[UserId],
    *,
    rehearsing: float,
    epochs: int,
    seed: int,
    on_step: Callable[[float], None],
    device: torch.device = CPU,
) -> Retriever:
    """The parent, each member fitted to the positions in `window` in every epoch; a share `rehearsing` of the members,
    the last ones and rounded up (ADR 0029), to all that the `rehearsed` users did as well, other users in each epoch
    and at the faster rate where they are no fewer than the window's (ADR 0033). `window`: of active users alone.
    """
    members = parent.config.members
    alone = members - math.ceil(rehearsing * members)

    def fitted(start: int, end: int, targets: Sequence[Places], learning_rate: float) -> Retriever:
        return finetune_retriever(
            parent.part(start, end),
            items,
            sequences,
            targets,
            learning_rate=learning_rate,
            seed=seed,
            on_step=lambda share: on_step((start + share * (end - start)) / members),
            device=device,
        )

    remembered = [
        {**window, **{user: frozenset(range(len(sequences[user]))) for user in rehearsed[epoch::epochs]}}
        for epoch in range(epochs)
    ]
    parts = (
        (0, alone, [window] * epochs, WINDOW_RATE),
        (alone, members, remembered, RATE if len(rehearsed) >= len(window) else WINDOW_RATE),
    )
    return Retriever.joined([fitted(*part) for part in parts if part[0] < part[1]])


def _fit(
    model: Retriever,
    items: Sequence[Item],
    sequences: Mapping[UserId, Sequence[ItemId]],
    targets: Sequence[Places],
    *,
    seed: int,
    learning_rate: float,
    on_step: Callable[[float], None],
) -> None:
    """An epoch for each of `targets`."""
    rows = {item.item_id: row for row, item in enumerate(items)}
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    words = ItemWords.of(items, model.config.word_buckets)
    model.train()
    for epoch, wanted in enumerate(targets):
        if epoch == 0 or wanted is not targets[epoch - 1]:
            chunks = list(_chunks(rows, sequences, wanted, model.config.max_length))
        order = torch.randperm(len(chunks), generator=generator).tolist()
        for start in range(0, len(chunks), BATCH_USERS):
            picked = [chunks[index] for index in order[start : start + BATCH_USERS]]
            loss = _loss(model, words, picked, generator)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            for member in model.members:
                nn.utils.clip_grad_norm_(member.parameters(), 1.0)
            optimizer.step()
            on_step((epoch + (start + len(picked)) / len(chunks)) / len(targets))


def _chunks(
    rows: Mapping[ItemId, int],
    sequences: Mapping[UserId, Sequence[ItemId]],
    targets: Places,
    max_length: int,
) -> Iterator[tuple[list[int], list[bool]]]:
    """Each user's newest `max_length` + 1 catalog rows, and which of them are targets."""
    for user, wanted in targets.items():
        known = [(rows[item], index in wanted) for index, item in enumerate(sequences[user]) if item in rows]
        chunk = known[-max_length - 1 :]
        if len(chunk) > 1 and any(target for _, target in chunk[1:]):
            yield [row for row, _ in chunk], [target for _, target in chunk]


def _loss(
    model: Retriever, words: ItemWords, picked: Sequence[tuple[list[int], list[bool]]], generator: torch.Generator
) -> Tensor:
    """Cross-entropy of each target among the (sampled) catalog, given the items before it, of each member by itself:
    they share what they are shown and no gradient. `words`: the catalog's.

    Most histories are short and some are long: they are read in groups of like length, which are padded less.
    """
    n_items = len(words.items)
    pool = torch.arange(n_items)
    if n_items > MAX_SOFTMAX_ITEMS:
        sampled = torch.randint(0, n_items, (MAX_SOFTMAX_ITEMS,), generator=generator)
        pool = torch.unique(torch.cat([torch.tensor([row for chunk, _ in picked for row in chunk]), sampled]))
    of_pool = words.take(pool.numpy())
    vectors = model.item_vectors(of_pool.items, of_pool)  # [P, D]
    states, targets = [], []
    by_length = sorted(picked, key=lambda chunk: len(chunk[0]))
    at_once = READ_AT_ONCE[vectors.device.type]
    for start in range(0, len(by_length), at_once):
        ids, mask = _padded(by_length[start : start + at_once])
        places, mask = torch.searchsorted(pool, ids).to(vectors.device), mask.to(vectors.device)
        states.append(model.encode(vectors[places[:, :-1]])[mask[:, 1:]])
        targets.append(places[mask])
    wanted = torch.cat(targets)
    logits = model.logits(torch.cat(states), vectors)  # [members, N, P]
    return torch.stack([nn.functional.cross_entropy(of_member, wanted) for of_member in logits]).sum()


def _padded(chunks: Sequence[tuple[list[int], list[bool]]]) -> tuple[Tensor, Tensor]:
    """Catalog rows, and which of them are targets (never a first one: nothing lies before it).  -> [B, T] each"""
    ids = torch.zeros(len(chunks), max(len(chunk) for chunk, _ in chunks), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, (chunk, wanted) in enumerate(chunks):
        ids[row, : len(chunk)] = torch.tensor(chunk)
        mask[row, 1 : len(chunk)] = torch.tensor(wanted[1:])
    return ids, mask
