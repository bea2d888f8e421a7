"""The retriever of the service and the filter of Forget: the mean of a few members, SASRecs that were trained apart.

Members that start from other random numbers find other neighbours for the same history, and the mean of what they say
is better than what any of them says (ADR 0028; as deep ensembles, arXiv 1612.01474, which average probabilities where
this averages logits).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.categories import in_categories
from shared.errors import InvalidArtifact
from shared.item_words import ItemWords
from shared.sasrec import RetrieverConfig, SASRec
from shared.types import Item, ItemId

if TYPE_CHECKING:
    from shared.nearest import HalfPrecisionIndex

# Above, the product with every item's vector would take longer than the LLM on a small base.
EXACT_UP_TO = 100_000
RETRIEVER_FILE = "retriever.safetensors"
_ITEM_IDS = "item_ids"  # JSON as bytes: metadata are of the header, which may have 100 MB, and a catalog a million ids
REMEMBERED_STATES = 4096  # whoever asks about a history often asks again


class Retriever(nn.Module):
    """Members' item vectors and states stand beside each other, [member 0 | member 1 | ...], so that whoever searches
    or scores sees one model with vectors [I, D] and states [D], D = members * d.
    """

    def __init__(self, item_ids: Sequence[ItemId], config: RetrieverConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or RetrieverConfig()
        self.rows: Mapping[ItemId, int] = {item_id: row for row, item_id in enumerate(item_ids)}
        self.members = nn.ModuleList(SASRec(len(item_ids), config) for _ in range(config.members))

    def item_vectors(self, items: Sequence[Item], words: ItemWords | None = None) -> Tensor:
        """`words` are those of the items, if they are known.  -> [len(items), D]"""
        words = words or ItemWords.of(items, self.config.word_buckets)
        unknown, device = len(self.rows), next(self.parameters()).device
        rows = torch.tensor([self.rows.get(item.item_id, unknown) for item in items], dtype=torch.long).to(device)
        buckets, starts = torch.from_numpy(words.buckets).to(device), torch.from_numpy(words.starts).to(device)
        return torch.cat([member.item_vectors(rows, buckets, starts) for member in self._members()], dim=-1)

    def encode(self, history: Tensor) -> Tensor:
        """States after each item of left-aligned histories; their products with item vectors are the mean of the
        members'.  history: item vectors [B, T <= max_length, D] -> [B, T, D]
        """
        parts = history.chunk(self.config.members, dim=-1)
        states = [member.encode(part) for member, part in zip(self._members(), parts, strict=True)]
        return torch.cat(states, dim=-1) / len(states)

    def logits(self, states: Tensor, vectors: Tensor) -> Tensor:
        """What each member says by itself.  states: [N, D], vectors: [I, D] -> [members, N, I]"""
        width, members = self.config.width, self.config.members

        def apart(one: Tensor) -> Tensor:
            return one.view(-1, members, width).transpose(0, 1)

        return apart(states * members) @ apart(vectors).mT

    def _members(self) -> Iterator[SASRec]:
        return (cast("SASRec", member) for member in self.members)

    def with_items(self, item_ids: Sequence[ItemId]) -> Retriever:
        """A copy that has embeddings of these ids alone, zero where it did not know them: a catalog that changes would
        leave more rows behind with every version.
        """
        wanted = frozenset(item_ids)
        kept = {item_id: row for item_id, row in self.rows.items() if item_id in wanted}
        new = [item_id for item_id in item_ids if item_id not in kept]
        copy = Retriever([*kept, *new], self.config)
        for member, known in zip(copy._members(), self._members(), strict=True):
            member.take(known, [*kept.values()])
        return copy

    def part(self, start: int, end: int) -> Retriever:
        """The members from `start` to before `end` (not copied), as a retriever of its own."""
        return self._of(list(self.members)[start:end])

    @classmethod
    def joined(cls, parts: Sequence[Retriever]) -> Retriever:
        """The members of all of them (not copied), which know the same items."""
        return parts[0]._of([member for part in parts for member in part.members]).eval()

    def _of(self, members: Sequence[nn.Module]) -> Retriever:
        """One of these members and this one's items."""
        with torch.device("meta"):  # its own weights would be drawn and thrown away
            one = Retriever([*self.rows], replace(self.config, members=len(members)))
        one.members = nn.ModuleList(members)
        return one

    def is_finite(self) -> bool:
        """Whether all its weights are numbers; after a training that diverged some are not."""
        return all(bool(value.isfinite().all()) for value in self.state_dict().values())

    def save(self, folder: Path) -> None:
        """Write `retriever.safetensors`: weights, item ids, and the configuration as metadata."""
        # One entry: safetensors writes several in any order, and equal retrievers must give equal bytes.
        metadata = {"retriever": json.dumps({"config": asdict(self.config)})}
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        tensors[_ITEM_IDS] = torch.frombuffer(bytearray(json.dumps([*self.rows]).encode()), dtype=torch.uint8)
        save_file(tensors, folder / RETRIEVER_FILE, metadata)

    @classmethod
    def load(cls, folder: Path) -> Retriever:
        """Read `retriever.safetensors`; raises `InvalidArtifact` where it is missing, damaged, of another shape or
        holds weights that are not numbers.
        """
        path = folder / RETRIEVER_FILE
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            about = json.loads(metadata["retriever"])
            # Files written before these were a tensor have them beside the configuration.
            ids = tensors.pop(_ITEM_IDS, None)
            item_ids = about["item_ids"] if ids is None else json.loads(ids.numpy().tobytes())
            if "members" not in about["config"]:  # written before there were several (ADR 0028)
                tensors = {f"members.0.{name}": value for name, value in tensors.items()}
            config = RetrieverConfig(**about["config"])
            if len({name.split(".")[1] for name in tensors}) != config.members:
                raise ValueError(f"its weights are not those of {config.members} members")
            model = cls(item_ids, config)
            model.load_state_dict(tensors)
            if not model.is_finite():
                raise ValueError("its weights are not numbers, they have diverged")
        except Exception as error:
            raise InvalidArtifact(f"{path} is no retriever that this version can read: {error}") from error
        return model.eval()


class RetrieverIndex:
    """A retriever over a snapshot of a catalog, which never changes; safe to share between requests."""

    def __init__(
        self,
        retriever: Retriever,
        items: Sequence[Item],
        words: ItemWords | None = None,
        *,
        exact_up_to: int = EXACT_UP_TO,
    ) -> None:
        """`words` are those of the items, if they are known."""
        self._retriever = retriever.eval()
        self._items = tuple(items)
        self._rows = {item.item_id: row for row, item in enumerate(self._items)}
        self._available = torch.tensor([item.available for item in self._items], dtype=torch.bool)
        self._categories = {category: code for code, category in enumerate({item.category: 0 for item in self._items})}
        self._category_codes = torch.tensor([self._categories[item.category] for item in self._items], dtype=torch.long)
        with torch.inference_mode():
            self._vectors = (
                retriever.item_vectors(self._items, words)
                if self._items
                else torch.zeros(0, retriever.config.vector_width)
            )
        self._large = _half_precision(self._vectors) if len(self._items) > exact_up_to else None
        self._states: dict[tuple[int, ...], Tensor] = {}

    def item(self, item_id: ItemId) -> Item | None:
        """The catalog's entry, or None."""
        row = self._rows.get(item_id)
        return None if row is None else self._items[row]

    def candidates(
        self,
        history: Sequence[ItemId],
        k: int,
        *,
        exclude: Set[ItemId] = frozenset(),
        categories: Set[str] | None = None,
    ) -> list[tuple[ItemId, float]]:
        """The k best available items outside `exclude` (in `categories`, if given), best first, with their scores:
        log-probabilities over the catalog; over the k found where the catalog is too large to sum over.
        """
        allowed = self._allowed(exclude, categories)
        k = min(k, int(allowed.sum()))
        state = self._state(history)
        if self._large is not None and state is not None and k:
            rows, products = self._large.best(state.numpy(), k, allowed.numpy())
            values = torch.log_softmax(torch.tensor(products), dim=0).tolist()
        else:
            best = torch.topk(self._log_probabilities(state).masked_fill(~allowed, -torch.inf), k)
            rows, values = best.indices.tolist(), best.values.tolist()
        return [(self._items[row].item_id, value) for row, value in zip(rows, values, strict=True)]

    def _allowed(self, exclude: Set[ItemId], categories: Set[str] | None) -> Tensor:
        """-> bool [I]"""
        allowed = self._available.clone()
        allowed[[self._rows[item_id] for item_id in exclude if item_id in self._rows]] = False
        if categories is not None:
            wanted = torch.tensor([in_categories(category, categories) for category in self._categories])
            allowed &= wanted[self._category_codes]
        return allowed

    def scores(self, history: Sequence[ItemId], item_ids: Sequence[ItemId]) -> list[float]:
        """Log-probabilities over the catalog for some of its items.  -> [len(item_ids)]"""
        values: list[float] = self._scores(history)[[self._rows[item_id] for item_id in item_ids]].tolist()
        return values

    def contributions(self, history: Sequence[ItemId], item_ids: Sequence[ItemId]) -> list[list[float]]:
        """What each history item adds to each item's score: score with the whole history minus score without it.

        -> [len(item_ids)][len(history)]
        """
        added = [[0.0] * len(history) for _ in item_ids]
        wanted = [self._rows[item_id] for item_id in item_ids]
        whole = self._scores(history)[wanted].tolist()
        known = [index for index, one in enumerate(history) if one in self._rows]
        for index in known[-self._retriever.config.max_length :]:
            # Nobody asks about these again, so they are not remembered.
            rows = self._known_rows([*history[:index], *history[index + 1 :]])
            without = self._log_probabilities(self._encoded(rows) if rows else None)[wanted].tolist()
            for row, with_it, without_it in zip(added, whole, without, strict=True):
                row[index] = with_it - without_it
        return added

    def _scores(self, history: Sequence[ItemId]) -> Tensor:
        """log softmax over the catalog.  -> [I]"""
        return self._log_probabilities(self._state(history))

    @torch.inference_mode()
    def _log_probabilities(self, state: Tensor | None) -> Tensor:
        """log softmax over the catalog after a history's state; all alike without one.  -> [I]"""
        if state is None:
            return torch.full((len(self._items),), -float(torch.tensor(max(1, len(self._items))).log()))
        return torch.log_softmax(self._vectors @ state, dim=0)

    def _known_rows(self, history: Sequence[ItemId]) -> tuple[int, ...]:
        """The newest known items' rows, as many as the model reads."""
        known = [self._rows[item_id] for item_id in history if item_id in self._rows]
        return tuple(known[-self._retriever.config.max_length :])

    def _state(self, history: Sequence[ItemId]) -> Tensor | None:
        """The state after the newest known items; None where none is known.  -> [D]"""
        rows = self._known_rows(history)
        if not rows:
            return None
        state = self._states.get(rows)
        if state is None:
            if len(self._states) >= REMEMBERED_STATES:
                self._states.clear()
            self._states[rows] = state = self._encoded(rows)
        return state

    @torch.inference_mode()
    def _encoded(self, rows: Sequence[int]) -> Tensor:
        """-> [D]"""
        states = self._retriever.encode(self._vectors[list(rows)].unsqueeze(0))
        return states[0, -1].clone()  # a view would keep the states of all its items


def _half_precision(vectors: Tensor) -> HalfPrecisionIndex:
    from shared.nearest import HalfPrecisionIndex  # FAISS takes half a second to import, and most catalogs need none

    return HalfPrecisionIndex(vectors.numpy())
