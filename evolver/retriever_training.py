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
READ_AT_ONCE = {"cpu": 32, "cuda": BATCH_USERS}  # users of a batch: a GPU waits longer for kernels than for padding
CPU = torch.device("cpu")


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
    _fit(model.to(device), items, sequences, targets, epochs=epochs, seed=seed, learning_rate=3e-3, on_step=on_step)
    return model.to(CPU).eval()


def finetune_retriever(
    parent: Retriever,
    items: Sequence[Item],
    sequences: Mapping[UserId, Sequence[ItemId]],
    targets: Mapping[UserId, frozenset[int]],
    *,
    epochs: int,
    seed: int,
    on_step: Callable[[float], None],
    device: torch.device = CPU,
) -> Retriever:
    """A copy of the parent, fitted to the positions in `targets` alone."""
    torch.manual_seed(seed)
    model = parent.with_items([item.item_id for item in items])
    _fit(model.to(device), items, sequences, targets, epochs=epochs, seed=seed, learning_rate=1e-3, on_step=on_step)
    return model.to(CPU).eval()


def renew_retriever(
    parent: Retriever,
    items: Sequence[Item],
    sequences: Mapping[UserId, Sequence[ItemId]],
    window: Mapping[UserId, frozenset[int]],
    rehearsed: Sequence[UserId],
    *,
    rehearsing: float,
    epochs: int,
    seed: int,
    on_step: Callable[[float], None],
    device: torch.device = CPU,
) -> Retriever:
    """The parent, each member fitted to the positions in `window`; a share `rehearsing` of the members, the last ones
    and rounded up, to all that the `rehearsed` users did as well (ADR 0029).
    """
    members = parent.config.members
    alone = members - math.ceil(rehearsing * members)

    def fitted(start: int, end: int, targets: Mapping[UserId, frozenset[int]]) -> Retriever:
        return finetune_retriever(
            parent.part(start, end),
            items,
            sequences,
            targets,
            epochs=epochs,
            seed=seed,
            on_step=lambda share: on_step((start + share * (end - start)) / members),
            device=device,
        )

    everything = {user: frozenset(range(len(sequences[user]))) for user in rehearsed}
    parts = ((0, alone, window), (alone, members, {**window, **everything}))
    return Retriever.joined([fitted(start, end, targets) for start, end, targets in parts if start < end])


def _fit(
    model: Retriever,
    items: Sequence[Item],
    sequences: Mapping[UserId, Sequence[ItemId]],
    targets: Mapping[UserId, frozenset[int]],
    *,
    epochs: int,
    seed: int,
    learning_rate: float,
    on_step: Callable[[float], None],
) -> None:
    rows = {item.item_id: row for row, item in enumerate(items)}
    chunks = list(_chunks(rows, sequences, targets, model.config.max_length))
    if not chunks:
        return
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    words = ItemWords.of(items, model.config.word_buckets)
    batches_per_epoch = -(-len(chunks) // BATCH_USERS)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(chunks), generator=generator).tolist()
        for number in range(batches_per_epoch):
            picked = [chunks[index] for index in order[number * BATCH_USERS : (number + 1) * BATCH_USERS]]
            loss = _loss(model, words, picked, generator)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            for member in model.members:
                nn.utils.clip_grad_norm_(member.parameters(), 1.0)
            optimizer.step()
            on_step((epoch * batches_per_epoch + number + 1) / (epochs * batches_per_epoch))


def _chunks(
    rows: Mapping[ItemId, int],
    sequences: Mapping[UserId, Sequence[ItemId]],
    targets: Mapping[UserId, frozenset[int]],
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
