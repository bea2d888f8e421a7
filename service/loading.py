"""From the artifact store to a version's parts in memory. Blocking: called in threads."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.ports import CandidateIndex, Forgotten
from service.verify import BaseShape, check_version
from shared.artifacts import ArtifactStore
from shared.base_model import base_model_folder, base_model_hash
from shared.config import Settings
from shared.forgotten import ForgottenSet
from shared.item_words import ItemWords
from shared.manifest import Manifest
from shared.retriever import Retriever, RetrieverIndex
from shared.types import AdapterName, DomainId, Item

IndexFactory = Callable[[Sequence[Item]], CandidateIndex]


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """A verified version. `folder` is immutable; `make_index` builds its retriever's index over a catalog."""

    folder: Path
    manifest: Manifest
    forgotten: Forgotten
    make_index: IndexFactory


class VersionLoader(Protocol):
    def __call__(self, domain: DomainId, name: AdapterName) -> VersionFiles:
        """NotFound or InvalidArtifact where the version cannot be had or must not be served."""


class ArtifactLoader:
    """Fetches a version, checks it against the base model, reads its retriever and its forgotten set."""

    def __init__(self, settings: Settings, artifacts: ArtifactStore) -> None:
        self._settings = settings
        self._artifacts = artifacts
        self._base: BaseShape | None = None
        # Of each domain's catalog as it was indexed last: a change of some items leaves those of the others.
        self._words: dict[DomainId, ItemWords] = {}
        self._reading_words = threading.Lock()

    def __call__(self, domain: DomainId, name: AdapterName) -> VersionFiles:
        folder = self._artifacts.fetch(domain, name)
        manifest = self._artifacts.manifest(domain, name)
        check_version(folder, manifest, self._base_shape(), self._settings.lora_rank)
        retriever = Retriever.load(folder)
        return VersionFiles(
            folder=folder,
            manifest=manifest,
            forgotten=ForgottenSet.load(folder),
            make_index=lambda items: RetrieverIndex(retriever, items, self._words_of(domain, items, retriever)),
        )

    def _words_of(self, domain: DomainId, items: Sequence[Item], retriever: Retriever) -> ItemWords:
        with self._reading_words:
            words = ItemWords.of(items, retriever.config.word_buckets, self._words.get(domain))
            self._words[domain] = words
            return words

    def _base_shape(self) -> BaseShape:
        """Read once: hashing a large base takes a while, and the engine has loaded it for good."""
        if self._base is None:
            config = json.loads((base_model_folder(self._settings.base_model) / "config.json").read_text())
            self._base = BaseShape.from_config(config, base_model_hash(self._settings.base_model))
        return self._base
