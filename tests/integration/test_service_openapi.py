"""The interface as a golden file: a change of it has to be meant (EVOREC_UPDATE_GOLDEN=1 rewrites the file)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from service.app import create_app
from service.audit import CATALOG
from service.body import BATCHES, MAX_BYTES
from tests.conftest import make_settings

GOLDEN = Path(__file__).parents[1] / "golden" / "openapi.json"
UPDATE = os.environ.get("EVOREC_UPDATE_GOLDEN")


@pytest.fixture
def document(tmp_path: Path) -> dict[str, object]:
    return create_app(make_settings(state_dir=tmp_path, redis_url="redis://127.0.0.1:1")).openapi()


def test_openapi_is_the_golden_one(document: dict[str, object]) -> None:
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    if UPDATE:
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_the_guards_of_bodies_and_the_audit_trail_name_the_routes_by_their_paths(document: dict[str, object]) -> None:
    """Of a path that they do not know, bodies are small, any number is read at once, and nothing is recorded."""
    taken = {
        operation["requestBody"]["content"]["application/json"]["schema"].get("$ref", "").rpartition("/")[2]: path
        for path, operations in document["paths"].items()  # type: ignore[attr-defined]
        for operation in operations.values()
        if "requestBody" in operation
    }
    assert {taken["InteractionsRequest"], taken["ItemsRequest"]} == BATCHES
    assert BATCHES | {taken["RecommendRequest"]} == MAX_BYTES.keys()
    assert taken["ItemsRequest"] == CATALOG


def test_every_reference_leads_somewhere(document: dict[str, object]) -> None:
    text = json.dumps(document)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= document["components"]["schemas"].keys()  # type: ignore[index]


def test_every_call_is_tagged_described_and_lists_its_problems(document: dict[str, object]) -> None:
    for path, operations in document["paths"].items():  # type: ignore[attr-defined]
        for method, operation in operations.items():
            assert operation["tags"], (method, path)
            assert operation["description"], (method, path)
            if not path.startswith(("/health", "/metrics")):
                assert {"401", "403", "422", "503"} <= operation["responses"].keys(), (method, path)
