from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shared.artifacts import ArtifactStore
from shared.config import Settings
from shared.errors import Conflict, InvalidArtifact, InvalidInput, NotFound, Unavailable
from shared.manifest import Manifest, adapter_name
from shared.registry_records import AliasMove, RegistryRecords
from shared.types import DomainId
from tests.factories import BEAUTY, commit, manifest, write_files
from tests.store_outage import ERRORS, interrupt

V1, V2 = adapter_name(BEAUTY, 1), adapter_name(BEAUTY, 2)


class Crash(BaseException):
    """Like SIGKILL, it is nothing that code catches."""


@pytest.fixture(params=["local", "remote"])
def artifact_settings(settings: Settings, request: pytest.FixtureRequest) -> Iterator[Settings]:
    url = None if request.param == "local" else "memory://bucket/artifacts"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield settings.model_copy(update={"artifacts_url": url})
    MemoryFileSystem.store.clear()


@pytest.fixture
def store(artifact_settings: Settings) -> ArtifactStore:
    return ArtifactStore(artifact_settings)


@pytest.fixture
def local(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings)


@pytest.mark.parametrize("url", ["s3://bucket/artifacts", "foo://bucket"])
def test_a_place_that_nothing_here_can_open_is_named_by_its_setting(
    settings: Settings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    with pytest.raises(InvalidInput, match=rf"EVOREC_ARTIFACTS_URL begins with {url[:3].rstrip(':')}.*extra `s3`"):
        ArtifactStore(settings.model_copy(update={"artifacts_url": url}))


def test_what_was_committed_is_fetched(store: ArtifactStore) -> None:
    assert store.names(BEAUTY) == []
    with store.stage(BEAUTY, V1) as staged:
        write_files(staged.path)
        (staged.path / "sub").mkdir()
        (staged.path / "sub" / "more").write_bytes(b"\x00\x01")
        committed = staged.commit(manifest(1))
    assert set(committed.checksums) == {"adapter_config.json", "adapter_model.safetensors", "sub/more"}
    folder = store.fetch(BEAUTY, V1)
    assert (folder / "sub" / "more").read_bytes() == b"\x00\x01"
    assert (folder / "adapter_model.safetensors").read_text() == "weights"
    assert Manifest.from_json((folder / "manifest.json").read_text()) == committed
    assert store.manifest(BEAUTY, V1) == committed
    assert store.names(BEAUTY) == [V1]
    assert store.domains() == [BEAUTY]


def test_a_full_disk_of_this_machine_is_not_taken_for_a_store_that_does_not_answer(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = ArtifactStore(settings.model_copy(update={"artifacts_url": f"memory://{tmp_path.name}"}))
    with store.stage(BEAUTY, V1) as staged:
        write_files(staged.path)
        staged.commit(manifest(1))
    interrupt(store, monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        store._download(tmp_path / "copy", manifest(1, checksums={"adapter_config.json": "0"}))


def test_leaving_without_commit_leaves_nothing(store: ArtifactStore) -> None:
    with store.stage(BEAUTY, V1) as staged:
        write_files(staged.path)
    assert not staged.path.exists()
    assert store.names(BEAUTY) == []
    assert commit(store, manifest(1)).name == V1


def test_a_name_is_used_once(store: ArtifactStore) -> None:
    commit(store, manifest(1))
    with pytest.raises(Conflict, match="never used twice"):
        store.stage(BEAUTY, V1)


def test_of_two_that_race_for_a_name_one_wins(store: ArtifactStore) -> None:
    with store.stage(BEAUTY, V1) as slow, store.stage(BEAUTY, V1) as fast:
        write_files(slow.path, "slow")
        write_files(fast.path, "fast")
        fast.commit(manifest(1))
        with pytest.raises(Conflict):
            slow.commit(manifest(1))
    assert (store.fetch(BEAUTY, V1) / "adapter_model.safetensors").read_text() == "fast"


def test_the_manifest_has_to_be_the_versions_own(store: ArtifactStore) -> None:
    with store.stage(BEAUTY, V1) as staged, pytest.raises(InvalidArtifact, match="was committed as"):
        staged.commit(manifest(2))
    with pytest.raises(InvalidArtifact, match="does not belong"):
        store.stage(DomainId("toys"), V1)


def test_unknown_versions(store: ArtifactStore) -> None:
    for lookup in (store.fetch, store.manifest):
        with pytest.raises(NotFound):
            lookup(BEAUTY, V1)
    store.delete(BEAUTY, V1)


def test_delete(store: ArtifactStore) -> None:
    commit(store, manifest(1))
    commit(store, manifest(2))
    store.fetch(BEAUTY, V1)
    store.delete(BEAUTY, V1)
    assert store.names(BEAUTY) == [V2]
    with pytest.raises(NotFound):
        store.fetch(BEAUTY, V1)


def test_a_version_that_another_worker_deletes_meanwhile_is_deleted(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, manifest(1))
    remove, calls = store._client.fs.rm, []

    def removed_under_it(path: str, recursive: bool = False) -> None:
        calls.append(path)
        if len(calls) == 1:
            store._client.fs.rm_file(f"{path}/adapter_config.json")
            raise FileNotFoundError(path)
        remove(path, recursive=recursive)

    monkeypatch.setattr(store._client.fs, "rm", removed_under_it)
    store.delete(BEAUTY, V1)
    assert len(calls) == 2
    assert not store._client.fs.exists(calls[0])


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_store_that_does_not_answer_is_neither_empty_nor_does_it_lack_anything(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    commit(store, manifest(1))
    interrupt(store, monkeypatch, error)
    for ask in (store.names, store.folders, store.unfinished, store.files, lambda _: store.domains()):
        with pytest.raises(Unavailable, match="try again"):
            ask(BEAUTY)
    for of_version in (store.fetch, store.manifest, store.stage, store.delete):
        with pytest.raises(Unavailable):
            of_version(BEAUTY, V1)
    for of_file in (store.open, store.read, store.delete_file):
        with pytest.raises(Unavailable):
            of_file(BEAUTY, V1, "manifest.json")
    monkeypatch.undo()
    assert store.names(BEAUTY) == [V1]


@pytest.mark.parametrize("artifact_settings", ["remote"], indirect=True)
@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_store_that_takes_nothing_is_unavailable(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with store.stage(BEAUTY, V1) as staged:
        interrupt(store, monkeypatch, error)
        with pytest.raises(Unavailable):
            staged.commit(manifest(1))
    with pytest.raises(Unavailable), store.write(BEAUTY, "route.json") as file:
        file.write_text("{}")
    monkeypatch.undo()
    assert list(store.place.iterdir()) == []


def test_a_file_in_the_place_of_a_folder_holds_nothing(store: ArtifactStore) -> None:
    for path in (("archive",), (V1,)):
        with store.write(BEAUTY, *path) as file:
            file.write_text("")
    assert (store.files(BEAUTY, "archive"), store.files(BEAUTY, "archive", "0")) == ([], [])
    assert store.names(BEAUTY) == []
    with pytest.raises(NotFound):
        store.fetch(BEAUTY, V1)
    store.delete(BEAUTY, V1)
    assert store.files(BEAUTY) == ["archive"]


def test_names_are_in_the_order_of_their_numbers(store: ArtifactStore) -> None:
    for number in (1_000_000, 2, 999_999):
        commit(store, manifest(number))
    assert [name[-7:] for name in store.names(BEAUTY)] == ["v000002", "v999999", "1000000"]


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damage_is_found(local: ArtifactStore, damage: str) -> None:
    commit(local, manifest(1))
    weights = local.fetch(BEAUTY, V1) / "adapter_model.safetensors"
    weights.write_text("other") if damage == "changed" else weights.unlink()
    with pytest.raises(InvalidArtifact, match=r"adapter_model\.safetensors"):
        local.fetch(BEAUTY, V1)


@pytest.mark.parametrize("artifact_settings", ["remote"], indirect=True)
def test_a_damaged_local_copy_is_replaced_and_a_damaged_original_refused(artifact_settings: Settings) -> None:
    store = ArtifactStore(artifact_settings)
    commit(store, manifest(1))
    (store.fetch(BEAUTY, V1) / "adapter_model.safetensors").write_text("bad copy")
    assert (store.fetch(BEAUTY, V1) / "adapter_model.safetensors").read_text() == V1
    shutil.rmtree(store.fetch(BEAUTY, V1))
    MemoryFileSystem().pipe_file(f"/bucket/artifacts/{BEAUTY}/{V1}/adapter_model.safetensors", b"bad original")
    with pytest.raises(InvalidArtifact, match="checksum"):
        store.fetch(BEAUTY, V1)


@pytest.mark.parametrize("artifact_settings", ["remote"], indirect=True)
def test_what_an_upload_puts_behind_a_deletion_is_refused(
    artifact_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a worker that slept through its lease while its successor dropped the half version."""
    store = ArtifactStore(artifact_settings)
    put = store._client.fs.put_file

    def delete_then_put(source: str, target: str) -> None:
        if target.endswith("manifest.json"):
            assert store.unfinished(BEAUTY) == [V1]
            store.delete(BEAUTY, V1)
        put(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(store._client.fs, "put_file", delete_then_put)
        commit(store, manifest(1))
    with pytest.raises(InvalidArtifact, match=r"adapter_config\.json is missing"):
        store.fetch(BEAUTY, V1)
    assert store.copies(BEAUTY) == []


def test_a_broken_manifest_is_an_invalid_artifact(local: ArtifactStore) -> None:
    commit(local, manifest(1))
    (local.fetch(BEAUTY, V1) / "manifest.json").write_text("{")
    with pytest.raises(InvalidArtifact):
        local.fetch(BEAUTY, V1)


def test_a_crash_at_any_step_shows_nothing_or_everything(
    artifact_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file operation of a commit fails once; afterwards the version is either not there or complete."""
    store = ArtifactStore(artifact_settings)
    commit(store, manifest(1))
    outcomes = [_crash_at(step, artifact_settings, monkeypatch) for step in range(20)]
    assert outcomes[0] == [V1]  # at least the first crash came before the version was visible
    assert outcomes[-1] == [V1, V2]  # and the last one after the end


def _crash_at(step: int, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    steps = iter(range(1000))

    def crashing(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == step:
                raise Crash
            return function(*args, **kwargs)

        return call

    store = ArtifactStore(settings)
    store.delete(BEAUTY, V2)
    staged = store.stage(BEAUTY, V2)  # no context manager: a killed process cleans nothing up
    write_files(staged.path)
    with monkeypatch.context() as patched:
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "write_text"), (MemoryFileSystem, "put_file")):
            patched.setattr(owner, name, crashing(getattr(owner, name)))
        with suppress(Crash):
            staged.commit(manifest(2))
    later = ArtifactStore(settings)
    for name in later.names(BEAUTY):
        assert later.fetch(BEAUTY, name).is_dir()
    return list(later.names(BEAUTY))


def test_alias_moves_are_kept_in_order(store: ArtifactStore) -> None:
    moves = [
        AliasMove(sequence=n, alias="champion", before=None, to=adapter_name(BEAUTY, n), at=float(n), reason="publish")
        for n in (1, 2, 10)
    ]
    records = RegistryRecords(store)
    assert records.alias_moves(BEAUTY) == []
    for move in (moves[2], moves[0], moves[1], moves[0]):
        records.record_alias_move(BEAUTY, move)
    assert records.alias_moves(BEAUTY) == moves
    assert store.names(BEAUTY) == []
