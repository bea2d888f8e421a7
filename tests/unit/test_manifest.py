from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from pydantic import ValidationError

import shared.manifest
from shared.errors import InvalidArtifact, NotFound
from shared.manifest import Manifest, split_adapter_name
from shared.types import AdapterName
from tests import factories

GOLDEN = Path(__file__).parents[1] / "golden" / "manifest.json"


def test_doctests() -> None:
    assert doctest.testmod(shared.manifest).failed == 0


def test_golden() -> None:
    """The manifest is a file format: older versions must stay readable. On purpose changed? Write the file anew."""
    manifest = factories.manifest(2, parent=AdapterName("beauty-v000001"), checksums={"adapter_config.json": "ab" * 32})
    assert manifest.to_json() == GOLDEN.read_text()
    assert Manifest.from_json(GOLDEN.read_bytes()) == manifest
    # There one blend was for all candidates.
    assert Manifest.from_json(GOLDEN.with_name("manifest-before-0038.json").read_bytes()) == manifest


def test_range_end_is_the_watermark() -> None:
    assert factories.manifest(stream_ranges={0: ("0-0", "5-1"), 1: ("0-0", "7-0")}).range_end == {0: "5-1", 1: "7-0"}


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"name": 1}'])
def test_what_is_no_manifest_is_an_invalid_artifact(content: str) -> None:
    with pytest.raises(InvalidArtifact, match="not a valid manifest"):
        Manifest.from_json(content)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        factories.manifest(surprise=1)


@pytest.mark.parametrize("file", ["/etc/passwd", "../../x", "a/../../b", ""])
def test_files_cannot_leave_the_artifact(file: str) -> None:
    with pytest.raises(ValidationError, match="outside"):
        factories.manifest(checksums={file: "00"})


@pytest.mark.parametrize(
    "name", ["beauty", "beauty-v1", "-v000001", "beauty-v000001/..", "beauty-vabcdef", "../x-v000001", "B-v000001", ""]
)
def test_foreign_names_are_not_found(name: str) -> None:
    with pytest.raises(NotFound):
        split_adapter_name(name)
